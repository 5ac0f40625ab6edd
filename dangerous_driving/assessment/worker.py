"""A worker's life in the ledger: registered, kept alive by a heartbeat, ended. Claims hang on it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy import Engine

from dangerous_driving.errors import LedgerError
from dangerous_driving.ledger import claims
from dangerous_driving.observability.metrics import CLAIMS_SWEPT
from dangerous_driving.settings import AssessmentSettings

log = structlog.get_logger(__name__)


class WorkerGivenUpError(LedgerError):
    """This worker's heartbeat had stopped for so long that its tasks were handed to others: it must start anew."""

    retriable = False


class Heartbeat:
    """Beats for `worker` until cancelled, and sweeps what dead workers left behind."""

    def __init__(self, engine: Engine, worker: int, settings: AssessmentSettings) -> None:
        self._engine = engine
        self._worker = worker
        self._settings = settings

    async def run(self) -> None:
        """Beat for ever.

        Raises:
            WorkerGivenUpError: the claims are gone; end the process, so that it starts as a new worker.
        """
        loop = asyncio.get_running_loop()
        # a thread of its own: slow pictures and statements of a hundred calls must not keep it waiting
        with ThreadPoolExecutor(1, thread_name_prefix="heartbeat") as thread:
            while True:
                try:
                    await loop.run_in_executor(thread, self._beat)
                except LedgerError as error:
                    if not error.retriable:
                        raise
                    log.warning("heartbeat_failed", reason=str(error))
                await asyncio.sleep(self._settings.heartbeat_interval)

    def _beat(self) -> None:
        if not claims.heartbeat(self._engine, self._worker):
            raise WorkerGivenUpError(f"worker {self._worker} was given up: no heartbeat for too long")
        swept = claims.sweep(
            self._engine,
            worker_timeout=self._settings.worker_timeout,
            captured_after=datetime.now(UTC) - timedelta(seconds=self._settings.realtime_deadline),
        )
        CLAIMS_SWEPT.labels("realtime").inc(swept.to_realtime)
        CLAIMS_SWEPT.labels("window").inc(swept.to_window)
        if swept != claims.Swept():
            log.warning(
                "swept",
                workers=swept.workers,
                to_realtime=swept.to_realtime,
                to_window=swept.to_window,
                to_backfills=swept.to_backfills,
                calls_lost=swept.calls_lost,
            )


def register(engine: Engine, *, service: str, node: str) -> int:
    """Register this process as a worker; returns its id."""
    return claims.start_worker(engine, service=service, node=node, pid=os.getpid())


@asynccontextmanager
async def living(engine: Engine, worker: int, settings: AssessmentSettings) -> AsyncIterator[asyncio.Task[None]]:
    """Keep the worker's heart beating within the block, and sign it off at the end.

    Yields:
        The beating task; it ends only by an error, so whoever waits for long waits for it too.
    """
    beating = asyncio.create_task(Heartbeat(engine, worker, settings).run(), name="heartbeat")
    try:
        yield beating
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        try:
            await asyncio.to_thread(claims.stop_worker, engine, worker)
            # what it may still hold goes back now, not at somebody's next sweep
            fresh = datetime.now(UTC) - timedelta(seconds=settings.realtime_deadline)
            await asyncio.to_thread(claims.sweep, engine, worker_timeout=settings.worker_timeout, captured_after=fresh)
        except LedgerError as error:
            log.warning("worker_not_signed_off", reason=str(error))
