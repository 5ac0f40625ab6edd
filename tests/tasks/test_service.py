"""The tasks service on a real ledger: a replay changes nothing, and what cannot be done yet stays in hand."""

from __future__ import annotations

import base64
import threading
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from dangerous_driving.contracts import AssessmentTask, DetectionResult, Message
from dangerous_driving.errors import BrokerError, ObjectStoreError
from dangerous_driving.ledger.claims import claim_tasks, start_worker
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.messaging import Topic
from dangerous_driving.messaging.consumer import Received
from dangerous_driving.objects import FolderStore, ObjectStore
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import tasks_from_detection
from dangerous_driving.tasks.service import TasksService

pytestmark = pytest.mark.integration

AT = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOW = AT + timedelta(hours=1)


class FakeDelivery:
    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker

    def result(self, timeout: float) -> None:
        if self._broker.refusals:
            self._broker.refusals -= 1
            raise BrokerError("no broker answered; check kafka.bootstrap_servers")


class FakeBroker:
    """Hands out batches, keeps what is sent, and stops the service once nothing is left."""

    def __init__(self, batches: Sequence[Sequence[DetectionResult]], stop: threading.Event) -> None:
        self._batches = deque(batches)
        self._stop = stop
        self.refusals = 0
        self.set_asides: list[tuple[Received[Any], str, str]] = []
        self.sent: list[tuple[Topic, Message, str]] = []
        self.commits_at: list[int] = []

    def poll(self, timeout: float, max_records: int) -> Sequence[Received[DetectionResult]]:
        if not self._batches:
            self._stop.set()
            return []
        return [
            Received(Topic.DETECTION_RESULTS, 0, offset, message.camera_id, message)
            for offset, message in enumerate(self._batches.popleft())
        ]

    def set_aside(self, item: Received[Any], reason: str, field: str = "") -> None:
        self.set_asides.append((item, reason, field))

    def commit(self) -> bool:
        self.commits_at.append(len(self.sent))
        return True

    def send(self, topic: Topic, message: Message, key: str) -> FakeDelivery:
        self.sent.append((topic, message, key))
        return FakeDelivery(self)


class NoStore(FolderStore):
    def put(self, key: str, data: bytes, content_type: str) -> str:
        raise AssertionError("no picture came, so nothing is to be stored")


def run(
    ledger: Engine,
    batches: Sequence[Sequence[DetectionResult]],
    *,
    refusals: int = 0,
    sends: bool = True,
    store: ObjectStore = NoStore(Path("/nowhere")),  # noqa: B008 - keeps nothing
) -> FakeBroker:
    stop = threading.Event()
    broker = FakeBroker(batches, stop)
    broker.refusals = refusals
    service = TasksService(
        ledger, broker, broker if sends else None, store=store, window_length=60, delivery_timeout=1, clock=lambda: NOW
    )
    service.RETRY_SECONDS = 0.01
    service.run(stop)
    return broker


def count(ledger: Engine, table: str) -> int:
    with transaction(ledger) as connection:
        found: int = connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
        return found


def frames(number: int) -> list[DetectionResult]:
    return [detection_result("sim-1", AT + timedelta(seconds=2 * index), groups=3) for index in range(number)]


def test_frames_and_tasks_reach_the_ledger_and_tasks_the_topic_before_the_commit(ledger: Engine) -> None:
    broker = run(ledger, [frames(4)])
    assert (count(ledger, "frame"), count(ledger, "assessment_task"), count(ledger, "camera")) == (4, 12, 1)
    assert len(broker.sent) == 12
    assert all(topic is Topic.ASSESSMENT_TASKS and key == "sim-1" for topic, _, key in broker.sent)
    assert broker.commits_at == [12]


def test_a_replayed_or_doubled_message_changes_nothing(ledger: Engine) -> None:
    batch = frames(2)
    run(ledger, [batch])
    broker = run(ledger, [[*batch, *batch], batch])
    assert (count(ledger, "frame"), count(ledger, "assessment_task")) == (2, 6)
    ids = {message.task_id for _, message, _ in broker.sent if isinstance(message, AssessmentTask)}
    assert len(ids) == 6


def test_a_batch_stays_in_hand_while_the_broker_refuses(ledger: Engine) -> None:
    broker = run(ledger, [frames(1)], refusals=2)
    assert broker.refusals == 0
    # refused twice, so sent three times, and committed only then
    assert broker.commits_at == [len(broker.sent)] == [9]
    assert len({message.task_id for _, message, _ in broker.sent if isinstance(message, AssessmentTask)}) == 3


class NarrowBroker(FakeBroker):
    """Takes few messages at a time, as a producer does at `kafka.max_unacknowledged`."""

    waiting = 0

    def send(self, topic: Topic, message: Message, key: str) -> FakeDelivery:
        if self.waiting >= 5:
            raise BrokerError("5 messages wait for the broker already")
        self.waiting += 1
        return super().send(topic, message, key)


class NarrowDelivery(FakeDelivery):
    def result(self, timeout: float) -> None:
        broker = self._broker
        assert isinstance(broker, NarrowBroker)
        broker.waiting -= 1


