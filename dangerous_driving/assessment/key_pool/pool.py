"""The key pool: hands out keys so that no limit is ever exceeded and nobody waits longer than the limits demand.

However many wait, one task asks the storage for all of them at once, the realtime lane first, and sleeps until the
instant at which the next key comes free. Nothing polls, and a key is never held: calls on one key run concurrently. Of the lanes
below realtime that wait, each gets turns by its weight; the turns of one that does not wait go to the others.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf, isinf
from typing import Protocol

import structlog
from pydantic import SecretStr

from dangerous_driving.assessment.key_pool.core import KeyUsage, without_key
from dangerous_driving.assessment.key_pool.health import (
    Budget,
    Grant,
    Key,
    Outcome,
    Policy,
    Report,
    Request,
    Spent,
    StatedLimits,
)
from dangerous_driving.assessment.key_pool.storage import Exchange, Storage
from dangerous_driving.errors import BudgetSpentError, LedgerError, LlmError, NoKeyError

log = structlog.get_logger(__name__)

#: s until outcomes that the storage could not take are offered again.
RETRY_SECONDS = 1.0
#: s after which a request whose outcome was never reported no longer counts as under way in `snapshot`.
FORGET_SECONDS = 120.0
#: s between two tellings of how the keys stand.
SHOW_SECONDS = 1.0
#: Outcomes that wait for a storage that is away; further ones are dropped.
MAX_REPORTS = 10_000


@dataclass(frozen=True, eq=False)
class Reservation:
    """The right to send one request on this key, now. ``probe``: its outcome decides whether the key is used again."""

    key_hash: str
    secret: SecretStr
    lane: str
    probe: bool
    grant: Grant


class Observer(Protocol):
    """Is told what happens in the pool, for metrics."""

    def waited(self, lane: str, seconds: float) -> None:
        """A request of this lane was given a key after so many seconds."""

    def ended(self, key_hash: str, status: str) -> None:
        """A request on this key ended so: ``ok``, ``cancelled``, ``unsent`` or an error's code."""

    def stands(self, usages: Sequence[KeyUsage]) -> None:
        """How the keys stand, about once a second for as long as one of them is in use or out of it."""


@dataclass(eq=False)
class _Waiter:
    request: Request
    future: asyncio.Future[Reservation]
    since: float


