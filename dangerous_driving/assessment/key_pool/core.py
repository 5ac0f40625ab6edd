"""The key pool's decisions: which key may send the next request, and when. Pure: data and a clock in, data out.

Times are seconds of one clock that all who share the keys share (a process' own, or the database's).

**Windows.** A key may send when fewer than ``limit`` requests were allowed within the last window, for both windows; the
provider counts requests when they reach it, a little later than they were allowed, and not all equally late, so each
window is longer by a margin. This is exact: no request is refused that the provider would take but for the margin.

**Spread.** A key's second is not spent in one instant: a burst of a hundred requests would leave the process over half
a second, and arrive as irregularly.

**Lanes.** Realtime (and the inline lane that stands in for it) takes what there is. The lanes below it are paced, one
request per ``minute / (their share)`` and key, and stop at ``1 - realtime_reserve`` of a key's minute, so that a backlog
cannot spend a minute's quota in seconds and leave the next dangerous scene waiting for the rest of it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right, insort
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import inf
from typing import Literal

from dangerous_driving.errors import KeyRejectedError, LlmError, LlmRequestError, RateLimitedError

#: The lanes that are not paced and may use the reserve.
URGENT_LANES = frozenset({"realtime", "inline"})

#: s that a Retry-After is believed; a malformed one must not put a key away for years.
LONGEST_REST = 24 * 3600.0
#: s a key rests at least after a 429, so that a ``Retry-After: 0`` does not make it fail in a loop.
SHORTEST_REST = 0.05

#: How a request ended: an error, ``ok``, ``cancelled`` (its outcome is unknown) or ``unsent`` (it never left).
Outcome = LlmError | Literal["ok", "cancelled", "unsent"]


def key_hash(secret: str) -> str:
    """What a key is called wherever the key itself must not appear."""
    return f"key_hash_{hashlib.sha256(secret.encode()).hexdigest()[:12]}"


class KeyState(StrEnum):
    """Of a key. ``cooling`` ends by itself, ``disabled`` only by a person."""

    AVAILABLE = "available"
    COOLING = "cooling"
    DISABLED = "disabled"


@dataclass(frozen=True)
class Policy:
    """The pool's settings; all times in seconds.

    Attributes:
        window_margin: added to both windows for what differs between the requests' ways to the provider. With 10 keys
            of 10/s and 300/min it costs 0.4 % of the quota; 0.05 s were too few on two busy cores (2 % answers 429).
        cooling_initial: rest after a first 429 without Retry-After, or a first opening of the breaker; it doubles.
        cooling_max: rest at most (a provider's own Retry-After excepted).
        breaker_failures: 5xx or time-outs in a row until a key rests and is then probed by one request.
        realtime_reserve: share of a key's minute that the lanes below realtime leave.
        probe_timeout: until a probe without an outcome is given up and another may go.
        burst: share of a second's requests that may leave at once.
        second: length of the provider's short window.
        minute: length of the provider's long window.
    """

    window_margin: float = 0.25
    cooling_initial: float = 1.0
    cooling_max: float = 60.0
    breaker_failures: int = 5
    realtime_reserve: float = 0.2
    probe_timeout: float = 60.0
    burst: float = 0.1
    second: float = 1.0
    minute: float = 60.0

    @property
    def horizon(self) -> float:
        """How long a request counts."""
        return self.minute + self.window_margin


@dataclass(frozen=True)
class Key:
    """A key's identity and limits: requests per short and per long window."""

    key_hash: str
    qps_limit: int
    rpm_limit: int
    label: str = ""


@dataclass(frozen=True)
class Health:
    """What the answers so far say about a key.

    Attributes:
        state: as last decided; a rest that is over counts as available (see :meth:`stands`).
        reason: of the state, for people.
        cooling_until: end of the last rest. Requests allowed before it tell nothing new about the key.
        failures: 5xx and time-outs in a row.
        coolings: rests in a row, for the back-off.
        probing_until: until then the one probe of a half-open key is under way.
    """

    state: KeyState = KeyState.AVAILABLE
    reason: str = ""
    cooling_until: float = 0.0
    failures: int = 0
    coolings: int = 0
    probing_until: float = 0.0

    def half_open(self, policy: Policy) -> bool:
        """Whether, its rest being over, one probe must show that the key works again."""
        return self.failures >= policy.breaker_failures

    def ready_at(self, policy: Policy) -> float:
        """The first instant at which the key's health allows a request; `inf` while it is disabled."""
        if self.state is KeyState.DISABLED:
            return inf
        return max(self.cooling_until, self.probing_until if self.half_open(policy) else 0.0)

    def stands(self, now: float, policy: Policy) -> KeyState:
        """The state at this instant."""
        if self.state is KeyState.COOLING and now >= self.cooling_until and not self.half_open(policy):
            return KeyState.AVAILABLE
        return self.state

    @property
    def clean(self) -> bool:
        """Whether a good answer would change nothing."""
        return self == Health(cooling_until=self.cooling_until)


@dataclass(frozen=True)
class Request:
    """Somebody wants to send a request on a key that is not in `exclude`."""

    lane: str
    exclude: frozenset[str] = frozenset()

    @property
    def urgent(self) -> bool:
        """Whether it is neither paced nor kept from the reserve."""
        return self.lane in URGENT_LANES


@dataclass(frozen=True)
class Grant:
    """A key for one request. ``probe``: its outcome decides whether the key is used again."""

    key_hash: str
    lane: str
    reserved_at: float
    probe: bool = False


@dataclass(frozen=True)
class Report:
    """The outcome of a granted request."""

    grant: Grant
    outcome: Outcome


@dataclass
class Account:
    """One key with its health and the requests allowed within the horizon, in order."""

    key: Key
    health: Health = Health()
    times: list[float] = field(default_factory=list)
    paced_at: float = -inf  # the last one of a lane below realtime

    def add(self, lane: str, at: float) -> None:
        """Count a request."""
        insort(self.times, at)
        if lane not in URGENT_LANES:
            self.paced_at = max(self.paced_at, at)

    def remove(self, at: float) -> None:
        """Take back a request that never left."""
        index = bisect_right(self.times, at) - 1
        if index >= 0 and self.times[index] == at:
            del self.times[index]

    def prune(self, now: float, policy: Policy) -> None:
        """Forget what no longer counts."""
        del self.times[: bisect_right(self.times, now - policy.horizon)]

    def used(self, now: float, length: float) -> int:
        """Requests allowed within the last `length` seconds."""
        return len(self.times) - bisect_right(self.times, now - length)

    def share(self, policy: Policy) -> int:
        """Requests per minute that the lanes below realtime may bring this key to."""
        whole = min(self.key.rpm_limit, int(self.key.qps_limit * policy.minute / policy.second))
        return max(int(whole * (1 - policy.realtime_reserve)), 1)

    def free_at(self, *, urgent: bool, policy: Policy) -> float:
        """The first instant at which the key may send one more request; `inf` while it is disabled."""
        second, minute, qps = policy.second + policy.window_margin, policy.horizon, self.key.qps_limit
        at_once = max(int(qps * policy.burst), 1)
        instants = [
            self.health.ready_at(policy),
            self._room_at(at_once, second * at_once / qps),
            self._room_at(qps, second),
            self._room_at(self.key.rpm_limit, minute),
        ]
        if not urgent:
            share = self.share(policy)
            instants += [self._room_at(share, minute), self.paced_at + policy.minute / share]
        return max(instants)

    def _room_at(self, limit: int, length: float) -> float:
        return self.times[-limit] + length if len(self.times) >= limit else -inf

    def load(self, now: float, policy: Policy) -> float:
        """How full the fuller of the two windows is, 0 to 1."""
        return max(
            self.used(now, policy.second + policy.window_margin) / self.key.qps_limit,
            self.used(now, policy.horizon) / self.key.rpm_limit,
        )


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
        grant = None if alike in refused else _grant(accounts, request, now, policy)
        if grant is None and alike not in refused:
            refused[alike] = _earliest(accounts, request, policy)
        grants.append(grant)
        free_at.append(now if grant else refused[alike])
    return Decision(tuple(grants), tuple(free_at))


def _grant(accounts: Mapping[str, Account], request: Request, now: float, policy: Policy) -> Grant | None:
    free = [
        account
        for account in accounts.values()
        if account.key.key_hash not in request.exclude and account.free_at(urgent=request.urgent, policy=policy) <= now
    ]
    if not free:
        return None

    def cost(account: Account) -> tuple[bool, float, float, str]:
        overdue = now - account.health.cooling_until > policy.cooling_max
        spared = request.urgent and account.health.half_open(policy) and not overdue
        last_used = account.times[-1] if account.times else -inf
        return spared, account.load(now, policy), last_used, account.key.key_hash

    best = min(free, key=cost)
    probe = best.health.half_open(policy)
    if probe:
        best.health = replace(best.health, probing_until=now + policy.probe_timeout, reason="probed by one request")
    at = max(now, best.times[-1]) if best.times else now  # a clock that stepped back must not unsort the window
    best.add(request.lane, at)
    return Grant(best.key.key_hash, request.lane, at, probe)


def _earliest(accounts: Mapping[str, Account], request: Request, policy: Policy) -> float:
    return min(
        (
            account.free_at(urgent=request.urgent, policy=policy)
            for account in accounts.values()
            if account.key.key_hash not in request.exclude
        ),
        default=inf,
    )


def after(health: Health, report: Report, *, now: float, policy: Policy) -> Health:
    """The key's health once an outcome is known."""
    outcome, grant = report.outcome, report.grant
    if isinstance(outcome, KeyRejectedError):
        return replace(health, state=KeyState.DISABLED, reason=f"rejected by the endpoint (HTTP {outcome.http_status})")
    stale = grant.reserved_at < health.cooling_until  # it left before the rest: what it tells has been acted on
    unknown = outcome in {"cancelled", "unsent"}
    if (
        health.state is KeyState.DISABLED
        or (unknown and not grant.probe)
        or (stale and not isinstance(outcome, RateLimitedError))
    ):
        return health
    if unknown:
        return replace(health, probing_until=0.0)
    if isinstance(outcome, RateLimitedError):
        return _rested(health, outcome, stale=stale, now=now, policy=policy)
    if outcome == "ok" or isinstance(outcome, LlmRequestError):
        # a refused request too shows that endpoint and key work; the rest's end is kept, to know what is stale
        return Health(cooling_until=health.cooling_until)
    return _failed(health, now=now, policy=policy)


def _failed(health: Health, *, now: float, policy: Policy) -> Health:
    failures = health.failures + 1
    if failures < policy.breaker_failures:
        return replace(health, failures=failures)
    return Health(
        KeyState.COOLING,
        f"{failures} failures in a row",
        cooling_until=now + _back_off(health.coolings, policy),
        failures=failures,
        coolings=health.coolings + 1,
    )


def _rested(health: Health, error: RateLimitedError, *, stale: bool, now: float, policy: Policy) -> Health:
    given = error.retry_after
    if stale and given is None:
        return health
    rest = _back_off(health.coolings, policy) if given is None else min(max(given, SHORTEST_REST), LONGEST_REST)
    return replace(
        health,
        state=KeyState.COOLING,
        reason="too many requests (HTTP 429)",
        cooling_until=max(health.cooling_until, now + rest),
        coolings=health.coolings if stale else health.coolings + 1,
        probing_until=0.0,
    )


def _back_off(coolings: int, policy: Policy) -> float:
    return float(min(policy.cooling_initial * 2.0 ** min(coolings, 30), policy.cooling_max))


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
        qps_limit=key.qps_limit,
        used_minute=account.used(now, policy.minute),
        rpm_limit=key.rpm_limit,
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
