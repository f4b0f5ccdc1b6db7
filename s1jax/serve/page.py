"""Serves the page at `/`: one file, which may load nothing from anywhere else."""

from __future__ import annotations

import base64
import hashlib
import pathlib
import re

from starlette.requests import Request
from starlette.responses import Response

FILE = pathlib.Path(__file__).parent / "static" / "index.html"


class Page:
    """A route: the page with a policy that lets a browser run its own script and ask its own server, nothing else."""

    def __init__(self, file: pathlib.Path = FILE):
        """Reads the file once."""
        self._body = file.read_bytes()
        self._headers = {
            "cache-control": "no-cache",
            "content-security-policy": policy(self._body.decode()),
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }

    async def __call__(self, request: Request) -> Response:
        """Answers a request."""
        return Response(self._body, media_type="text/html", headers=self._headers)


def policy(text: str) -> str:
    """Returns the Content-Security-Policy of a page: its script and its style are allowed by their hashes."""

    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in found)
        return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"

    return "; ".join((
        "default-src 'none'", f"script-src {hashes('script')}", f"style-src {hashes('style')}", "connect-src 'self'",
        "img-src data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ))  # fmt: skip
