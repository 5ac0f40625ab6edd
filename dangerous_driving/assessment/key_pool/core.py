"""The key pool's decisions: which key may send the next request, and when. Pure: data and a clock in, data out.

Times are seconds of one clock that all who share the keys share (a process' own, or the database's).

**Windows.** A key may send when fewer than ``limit`` requests were allowed within the last window, for both windows; the
provider counts requests when they reach it, a little later than they were allowed, and not all equally late, so each
window is longer by a margin. This is exact: no request is refused that the provider would take but for the margin.

**Ahead.** A slot may lie a moment in the future (see `lease`): a request is then fitted in before, between or behind
such slots, so that no window that holds any of them grows too full.

**Spread.** A key's second is not spent in one instant: a burst of a hundred requests would leave the process over half
a second, and arrive as irregularly.

**Lanes.** Realtime (and the inline lane that stands in for it) takes what there is. The lanes below it are paced, one
request per ``minute / (their share)`` and key, and stop at ``1 - realtime_reserve`` of a key's minute, so that a backlog
cannot spend a minute's quota in seconds and leave the next dangerous scene waiting for the rest of it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, sqrt

from dangerous_driving.assessment.key_pool.health import (
    URGENT_LANES,
    Grant,
    Health,
    Key,
    KeyState,
    Policy,
    Report,
    Request,
    after,
)
from dangerous_driving.errors import RateLimitedError


@dataclass
class Account:
    """One key with its health and the requests allowed within the horizon, in order (slots ahead of now among them)."""

    key: Key
    health: Health = field(default_factory=Health)
    times: list[float] = field(default_factory=list)
    paced: list[float] = field(default_factory=list)  # those of them of a lane below realtime
    rushed: list[float] = field(default_factory=list)  # the others
    qps: int = 0  # the limits in force, as of the last look
    rpm: int = 0

    def __post_init__(self) -> None:
        self.qps, self.rpm = self.key.qps_limit, self.key.rpm_limit

    def add(self, lane: str, at: float) -> None:
        """Count a request."""
        insort(self.times, at)
        insort(self.rushed if lane in URGENT_LANES else self.paced, at)

    def remove(self, lane: str, at: float) -> None:
        """Take back a request that never left."""
        for times in (self.times, self.rushed if lane in URGENT_LANES else self.paced):
            index = bisect_right(times, at) - 1
            if index >= 0 and times[index] == at:
                del times[index]

    def prune(self, now: float, policy: Policy) -> None:
        """Forget what no longer counts, and look at the limits."""
        if self.times and self.times[0] <= now - policy.horizon:
            del self.times[: bisect_right(self.times, now - policy.horizon)]
            del self.paced[: bisect_right(self.paced, now - policy.horizon)]
            del self.rushed[: bisect_right(self.rushed, now - policy.horizon)]
        health, key = self.health, self.key
        self.qps = health.limit(key.qps_limit, health.learned_qps, now=now, policy=policy)
        self.rpm = health.limit(key.rpm_limit, health.learned_rpm, now=now, policy=policy)

    def used(self, now: float, length: float) -> int:
        """Requests allowed within the last `length` seconds, and slots ahead."""
        return len(self.times) - bisect_right(self.times, now - length)

    def share(self, policy: Policy) -> int:
        """Requests per minute that the lanes below realtime may bring this key to."""
        whole = min(self.rpm, int(self.qps * policy.minute / policy.second))
        return max(int(whole * (1 - policy.realtime_reserve)), 1)

    def free_at(self, now: float, *, urgent: bool, policy: Policy) -> float:
        """The first instant from now on at which the key may send one more request; `inf` while it is disabled."""
        at = self.health.ready_at(policy)
        if at == inf:
            return inf
        at = max(at, now, self._returning_at(policy))
        second = policy.second + policy.window_margin
        at_once = max(int(self.qps * policy.burst), 1)
        windows = [(self.times, self.qps, second), (self.times, self.rpm, policy.horizon)]
        if urgent:  # the others are spread by their pace
            windows.append((self.rushed, at_once, second * at_once / self.qps))
        else:
            share = self.share(policy)
            if self.paced:
                at = max(at, self.paced[-1] + policy.minute / share)
            windows.append((self.times, share, policy.horizon))
        moved = True
        while moved:
            moved = False
            for times, limit, length in windows:
                later = _fits_at(times, at, limit, length)
                if later > at:
                    at, moved = later, True
        return at

    def _returning_at(self, policy: Policy) -> float:
        """After a rest the rate grows linearly, so the n-th request comes when the area under it is n."""
        since = self.health.cooling_until
        if since <= 0 or policy.recovery <= 0:
            return -inf
        count = len(self.times) - bisect_left(self.times, since)
        rate = min(self.qps / policy.second, self.rpm / policy.minute)
        seconds = sqrt(2 * policy.recovery * count / rate)
        return since + min(seconds, policy.recovery)

    def load(self, now: float, policy: Policy) -> float:
        """How full the fuller of the two windows is, 0 to 1."""
        return max(
            self.used(now, policy.second + policy.window_margin) / self.qps,
            self.used(now, policy.horizon) / self.rpm,
        )


def _fits_at(times: Sequence[float], at: float, limit: int, length: float) -> float:
    """`at`, or the end of a window that is too full for one more request at that instant."""
    place = bisect_left(times, at)
    # each row of `limit` requests that one at `at` would stand in, before, among or behind them
    for first in range(max(place - limit, 0), min(place, len(times) - limit) + 1):
        oldest, newest = times[first], times[first + limit - 1]
        if max(newest, at) - min(oldest, at) < length:
            at = max(at, oldest + length)
    return at


@dataclass(frozen=True)
class Decision:
    """For each request, in order: a grant, or the instant at which to ask again (`inf`: every key it may use is disabled)."""

    grants: tuple[Grant | None, ...]
    free_at: tuple[float, ...]


def decide(accounts: Mapping[str, Account], requests: Sequence[Request], *, now: float, policy: Policy) -> Decision:
    """Give keys to as many of the requests as possible, in their order, and count them.

    The least loaded key comes first. A half-open key is probed by a request that can wait, or by any once its rest has
    been over for as long as a longest rest: else it would never come back where there is only realtime traffic.
    """
    grants: list[Grant | None] = []
    free_at: list[float] = []
    refused: dict[tuple[bool, frozenset[str]], float] = {}  # the same request a moment later fares no better
    for account in accounts.values():
        account.prune(now, policy)
    for request in requests:
        alike = (request.urgent, request.exclude)
        grant = None
        if alike not in refused:
            grant, earliest = _grant(accounts, request, now, policy)
            if grant is None:
                refused[alike] = earliest
        grants.append(grant)
        free_at.append(now if grant else refused[alike])
    return Decision(tuple(grants), tuple(free_at))


def ahead(
    accounts: Mapping[str, Account], lane: str, *, waiting: int, expected: int, now: float, until: float, policy: Policy
) -> list[Grant]:
    """Take slots of a lane that come free by `until`, and count them.

    Args:
        accounts: of all keys.
        lane: whose slots they are.
        waiting: requests that wait for the next slots, whenever these come.
        expected: requests that are expected until then, evenly spread; those that wait are among them.
        now: the time.
        until: the end of the lease.
        policy: the pool's settings.
    """
    request = Request(lane)
    slots: list[Grant] = []
    at, count = now, max(waiting, expected)
    while len(slots) < count:
        if len(slots) >= waiting:
            at = max(at, now + (until - now) * (len(slots) + 1) / count)
        if at > until:
            break
        grant, earliest = _grant(accounts, request, at, policy, probes=False)
        if grant is not None:
            slots.append(grant)
        else:
            at = earliest
    return slots


def _grant(
    accounts: Mapping[str, Account], request: Request, now: float, policy: Policy, *, probes: bool = True
) -> tuple[Grant | None, float]:
    """A key for the request, or the first instant at which there is one."""
    best, best_cost, earliest = None, None, inf
    for key_hash_, account in accounts.items():
        if key_hash_ in request.exclude:
            continue
        half_open = account.health.half_open(policy)
        if half_open and not probes:
            continue
        free = account.free_at(now, urgent=request.urgent, policy=policy)
        if free > now:
            earliest = min(earliest, free)
            continue
        overdue = now - account.health.cooling_until > policy.cooling_max
        spared = request.urgent and half_open and not overdue
        last_used = account.times[-1] if account.times else -inf
        cost = (spared, account.load(now, policy), last_used, key_hash_)
        if best_cost is None or cost < best_cost:
            best, best_cost = account, cost
    if best is None:
        return None, earliest
    probe = best.health.half_open(policy)
    if probe:
        best.health = replace(best.health, probing_until=now + policy.probe_timeout, reason="probed by one request")
    best.add(request.lane, now)
    return Grant(best.key.key_hash, request.lane, now, probe), now


def settle(account: Account, report: Report, *, now: float, policy: Policy) -> None:
    """Note an outcome in the key's account: its health, and what it teaches of the limits."""
    before = account.health
    if report.outcome == "unsent":
        account.remove(report.grant.lane, report.grant.reserved_at)
    account.health = after(before, report, now=now, policy=policy)
    stated = report.limits
    if stated is not None and (stated.qps is not None or stated.rpm is not None):
        account.health = replace(
            account.health,
            learned_qps=stated.qps or account.health.learned_qps,
            learned_rpm=stated.rpm or account.health.learned_rpm,
            learned_at=None,
        )
    elif isinstance(report.outcome, RateLimitedError) and report.grant.reserved_at >= before.cooling_until:
        account.health = _taught(account, report, now=now, policy=policy)


