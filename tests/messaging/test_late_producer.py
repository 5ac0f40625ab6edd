"""Whoever reads cameras is not kept waiting by brokers that do not answer yet."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from structlog.testing import capture_logs

from dangerous_driving.errors import BrokerError, ConfigError
from dangerous_driving.messaging import Topic
from dangerous_driving.messaging.late_producer import LateProducer
from dangerous_driving.settings import KafkaSettings
from tests.messaging.conftest import wait_until


class Opened:
    """In the place of a producer."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.closed = False

    def send(self, topic: Topic, message: Any, key: str) -> str:
        self.sent.append(key)
        return "under way"

    def close(self) -> None:
        self.closed = True


class Brokers:
    def __init__(self) -> None:
        self.error: Exception | None = BrokerError("no broker answers at kafka.bootstrap_servers")
        self.attempts = 0
        self.opened: list[Opened] = []

    def __call__(self, kafka: KafkaSettings, client_id: str) -> Any:
        self.attempts += 1
        if self.error is not None:
            raise self.error
        self.opened.append(Opened())
        return self.opened[-1]


def late(brokers: Brokers, **options: Any) -> LateProducer:
    return LateProducer(KafkaSettings(), "detect", opener=brokers, retry=0.01, **options)


def send(producer: LateProducer, key: str) -> object:
    return producer.send(Topic.DETECTION_RESULTS, None, key)  # type: ignore[arg-type]


def test_it_refuses_with_the_reason_until_a_broker_answers() -> None:
    brokers = Brokers()
    with capture_logs() as logs, late(brokers) as producer:
        with pytest.raises(BrokerError, match=r"detection-results.*kafka\.bootstrap_servers"):
            send(producer, "a")
        wait_until(lambda: brokers.attempts > 3, "more attempts")
        brokers.error = None
        wait_until(lambda: brokers.opened, "an open producer")  # type: ignore[arg-type, return-value]
        wait_until(lambda: producer._producer is not None, "it is in use")
        assert send(producer, "b") == "under way"
    assert (brokers.opened[0].sent, brokers.opened[0].closed, len(brokers.opened)) == (["b"], True, 1)
    assert [entry["event"] for entry in logs] == ["no_broker_yet", "broker_answers"]


def test_with_a_broker_it_is_open_at_once() -> None:
    brokers = Brokers()
    brokers.error = None
    with late(brokers) as producer:
        assert send(producer, "a") == "under way"
    assert brokers.attempts == 1


def test_settings_that_contradict_each_other_are_told_at_once() -> None:
    brokers = Brokers()
    brokers.error = ConfigError("kafka", "they contradict each other", "change them")
    with pytest.raises(ConfigError), late(brokers):
        pass


def test_what_can_never_be_opened_is_a_failure() -> None:
    brokers, failed = Brokers(), threading.Event()
    with capture_logs() as logs, late(brokers, on_failure=failed.set) as producer:
        producer.check()
        brokers.error = KeyError("a slip")
        assert failed.wait(60)
        with pytest.raises(KeyError, match="a slip"):
            producer.check()
    assert logs[-1]["event"] == "producer_cannot_be_opened"


def test_what_opens_after_the_end_is_closed() -> None:
    brokers = Brokers()
    asked, goes_on = threading.Event(), threading.Event()

    def slow(kafka: KafkaSettings, client_id: str) -> Any:
        if brokers.attempts:
            asked.set()
            assert goes_on.wait(60)
            brokers.error = None
        return brokers(kafka, client_id)

    with LateProducer(KafkaSettings(), "detect", opener=slow, retry=0.01):
        assert asked.wait(60)
    goes_on.set()
    wait_until(lambda: bool(brokers.opened) and brokers.opened[0].closed, "it is closed")
