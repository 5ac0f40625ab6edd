"""Keys' windows and health in the memory of one process that has the keys for itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from math import inf

from dangerous_driving.assessment.key_pool.core import Account, KeyUsage, decide, settle, usage
from dangerous_driving.assessment.key_pool.health import (
    Grant,
    Health,
    Key,
    KeyState,
    Policy,
    Report,
    Request,
    Spent,
)
from dangerous_driving.assessment.key_pool.storage import Exchange


def today() -> date:
    """The day that budgets count by."""
    return datetime.now(UTC).date()


class Ledger:
    """What lanes have spent on the day at hand."""

    def __init__(self, day: Callable[[], date] = today) -> None:
        self._day = day
        self._spent: dict[tuple[date, str], Spent] = {}

    def spend(self, lane: str, calls: int, cost: float) -> None:
        """Add to what the lane has spent."""
        self.put(lane, self.spent(lane) + Spent(calls, cost))

    def put(self, lane: str, spent: Spent) -> None:
        """This is what the lane has spent today."""
        day = self._day()
        if any(before != day for before, _ in self._spent):
            self._spent = {key: kept for key, kept in self._spent.items() if key[0] == day}
        self._spent[day, lane] = spent

    def spent(self, lane: str) -> Spent:
        """What the lane has spent today."""
        return self._spent.get((self._day(), lane), Spent())


class MemoryStorage:
    """Storage of one process.

    Args:
        keys: with their limits.
        policy: the pool's settings.
        clock: seconds, never going back.
        day: that budgets count by.
    """

    pause = 0.0
    patience = inf

    def __init__(
        self,
        keys: Iterable[Key],
        policy: Policy,
        *,
        clock: Callable[[], float] = time.monotonic,
        day: Callable[[], date] = today,
    ) -> None:
        self._accounts = {key.key_hash: Account(key) for key in keys}
        self._policy = policy
        self._clock = clock
        self._ledger = Ledger(day)

    async def exchange(self, reports: Sequence[Report], requests: Sequence[Request]) -> Exchange:
        """See :class:`Storage`."""
        now = self._clock()
        for report in reports:
            account = self._accounts.get(report.grant.key_hash)
            if account is not None:  # else it was removed meanwhile
                settle(account, report, now=now, policy=self._policy)
        decision = decide(self._accounts, requests, now=now, policy=self._policy)
        return Exchange(decision.grants, tuple(max(at - now, 0.0) for at in decision.free_at))

    async def set_enabled(self, key_hash: str, *, enabled: bool, reason: str) -> None:
        """See :class:`Storage`."""
        self._accounts[key_hash].health = set_by_person(enabled=enabled, reason=reason, now=self._clock())

    def apply(self, keys: Sequence[Key]) -> None:
        """See :class:`Storage`."""
        apply_keys(self._accounts, keys)

    def sent(self, grant: Grant, late: float) -> None:
        """See :class:`Storage`."""
        account = self._accounts.get(grant.key_hash)
        if account is not None:
            account.remove(grant.lane, grant.reserved_at)
            account.add(grant.lane, grant.reserved_at + late)

    def spend(self, lane: str, *, calls: int = 0, cost: float = 0.0) -> None:
        """See :class:`Storage`."""
        self._ledger.spend(lane, calls, cost)

    def spent(self, lane: str) -> Spent:
        """See :class:`Storage`."""
        return self._ledger.spent(lane)

    def worth_noting(self, report: Report) -> bool:
        """See :class:`Storage`."""
        return changes_something(self._accounts.get(report.grant.key_hash), report)

    def snapshot(self) -> tuple[KeyUsage, ...]:
        """See :class:`Storage`."""
        now = self._clock()
        return tuple(usage(account, now=now, policy=self._policy) for account in self._accounts.values())

    async def close(self) -> None:
        """See :class:`Storage`."""


def apply_keys(accounts: dict[str, Account], keys: Sequence[Key]) -> None:
    """Forget keys that are not among these, take up new ones, and follow the limits of the others."""
    wanted = {key.key_hash: key for key in keys}
    for key_hash in accounts.keys() - wanted.keys():
        del accounts[key_hash]
    for key_hash, key in wanted.items():
        if key_hash in accounts:
            accounts[key_hash].key = key
        else:
            accounts[key_hash] = Account(key)


def changes_something(account: Account | None, report: Report) -> bool:
    """Whether the outcome may change the account: most are good ones of keys in good health."""
    if account is None:
        return False  # the key was removed
    if report.limits is not None:
        stated, health = report.limits, account.health
        news = (stated.qps or health.learned_qps, stated.rpm or health.learned_rpm) != (
            health.learned_qps,
            health.learned_rpm,
        )
        if news:
            return True
    return report.grant.probe or report.outcome not in {"ok", "cancelled"} or not account.health.clean


def set_by_person(*, enabled: bool, reason: str, now: float) -> Health:
    """The health of a key that a person has just enabled or disabled; outcomes of earlier requests are stale."""
    fresh = Health(cooling_until=now)
    return fresh if enabled else replace(fresh, state=KeyState.DISABLED, reason=reason)
