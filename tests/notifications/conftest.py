"""Receivers that really are there: an HTTP server, an SMTP server, an MQTT broker."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dangerous_driving.alerts.lifecycle import Lifecycle
from dangerous_driving.contracts import Alert, AlertBasis, AlertState, RiskLevel
from dangerous_driving.ports import free_port
from dangerous_driving.settings import AlertsSettings
from tests.alerts.conftest import NOON
from tests.conftest import missing_component

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
LIFECYCLE = Lifecycle(AlertsSettings(cooldown=0))
PATIENCE = 60.0  # s; far above what is needed, so that only a hang reaches it


def alert(number: int = 0, **changes: Any) -> Alert:
    """A high alert that rings, as the lifecycle makes it."""
    at = NOON + timedelta(seconds=number)
    values: dict[str, Any] = {
        "alert_id": f"alert-{number}",
        "version": 1,
        "camera_id": "crossing",
        "state": AlertState.OPEN,
        "basis": AlertBasis.FINAL,
        "risk_level": RiskLevel.HIGH,
        "peak_level": RiskLevel.HIGH,
        "risk_types": ("pedestrian_conflict",),
        "description": "A person is close to a car.",
        "group_bbox": (1.0, 2.0, 30.0, 40.0),
        "opened_at": at,
        "last_seen_at": at,
        "updated_at": at,
        "first_task_id": f"task{number}",
        "last_task_id": f"task{number}",
        "last_request_id": f"frame{number}",
        "notify": True,
        "reached_level": RiskLevel.HIGH,
    }
    return Alert(**values | changes)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        time.sleep(0.02)
        assert time.monotonic() < deadline, f"in vain waited for {what}"


@dataclass
class WebhookServer:
    """Keeps what it was sent; answers as `answers` says, then 204."""

    port: int = 0
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answers: list[int | tuple[int, dict[str, str]]] = field(default_factory=list)
    silent: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.requests]


@pytest.fixture
def webhook() -> Iterator[WebhookServer]:
    served = WebhookServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            served.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
            if served.silent.is_set():
                time.sleep(1.0)
            answer = served.answers.pop(0) if served.answers else 204
            status, headers = answer if isinstance(answer, tuple) else (answer, {})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_POST  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        served.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield served
        server.shutdown()
        thread.join()


@dataclass
class Mailbox:
    port: int
    messages: list[Any] = field(default_factory=list)
    refuse: set[str] = field(default_factory=set)
    busy: bool = False


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    """A real SMTP server that asks for user and password."""
    from aiosmtpd.controller import Controller
    from aiosmtpd.smtp import AuthResult, LoginPassword

    box = Mailbox(port=free_port())

    class Handler:
        async def handle_RCPT(self, _server: Any, _session: Any, envelope: Any, address: str, _options: Any) -> str:  # noqa: N802
            if box.busy:
                return "451 try again later"
            if address in box.refuse:
                return "550 no such user"
            envelope.rcpt_tos.append(address)
            return "250 OK"

        async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802
            box.messages.append(envelope)
            return "250 OK"

    def authenticator(_server: Any, _session: Any, _envelope: Any, mechanism: str, data: Any) -> Any:
        known = isinstance(data, LoginPassword) and (data.login, data.password) == (b"dd", b"open sesame")
        return AuthResult(success=known, handled=False)

    controller = Controller(
        Handler(), hostname="127.0.0.1", port=box.port, authenticator=authenticator, auth_required=True,
        auth_require_tls=False,
    )  # fmt: skip
    controller.start()
    yield box
    controller.stop()


@contextmanager
def running(argv: list[str], port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server of another project, once it listens."""
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT)

    def listens() -> bool:
        assert process.poll() is None, log.read_text(errors="replace")
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(listens, f"{argv[0]} to listen")
        yield process
    finally:
        process.kill()
        process.wait()


def program(name: str) -> str:
    """Where a Debian package put it; else a skip, or a failure in CI."""
    found = shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/bin:/usr/local/sbin")
    if found is None:
        missing_component(f"no {name}: apt-get install {name}")
        raise AssertionError
    return found


@dataclass
class MqttBroker:
    port: int
    argv: list[str]
    log: Path

    def start(self) -> Any:
        return running(self.argv, self.port, self.log)


@pytest.fixture
def mqtt_broker(tmp_path: Path) -> MqttBroker:
    """Mosquitto with one user; tests start and stop it."""
    port = free_port()
    passwords, config = tmp_path / "passwords", tmp_path / "mosquitto.conf"
    subprocess.run(
        [program("mosquitto_passwd"), "-b", "-c", str(passwords), "dd", "open sesame"], check=True, capture_output=True
    )
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\nuser root\n"
        "persistence false\nlog_dest stderr\n"
    )
    return MqttBroker(port, [program("mosquitto"), "-c", str(config)], tmp_path / "mosquitto.log")
