"""Writing to the ledger from an event loop: in a thread, and with patience."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import structlog
from sqlalchemy import Engine

from dangerous_driving.errors import LedgerError

log = structlog.get_logger(__name__)

ValueT = TypeVar("ValueT")


class PatientLedger:
    """Statements of one worker. Each work is a function of the engine, run in a thread."""

    RETRY_SECONDS = 1.0  # until the ledger is asked again while it is away

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def do(self, work: Callable[..., ValueT], *args: Any, **kwargs: Any) -> ValueT:
        """Work until it is done, however long the database is away.

        An answer that was paid for must not be lost to a database that is away for a moment; when it stays away, the heartbeat
        stops too, and the claim goes to another worker.

        Raises:
            LedgerError: the statement was refused; trying again would change nothing.
        """
        while True:
            writing = asyncio.ensure_future(asyncio.to_thread(work, self.engine, *args, **kwargs))
            try:
                return await asyncio.shield(writing)
            except asyncio.CancelledError:
                # the thread goes on anyway: what follows must find its statement done, not under way
                await asyncio.wait([writing])
                raise
            except LedgerError as error:
                if not error.retriable:
                    raise
                log.warning("ledger_is_away", reason=str(error))
                await asyncio.sleep(self.RETRY_SECONDS)

    async def do_once(self, work: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Try it once: on the way out there is no time to wait for a database; the next sweep does the rest."""
        try:
            await asyncio.shield(asyncio.to_thread(work, self.engine, *args, **kwargs))
        except LedgerError as error:
            log.warning("left_to_the_sweep", reason=str(error))
