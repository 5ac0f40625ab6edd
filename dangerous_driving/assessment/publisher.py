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
    """Sends results without making the assessor wait, and notes in the ledger which have arrived."""

    BATCH = 100
    REPUBLISH_AFTER = 5.0  # s; younger answers are on their way

    def __init__(self, engine: Engine, producer: Sender, *, delivery_timeout: float) -> None:
        self._engine = engine
        self._producer = producer
        self._delivery_timeout = delivery_timeout
        # bounded: a receipt that finds no room is simply not noted, and the answer is sent once more later
        self._under_way: set[str] = set()
        self._receipts: queue.Queue[tuple[AssessmentRecord, Receipt] | None] = queue.Queue(maxsize=2000)
        self._thread = threading.Thread(target=self._note_receipts, name="receipts", daemon=True)
        self._thread.start()

    def provisional(self, result: RiskAssessmentResult) -> None:
        """Send a streamed level; when it gets lost, the final answer still comes."""
        self._send(result)

    def failed(self, result: RiskAssessmentResult) -> None:
        """Send a failure; the ledger has its cause, so it is not sent again."""
        self._send(result)

    def final(self, record: AssessmentRecord) -> None:
        """Send an answer that the ledger has."""
        delivery = self._send(final_result(record))
        if delivery is not None:
            try:
                self._receipts.put_nowait((record, delivery))
            except queue.Full:
                log.warning("receipt_not_noted", task_id=record.task_id)
            else:
                self._under_way.add(record.task_id)

    def republish(self) -> int:
        """Send live answers that are not known to be on the topic; returns how many."""
        found = unpublished(self._engine, older_than=self.REPUBLISH_AFTER, limit=self.BATCH)
        records = [record for record in found if record.task_id not in self._under_way]
        for record in records:
            self.final(record)
        return len(records)

    def close(self) -> None:
        """Wait for the receipts of what was sent."""
        self._receipts.put(None)
        self._thread.join(self._delivery_timeout)

    def _send(self, result: RiskAssessmentResult) -> Receipt | None:
        try:
            return self._producer.send(Topic.RISK_ASSESSMENT_RESULTS, result, key=result.camera_id)
        except BrokerError as error:
            log.warning("result_not_sent", task_id=result.task_id, stage=result.stage, reason=str(error))
            return None

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
