"""The service as a process of its own, killed and restarted while alerts come, with receivers that really are there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from sqlalchemy import Engine

from dangerous_driving.contracts import AlertBasis, RiskLevel
from dangerous_driving.ledger import alerts as ledger_alerts
from dangerous_driving.ledger.notifications import list_notifications
from dangerous_driving.ports import free_port
from dangerous_driving.settings import DatabaseSettings
from tests.alerts.conftest import sighting
from tests.notifications.conftest import LIFECYCLE, SECRET, MqttBroker, WebhookServer, wait_until

pytestmark = pytest.mark.integration


def danger_now(engine: Engine, number: int) -> str:
    look = sighting(AlertBasis.FINAL, 0, RiskLevel.HIGH, 3000.0 * number, 0, ("tailgating",), group=number + 1)
    now = datetime.now(UTC)
    fresh = look.model_copy(update={"captured_at": now - timedelta(seconds=1), "at": now})
    (change,) = ledger_alerts.advance(engine, LIFECYCLE, [fresh])
    return change.after.alert.alert_id


class Notify:
    """The command, as a supervisor runs it."""

    def __init__(self, folder: Path, database: DatabaseSettings, receivers: list[dict[str, object]]) -> None:
        self.port = free_port()
        self.log = folder / "notify.log"
        self.config = folder / "settings.yaml"
        content = {
            "database": {"url": database.url.get_secret_value()},
            "objects": {"folder": str(folder / "objects")},
            "observability": {"port": self.port},
            "notifications": {"receivers": receivers, "claim_timeout": 2, "backoff_initial": 0.2, "backoff_max": 1},
        }
        self.config.write_text(yaml.safe_dump(content))

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dangerous_driving.cli", "notify", "--config", str(self.config)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={name: value for name, value in os.environ.items() if not name.startswith("DD_")},
            )

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())


def test_kills_lose_no_message_and_a_receiver_that_hangs_delays_no_other(
    tmp_path: Path, ledger: Engine, database: DatabaseSettings, webhook: WebhookServer, mqtt_broker: MqttBroker
) -> None:
    """Thirty alerts, the process killed twice among them; the MQTT broker comes up only at the end."""
    notify = Notify(
        tmp_path,
        database,
        [
            {"name": "desk", "kind": "webhook", "url": webhook.url, "secret": SECRET, "rate_limit": 1000, "timeout": 1},
            {
                "name": "wall", "kind": "mqtt", "host": "127.0.0.1", "port": mqtt_broker.port, "username": "dd",
                "password": "open sesame", "rate_limit": 1000, "timeout": 1,
            },
        ],
    )  # fmt: skip
    wanted = []
    process = notify.start()
    try:
        for number in range(30):
            wanted.append(danger_now(ledger, number))
            if number in (10, 20):
                count = len(webhook.requests)
                wait_until(lambda seen=count: len(webhook.requests) > seen, "a message")  # type: ignore[misc]
                process.send_signal(signal.SIGKILL)
                process.wait()
                process = notify.start()
        wait_until(
            lambda: {message["data"]["alert"]["alertId"] for message in webhook.messages} == set(wanted), "all messages"
        )
        # one message, one id, however often it came
        by_id = {message["id"]: message["data"]["alert"]["alertId"] for message in webhook.messages}
        assert len(by_id) == len(set(by_id.values())) == 30

        def sent_to(receiver: str) -> int:
            return len(list_notifications(ledger, limit=1000, state="sent", receiver=receiver))

        wait_until(lambda: sent_to("desk") == 30, "all to be marked")
        assert sent_to("wall") == 0
        with mqtt_broker.start():
            wait_until(lambda: sent_to("wall") == 30, "the broker to have all")
        wait_until(lambda: 'notifications_sent_total{kind="ring",receiver="wall"}' in notify.metrics(), "metrics")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    log = notify.log.read_text()
    assert SECRET not in log
    assert "open sesame" not in log


def test_without_a_receiver_the_service_says_what_to_do(tmp_path: Path, database: DatabaseSettings) -> None:
    notify = Notify(tmp_path, database, [])
    assert notify.start().wait(60) == 2
    assert "notifications.receivers: there is none" in notify.log.read_text()
