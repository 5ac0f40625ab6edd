"""A process' part of the keys: its lease, and what it tells and asks the database that all share.

A process takes slots ahead (a `lease`), for as many requests as it expects within half a second, so that the database
is not asked for each call. What another process learns of a key comes by NOTIFY at once. When the database is away, a process that
has known it goes on with its share of each limit.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import inf

import structlog
from sqlalchemy import Engine

from dangerous_driving.assessment.key_pool.core import KeyUsage
from dangerous_driving.assessment.key_pool.health import Grant, Key, Policy, Report, Request, Spent
from dangerous_driving.assessment.key_pool.leases import Lease
from dangerous_driving.assessment.key_pool.memory import Ledger, changes_something
from dangerous_driving.assessment.key_pool.notices import Notices
from dangerous_driving.assessment.key_pool.shared import SharedWindows, Told
from dangerous_driving.assessment.key_pool.storage import Exchange
from dangerous_driving.errors import LedgerError

log = structlog.get_logger(__name__)

#: s of delay from which a request's slot is moved to when it left.
LATE_SECONDS = 0.05


class PostgresStorage:
    """Storage of many processes on one database.

    Args:
        engine: on a ledger's database.
        keys: with their limits; the limits that were written last hold for all processes.
        policy: the pool's settings, the same in all processes.
        pause: s between two exchanges of this process at least.
    """

    patience = 1.0

    def __init__(self, engine: Engine, keys: Iterable[Key], policy: Policy, *, pause: float = 0.01) -> None:
        self.pause = pause
        self._policy = policy
        self._windows = SharedWindows(engine, keys, policy)
        # of its own: asyncio's shared threads may all be busy with slow reads
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="key-pool")
        self._lease = Lease(policy)
        self._told = Told()
        self._telling: list[Told] = []  # on the way to the database
        self._spending = Ledger()  # of all processes, as of the last exchange
        self._none_before = {True: 0.0, False: 0.0}  # until then the database has no more slots, by urgency
        self._news = threading.Event()
        self._notices = Notices(engine, self._on_notice)
        self._flushing: asyncio.Task[None] | None = None

    @property
    def exchanges(self) -> int:
        """With the database so far."""
        return self._windows.exchanges

    async def exchange(self, reports: Sequence[Report], requests: Sequence[Request]) -> Exchange:
        """See :class:`Storage`."""
        now = self._windows.now()
        grants: list[Grant | None] = [None] * len(requests)
        if not self._news.is_set():
            grants = [self._from_hand(request, now) for request in requests]
        left = [request for request, grant in zip(requests, grants, strict=True) if grant is None]
        waits = self._lease.waits(left, now)
        # a slot in hand that lies ahead is waited for only where the database is known to have none before it
        asking = [request for request in left if request.exclude or self._none_before[request.urgent] <= now]
        if not (reports or asking or self._news.is_set()):
            later = [
                min(wait, self._none_before[request.urgent] - now) if wait == inf else wait
                for request, wait in zip(left, waits, strict=True)
            ]
            return _merged(grants, [None] * len(left), later)
        found = await self._ask(reports, left)
        for request, grant in zip(left, found.grants, strict=True):
            if grant is not None:
                self._lease.used(urgent=request.urgent, now=now)
        return _merged(grants, found.grants, found.waits)

    async def set_enabled(self, key_hash: str, *, enabled: bool, reason: str) -> None:
        """See :class:`Storage`."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._windows.set_enabled, key_hash, enabled, reason)
        self._drop(key_hash)

    def apply(self, keys: Sequence[Key]) -> None:
        """See :class:`Storage`."""
        self._windows.apply(keys)
        for key_hash in self._lease.keys - {key.key_hash for key in keys}:
            self._drop(key_hash)
        self._news.set()  # the next exchange looks at the database before it uses the hand
        if self._windows.known:
            self._flush_soon()

    def sent(self, grant: Grant, late: float) -> None:
        """See :class:`Storage`."""
        if late > LATE_SECONDS:
            moved = replace(grant, reserved_at=grant.reserved_at + late)
            self._windows.uncount(grant)
            self._windows.count(moved)
            self._told.given_back.append(grant)
            self._told.taken.append(moved)
            self._flush_soon()

    def spend(self, lane: str, *, calls: int = 0, cost: float = 0.0) -> None:
        """See :class:`Storage`."""
        if lane in self._policy.budgets:
            self._told.spend(lane, calls, cost)
            self._flush_soon()

    def spent(self, lane: str) -> Spent:
        """See :class:`Storage`."""
        untold = (told.spent.get(lane, Spent()) for told in (*self._telling, self._told))
        return sum(untold, start=self._spending.spent(lane))

    def worth_noting(self, report: Report) -> bool:
        """See :class:`Storage`."""
        return changes_something(self._windows.accounts.get(report.grant.key_hash), report)

    def snapshot(self) -> tuple[KeyUsage, ...]:
        """See :class:`Storage`."""
        return self._windows.usage()

    async def close(self) -> None:
        """See :class:`Storage`."""
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.wait([self._flushing])
        self._give_back(self._lease.drop())
        if self._told and self._windows.known:
            try:
                await self._ask((), ())
            except LedgerError as error:
                log.warning("lease_not_given_back", reason=str(error))
        await asyncio.to_thread(self._thread.shutdown)
        await asyncio.to_thread(self._notices.close)

    # the hand: in the event loop

    def _from_hand(self, request: Request, now: float) -> Grant | None:
        self._give_back(self._lease.give_back(now))
        slot = self._lease.take(request, now)
        if slot is not None:
            self._lease.used(urgent=request.urgent, now=now)
            if now - slot.reserved_at > 0:
                self._flush_soon()
        return slot

    def _dropped(self, key_hash: str) -> list[Grant]:
        slots = self._lease.drop(key_hash)
        for slot in slots:
            self._windows.uncount(slot)
        return slots

    def _drop(self, key_hash: str) -> None:
        self._give_back(self._lease.drop(key_hash))

    def _give_back(self, slots: Sequence[Grant]) -> None:
        if not slots:
            return
        for slot in slots:
            self._windows.uncount(slot)
        self._told.given_back += slots
        self._flush_soon()

    def _flush_soon(self) -> None:
        """Tell the database within the length of a lease, also when nobody asks for a key meanwhile."""
        if self._flushing is None or self._flushing.done():
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return  # closing
            self._flushing = loop.create_task(self._flush(), name="key-pool-lease")

    async def _flush(self) -> None:
        while self._told or len(self._lease) or self._windows.unsettled:
            await asyncio.sleep(max(self._policy.lease, self.pause))
            self._give_back(self._lease.give_back(self._windows.now()))
            if self._told or self._windows.unsettled:
                try:
                    await self._ask((), ())
                except LedgerError as error:
                    log.warning("key_pool_is_away", reason=str(error))

    def _on_notice(self, _key_hash: str) -> None:
        # in the listener's thread: the next exchange looks at the database before it uses the hand
        self._news.set()

    # the database: in the exchange's thread

    async def _ask(self, reports: Sequence[Report], requests: Sequence[Request]) -> Exchange:
        told, self._told = self._told, Told()
        for report in reports:  # a slot of a key that is out of use would be used in vain
            if report.outcome not in {"ok", "cancelled", "unsent"}:
                told.given_back += self._dropped(report.grant.key_hash)
        self._news.clear()
        lease = {True: 0, False: 0}
        if requests:
            lease = {urgent: self._lease.expected(urgent=urgent, now=self._windows.now()) for urgent in lease}
        loop = asyncio.get_running_loop()
        self._telling.append(told)
        work = loop.run_in_executor(self._thread, self._windows.exchange, reports, requests, told, lease)
        try:
            try:
                found = await asyncio.shield(work)
            finally:
                self._telling.remove(told)
        except LedgerError:
            self._told.put_back(told)
            if not self._windows.known:
                raise
            if self._told:
                self._flush_soon()
            return self._windows.alone(reports, requests, self._told)
        self._notices.start()
        for lane, spent in found.spent.items():
            self._spending.put(lane, spent)
        self._lease.put(found.slots)
        if found.slots:
            self._flush_soon()
        self._none_before = found.none_before
        for key_hash in self._lease.keys - self._windows.usable:
            self._drop(key_hash)
        return found.exchange


def _merged(grants: Sequence[Grant | None], found: Sequence[Grant | None], waits: Sequence[float]) -> Exchange:
    """One answer of what came out of the hand, and of what was asked for the others."""
    rest = iter(zip(found, waits, strict=True))
    pairs = [(grant, 0.0) if grant is not None else next(rest) for grant in grants]
    return Exchange(tuple(grant for grant, _ in pairs), tuple(max(wait, 0.0) for _, wait in pairs))
