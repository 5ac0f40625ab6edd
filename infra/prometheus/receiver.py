"""An example of what Alertmanager tells: a webhook that prints each alert as a line (``python -m infra.prometheus.receiver``).

What it gets is Alertmanager's webhook format, version 4; a chat's or a pager's own integration takes its place in production.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

#: bytes; of a request that is read
LONGEST = 4_000_000


@dataclass(frozen=True)
class Notice:
    """One alert as it came: ``status`` is firing or resolved, ``at`` monotonic s."""

    name: str
    status: str
    labels: dict[str, str]
    annotations: dict[str, str]
    at: float


def notices_of(body: Any, at: float) -> list[Notice]:
    """The alerts of one request.

    Raises:
        ValueError, TypeError, KeyError: it has not Alertmanager's form.
    """
    return [
        Notice(
            name=str(alert["labels"]["alertname"]),
            status=str(alert["status"]),
            labels={str(name): str(value) for name, value in alert["labels"].items()},
            annotations={str(name): str(value) for name, value in alert["annotations"].items()},
            at=at,
        )
        for alert in body["alerts"]
    ]


class Receiver:
    """Listens within its block, and keeps what came.

    Args:
        port: 0: any free one.
        on_notice: told of each alert.
    """

    def __init__(self, port: int = 0, on_notice: Callable[[Notice], None] = lambda _: None) -> None:
        self.came = threading.Condition()
        self.notices: list[Notice] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # s

            def do_POST(self) -> None:
                try:
                    length = min(int(self.headers.get("Content-Length", 0)), LONGEST)
                    found = notices_of(json.loads(self.rfile.read(length)), time.monotonic())
                except (ValueError, TypeError, KeyError) as error:
                    self._answer(400, f"not Alertmanager's form: {error!r}")
                    return
                with receiver.came:
                    receiver.notices += found
                    receiver.came.notify_all()
                for notice in found:
                    on_notice(notice)
                self._answer(200, "ok")

            def _answer(self, status: int, text: str) -> None:
                body = text.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Requests are no news."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/alerts"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="receiver", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait(
        self, name: str, status: str, *, since: float, timeout: float, labels: dict[str, str] | None = None
    ) -> Notice | None:
        """The first alert of that name, status and labels that came after `since` (monotonic s); None: none in time."""

        def found() -> Notice | None:
            return next(
                (
                    notice
                    for notice in self.notices
                    if (notice.name, notice.status) == (name, status)
                    and notice.at > since
                    and (labels or {}).items() <= notice.labels.items()
                ),
                None,
            )

        with self.came:
            return self.came.wait_for(found, timeout)


def line(notice: Notice) -> str:
    """One alert for a person."""
    told = " ".join(f"{key}={value}" for key, value in sorted(notice.labels.items()) if key != "alertname")
    return f"{notice.status:8} {notice.name}: {notice.annotations.get('summary', '')} ({told})"


def main() -> int:
    """Listen until Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=9099, help="as in alertmanager.yml")
    with Receiver(parser.parse_args().port, lambda notice: print(line(notice), flush=True)) as receiver:
        print(f"listening at {receiver.url}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
