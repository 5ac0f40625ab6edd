"""The tasks service: detection results from the topic -> frames and tasks in the ledger -> tasks on the topic.

Acknowledgement: offsets are committed after the ledger's transaction and the brokers' receipt of every task. A crash
in between replays the batch, which changes nothing: every id derives from the message. A message that the ledger or the
topic refuses goes to ``dead-letter`` alone; the others of its batch go on. A picture inside a message goes to the store first.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import structlog
from sqlalchemy import Engine

from dangerous_driving.contracts import AssessmentTask, DetectionResult
from dangerous_driving.errors import BrokerError, ContractError, LedgerError, ObjectStoreError
from dangerous_driving.ledger.frames import name_pictures, record_detections
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.messaging import Received, Topic
from dangerous_driving.messaging.refusal import without_refused
from dangerous_driving.messaging.seam import Receiver, Sender
from dangerous_driving.objects import ObjectStore
from dangerous_driving.observability.metrics import FRAMES_RECORDED, TASKS_CREATED
from dangerous_driving.observability.stages import Stage, tasks_reached
from dangerous_driving.tasks.derivation import require_captured_by, tasks_from_detection
from dangerous_driving.tasks.pictures import with_pictures_stored

log = structlog.get_logger(__name__)


def now_utc() -> datetime:
    """The clock of a running service."""
    return datetime.now(UTC)


class TasksService:
    """Turns detection results into tasks until it is stopped.

    Args:
        engine: of the ledger.
        consumer: of detection results.
        producer: for the tasks; None where the Flink job sends them and this service keeps the ledger alone.
        store: for pictures that came inside a message.
        in_flight: tasks that are sent before their receipts are awaited; below ``kafka.max_unacknowledged``.
        window_length: s.
        delivery_timeout: s for the brokers' receipts of one batch.
        clock: tells a capture time in the future.
    """

    BATCH = 500
    POLL_SECONDS = 0.5
    RETRY_SECONDS = 1.0

    def __init__(
        self,
        engine: Engine,
        consumer: Receiver,
        producer: Sender | None,
        *,
        store: ObjectStore,
        window_length: int,
        delivery_timeout: float,
        in_flight: int = 2000,
        clock: Callable[[], datetime] = now_utc,
    ) -> None:
        self._engine = engine
        self._consumer = consumer
        self._producer = producer
        self._store = store
        self._window_length = window_length
        self._delivery_timeout = delivery_timeout
        self._in_flight = in_flight
        self._clock = clock
        self._partitions = Partitions()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop`; a batch in hand is finished first, unless a store it needs stays away."""
        while not stop.is_set():
            try:
                received = self._consumer.poll(self.POLL_SECONDS, self.BATCH)
                if received and self._until_done(stop, received):
                    self._consumer.commit()
            except BrokerError as error:
                # a dead letter or a commit that the brokers did not take: the messages come again and change nothing
                log.warning("batch_comes_again", reason=str(error))
                stop.wait(self.RETRY_SECONDS)

    def handle(self, results: Sequence[DetectionResult]) -> list[AssessmentTask]:
        """Record one batch and send its tasks; returns the tasks.

        Raises:
            LedgerError: nothing was sent.
            BrokerError: the ledger has the batch, some tasks may not be on the topic.
        """
        tasks = [task for result in results for task in tasks_from_detection(result)]
        new = record_detections(self._engine, self._partitions, results, tasks, window_length=self._window_length)
        if self._producer is None and (carried := [task for task in tasks if task.group_image_base64]):
            # a scheduler that had the task from the Flink job sooner wrote its row without the URL
            name_pictures(self._engine, carried)
        tasks_reached(Stage.RECORDED, tasks)  # before they are sent, since the span goes with the message
        if self._producer is not None:
            for start in range(0, len(tasks), self._in_flight):
                part = tasks[start : start + self._in_flight]
                deliveries = [self._producer.send(Topic.ASSESSMENT_TASKS, task, key=task.camera_id) for task in part]
                for delivery in deliveries:
                    delivery.result(self._delivery_timeout)
            TASKS_CREATED.inc(len(tasks))
        FRAMES_RECORDED.inc(new)
        return tasks

    def _until_done(self, stop: threading.Event, received: Sequence[Received[DetectionResult]]) -> bool:
        # the batch stays in hand: neither lost nor committed while the database, the brokers or the store are away
        raw, usable = deque(received), list[Received[DetectionResult]]()
        while True:
            try:
                self._sort_out(raw, usable)
                without_refused(
                    usable,
                    lambda part: self.handle([item.message for item in part]),
                    lambda item, error: self._consumer.set_aside(item, str(error)),
                )
            except (LedgerError, BrokerError, ObjectStoreError) as error:
                if not error.retriable:
                    raise  # a defect: uncommitted and loud, not one more try for ever
                log.warning("batch_waits", reason=str(error))
                if stop.wait(self.RETRY_SECONDS):
                    return False
            else:
                return True

    def _sort_out(self, raw: deque[Received[DetectionResult]], usable: list[Received[DetectionResult]]) -> None:
        """Move what can be used over, with its pictures stored; the rest goes to ``dead-letter``."""
        now = self._clock()
        while raw:
            item = raw[0]
            try:
                require_captured_by(item.message, now)
                usable.append(replace(item, message=with_pictures_stored(item.message, self._store)))
            except ContractError as error:
                self._consumer.set_aside(item, str(error), error.field)
            raw.popleft()
