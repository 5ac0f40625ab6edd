"""The alerts service: from messages to published alerts, whatever dies or stays away in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import Engine

from dangerous_driving.alerts.inputs import Sighting
from dangerous_driving.alerts.service import AlertsService
from dangerous_driving.contracts import (
    Alert,
    AlertState,
    AssessmentFailure,
    AssessmentMetadata,
    DetectionResult,
    Message,
    RiskAssessment,
    RiskAssessmentResult,
    RiskLevel,
    Stage,
    TrafficGroup,
)
from dangerous_driving.errors import (
    BrokerError,
    DangerousDrivingError,
    LedgerError,
    StatementRefusedError,
    UnfitLedgerError,
)
from dangerous_driving.ledger import alerts as ledger_alerts
from dangerous_driving.ledger.alerts import AlertFilter
from dangerous_driving.messaging import AckPolicy, Consumer, EmbeddedBroker, Producer, Received, Topic, apply
from dangerous_driving.messaging.consumer import Standing
from dangerous_driving.messaging.embedded import embedded_kafka_settings
from dangerous_driving.settings import Settings
from tests.alerts.conftest import NOON

pytestmark = pytest.mark.integration

BOX = (100.0, 100.0, 300.0, 300.0)
HIGH = RiskLevel.HIGH


class Killed(BaseException):
    """As a kill -9: nothing of the service runs after it."""


class FakeConsumer:
    """Hands out batches; what was not committed comes again to the next one."""

    def __init__(self, batches: Sequence[Sequence[Message]]) -> None:
        self.batches = list(batches)
        self.committed = 0
        self.handed_out = 0
        self.set_asides: list[tuple[Received[Any], str, str]] = []
        self.backlog = 0
        self.cameras_of_others: set[str] = set()
        self.paused = False
        self.fail_commit: BaseException | None = None
        self.on_idle: Callable[[], None] = lambda: None

    def poll(self, timeout: float, max_records: int) -> list[Received[Any]]:
        if self.paused or self.handed_out >= len(self.batches):
            self.on_idle()
            return []
        self.handed_out += 1
        return [
            Received(Topic.RISK_ASSESSMENT_RESULTS, 0, offset, None, message)
            for offset, message in enumerate(self.batches[self.handed_out - 1])
        ]

    def set_aside(self, item: Received[Any], reason: str, field: str = "") -> None:
        self.set_asides.append((item, reason, field))

    def commit(self) -> bool:
        if self.fail_commit:
            raise self.fail_commit
        self.committed = self.handed_out
        return True

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def standing(self) -> dict[tuple[Topic, int], Standing]:
        return {(Topic.RISK_ASSESSMENT_RESULTS, 0): Standing(self.handed_out, self.handed_out + self.backlog)}

    def reads(self, topic: Topic, key: str) -> bool:
        return topic is Topic.RISK_ASSESSMENT_RESULTS and key not in self.cameras_of_others


class Receipt:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def result(self, timeout: float) -> None:
        if self.error:
            raise self.error


class FakeProducer:
    def __init__(self) -> None:
        self.sent: list[Alert] = []
        self.fail: BaseException | None = None

    def send(self, topic: Topic, message: Message, key: str) -> Receipt:
        assert topic is Topic.ALERTS
        assert isinstance(message, Alert)
        assert key == message.camera_id
        if self.fail is None:
            self.sent.append(message)
        return Receipt(self.fail)

    @property
    def versions(self) -> list[int]:
        return [alert.version for alert in self.sent]


def answer(
    frame: int, level: RiskLevel = HIGH, stage: Stage = Stage.FINAL, captured: datetime | None = None, **changes: Any
) -> RiskAssessmentResult:
    captured = captured or NOON + timedelta(seconds=1.8 * frame)
    types = ("tailgating",) if stage is Stage.FINAL else ()
    return RiskAssessmentResult(
        message_id=f"result{frame}{stage}",
        request_id=f"frame{frame}",
        camera_id="crossing",
        timestamp=captured + timedelta(seconds=1.5),
        results=(RiskAssessment(group_index=1, risk_level=level, risk_types=types, group_bbox=BOX),),
        has_dangerous_driving=True,
        max_risk_level=level,
        task_id=f"frame{frame}_group1",
        stage=stage,
        captured_at=captured,
    ).model_copy(update=changes)


def frame(number: int, priority: float = 0.95) -> DetectionResult:
    group = TrafficGroup(group_index=1, object_count=2, bbox=BOX, classes=("car", "person"), priority=priority)
    return DetectionResult(
        message_id=f"frame{number}",
        camera_id="crossing",
        timestamp=NOON + timedelta(seconds=1.8 * number),
        image_width=1920,
        image_height=1080,
        detected_objects=(),
        traffic_groups=(group,),
    )


def run(
    engine: Engine,
    consumer: FakeConsumer,
    producer: FakeProducer,
    *,
    now: datetime = NOON + timedelta(seconds=3),
    until: Callable[[], bool] | None = None,
) -> AlertsService:
    """Run until the batches are used up (or `until` holds), then one more turn."""
    stop = threading.Event()
    service = AlertsService(engine, consumer, producer, Settings(), clock=lambda: now)
    service.BACKOFF_INITIAL = service.BACKOFF_MAX = 0.01
    service._batches.backoff = (0.01, 0.01)
    service.TICK_SECONDS = 0
    consumer.on_idle = lambda: stop.set() if until is None or until() else None
    service.run(stop)
    return service


def alerts(engine: Engine) -> list[Alert]:
    return ledger_alerts.list_alerts(engine, AlertFilter(), limit=100)


def test_geometry_stream_and_answer_become_one_alert_that_is_published_at_each_stage(ledger: Engine) -> None:
    consumer = FakeConsumer([[frame(0)], [answer(0, stage=Stage.PROVISIONAL)], [answer(0)]])
    producer = FakeProducer()
    run(ledger, consumer, producer)
    assert [(alert.basis.value, alert.state.value) for alert in producer.sent] == [
        ("geometry", "provisional"),
        ("provisional", "provisional"),
        ("final", "open"),
    ]
    assert len({alert.alert_id for alert in producer.sent}) == 1
    assert [alert.notify for alert in producer.sent] == [False, True, False]
    assert consumer.committed == 3


def test_failures_and_backfills_are_passed_over_and_counted(ledger: Engine) -> None:
    def ignored(reason: str) -> float:
        return REGISTRY.get_sample_value("alert_inputs_ignored_total", {"reason": reason}) or 0

    before = ignored("failure"), ignored("other_run")
    failure = answer(0, error=AssessmentFailure(code="timeout", message="no answer"), results=())
    backfill = answer(1, metadata=AssessmentMetadata(run="backfill"))
    consumer = FakeConsumer([[failure, backfill, frame(2, priority=0.2)]])
    run(ledger, consumer, FakeProducer())
    assert alerts(ledger) == []
    assert consumer.committed == 1
    assert (ignored("failure"), ignored("other_run")) == (before[0] + 1, before[1] + 1)


def test_silence_closes_the_alert_by_itself(ledger: Engine) -> None:
    run(ledger, FakeConsumer([[answer(0)]]), FakeProducer())
    run(ledger, FakeConsumer([]), FakeProducer(), now=NOON + timedelta(seconds=60))
    assert [alert.state for alert in alerts(ledger)] == [AlertState.CLOSED]


@pytest.mark.parametrize("backlog", [300, 10_000])
def test_a_backlog_is_not_silence(ledger: Engine, backlog: int) -> None:
    run(ledger, FakeConsumer([[answer(0)]]), FakeProducer())
    consumer = FakeConsumer([[], [answer(1)], [answer(2)]])
    consumer.backlog = backlog
    run(ledger, consumer, FakeProducer(), now=NOON + timedelta(hours=1))
    (alert,) = alerts(ledger)
    assert (alert.state, alert.version) == (AlertState.OPEN, 3)


def test_the_silence_of_a_camera_that_another_member_reads_is_not_ours_to_tell(ledger: Engine) -> None:
    run(ledger, FakeConsumer([[answer(0)]]), FakeProducer())
    consumer = FakeConsumer([[]])
    (alert,) = alerts(ledger)
    consumer.cameras_of_others = {alert.camera_id}
    run(ledger, consumer, FakeProducer(), now=NOON + timedelta(hours=1))
    assert [alert.state for alert in alerts(ledger)] == [AlertState.OPEN]
    consumer.cameras_of_others = set()
    run(ledger, consumer, FakeProducer(), now=NOON + timedelta(hours=1))
    assert [alert.state for alert in alerts(ledger)] == [AlertState.CLOSED]


def test_offsets_are_committed_only_after_the_ledger_has_the_batch(
    ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is away for five attempts; the member stays in its group and nothing is lost."""
    attempts = 0
    real = ledger_alerts.advance

    def away(*args: Any) -> Any:
        nonlocal attempts
        attempts += 1
        assert consumer.committed == 0
        if attempts <= 5:
            raise LedgerError("away")
        return real(*args)

    consumer = FakeConsumer([[answer(0)]])
    producer = FakeProducer()
    monkeypatch.setattr(ledger_alerts, "advance", away)
    run(ledger, consumer, producer, until=lambda: not consumer.paused)
    assert attempts == 6
    assert producer.versions == [1]
    assert consumer.committed == 1
    assert not consumer.paused