def _taught(account: Account, report: Report, *, now: float, policy: Policy) -> Health:
    """A 429 although there was room: the limit is what had been taken when it came."""
    health, key = account.health, account.key
    sent_at = report.grant.reserved_at
    rest = report.outcome.retry_after if isinstance(report.outcome, RateLimitedError) else None
    in_second = bisect_left(account.times, sent_at) - bisect_right(account.times, sent_at - policy.second)
    in_minute = bisect_left(account.times, sent_at) - bisect_right(account.times, sent_at - policy.minute)
    # halved at most by one lesson: it may be a late burst, another user of the key, an overloaded endpoint
    if rest is not None and rest <= policy.second and in_second < account.qps:
        learned = min(max(in_second, account.qps // 2, 1), key.qps_limit)
        return replace(health, learned_qps=learned, learned_at=now)
    if rest is not None and rest > policy.second and in_minute < account.rpm:
        learned = min(max(in_minute, account.rpm // 2, 1), key.rpm_limit)
        return replace(health, learned_rpm=learned, learned_at=now)
    return health


@dataclass(frozen=True)
class KeyUsage:
    """A key as people see it. ``status`` is its state, or ``in_use`` for an available key with requests under way."""

    key_hash: str
    label: str
    status: str
    reason: str
    used_second: int
    qps_limit: int
    used_minute: int
    rpm_limit: int
    cooling_for: float  # s
    in_flight: int = 0  # of this process


def usage(account: Account, *, now: float, policy: Policy) -> KeyUsage:
    """How the key stands and how much of its windows is used."""
    health, key = account.health, account.key
    state = health.stands(now, policy)
    return KeyUsage(
        key_hash=key.key_hash,
        label=key.label,
        status=state.value,
        reason="" if state is KeyState.AVAILABLE else health.reason,
        used_second=account.used(now, policy.second),
        qps_limit=health.limit(key.qps_limit, health.learned_qps, now=now, policy=policy),
        used_minute=account.used(now, policy.minute),
        rpm_limit=health.limit(key.rpm_limit, health.learned_rpm, now=now, policy=policy),
        cooling_for=max(health.cooling_until - now, 0.0) if state is KeyState.COOLING else 0.0,
    )


def without_key(usages: Collection[KeyUsage], exclude: Collection[str]) -> str:
    """Why there is no key: each key's state, for an error's text."""
    if not usages:
        return "the pool has no keys"
    parts = []
    for item in usages:
        note = f"{item.status} for {item.cooling_for:.1f} s more" if item.cooling_for else item.status
        if item.key_hash in exclude:
            note += ", tried already"
        reason = f": {item.reason}" if item.reason else ""
        parts.append(f"{item.key_hash} {note}{reason} ({item.used_minute} of {item.rpm_limit} a minute used)")
    return "; ".join(parts)
