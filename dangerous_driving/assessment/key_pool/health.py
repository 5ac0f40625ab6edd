"""What a key's answers say about it: its rests, its breaker, its limits. Pure: data and a clock in, data out.

**Return.** After a rest a key comes back little by little: its rate grows linearly from nothing within some seconds.

**Learnt limits.** What the provider says of its limits, or a 429 where the configured ones had room, lowers a key's
limits; those learnt from a 429 rise again by a twentieth a minute, since the provider may have changed its mind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
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

#: Share of a configured limit by which one learnt from a 429 rises again in a minute.
LIMIT_GROWTH = 0.05

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
class Budget:
    """What a lane may spend in a day (UTC): calls, and money. None: no limit."""

    calls: int | None = None
    cost: float | None = None


@dataclass(frozen=True)
class Spent:
    """What a lane has spent today."""

    calls: int = 0
    cost: float = 0.0

    def __add__(self, more: Spent) -> Spent:
        return Spent(self.calls + more.calls, self.cost + more.cost)

    def share(self, budget: Budget) -> float:
        """Of the budget; 1 and more: it is used up."""
        shares = [
            spent / limit if limit else inf
            for spent, limit in ((self.calls, budget.calls), (self.cost, budget.cost))
            if limit is not None
        ]
        return max(shares, default=0.0)


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
        recovery: until a key that has rested is used at its full rate again.
        lease: for how long ahead one process takes slots from the shared storage; 0: none.
        lane_weights: of the lanes below realtime, when several of them wait; others weigh 1.
        budgets: of lanes, by day; others have none.
        members: processes that are counted at least when each goes on with its share, the storage being away.
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
    recovery: float = 10.0
    lease: float = 0.5
    lane_weights: Mapping[str, float] = field(default_factory=dict)
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    members: int = 1
    second: float = 1.0
    minute: float = 60.0

    @property
    def validity(self) -> float:
        """How long after its instant a slot taken ahead may still be used: what the margin allows for."""
        return min(self.window_margin / 2, 0.1)

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
        learned_qps: limit of the short window that the provider showed; None: the configured one is believed.
        learned_rpm: likewise of the long window.
        learned_at: when; None: the provider has told it in words, so it stays.
    """

    state: KeyState = KeyState.AVAILABLE
    reason: str = ""
    cooling_until: float = 0.0
    failures: int = 0
    coolings: int = 0
    probing_until: float = 0.0
    learned_qps: int | None = None
    learned_rpm: int | None = None
    learned_at: float | None = None

    def limit(self, configured: int, learned: int | None, *, now: float, policy: Policy) -> int:
        """The limit to keep to, of a window with this configured one."""
        if learned is None:
            return configured
        minutes = 0.0 if self.learned_at is None else max(now - self.learned_at, 0.0) / policy.minute
        return max(min(configured, learned + int(configured * LIMIT_GROWTH * minutes)), 1)

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
    def worked(self) -> Health:
        """After a good answer; the rest's end is kept, to know what is stale, and so is what was learnt."""
        return Health(
            cooling_until=self.cooling_until,
            learned_qps=self.learned_qps,
            learned_rpm=self.learned_rpm,
            learned_at=self.learned_at,
        )

    @property
    def clean(self) -> bool:
        """Whether a good answer would change nothing."""
        return self == self.worked


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
class StatedLimits:
    """What an endpoint says of a key's limits in its headers: requests per short and per long window."""

    qps: int | None = None
    rpm: int | None = None


@dataclass(frozen=True)
class Report:
    """The outcome of a granted request, what it cost (money), and what the endpoint said of its limits."""

    grant: Grant
    outcome: Outcome
    cost: float = 0.0
    limits: StatedLimits | None = None


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
        return health.worked  # a refused request too shows that endpoint and key work
    return _failed(health, now=now, policy=policy)


def _failed(health: Health, *, now: float, policy: Policy) -> Health:
    failures = health.failures + 1
    if failures < policy.breaker_failures:
        return replace(health, failures=failures)
    return replace(
        health.worked,
        state=KeyState.COOLING,
        reason=f"{failures} failures in a row",
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
