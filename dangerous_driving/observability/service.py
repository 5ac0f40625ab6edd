"""The life of a service process: logs, signals, and the address for /metrics, /healthz and /readyz."""

from __future__ import annotations

import json
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType, TracebackType
from typing import Self

import structlog

from dangerous_driving.errors import ConfigError, DangerousDrivingError
from dangerous_driving.observability import logging, tracing
from dangerous_driving.observability.metrics import exposition
from dangerous_driving.observability.targets import Target
from dangerous_driving.settings import Settings

log = structlog.get_logger(__name__)

#: s a leashed process may take to stop after its supervisor has gone.
LEASH_GRACE = 30.0


class ServiceProcess:
    """Frame of one service: ``with ServiceProcess("tasks", settings) as process: work(process.stop)``.

    SIGTERM and SIGINT set ``stop``; the service then finishes or hands back what it holds. A second signal ends the
    process at once. With `leash`, so does the end of standard input: a child does not outlive a killed supervisor.

    Raises:
        ConfigError: the port of observability.port is in use.
    """

    def __init__(self, name: str, settings: Settings, *, leash: bool = False, endpoint: bool = True) -> None:
        self.name = name
        self.stop = threading.Event()
        self.not_ready: str | None = "starting"
        self._settings = settings
        self._leash = leash
        self._server = _endpoint(self, settings) if endpoint else None
        folder = settings.observability.targets_folder
        self._target = Target(folder, name, settings.node) if folder else None

    def tell_address(self, host: str, port: int) -> None:
        """Where /metrics is, for Prometheus; a service with an endpoint of its own says so itself."""
        if self._target:
            self._target.write(host, port)

    def ready(self) -> None:
        """From now on /readyz answers 200."""
        self.not_ready = None
        log.info("ready")

    def __enter__(self) -> Self:
        logging.configure(level=self._settings.observability.log_level, service=self.name, node=self._settings.node)
        tracing.start(self.name, self._settings.node, self._settings.observability.trace_share)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        if self._leash:
            end_with_standard_input(self.stop)
        if self._server:
            threading.Thread(target=self._server.serve_forever, name="endpoint", daemon=True).start()
            host, port = self._server.server_address[:2]
            self.tell_address(str(host), port)
            log.info("started", port=port, pid=os.getpid())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
        tracing.stop()
        if self._target and error is None:
            self._target.remove()
        if isinstance(error, DangerousDrivingError):
            log.error("ended", reason=str(error))  # it says what to do; where in the code it arose helps nobody
        elif error is not None:
            log.error("ended", reason=str(error), exc_info=error)
        else:
            log.info("stopped")

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.stop.is_set():
            os._exit(128 + number)
        self.stop.set()


def end_with_standard_input(stop: threading.Event | None = None) -> None:
    """End this process when standard input ends: it must not outlive a killed supervisor.

    Args:
        stop: set first, so that a service can stop by itself; without one the process ends at once, as if killed.
    """

    def watch() -> None:
        while os.read(0, 4096):  # the file, not sys.stdin: its lock would break the interpreter's end
            pass
        if stop is not None:
            stop.set()
            # nobody is left who would kill a process that hangs while it stops
            threading.Event().wait(LEASH_GRACE)
        os._exit(1)

    threading.Thread(target=watch, name="leash", daemon=True).start()


def _endpoint(process: ServiceProcess, settings: Settings) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # s; a client that connects and says nothing

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, *exposition(self.headers.get("Accept")))
            elif self.path == "/healthz":
                self._answer(200, json.dumps({"service": process.name, "status": "ok"}).encode())
            elif self.path == "/readyz":
                reason = process.not_ready or ("stopping" if process.stop.is_set() else None)
                body = {"service": process.name, "status": "not ready" if reason else "ready", "reason": reason}
                self._answer(503 if reason else 200, json.dumps(body).encode())
            else:
                self._answer(404, b'{"error": "try /metrics, /healthz or /readyz"}')

        def _answer(self, status: int, body: bytes, content_type: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Scrapes are no news."""

    address = (settings.observability.host, settings.observability.port)
    try:
        server = ThreadingHTTPServer(address, Handler)
    except OSError as error:
        raise ConfigError(
            "observability.port",
            f"{address[0]}:{address[1]} cannot be used ({error.strerror})",
            "set another port, or 0",
        ) from error
    server.daemon_threads = True
    return server
