"""The alerts service: results and geometry from the topics -> alerts in the ledger -> alerts on their topic.

Acknowledgement: offsets are committed after the ledger's transaction. A crash before it brings the messages again; a crash
after it does too, and changes nothing, since applied inputs are not applied again. What is in the ledger and not on
the topic is published by whoever comes next (:func:`~dangerous_driving.ledger.alerts.publish_pending`): every version
at least once and in order, recognised by alert id and version.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import structlog
from sqlalchemy import Engine

from dangerous_driving.alerts.hearing import Hearing
from dangerous_driving.alerts.inputs import Sighting, sightings_of_detection, sightings_of_result, task_ids
from dangerous_driving.alerts.lifecycle import AlertChange, Lifecycle
from dangerous_driving.contracts import LIVE_RUN, Alert, DetectionResult, Message, RiskAssessmentResult
from dangerous_driving.errors import BrokerError, LedgerError
from dangerous_driving.ledger import alerts as ledger
from dangerous_driving.messaging import Received, Topic
from dangerous_driving.messaging.in_hand import BatchesInHand
from dangerous_driving.messaging.refusal import without_refused
from dangerous_driving.messaging.seam import InformedMember, Sender
from dangerous_driving.observability.metrics import (
    ALERT_CHANGES,
    ALERT_INPUTS_IGNORED,
    ALERTS_ESCALATED,
    ALERTS_HELD,
    ALERTS_RUNG,
)
from dangerous_driving.observability.stages import Stage, alert_reached
from dangerous_driving.settings import Settings

log = structlog.get_logger(__name__)

Clock = Callable[[], datetime]


def now_utc() -> datetime:
    """The clock of a running service."""
    return datetime.now(UTC)


class AlertPublisher:
    """Brings what the ledger has onto the topic."""

    BATCH = 500

    def __init__(self, engine: Engine, producer: Sender, *, delivery_timeout: float) -> None:
        self._engine = engine
        self._producer = producer
        self._delivery_timeout = delivery_timeout

    def publish(self) -> int:
        """Send all versions that are not known to be there; returns how many.

        Raises:
            LedgerError: the database did not answer.
            BrokerError: they are not all there; they stay to be published.
        """
        sent = 0
        while (batch := ledger.publish_pending(self._engine, self._send, limit=self.BATCH)) > 0:
            sent += batch
        return sent

    def _send(self, alerts: Sequence[Alert]) -> None:
        deliveries = [self._producer.send(Topic.ALERTS, alert, key=alert.camera_id) for alert in alerts]
        for delivery in deliveries:
            delivery.result(self._delivery_timeout)


class AlertsService:
    """Runs the lifecycle of all cameras until it is stopped."""

    TICK_SECONDS = 1.0
    BACKOFF_INITIAL = 0.5
    BACKOFF_MAX = 10.0

    def __init__(
        self, engine: Engine, consumer: InformedMember, producer: Sender, settings: Settings, *, clock: Clock = now_utc
    ) -> None:
        self._engine = engine
        self._consumer = consumer
        self._batches = BatchesInHand(consumer, away=(LedgerError, BrokerError))
        self._publisher = AlertPublisher(engine, producer, delivery_timeout=settings.kafka.delivery_timeout)
        self._settings = settings.alerts
        self._lifecycle = Lifecycle(settings.alerts)
        self._hearing: Hearing[tuple[Topic, int]] = Hearing()
        self._clock = clock
        self._next_tick = 0.0
        self._publish_again = 0.0
        self._publish_backoff = self.BACKOFF_INITIAL

    def run(self, stop: threading.Event) -> None:
        """Work until `stop`. A batch in hand is kept first, unless the database stays away; then it comes again."""
        while not stop.is_set():
            received = self._batches.receive(stop)
            if received and not self._batches.keep(received, self._keep, stop):
                return
            self._publish()
            if received:
                self._batches.commit()
            self._tick()

    def handle(self, messages: Sequence[Message]) -> list[AlertChange]:
        """Apply one batch of detection results and assessment results to the alerts in the ledger.

        Raises:
            LedgerError: nothing was kept.
        """
        changes = ledger.advance(self._engine, self._lifecycle, self._sightings(messages))
        _count(changes)
        now = self._clock()
        for change in changes:
            alert = change.after.alert
            if change.before is None or change.before.basis is not alert.basis:
                alert_reached(Stage.ALERT, alert, at=now)
        return changes

    def _sightings(self, messages: Sequence[Message]) -> list[Sighting]:
        now = self._clock()
        results = [message for message in messages if isinstance(message, RiskAssessmentResult)]
        found: list[Sighting] = []
        for message in messages:
            if isinstance(message, DetectionResult):
                found += sightings_of_detection(
                    message,
                    at=now,
                    priority=self._settings.geometry_priority,
                    level=self._settings.open_level,
                )
        details = ledger.task_details(
            self._engine,
            {
                (result.captured_at or result.timestamp, task_id)
                for result in results
                for task_id, entry in zip(task_ids(result), result.results, strict=True)
                if entry.risk_level.rank >= self._settings.open_level.rank or entry.group_bbox is None
            },
        )
        for result in results:
            sightings = sightings_of_result(result, at=now, details=details)
            found += sightings
            if result.error is not None:
                ALERT_INPUTS_IGNORED.labels(reason="failure").inc()
            elif result.metadata.run != LIVE_RUN:
                ALERT_INPUTS_IGNORED.labels(reason="other_run").inc()
            elif len(sightings) < len(result.results):
                ALERT_INPUTS_IGNORED.labels(reason="no_place").inc(len(result.results) - len(sightings))
                log.warning("answer_without_place", request_id=result.request_id, camera_id=result.camera_id)
        return found

    def _keep(self, in_hand: list[Received[Any]]) -> None:
        # what the database refuses goes to dead-letter alone
        without_refused(
            in_hand,
            lambda part: self.handle([item.message for item in part]),
            lambda item, error: self._consumer.set_aside(item, str(error)),
        )

    def _publish(self) -> None:
        if time.monotonic() < self._publish_again:
            return
        try:
            self._publisher.publish()
        except (LedgerError, BrokerError) as error:
            log.warning("alerts_wait_to_be_published", reason=str(error))
            self._publish_again = time.monotonic() + self._publish_backoff
            self._publish_backoff = min(2 * self._publish_backoff, self.BACKOFF_MAX)
        else:
            self._publish_backoff = self.BACKOFF_INITIAL

    def _tick(self) -> None:
        if time.monotonic() < self._next_tick:
            return
        self._next_tick = time.monotonic() + self.TICK_SECONDS
        now = self._clock()
        try:
            # silence is only what was listened to: with a backlog, before the group has given this member anything to
            # read, or for cameras that another member reads, an alert whose continuation waits on the topic would be closed
            heard = self._hearing.heard_until(self._consumer.standing(), at=now)
            if heard is not None:
                _count(ledger.tick(self._engine, self._lifecycle, heard, of=self._is_ours))
        except (LedgerError, BrokerError) as error:
            log.warning("alerts_not_closed", reason=str(error))

    def _is_ours(self, camera_id: str) -> bool:
        # whose answers this member reads; its geometry may come to another one, and says nothing that an answer does not
        return self._consumer.reads(Topic.RISK_ASSESSMENT_RESULTS, camera_id)


def _count(changes: Sequence[AlertChange]) -> None:
    for change in changes:
        alert = change.after.alert
        if change.before is None or change.before.state is not alert.state:
            ALERT_CHANGES.labels(state=alert.state.value, risk_level=alert.risk_level.value).inc()
            log.info(
                "alert",
                alert_id=alert.alert_id,
                camera_id=alert.camera_id,
                task_id=alert.last_task_id,
                state=alert.state.value,
                risk_level=alert.risk_level.value,
                basis=alert.basis.value,
            )
        if alert.notify:
            ALERTS_RUNG.labels(risk_level=alert.risk_level.value).inc()
        if alert.held_reason:
            ALERTS_HELD.labels(reason=alert.held_reason).inc()
        if alert.escalation:
            ALERTS_ESCALATED.inc()
