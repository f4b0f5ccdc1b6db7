"""An endpoint on this machine with OpenAI's Files and Batch APIs, which answers as a script says, in any order."""

import email
import http.server
import json
import random
import threading

from tests.distillation.stand_in import answer


class BatchStandIn:
    """The endpoint, in a thread; a context manager.

    Attributes:
      files: contents by id.
      batches: objects by id, oldest first.
      script: question -> `expire`, a status of HTTP, or fields of `stand_in.answer`.
      drop: routes whose next request is acted on, and whose connection ends without a response.
      refuse: routes whose next request gets this (status, error).
      asked: (question, seed) of all requests in batches that were created.
      billed: prompt and output tokens.
    """

    def __init__(self):
        self.files, self.batches, self.script = {}, {}, {}
        self.drop, self.refuse = set(), {}
        self.asked, self.uploads = [], 0
        self.prompt_tokens = self.output_tokens = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self):
        stand_in = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self._reply("GET", b"")

            def do_POST(self):
                self._reply(
                    "POST",
                    self.rfile.read(int(self.headers.get("content-length") or 0))
                    if self.headers.get("content-length")
                    else _chunked(self.rfile),
                )

            def log_message(self, *_):
                pass

            def _reply(self, method, body):
                status, found = stand_in.answer(method, self.path.removeprefix("/v1"), self.headers, body)
                if status is None:
                    self.close_connection = True
                    self.connection.shutdown(2)
                    return
                content = found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, method, path, headers, body):
        route = f"{method} {path.partition('?')[0]}"
        if route in self.refuse:
            status, error = self.refuse.pop(route)
            return status, {"error": error}
        status, found = self._act(route, path, headers, body)
        if route in self.drop:
            self.drop.discard(route)
            return None, None
        return status, found

    def _act(self, route, path, headers, body):
        if route == "POST /files":
            return 200, self._upload(headers, body)
        if route == "POST /batches":
            return 200, self._create(json.loads(body))
        if route == "GET /batches":
            newest = list(self.batches.values())[::-1]
            after = path.partition("after=")[2]
            at = 1 + [batch["id"] for batch in newest].index(after) if after else 0
            return 200, {"object": "list", "data": newest[at : at + 2], "has_more": len(newest) > at + 2}
        parts = path.strip("/").split("/")
        if parts[0] == "files" and parts[-1] == "content":
            return 200, self.files[parts[1]]
        if parts[0] == "batches" and parts[1] in self.batches:
            batch = self.batches[parts[1]]
            if parts[-1] == "cancel":
                batch["status"] = "cancelling"
            return 200, batch
        return 404, {"error": {"message": f"no {path}", "code": "not_found"}}

    def _upload(self, headers, body):
        message = email.message_from_bytes(b"content-type: " + headers["content-type"].encode() + b"\r\n\r\n" + body)
        parts = {part.get_param("name", header="content-disposition"): part for part in message.get_payload()}
        assert parts["purpose"].get_payload(decode=True) == b"batch"
        self.uploads += 1
        id_ = f"file-{self.uploads}"
        self.files[id_] = parts["file"].get_payload(decode=True)
        return {"id": id_, "object": "file", "purpose": "batch", "filename": parts["file"].get_filename()}

    def _create(self, asked):
        rows = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines()]
        assert asked["endpoint"] == "/v1/chat/completions" and asked["completion_window"] == "24h"
        assert len({row["custom_id"] for row in rows}) == len(rows) and len({r["body"]["model"] for r in rows}) == 1
        assert all(row["method"] == "POST" and row["url"] == asked["endpoint"] for row in rows)
        self.asked += [(row["body"]["messages"][-1]["content"], row["body"].get("seed")) for row in rows]
        id_ = f"batch_{len(self.batches) + 1}"
        self.batches[id_] = {
            "id": id_, "object": "batch", "endpoint": asked["endpoint"], "completion_window": "24h",
            "input_file_id": asked["input_file_id"], "status": "validating", "created_at": 1, "output_file_id": None,
            "error_file_id": None, "errors": None, "metadata": asked.get("metadata"),
            "request_counts": {"total": len(rows), "completed": 0, "failed": 0},
        }  # fmt: skip
        return self.batches[id_]

    def finish(self, status="completed", id_=None, errors=()):
        """Ends a batch, the newest one by default, with its answers in any order."""
        batch = self.batches[id_ or list(self.batches)[-1]]
        batch["status"] = status
        if status == "failed":
            batch["errors"] = {"object": "list", "data": [{"code": code, "message": text} for code, text in errors]}
            return
        good, bad = [], []
        for line in self.files[batch["input_file_id"]].splitlines():
            row = json.loads(line)
            body, how = row["body"], self.script.get(row["body"]["messages"][-1]["content"], {})
            found = {"id": f"batch_req_{row['custom_id'][:6]}", "custom_id": row["custom_id"], "error": None}
            if how == "expire":
                text = "This request could not be executed before the completion window expired."
                bad.append({**found, "response": None, "error": {"code": "batch_expired", "message": text}})
            elif isinstance(how, int):
                error = {"message": "no", "code": "context_length_exceeded" if how == 400 else "rate_limit_exceeded"}
                bad.append({**found, "response": {"status_code": how, "request_id": "r", "body": {"error": error}}})
            else:
                made = answer(body, **how)
                self.prompt_tokens += 20 if "usage" not in made else made["usage"]["prompt_tokens"]
                self.output_tokens += 40 if "usage" not in made else made["usage"]["completion_tokens"]
                good.append({**found, "response": {"status_code": 200, "request_id": "r", "body": made}})
        for rows, field in ((good, "output_file_id"), (bad, "error_file_id")):
            random.Random(0).shuffle(rows)
            if rows:
                batch[field] = f"file-{field[0]}-{batch['id']}"
                self.files[batch[field]] = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        batch["request_counts"] |= {"completed": len(good), "failed": len(bad)}


def _chunked(stream):
    parts = []
    while size := int(stream.readline(), 16):
        parts.append(stream.read(size))
        stream.readline()
    stream.readline()
    return b"".join(parts)