def test_a_refused_message_makes_one_dead_letter_however_often_its_batch_is_tried(
    ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts, real = 0, ledger_alerts.advance

    def refuse(engine: Engine, lifecycle: Any, sightings: Sequence[Sighting]) -> Any:
        nonlocal attempts
        if any(sighting.request_id == "frame0" for sighting in sightings):
            raise StatementRefusedError("no such value")
        attempts += 1
        if attempts <= 4:
            raise LedgerError("away")
        return real(engine, lifecycle, sightings)

    consumer = FakeConsumer([[answer(0), answer(1), answer(2), answer(3)]])
    monkeypatch.setattr(ledger_alerts, "advance", refuse)
    run(ledger, consumer, FakeProducer(), until=lambda: not consumer.paused)
    assert [item.message.request_id for item, _, _ in consumer.set_asides] == ["frame0"]
    assert [alert.last_request_id for alert in alerts(ledger)] == ["frame3"]
    assert consumer.committed == 1


def test_a_database_that_does_not_fit_ends_the_service_with_the_batch_uncommitted(
    ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise UnfitLedgerError("no such column")

    consumer = FakeConsumer([[answer(0)]])
    monkeypatch.setattr(ledger_alerts, "advance", refuse)
    with pytest.raises(UnfitLedgerError):
        run(ledger, consumer, FakeProducer())
    assert consumer.committed == 0
    assert consumer.set_asides == []


def test_a_stop_while_the_database_is_away_gives_the_batch_back(
    ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise LedgerError("away")

    consumer = FakeConsumer([[answer(0)]])
    with monkeypatch.context() as patch:
        patch.setattr(ledger_alerts, "advance", away)
        run(ledger, consumer, FakeProducer())
    assert consumer.committed == 0


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, where: str | None) -> Iterator[None]:
    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if where:
            patch.setattr(ledger_alerts, where, die)
        yield


@pytest.mark.parametrize("where", ["before the ledger", "before publishing", "before the commit", "while publishing"])
def test_a_kill_anywhere_loses_and_doubles_no_alert(
    ledger: Engine, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    batches: list[list[Message]] = [[frame(0), answer(0)], [answer(1)]]
    consumer, producer = FakeConsumer(batches), FakeProducer()
    patched = {"before the ledger": "advance", "before publishing": "publish_pending"}.get(where)
    if where == "before the commit":
        consumer.fail_commit = Killed()
    if where == "while publishing":
        producer.fail = Killed()
    with killed_at(monkeypatch, patched), pytest.raises(Killed):
        run(ledger, consumer, producer)
    again, producer_again = FakeConsumer(batches), FakeProducer()  # nothing was committed: all comes again
    run(ledger, again, producer_again)
    (alert,) = alerts(ledger)
    assert alert.version == 3
    received = [(sent.alert_id, sent.version) for sent in producer.sent + producer_again.sent]
    assert sorted(set(received)) == [(alert.alert_id, 1), (alert.alert_id, 2), (alert.alert_id, 3)]


def test_what_a_killed_process_left_unpublished_is_published_at_the_start(
    ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed), killed_at(monkeypatch, "publish_pending"):
        run(ledger, FakeConsumer([[answer(0)]]), FakeProducer())
    producer = FakeProducer()
    run(ledger, FakeConsumer([]), producer)
    assert producer.versions == [1]


def test_while_the_broker_takes_nothing_alerts_are_kept_and_published_later(ledger: Engine) -> None:
    producer = FakeProducer()
    producer.fail = BrokerError("away")
    run(ledger, FakeConsumer([[answer(0)], [answer(1)]]), producer)
    assert [alert.version for alert in alerts(ledger)] == [2]
    producer.fail = None
    run(ledger, FakeConsumer([]), producer)
    assert producer.versions == [1, 2]


def test_an_offset_that_cannot_be_committed_does_not_end_the_service(ledger: Engine) -> None:
    consumer = FakeConsumer([[answer(0)], [answer(0)]])
    consumer.fail_commit = BrokerError("away")
    run(ledger, consumer, FakeProducer())
    assert [alert.version for alert in alerts(ledger)] == [1]


def test_on_a_broker_messages_become_alerts_and_a_second_service_goes_on(ledger: Engine) -> None:
    from tests.conftest import missing_component

    try:
        broker = EmbeddedBroker().start()
    except DangerousDrivingError as error:
        missing_component(f"no embedded broker: {error}")
        raise
    with broker:
        kafka = embedded_kafka_settings(broker.bootstrap_servers)
        settings = Settings(kafka=kafka)
        apply(kafka)
        with (
            Producer(kafka, "test") as producer,
            Consumer(kafka, {Topic.ALERTS: Alert}, name="test", policy=AckPolicy.BROADCAST) as listener,
        ):
            received: list[Alert] = []

            def listen_until(version: int) -> None:
                while not received or received[-1].version < version:
                    received.extend(item.message for item in listener.poll(0.2, 100))

            for number, end in ((0, 2), (1, 3)):
                stop = threading.Event()
                with Consumer[DetectionResult | RiskAssessmentResult](
                    kafka,
                    {Topic.DETECTION_RESULTS: DetectionResult, Topic.RISK_ASSESSMENT_RESULTS: RiskAssessmentResult},
                    name="alerts",
                    policy=AckPolicy.AFTER_EFFECT,
                ) as consumer:
                    service = AlertsService(
                        ledger, consumer, producer, settings, clock=lambda: NOON + timedelta(seconds=3)
                    )
                    thread = threading.Thread(target=service.run, args=(stop,))
                    thread.start()
                    try:
                        producer.send(
                            Topic.RISK_ASSESSMENT_RESULTS, answer(number, stage=Stage.PROVISIONAL), "crossing"
                        ).result()
                        if number == 0:
                            producer.send(Topic.RISK_ASSESSMENT_RESULTS, answer(0), "crossing").result()
                        listen_until(end)
                    finally:
                        stop.set()
                        thread.join(20)
            assert [alert.version for alert in received] == [1, 2, 3]
            assert len({alert.alert_id for alert in received}) == 1
