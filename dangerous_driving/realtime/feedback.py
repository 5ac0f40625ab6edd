"""What a person says of an alert: into the ledger, to everyone who looks, and onto the topic."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from sqlalchemy import Engine

from dangerous_driving.alerts.inputs import VerdictGiven
from dangerous_driving.alerts.lifecycle import Lifecycle
from dangerous_driving.alerts.service import AlertPublisher
from dangerous_driving.contracts import Alert, Verdict
from dangerous_driving.errors import BrokerError, LedgerError
from dangerous_driving.ledger import alerts as ledger
from dangerous_driving.realtime.hub import Hub

log = structlog.get_logger(__name__)


class FeedbackDesk:
    """Takes acknowledgements and rejections of one bridge."""

    def __init__(
        self,
        engine: Engine,
        lifecycle: Lifecycle,
        publisher: AlertPublisher,
        hub: Hub,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._engine = engine
        self._lifecycle = lifecycle
        self._publisher = publisher
        self._hub = hub
        self._clock = clock
        self._publishing: asyncio.Task[None] | None = None

    async def give(self, alert_id: str, verdict: Verdict, *, by: str, note: str) -> Alert | None:
        """Keep the verdict and hand the alert on; returns it, None if there is no such alert.

        Raises:
            LedgerError: nothing was kept.
        """
        given = VerdictGiven(at=self._clock(), alert_id=alert_id, verdict=verdict, by=by, note=note)
        alert = await asyncio.to_thread(ledger.judge, self._engine, self._lifecycle, given)
        if alert is not None:
            log.info("verdict", alert_id=alert_id, verdict=verdict.value, by=by)
            self._hub.alert(alert)
            if self._publishing is None or self._publishing.done():
                # other bridges hear of it through the topic; nobody waits for that
                self._publishing = asyncio.create_task(self._publish(), name="publish verdict")
        return alert

    async def close(self) -> None:
        """Wait for what is under way."""
        if self._publishing is not None:
            await self._publishing

    async def _publish(self) -> None:
        try:
            await asyncio.to_thread(self._publisher.publish)
        except (BrokerError, LedgerError) as error:
            # it stays to be published: the alerts service does it
            log.warning("verdict_waits_to_be_published", reason=str(error))