class KeyPool:
    """Keys of one endpoint, for one event loop.

    Args:
        secrets: the keys by their hash, those of the storage.
        storage: of their windows and health.
        policy: the weights and budgets of lanes; None: every lane alike, without budget.
        observer: told of waits and outcomes.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        secrets: dict[str, SecretStr],
        storage: Storage,
        *,
        policy: Policy | None = None,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._secrets = secrets
        self._storage = storage
        self._budgets: dict[str, Budget] = dict(policy.budgets) if policy else {}
        self._weights: dict[str, float] = dict(policy.lane_weights) if policy else {}
        self._turns: dict[str, float] = {}  # served by weight, of each lane that waits below realtime
        self._observer = observer
        self._clock = clock
        self._urgent: deque[_Waiter] = deque()
        self._paced: dict[str, deque[_Waiter]] = {}
        self._reports: list[Report] = []
        self._under_way: dict[Reservation, float] = {}  # since when, the oldest first
        self._wake = asyncio.Event()
        self._dispatcher: asyncio.Task[None] | None = None
        self._showing: asyncio.TimerHandle | None = None
        self._closed = False

    async def reserve(self, lane: str, exclude: Collection[str] = (), timeout: float | None = None) -> Reservation:  # noqa: ASYNC109  # it becomes an error that says why
        """Wait until a key may send one request of this lane.

        Send it at once, telling :meth:`sent`: the key's window counts from now. Then :meth:`report` how it ended.

        Args:
            lane: ``realtime``, ``inline``, ``window`` or ``evaluation``.
            exclude: hashes of keys that must not be used (those that failed on this task).
            timeout: s to wait at most; None: as long as it takes.

        Raises:
            NoKeyError: none in time, or none ever, since all that are left are disabled; or the pool is closed.
            BudgetSpentError: the lane's budget of the day is used up.
            LedgerError: the storage is away.
        """
        if self._closed:
            raise NoKeyError("the key pool is closed")
        loop = asyncio.get_running_loop()
        if self._dispatcher is None:
            self._dispatcher = loop.create_task(self._dispatch(), name="key-pool")
            self._dispatcher.add_done_callback(self._ended)
        request = Request(str(lane), frozenset(exclude))
        if (over := self._over_budget(request.lane)) is not None:
            raise over
        waiter = _Waiter(request, loop.create_future(), self._clock())
        queue = self._urgent if request.urgent else self._paced.setdefault(request.lane, deque())
        queue.append(waiter)
        self._wake.set()
        reservation = None
        try:
            async with asyncio.timeout(timeout) as deadline:
                reservation = await waiter.future
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise self._no_key(request, f"no key within {timeout:g} s") from error
        finally:
            queue.remove(waiter)
            if reservation is None:
                self._abandon(waiter.future)
        return reservation

    def sent(self, reservation: Reservation) -> None:
        """Say that the request leaves now: where that is later than when the key was given, its window counts from now."""
        given_at = self._under_way.get(reservation)
        if given_at is not None:
            self._storage.sent(reservation.grant, self._clock() - given_at)

    async def report(
        self,
        reservation: Reservation,
        outcome: Outcome | None = "ok",
        *,
        cost: float = 0.0,
        limits: StatedLimits | None = None,
    ) -> None:
        """Say how the request ended; returns at once.

        Args:
            reservation: of the request.
            outcome: an error, ``ok`` (or None), ``cancelled`` (it left, its outcome is unknown) or ``unsent`` (it
                never left: the slot is free again).
            cost: money, for the lane's budget.
            limits: what the endpoint said of the key's limits.
        """
        if isinstance(outcome, LlmError) and (outcome.qps_limit or outcome.rpm_limit):
            limits = StatedLimits(outcome.qps_limit, outcome.rpm_limit)
        report = Report(reservation.grant, outcome or "ok", cost, limits)
        self._under_way.pop(reservation, None)
        if cost or report.outcome == "unsent":
            self._spend(reservation.lane, calls=-1 if report.outcome == "unsent" else 0, cost=cost)
        if self._observer is not None:
            status = report.outcome.code if isinstance(report.outcome, LlmError) else report.outcome
            self._observer.ended(reservation.key_hash, status)
        self._note(report)

    async def enable(self, key_hash: str) -> None:
        """A person puts a key back into use.

        Raises:
            NoKeyError: the pool has no such key.
            LedgerError: the storage is away.
        """
        self._require(key_hash)
        await self._storage.set_enabled(key_hash, enabled=True, reason="")
        self._wake.set()

    async def disable(self, key_hash: str, reason: str) -> None:
        """A person takes a key out of use; it raises as `enable` does."""
        self._require(key_hash)
        await self._storage.set_enabled(key_hash, enabled=False, reason=reason)

    def apply(self, keys: Sequence[Key], secrets: dict[str, SecretStr]) -> None:
        """Have these keys from now on; requests under way on a removed one are let to their end."""
        self._secrets = {**self._secrets, **secrets}  # those under way still name theirs
        self._storage.apply(keys)
        self._wake.set()

    def spent(self, lane: str) -> Spent:
        """What the lane has spent today; counted only for lanes with a budget."""
        return self._storage.spent(lane)

    def snapshot(self) -> tuple[KeyUsage, ...]:
        """Each key's state and how much of its windows is used, as of this process' last exchange with the storage."""
        under_way = Counter(reservation.key_hash for reservation in self._under_way)
        return tuple(
            replace(
                item,
                in_flight=under_way[item.key_hash],
                status="in_use" if item.status == "available" and under_way[item.key_hash] else item.status,
            )
            for item in self._storage.snapshot()
        )

    @property
    def waiting(self) -> int:
        """Requests that wait for a key."""
        return len(self._urgent) + sum(len(queue) for queue in self._paced.values())

    async def close(self) -> None:
        """End the waits, hand in the outcomes that are left, let go of the storage."""
        self._closed = True
        self._wake.set()
        if self._dispatcher is not None:
            await asyncio.wait([self._dispatcher])
        if self._showing is not None:
            self._showing.cancel()
        self._refuse(self._waiters(), NoKeyError("the key pool is closed"))
        try:
            if self._reports:
                await self._storage.exchange(self._reports, ())
        except LedgerError as error:
            log.warning("outcomes_lost", count=len(self._reports), reason=str(error))
        await self._storage.close()

    # the dispatcher

    async def _dispatch(self) -> None:
        wait = inf
        while not self._closed:
            waiters, reports = self._waiters(), tuple(self._reports)
            if waiters or reports:
                wait = await self._exchange(waiters, reports)
                # what comes free one by one, or is asked for one by one, is fetched together
                await asyncio.sleep(self._storage.pause)
            await self._sleep(wait - self._storage.pause)
            wait = inf

    async def _exchange(self, waiters: list[_Waiter], reports: Sequence[Report]) -> float:
        """One exchange with the storage; returns the seconds until the next is worth it."""
        try:
            exchange = await self._storage.exchange(reports, [waiter.request for waiter in waiters])
        except LedgerError as error:
            self._refuse(waiters, error)
            return RETRY_SECONDS
        del self._reports[: len(reports)]
        self._serve(waiters, exchange)
        if self._observer is not None and self._showing is None:
            self._show(self._observer)
        waits = [wait for waiter, wait in zip(waiters, exchange.waits, strict=True) if not waiter.future.done()]
        return min((*waits, self._storage.patience)) if waits else inf

    async def _sleep(self, seconds: float) -> None:
        """Until something happens, or for so many seconds."""
        timer = None if isinf(seconds) else asyncio.get_running_loop().call_later(max(seconds, 0.0), self._wake.set)
        await self._wake.wait()
        self._wake.clear()
        if timer is not None:
            timer.cancel()

    def _serve(self, waiters: Iterable[_Waiter], exchange: Exchange) -> None:
        now = self._clock()
        while self._under_way and (oldest := next(iter(self._under_way.items())))[1] < now - FORGET_SECONDS:
            del self._under_way[oldest[0]]
        for waiter, grant, wait in zip(waiters, exchange.grants, exchange.waits, strict=True):
            # those before it in this exchange have spent, and the storage has learnt what other processes did
            if not waiter.future.done() and (over := self._over_budget(waiter.request.lane)) is not None:
                waiter.future.set_exception(over)
            if waiter.future.done():  # it gave up meanwhile, or its lane may spend no more
                if grant is not None:
                    self._note(Report(grant, "unsent"))
            elif grant is not None:
                secret = self._secrets[grant.key_hash]
                lane = waiter.request.lane
                reservation = Reservation(grant.key_hash, secret, lane, grant.probe, grant)
                self._under_way[reservation] = now
                waiter.future.set_result(reservation)
                self._spend(lane, calls=1)
                if not waiter.request.urgent:
                    self._turns[lane] = self._turns.get(lane, 0.0) + 1 / self._weights.get(lane, 1.0)
                if self._observer is not None:
                    self._observer.waited(lane, now - waiter.since)
            elif isinf(wait):
                waiter.future.set_exception(self._no_key(waiter.request, "no key is left to use"))

    def _show(self, observer: Observer) -> None:
        usages = self.snapshot()
        observer.stands(usages)
        still = any(item.used_minute or item.status != "available" for item in usages) and not self._closed
        loop = asyncio.get_running_loop()
        self._showing = loop.call_later(SHOW_SECONDS, self._show, observer) if still else None

    def _abandon(self, future: asyncio.Future[Reservation]) -> None:
        """Nobody waits for it any more; a key that it was given in the same moment goes back."""
        if not future.cancel() and not future.cancelled() and future.exception() is None:
            self._under_way.pop(future.result(), None)
            self._spend(future.result().lane, calls=-1)
            self._note(Report(future.result().grant, "unsent"))

    def _note(self, report: Report) -> None:
        if self._storage.worth_noting(report) and len(self._reports) < MAX_REPORTS:
            self._reports.append(report)
            self._wake.set()

    def _require(self, key_hash: str) -> None:
        if key_hash not in self._secrets:
            raise NoKeyError(f"the pool has no key {key_hash}; it has {', '.join(self._secrets)}")

    def _waiters(self) -> list[_Waiter]:
        # one that was served stays in its queue until its task has run
        return [waiter for waiter in (*self._urgent, *self._in_turn()) if not waiter.future.done()]

    def _in_turn(self) -> Iterable[_Waiter]:
        """Those below realtime, each lane by its weight."""
        lanes = {lane: queue for lane, queue in self._paced.items() if queue}
        if len(lanes) <= 1:
            self._turns.clear()  # a lane that comes back has no claim on what it did not use
            return [waiter for queue in lanes.values() for waiter in queue]
        least = min(self._turns.get(lane, 0.0) for lane in lanes)
        self._turns = {lane: max(self._turns.get(lane, least), least) - least for lane in lanes}
        turns = [
            (self._turns[lane] + (place + 1) / self._weights.get(lane, 1.0), lane, place, waiter)
            for lane, queue in lanes.items()
            for place, waiter in enumerate(queue)
        ]
        return [waiter for *_, waiter in sorted(turns, key=lambda turn: turn[:3])]

    def _over_budget(self, lane: str) -> BudgetSpentError | None:
        budget = self._budgets.get(lane)
        if budget is None:
            return None
        spent = self._storage.spent(lane)
        if spent.share(budget) < 1:
            return None
        return BudgetSpentError(
            f"the lane {lane} has spent its budget of the day ({spent.calls} calls, {spent.cost:.4g} of money); "
            f"raise keys.budgets.{lane}, or wait for midnight UTC"
        )

    def _spend(self, lane: str, *, calls: int = 0, cost: float = 0.0) -> None:
        if lane in self._budgets:
            self._storage.spend(lane, calls=calls, cost=cost)

    def _refuse(self, waiters: Iterable[_Waiter], error: BaseException) -> None:
        for waiter in waiters:
            if not waiter.future.done():  # it may have given up while the storage was asked
                waiter.future.set_exception(error)

    def _ended(self, dispatcher: asyncio.Task[None]) -> None:
        # it never ends by itself: without this, a defect would leave all who wait waiting for ever
        self._dispatcher = None
        if not dispatcher.cancelled() and (error := dispatcher.exception()) is not None:
            log.error("key_pool_broke", exc_info=error)
            self._refuse(self._waiters(), error)

    def _no_key(self, request: Request, problem: str) -> NoKeyError:
        keys = without_key(self.snapshot(), request.exclude)
        remedy = "enable a disabled key, replace a rejected one, or add keys (keys.file)"
        return NoKeyError(f"{problem} for the lane {request.lane}: {keys}; {remedy}")
