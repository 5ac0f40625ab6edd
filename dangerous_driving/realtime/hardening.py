"""What every answer carries and what no request may: an ASGI wrapper around the app."""

from __future__ import annotations

import math

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dangerous_driving.observability.metrics import REQUESTS_REFUSED
from dangerous_driving.realtime.access import Access
from dangerous_driving.realtime.rates import Rates

#: bytes of a request's body
MAX_BODY = 64 * 1024

SECURITY_HEADERS = {
    # 'self' only: a description of an LLM that slipped through as HTML could load and run nothing
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Hardening:
    """Adds the security headers; refuses foreign hosts, foreign pages that would change something, large bodies and floods."""

    def __init__(self, app: ASGIApp, access: Access, requests: Rates) -> None:
        self._app = app
        self._access = access
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface; WebSockets pass as they are (:mod:`~dangerous_driving.realtime.socket` looks at them)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, send_hardened)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        wait = self._requests.take(scope["client"][0] if scope["client"] else "")
        if wait > 0:
            REQUESTS_REFUSED.inc()
            return _refused(429, "this address asks too often: wait", {"Retry-After": str(math.ceil(wait))})
        headers = Headers(scope=scope)
        if not self._access.allows_host(headers.get("host")):
            return _refused(421, "open access is for this machine's own address only; see realtime.allowed_origins")
        return None if scope["method"] in SAFE_METHODS else self._refusal_of_change(headers)

    def _refusal_of_change(self, headers: Headers) -> JSONResponse | None:
        if not self._access.allows_origin(headers.get("origin"), headers.get("host")):
            return _refused(403, "this page may not do that; see realtime.allowed_origins")
        length = headers.get("content-length", "")
        if not length.isdecimal():
            return _refused(411, "say how long the body is")
        if int(length) > MAX_BODY:
            return _refused(413, f"at most {MAX_BODY} bytes")
        return None


def _refused(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers)
