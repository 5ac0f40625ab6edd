"""The bridge as it runs in production, on a broker."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from sqlalchemy import Engine
from websockets.sync.client import connect

from dangerous_driving.alerts.service import AlertPublisher
from dangerous_driving.contracts import Alert
from dangerous_driving.errors import DangerousDrivingError
from dangerous_driving.ledger import alerts as ledger_alerts
from dangerous_driving.messaging import AckPolicy, Consumer, EmbeddedBroker, Producer, Topic, apply
from dangerous_driving.messaging.embedded import embedded_kafka_settings
from dangerous_driving.objects import FolderStore
from dangerous_driving.realtime.service import run
from dangerous_driving.settings import RealtimeSettings, Settings
from tests.conftest import missing_component
from tests.realtime.conftest import LIFECYCLE, PATIENCE, Listener, a_frame, a_sighting, wait_for

pytestmark = pytest.mark.integration


def test_what_the_topics_bring_reaches_the_browser_and_its_verdict_the_topic(ledger: Engine, tmp_path: Path) -> None:
    try:
        broker = EmbeddedBroker().start()
    except DangerousDrivingError as error:
        missing_component(f"no embedded broker: {error}")
        raise
    stop, ready, ports = threading.Event(), threading.Event(), [0]

    def on_ready(port: int) -> None:
        ports[0] = port
        ready.set()

    with broker:
        kafka = embedded_kafka_settings(broker.bootstrap_servers)
        apply(kafka)
        settings = Settings(kafka=kafka, realtime=RealtimeSettings(port=0, open_access=True))
        with (
            Producer(kafka, "test") as producer,
            Consumer(kafka, {Topic.ALERTS: Alert}, name="test", policy=AckPolicy.BROADCAST) as listener,
        ):
            thread = threading.Thread(
                target=run,
                args=(settings, ledger, FolderStore(tmp_path), producer, stop),
                kwargs={"ready": on_ready},
            )
            thread.start()
            try:
                assert ready.wait(PATIENCE)
                with connect(f"ws://127.0.0.1:{ports[0]}/ws", open_timeout=PATIENCE) as connection:
                    client = Listener(connection)
                    client.next("connection_ack")
                    frame = a_frame()
                    # an alert is not missed even if the bridge's consumer opens only after it was sent
                    ledger_alerts.advance(ledger, LIFECYCLE, [a_sighting(frame)])
                    AlertPublisher(ledger, producer, delivery_timeout=10).publish()
                    alert = client.next("alert")
                    producer.send(Topic.DETECTION_RESULTS, frame, "north").result()
                    assert client.next("detection_result")["messageId"] == frame.message_id
                    connection.send(json.dumps({"type": "reject", "data": {"alertId": alert["alertId"]}}))
                    assert client.next("alert")["verdict"] == "rejected"
                received: list[Alert] = []

                def both_received() -> bool:
                    received.extend(item.message for item in listener.poll(0.1, 10))
                    return len(received) >= 2

                wait_for(both_received, "the verdict on the topic")
                assert [(item.version, item.verdict) for item in received] == [(1, None), (2, "rejected")]
            finally:
                stop.set()
                thread.join(PATIENCE)
            assert not thread.is_alive()
