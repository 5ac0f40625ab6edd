"""Simulated detection results for proofs, what must follow from them, and what is found on the topics and in the ledger."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from kafka import KafkaConsumer, TopicPartition
from sqlalchemy import Engine, text

from dangerous_driving.contracts import AssessmentTask, DetectionResult
from dangerous_driving.ledger.database import transaction
from dangerous_driving.messaging import Producer, Topic
from dangerous_driving.settings import KafkaSettings
from dangerous_driving.simulation.messages import detection_result

START = datetime(2026, 11, 1, tzinfo=UTC)
INTERVAL = 1.8


def say(line: str) -> None:
    """Progress, with the time of day."""
    print(f"{datetime.now(UTC):%H:%M:%S}  {line}", flush=True)


def results(count: int, cameras: int) -> Iterator[DetectionResult]:
    """So many results, the cameras in rotation: no group, one or more, of lone objects or of several."""
    draw = random.Random(7)
    for number in range(count):
        yield detection_result(
            f"cam-{number % cameras:02d}",
            START + timedelta(seconds=INTERVAL * (number // cameras)),
            groups=draw.choice((0, 1, 1, 2, 3)),
            objects_per_group=draw.choice((1, 2, 2, 3)),
        )


@dataclass
class Sent:
    """What was put on the topic, and what must become of it."""

    frames: set[str] = field(default_factory=set)
    tasks: set[str] = field(default_factory=set)
    error: BaseException | None = None

    def note(self, result: DetectionResult) -> None:
        """Written out here once more: the code under proof is not asked what it should do."""
        self.frames.add(result.message_id)
        self.tasks |= {
            f"{result.message_id}_group{group.group_index}"
            for group in result.traffic_groups
            if group.object_count >= 2
        }


class Sending(threading.Thread):
    """Sends all results, as fast as the brokers take them, while other things happen.

    ``hold_at``: after so many results it waits until somebody says ``go_on``.
    """

    def __init__(self, kafka: KafkaSettings, count: int, cameras: int, hold_at: int | None = None) -> None:
        super().__init__(name="sending", daemon=True)
        self.sent = Sent()
        self.go_on = threading.Event()
        self._hold_at = hold_at
        self._kafka, self._count, self._cameras = kafka, count, cameras

    def run(self) -> None:
        try:
            with Producer(self._kafka, "cameras") as producer:
                for number, result in enumerate(results(self._count, self._cameras)):
                    if number == self._hold_at:
                        producer.flush(600)
                        self.go_on.wait()
                    while producer.unacknowledged > self._kafka.max_unacknowledged // 2:
                        time.sleep(0.01)
                    producer.send(Topic.DETECTION_RESULTS, result, key=result.camera_id)
                    self.sent.note(result)
                producer.flush(600)
        except BaseException as error:
            self.sent.error = error
            raise


@dataclass
class Found:
    """Tasks on the topic, read committed: each once in the order of its first appearance, and how many came again."""

    tasks: list[AssessmentTask]
    again: int

    @property
    def ids(self) -> set[str]:
        return {task.task_id for task in self.tasks}

    def out_of_order(self) -> int:
        """Tasks that appeared after a later frame's task of the same camera."""
        newest: dict[str, tuple[datetime, int]] = {}
        wrong = 0
        for task in self.tasks:
            place = (task.timestamp, task.group_index)
            wrong += place < newest.get(task.camera_id, place)
            newest[task.camera_id] = max(place, newest.get(task.camera_id, place))
        return wrong


def tasks_on_topic(kafka: KafkaSettings) -> Found:
    """All tasks that are committed on the topic now."""
    first: dict[str, AssessmentTask] = {}
    again = 0
    for value in committed(kafka, Topic.ASSESSMENT_TASKS):
        task = AssessmentTask.from_json(value)
        again += task.task_id in first
        first.setdefault(task.task_id, task)
    return Found(list(first.values()), again)


def committed(kafka: KafkaSettings, topic: Topic) -> Iterator[bytes]:
    """Every message of a topic that is committed now, partition by partition in order."""
    consumer = KafkaConsumer(
        bootstrap_servers=kafka.bootstrap_servers.split(","), group_id=None, isolation_level="read_committed",
        enable_auto_commit=False, max_partition_fetch_bytes=4 * 1024 * 1024, fetch_max_wait_ms=200,
    )  # fmt: skip
    try:
        numbers = consumer.partitions_for_topic(topic.value)
        for place in [TopicPartition(topic.value, number) for number in sorted(numbers or ())]:
            consumer.assign([place])
            consumer.seek_to_beginning(place)
            end = consumer.end_offsets([place])[place]
            while (consumer.position(place) or 0) < end:
                for record in consumer.poll(500, max_records=2000).get(place, ()):
                    yield record.value
    finally:
        consumer.close()


def in_ledger(engine: Engine) -> tuple[set[str], int, set[str]]:
    """Task ids, how many rows they are, and message ids of the frames."""
    with transaction(engine) as connection:
        tasks = list(connection.scalars(text("SELECT task_id FROM assessment_task")))
        frames = set(connection.scalars(text("SELECT message_id FROM frame")))
    return set(tasks), len(tasks), frames


def count_frames(engine: Engine) -> int:
    """Frames in the ledger."""
    with transaction(engine) as connection:
        return int(connection.scalar(text("SELECT count(*) FROM frame")) or 0)


@dataclass
class Verdict:
    """Statements, each with whether it holds."""

    lines: list[tuple[bool, str]] = field(default_factory=list)

    def that(self, holds: bool, statement: str) -> None:
        self.lines.append((holds, statement))
        say(f"{'holds ' if holds else 'FAILS '} {statement}")

    @property
    def holds(self) -> bool:
        return all(holds for holds, _ in self.lines)


def compare(verdict: Verdict, engine: Engine, found: Found, sent: Sent) -> None:
    """Ledger and topic against what was sent."""
    tasks, rows, frames = in_ledger(engine)
    verdict.that(frames == sent.frames, f"ledger: {len(frames)} frames, {len(sent.frames)} were sent")
    verdict.that(
        tasks == sent.tasks and rows == len(tasks),
        f"ledger: {rows} tasks, {len(sent.tasks)} expected, {len(sent.tasks - tasks)} missing, "
        f"{len(tasks - sent.tasks)} unexpected, {rows - len(tasks)} doubled",
    )
    same_on_topic(verdict, found, sent)


def same_on_topic(verdict: Verdict, found: Found, sent: Sent) -> None:
    """The topic against what was sent."""
    verdict.that(
        found.ids == sent.tasks,
        f"topic, read committed and by id: {len(found.ids)} tasks, {len(sent.tasks)} expected, "
        f"{len(sent.tasks - found.ids)} missing, {len(found.ids - sent.tasks)} unexpected ({found.again} came again)",
    )
    wrong = found.out_of_order()
    verdict.that(wrong == 0, f"order per camera: {wrong} tasks after a later one of their camera")


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