def test_a_batch_with_more_tasks_than_the_producer_holds_gets_through(
    ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.tasks.test_service.FakeDelivery", NarrowDelivery)
    stop = threading.Event()
    broker = NarrowBroker([frames(4)], stop)
    TasksService(
        ledger, broker, broker, store=NoStore(Path("/nowhere")), window_length=60, delivery_timeout=1, in_flight=5,
        clock=lambda: NOW,
    ).run(stop)  # fmt: skip
    assert len(broker.sent) == 12
    assert broker.commits_at == [12]


def test_a_frame_without_groups_is_a_frame_all_the_same(ledger: Engine) -> None:
    broker = run(ledger, [[detection_result("sim-1", AT, groups=0)]])
    assert (count(ledger, "frame"), count(ledger, "assessment_task")) == (1, 0)
    assert broker.sent == []
    assert broker.commits_at == [0]


def test_with_flink_in_its_place_the_service_keeps_the_ledger_alone(ledger: Engine) -> None:
    broker = run(ledger, [frames(2)], sends=False)
    assert (count(ledger, "frame"), count(ledger, "assessment_task")) == (2, 6)
    assert broker.sent == []
    assert broker.commits_at == [0]


def test_a_frame_that_the_database_refuses_is_set_aside_alone(ledger: Engine) -> None:
    with transaction(ledger) as connection:
        connection.execute(text("ALTER TABLE frame ADD CHECK (image_width <> 1919)"))
    batch = frames(5)
    batch[3] = batch[3].model_copy(update={"image_width": 1919})
    broker = run(ledger, [batch])
    assert (count(ledger, "frame"), count(ledger, "assessment_task")) == (4, 12)
    [(item, reason, _)] = broker.set_asides
    assert item.message == batch[3]
    assert "check constraint" in reason
    # the others of its batch, in order
    ids = [message.request_id for _, message, _ in broker.sent if isinstance(message, AssessmentTask)]
    assert list(dict.fromkeys(ids)) == [result.message_id for result in batch if result != batch[3]]
    assert len(broker.commits_at) == 1


def test_a_frame_from_the_future_is_set_aside_with_the_field_and_one_of_last_year_is_recorded(ledger: Engine) -> None:
    future = detection_result("sim-1", NOW + timedelta(days=365))
    past = detection_result("sim-1", NOW - timedelta(days=365))
    broker = run(ledger, [[future, past]])
    [(item, reason, field)] = broker.set_asides
    assert (item.message, field) == (future, "timestamp")
    assert "clock" in reason
    assert count(ledger, "frame") == 1
    assert len(broker.commits_at) == 1


PICTURE = b"\xff\xd8\xff a JPEG"


def frame_of_another_detector(message_id: str | None = None) -> DetectionResult:
    """Its pictures lie in the message; one group has a URL all the same."""
    frame = detection_result("sim-1", AT, groups=3)
    text = base64.b64encode(PICTURE).decode()
    urls = (None, None, "https://elsewhere/3.jpg")
    groups = tuple(
        group.model_copy(update={"group_image_base64": text, "group_image_url": url})
        for group, url in zip(frame.traffic_groups, urls, strict=True)
    )
    return frame.model_copy(update={"traffic_groups": groups, "message_id": message_id or frame.message_id})


def urls_of(ledger: Engine) -> list[str]:
    with transaction(ledger) as connection:
        return list(connection.scalars(text("SELECT group_image_url FROM assessment_task ORDER BY group_index")))


def test_a_picture_inside_a_message_is_in_the_store_for_every_later_lane(ledger: Engine, tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    broker = run(ledger, [[frame_of_another_detector()]] * 2, store=store)
    first, second, third = urls_of(ledger)
    assert store.get(store.key(first)) == store.get(store.key(second)) == PICTURE
    assert third == "https://elsewhere/3.jpg"
    assert len(list(store.list("groups/"))) == 2
    told = {message.group_image_url for _, message, _ in broker.sent if isinstance(message, AssessmentTask)}
    assert told == {first, second, third}


def test_with_flink_a_row_that_a_scheduler_wrote_first_gets_its_picture(ledger: Engine, tmp_path: Path) -> None:
    frame = frame_of_another_detector()
    tasks = tasks_from_detection(frame)
    claim_tasks(
        ledger,
        Partitions(),
        start_worker(ledger, service="assess", node="test", pid=1),
        tasks,
        [],
        deferred_reason="",
        window_length=60,
    )
    assert urls_of(ledger)[:2] == [None, None]
    run(ledger, [[frame]], sends=False, store=(store := FolderStore(tmp_path)))
    first, second, third = urls_of(ledger)
    assert {store.key(first), store.key(second)} == set(store.list("groups/"))
    assert third == "https://elsewhere/3.jpg"


def test_an_id_that_can_be_no_key_sets_its_message_aside_alone(ledger: Engine, tmp_path: Path) -> None:
    bad = frame_of_another_detector("../../etc/passwd")
    broker = run(ledger, [[bad, *frames(1)]], store=FolderStore(tmp_path))
    [(item, reason, _)] = broker.set_asides
    assert item.message.message_id == bad.message_id
    assert "passwd" in reason
    assert count(ledger, "frame") == 1


class AwayAtFirst(FolderStore):
    refusals = 3

    def put(self, key: str, data: bytes, content_type: str) -> str:
        if self.refusals:
            self.refusals -= 1
            raise ObjectStoreError("the store does not answer")
        return super().put(key, data, content_type)


def test_while_the_store_is_away_the_batch_stays_in_hand_and_makes_one_dead_letter(
    ledger: Engine, tmp_path: Path
) -> None:
    early = detection_result("sim-1", NOW + timedelta(days=2), groups=1)
    broker = run(ledger, [[early, frame_of_another_detector()]], store=AwayAtFirst(tmp_path))
    assert [item.message.message_id for item, _, _ in broker.set_asides] == [early.message_id]
    assert (count(ledger, "frame"), count(ledger, "assessment_task")) == (1, 3)
    assert broker.commits_at == [3]
