"""Without a broker everything ends soon, with an error that names the setting."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from dangerous_driving.contracts import DetectionResult
from dangerous_driving.errors import BrokerError
from dangerous_driving.messaging import (
    AckPolicy,
    Consumer,
    EmbeddedBroker,
    Producer,
    Topic,
    apply,
    check,
    embedded_kafka_settings,
    group_lag,
)
from dangerous_driving.ports import free_port
from dangerous_driving.settings import KafkaSettings
from tests.integration.test_spool import broker_process
from tests.messaging.conftest import frame, wait_until

pytestmark = pytest.mark.integration

#: s; the time-outs below add up to less, so only an unbounded wait reaches it
BOUND = 20.0


@pytest.fixture
def dead() -> KafkaSettings:
    """Settings of a broker that is not there; everything about it ends within two seconds."""
    kafka = embedded_kafka_settings(f"127.0.0.1:{free_port()}")
    return kafka.model_copy(update={"request_timeout": 1.0, "delivery_timeout": 2.0})


@pytest.mark.parametrize("version_known", [True, False])
def test_a_producer_to_a_dead_address_fails_with_the_setting_and_a_remedy(
    dead: KafkaSettings, camera: str, version_known: bool
) -> None:
    settings = dead if version_known else dead.model_copy(update={"api_version": None})
    with pytest.raises(BrokerError, match=rf"kafka\.bootstrap_servers = {dead.bootstrap_servers}") as caught:  # noqa: SIM117
        with Producer(settings, "test") as producer:
            producer.send(Topic.DETECTION_RESULTS, frame(camera, 1), key=camera).result()
    assert caught.value.retriable


def test_a_consumer_of_a_dead_address_fails_with_the_setting_and_leaves_no_thread(dead: KafkaSettings) -> None:
    before = set(threading.enumerate())
    with pytest.raises(BrokerError, match=r"kafka\.bootstrap_servers"):
        Consumer(dead, {Topic.ALERTS: DetectionResult}, name="bridge", policy=AckPolicy.BROADCAST)
    wait_until(lambda: set(threading.enumerate()) <= before, "the end of the client's threads")


def test_the_topics_of_a_dead_address_cannot_be_read(dead: KafkaSettings) -> None:
    for ask in (apply, check, lambda kafka: group_lag(kafka, "tasks")):
        with pytest.raises(BrokerError, match=r"kafka\.bootstrap_servers"):
            ask(dead)


def test_messages_to_a_broker_that_died_fail_in_bounded_time_and_memory(camera: str) -> None:
    with EmbeddedBroker() as broker:
        kafka = embedded_kafka_settings(broker.bootstrap_servers).model_copy(
            update={"request_timeout": 1.0, "delivery_timeout": 2.0, "max_unacknowledged": 20}
        )
        apply(kafka)
        producer = Producer(kafka, "test")
        producer.send(Topic.DETECTION_RESULTS, frame(camera, 0), key=camera).result()
    begun = time.monotonic()
    deliveries = [producer.send(Topic.DETECTION_RESULTS, frame(camera, number), key=camera) for number in range(20)]
    with pytest.raises(BrokerError, match=r"kafka\.max_unacknowledged"):
        producer.send(Topic.DETECTION_RESULTS, frame(camera, 20), key=camera)
    assert producer.unacknowledged == 20
    with pytest.raises(BrokerError, match=r"kafka\.bootstrap_servers"):
        deliveries[0].result()
    with pytest.raises(BrokerError, match="not delivered"):
        producer.flush()
    assert (producer.unacknowledged, producer.failures) == (0, 20)
    assert producer.last_failure is not None
    producer.close(1.0)
    assert time.monotonic() - begun < BOUND


def test_closing_while_messages_wait_for_a_dead_broker_gives_them_up(camera: str) -> None:
    before = set(threading.enumerate())
    with EmbeddedBroker() as broker:
        kafka = embedded_kafka_settings(broker.bootstrap_servers)  # 30 s until a message is given up by itself
        apply(kafka)
        producer = Producer(kafka, "test")
        producer.send(Topic.DETECTION_RESULTS, frame(camera, 0), key=camera).result()
    delivery = producer.send(Topic.DETECTION_RESULTS, frame(camera, 1), key=camera)
    begun = time.monotonic()
    producer.close(0.5)
    assert time.monotonic() - begun < BOUND
    with pytest.raises(BrokerError):
        delivery.result()
    assert producer.failures == 1
    wait_until(lambda: set(threading.enumerate()) <= before, "the end of the sending thread")


def test_a_consumer_rides_out_the_death_of_its_broker_and_closes(camera: str) -> None:
    with EmbeddedBroker() as broker:
        kafka = embedded_kafka_settings(broker.bootstrap_servers).model_copy(update={"request_timeout": 1.0})
        apply(kafka)
        consumer = Consumer(
            kafka, {Topic.DETECTION_RESULTS: DetectionResult}, name="tasks", policy=AckPolicy.AFTER_EFFECT
        )
        consumer.poll(0.2, 10)
    begun = time.monotonic()
    for _ in range(5):
        assert consumer.poll(0.2, 10) == []
    consumer.close()
    assert time.monotonic() - begun < BOUND


def test_a_producer_lives_on_after_an_outage_longer_than_its_patience(tmp_path: Path, camera: str) -> None:
    with broker_process(tmp_path) as (process, kafka), Producer(kafka, "test") as producer:
        producer.send(Topic.DETECTION_RESULTS, frame(camera, 0), key=camera).result()
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(BrokerError, match=r"kafka\.bootstrap_servers"):
            producer.send(Topic.DETECTION_RESULTS, frame(camera, 1), key=camera).result()
        process.send_signal(signal.SIGCONT)
        for number in range(2, 6):
            producer.send(Topic.DETECTION_RESULTS, frame(camera, number), key=camera).result(BOUND)
