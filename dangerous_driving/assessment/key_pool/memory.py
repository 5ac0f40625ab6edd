"""Keys' windows and health in the memory of one process that has the keys for itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import inf

from dangerous_driving.assessment.key_pool.core import (
    Account,
    Health,
    Key,
    KeyState,
    KeyUsage,
    Policy,
    Report,
    Request,
    after,
    decide,
    usage,
)
from dangerous_driving.assessment.key_pool.storage import Exchange


class MemoryStorage:
    """Storage of one process.

    Args:
        keys: with their limits.
        policy: the pool's settings.
        clock: seconds, never going back.
    """

    pause = 0.0
    patience = inf

    def __init__(self, keys: Iterable[Key], policy: Policy, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._accounts = {key.key_hash: Account(key) for key in keys}
        self._policy = policy
        self._clock = clock

    async def exchange(self, reports: Sequence[Report], requests: Sequence[Request]) -> Exchange:
        """See :class:`Storage`."""
        now = self._clock()
        for report in reports:
            account = self._accounts[report.grant.key_hash]
            if report.outcome == "unsent":
                account.remove(report.grant.reserved_at)
            account.health = after(account.health, report, now=now, policy=self._policy)
        decision = decide(self._accounts, requests, now=now, policy=self._policy)
        return Exchange(decision.grants, tuple(max(at - now, 0.0) for at in decision.free_at))

    async def set_enabled(self, key_hash: str, *, enabled: bool, reason: str) -> None:
        """See :class:`Storage`."""
        self._accounts[key_hash].health = set_by_person(enabled=enabled, reason=reason, now=self._clock())

    def worth_noting(self, report: Report) -> bool:
        """See :class:`Storage`."""
        return changes_something(self._accounts[report.grant.key_hash], report)

    def snapshot(self) -> tuple[KeyUsage, ...]:
        """See :class:`Storage`."""
        now = self._clock()
        return tuple(usage(account, now=now, policy=self._policy) for account in self._accounts.values())

    async def close(self) -> None:
        """See :class:`Storage`."""


def changes_something(account: Account, report: Report) -> bool:
    """Whether the outcome may change the account: most are good ones of keys in good health."""
    return report.grant.probe or report.outcome not in {"ok", "cancelled"} or not account.health.clean


def set_by_person(*, enabled: bool, reason: str, now: float) -> Health:
    """The health of a key that a person has just enabled or disabled; outcomes of earlier requests are stale."""
    fresh = Health(cooling_until=now)
    return fresh if enabled else replace(fresh, state=KeyState.DISABLED, reason=reason)
