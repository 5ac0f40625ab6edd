"""Results on their way to the topic.

An answer counts as published once the brokers have it; what a crash or an absent broker leaves unpublished in the
ledger is sent again.
"""

from __future__ import annotations

import queue
import threading

import structlog
from sqlalchemy import Engine

from dangerous_driving.assessment.results import final_result
from dangerous_driving.contracts import RiskAssessmentResult
from dangerous_driving.errors import BrokerError, LedgerError
from dangerous_driving.ledger.assessments import AssessmentRecord, mark_published, unpublished
from dangerous_driving.messaging import Topic
from dangerous_driving.messaging.seam import Receipt, Sender
from dangerous_driving.observability.stages import result_delivered

log = structlog.get_logger(__name__)


class ResultPublisher:
    """Sends results without making the assessor wait, and notes in the ledger which have arrived.

    A thread hands them to the producer, in order: the producer waits for the topic's partitions when it does not know them (or no
    longer, while the brokers are away), and an event loop that waits with it reads no answers meanwhile.
    """

    BATCH = 100
    REPUBLISH_AFTER = 5.0  # s; younger answers are on their way
    #: Results that wait for the producer or for their receipts. What finds no room is not lost: the ledger has the answers.
    ROOM = 2000

    def __init__(self, engine: Engine, producer: Sender, *, delivery_timeout: float) -> None:
        self._engine = engine
        self._producer = producer
        self._delivery_timeout = delivery_timeout
        self._under_way: set[str] = set()
        self._outbox: queue.Queue[tuple[RiskAssessmentResult, AssessmentRecord | None] | None] = queue.Queue(self.ROOM)
        self._receipts: queue.Queue[tuple[AssessmentRecord, Receipt] | None] = queue.Queue(self.ROOM)
        self._threads = [
            threading.Thread(target=self._send_all, name="results", daemon=True),
            threading.Thread(target=self._note_receipts, name="receipts", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def provisional(self, result: RiskAssessmentResult) -> None:
        """Send a streamed level; when it gets lost, the final answer still comes."""
        self._put(result, None)

    def failed(self, result: RiskAssessmentResult) -> None:
        """Send a failure; the ledger has its cause, so it is not sent again."""
        self._put(result, None)

    def final(self, record: AssessmentRecord) -> None:
        """Send an answer that the ledger has."""
        self._under_way.add(record.task_id)
        if not self._put(final_result(record), record):
            self._under_way.discard(record.task_id)

    def republish(self) -> int:
        """Send live answers that are not known to be on the topic; returns how many."""
        found = unpublished(self._engine, older_than=self.REPUBLISH_AFTER, limit=self.BATCH)
        records = [record for record in found if record.task_id not in self._under_way]
        for record in records:
            self.final(record)
        return len(records)

    def close(self) -> None:
        """Send what waits, and wait for the receipts."""
        self._outbox.put(None)
        for thread in self._threads:
            thread.join(self._delivery_timeout)

    def _put(self, result: RiskAssessmentResult, record: AssessmentRecord | None) -> bool:
        try:
            self._outbox.put_nowait((result, record))
        except queue.Full:
            log.warning(
                "result_not_sent", task_id=result.task_id, stage=result.stage, reason="too many wait for the brokers"
            )
            return False
        return True

    def _send_all(self) -> None:
        while (item := self._outbox.get()) is not None:
            result, record = item
            try:
                delivery = self._producer.send(Topic.RISK_ASSESSMENT_RESULTS, result, key=result.camera_id)
                if record is not None:
                    self._receipts.put_nowait((record, delivery))
                    continue
            except BrokerError as error:
                log.warning("result_not_sent", task_id=result.task_id, stage=result.stage, reason=str(error))
            except queue.Full:
                log.warning("receipt_not_noted", task_id=result.task_id)  # it is sent once more later
            if record is not None:
                self._under_way.discard(record.task_id)
        self._receipts.put(None)

    def _note_receipts(self) -> None:
        ended = False
        while not ended:
            batch = [self._receipts.get()]
            while len(batch) < self.BATCH and not self._receipts.empty():
                batch.append(self._receipts.get())
            ended = None in batch
            arrived = []
            for item in batch:
                if item is None:
                    continue
                record, delivery = item
                try:
                    delivery.result(self._delivery_timeout)
                except BrokerError as error:
                    log.warning("result_not_delivered", task_id=record.task_id, reason=str(error))
                else:
                    arrived.append(record)
                    result_delivered(record.message_id, record.task_id, record.camera_id)
            try:
                mark_published(self._engine, arrived)
            except LedgerError as error:
                log.warning("receipts_not_noted", results=len(arrived), reason=str(error))
            self._under_way.difference_update(item[0].task_id for item in batch if item is not None)
