"""A broker for the behaviour suite. The suite knows it by its settings only, so that it can run against others too."""

from __future__ import annotations

import importlib.util
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from dangerous_driving.contracts import DetectionResult
from dangerous_driving.messaging import Consumer, EmbeddedBroker, Producer, Received, apply, embedded_kafka_settings
from dangerous_driving.settings import KafkaSettings
from infra.kafka.cluster import KafkaCluster
from tests.conftest import missing_component

#: s; far above what a healthy broker needs, so that only a hang reaches it
PATIENCE = 60.0


@pytest.fixture(scope="session", params=["embedded", "cluster"])
def broker(request: pytest.FixtureRequest) -> Iterator[KafkaSettings]:
    """Settings of a running broker that has all topics: the demo's, and three of Apache Kafka."""
    if request.param == "cluster":
        cluster: KafkaCluster = request.getfixturevalue("kafka_cluster")
        kafka = KafkaSettings(bootstrap_servers=cluster.bootstrap_servers, session_timeout=6.0)
        apply(kafka)
        yield kafka
        return
    if importlib.util.find_spec("confluent_kafka") is None:
        missing_component("the embedded broker needs the package confluent-kafka: pip install -e '.[embedded]'")
    with EmbeddedBroker() as embedded:
        # changes in a group take the session time-out there
        kafka = embedded_kafka_settings(embedded.bootstrap_servers).model_copy(update={"session_timeout": 3.0})
        apply(kafka)
        yield kafka


@pytest.fixture
def kafka(broker: KafkaSettings) -> KafkaSettings:
    """The broker, with consumer groups of this test's own."""
    return broker.model_copy(update={"group_prefix": f"test-{uuid.uuid4().hex[:8]}"})


@pytest.fixture
def producer(kafka: KafkaSettings) -> Iterator[Producer]:
    with Producer(kafka, "test") as opened:
        yield opened


@pytest.fixture
def camera() -> str:
    """A camera of this test's own: the topics are shared with the other tests, in any order."""
    return f"cam-{uuid.uuid4().hex[:8]}"


def frame(camera_id: str, number: int) -> DetectionResult:
    """The detection result of an empty frame; its message id ends with the number."""
    return DetectionResult(
        message_id=f"{camera_id}-{number:05d}",
        camera_id=camera_id,
        timestamp=datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=number),
        image_width=1920,
        image_height=1080,
        detected_objects=(),
        traffic_groups=(),
    )


def numbers(received: list[Received[DetectionResult]], camera_id: str) -> list[int]:
    """Which of the camera's frames these are, in the order in which they came."""
    return [int(item.message.message_id[-5:]) for item in received if item.message.camera_id == camera_id]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        time.sleep(0.02)
        assert time.monotonic() < deadline, f"in vain waited for {what}"


def receive(consumer: Consumer[DetectionResult], camera_id: str, count: int) -> list[Received[DetectionResult]]:
    """Poll until `count` messages of the camera have come; those of other tests are passed over."""
    received: list[Received[DetectionResult]] = []

    def enough() -> bool:
        received.extend(item for item in consumer.poll(0.2, 500) if item.message.camera_id == camera_id)
        return len(received) >= count

    wait_until(enough, f"{count} messages")
    return received
