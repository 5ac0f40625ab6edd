"""The tasks service: detection results from the topic -> frames and tasks in the ledger -> tasks on the topic.

Acknowledgement: offsets are committed after the ledger's transaction and the brokers' receipt of every task. A crash
in between replays the batch, which changes nothing: every id derives from the message.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import structlog
from sqlalchemy import Engine

from dangerous_driving.contracts import AssessmentTask, DetectionResult
from dangerous_driving.errors import BrokerError, LedgerError
from dangerous_driving.ledger.frames import record_detections
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.messaging import Topic
from dangerous_driving.messaging.seam import Receiver, Sender
from dangerous_driving.observability.metrics import FRAMES_RECORDED, TASKS_CREATED
from dangerous_driving.tasks.derivation import tasks_from_detection

log = structlog.get_logger(__name__)

ResultT = TypeVar("ResultT")


class TasksService:
    """Turns detection results into tasks until it is stopped."""

    BATCH = 200
    POLL_SECONDS = 0.5
    RETRY_SECONDS = 1.0

    def __init__(
        self, engine: Engine, consumer: Receiver, producer: Sender, *, window_length: int, delivery_timeout: float
    ) -> None:
        self._engine = engine
        self._consumer = consumer
        self._producer = producer
        self._window_length = window_length
        self._delivery_timeout = delivery_timeout
        self._partitions = Partitions()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop`; a batch in hand is finished first, unless a store it needs stays away."""
        while not stop.is_set():
            received = self._consumer.poll(self.POLL_SECONDS, self.BATCH)
            results = [item.message for item in received if isinstance(item.message, DetectionResult)]
            if results and self._until_done(stop, lambda batch=results: self.handle(batch)):  # type: ignore[misc]
                self._consumer.commit()

    def handle(self, results: Sequence[DetectionResult]) -> list[AssessmentTask]:
        """Record one batch and send its tasks; returns the tasks.

        Raises:
            LedgerError: nothing was sent.
            BrokerError: the ledger has the batch, some tasks may not be on the topic.
        """
        tasks = [task for result in results for task in tasks_from_detection(result)]
        new = record_detections(self._engine, self._partitions, results, tasks, window_length=self._window_length)
        deliveries = [self._producer.send(Topic.ASSESSMENT_TASKS, task, key=task.camera_id) for task in tasks]
        for delivery in deliveries:
            delivery.result(self._delivery_timeout)
        FRAMES_RECORDED.inc(new)
        TASKS_CREATED.inc(len(tasks))
        return tasks

    def _until_done(self, stop: threading.Event, work: Callable[[], ResultT]) -> bool:
        # the batch stays in hand: neither lost nor committed while the database or the brokers are away
        while True:
            try:
                work()
            except (LedgerError, BrokerError) as error:
                if not error.retriable:
                    raise  # a defect: uncommitted and loud, not one more try for ever
                log.warning("batch_waits", reason=str(error))
                if stop.wait(self.RETRY_SECONDS):
                    return False
            else:
                return True
