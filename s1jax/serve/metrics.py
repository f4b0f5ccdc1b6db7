"""Counters, gauges and histograms for Prometheus, under the names that vLLM uses."""

from __future__ import annotations

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from s1jax.serve.ticket import Running, Ticket
from s1jax.serve.worker import Worker

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


class Metrics:
    """An `Observer` of a worker; `text` is what `/metrics` serves."""

    def __init__(self, worker: Worker):
        """Takes the worker that is asked for the numbers of sequences whenever the metrics are read."""
        self.registry = CollectorRegistry()
        self._worker = worker

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"s1jax:{name}", text, labels, registry=self.registry)

        def seconds(name: str, text: str, buckets: tuple[float, ...] = _LONG) -> Histogram:
            return Histogram(f"s1jax:{name}", text, buckets=buckets, registry=self.registry)

        def tokens(name: str, text: str) -> Histogram:
            return Histogram(f"s1jax:{name}", text, buckets=_TOKENS, registry=self.registry)

        for name, text, read in (
            ("num_requests_running", "Sequences in batch slots.", lambda: self._now("running")),
            ("num_requests_waiting", "Sequences that wait for a batch slot.", lambda: self._now("waiting")),
            ("kv_cache_usage_perc", "Pages of the KV cache that sequences hold; 1 is all.", self._usage),
        ):
            Gauge(f"s1jax:{name}", text, registry=self.registry).set_function(read)
        # Totals of the scheduler, by their name in its stats.
        self._totals = {
            "cache_queries": counter("prefix_cache_queries", "Prompt tokens that were looked up in the prefix cache."),
            "cache_hits": counter("prefix_cache_hits", "Prompt tokens that were found there."),
            "preemptions": counter("num_preemptions", "Sequences that gave their slot back and waited again."),
        }
        self._seen = dict.fromkeys(self._totals, 0)
        self._prompt = counter("prompt_tokens", "Prompt tokens of finished sequences.")
        self._generation = counter("generation_tokens", "Tokens after the prompt.")
        self._thinking = counter("thinking_tokens", "Thinking tokens of finished sequences, waits included.")
        self._waits = counter("waits", "Ends of thinking that were replaced by the wait string.")
        self._cuts = counter("thinking_cuts", "Sequences whose thinking was cut.")
        self._success = counter("request_success", "Ended sequences, by reason.", "finished_reason")
        self._rejections = counter("admission_rejections", "Requests that were refused, by reason.", "reason")
        self._handoffs = counter("handoffs", "Decisions about a hand-off, by reason.", "reason")
        self._handoff_usd = counter("handoff_dollars", "USD that hand-offs have cost.")
        self._first = seconds("time_to_first_token_seconds", "To the first token, thinking included.", _LONG)
        self._first_answer = seconds("time_to_first_answer_token_seconds", "To the first token of the answer.")
        self._gap = seconds("inter_token_latency_seconds", "Between two looks that brought tokens.", _SHORT)
        self._per_token = seconds("request_time_per_output_token_seconds", "After the first token, per token.", _SHORT)
        self._whole = seconds("e2e_request_latency_seconds", "From arrival to the last token.")
        self._queue = seconds("request_queue_time_seconds", "From arrival to a batch slot.")
        self._prefill = seconds("request_prefill_time_seconds", "From the batch slot to the first token.")
        self._decode = seconds("request_decode_time_seconds", "From the first token to the last.")
        self._prompts = tokens("request_prompt_tokens", "Prompt tokens of a sequence.")
        self._generations = tokens("request_generation_tokens", "Tokens after the prompt of a sequence.")

    def text(self) -> bytes:
        """Returns the metrics in Prometheus' text format."""
        for name, total in self._totals.items():
            now = self._now(name)
            total.inc(max(now - self._seen[name], 0))
            self._seen[name] = now
        return prometheus_client.generate_latest(self.registry)

    def _now(self, name: str) -> int:
        """A number of the scheduler; 0 while it loads."""
        return getattr(self._worker.scheduler_stats, name, 0)

    def _usage(self) -> float:
        stats = self._worker.scheduler_stats
        return stats.used_pages / stats.num_pages if stats else 0.0

    def tokens(self, sequence: Running, new: int, gap: float | None) -> None:
        """Counts new tokens of a sequence."""
        self._generation.inc(new)
        times = sequence.times
        if gap is not None:
            self._gap.observe(gap)
        elif times.admitted is not None and times.first_token is not None:
            self._first.observe(times.first_token - times.submitted)
            self._queue.observe(max(times.admitted - times.submitted, 0.0))
            self._prefill.observe(times.first_token - times.admitted)
        if times.first_answer_token is not None and times.first_answer_token == times.last:
            self._first_answer.observe(times.first_answer_token - times.submitted)

    def finished(self, sequence: Running) -> None:
        """Counts a sequence that has its output."""
        times, output = sequence.times, sequence.output
        assert output is not None
        count = len(output.token_ids) - (sequence.prompt_tokens - len(sequence.request.prompt))
        self._prompt.inc(sequence.prompt_tokens)
        self._thinking.inc(output.thinking_tokens)
        self._waits.inc(output.waits)
        self._cuts.inc(output.thinking_end == "cut")
        self._success.labels(output.answer_end).inc()
        self._prompts.observe(sequence.prompt_tokens)
        self._generations.observe(count)
        if times.finished is not None and times.first_token is not None:
            self._whole.observe(times.finished - times.submitted)
            self._decode.observe(times.finished - times.first_token)
            if count > 1:
                self._per_token.observe((times.finished - times.first_token) / (count - 1))

    def ended(self, ticket: Ticket, reason: str) -> None:
        """Counts the sequences of a request that ended without output."""
        self._success.labels(reason).inc(sum(each.output is None for each in ticket.sequences))

    def handoff(self, reason: str, usd: float) -> None:
        """Counts a decision about a hand-off."""
        self._handoffs.labels(reason).inc()
        self._handoff_usd.inc(usd)

    def rejected(self, reason: str) -> None:
        """Counts a request that was refused."""
        self._rejections.labels(reason).inc()
