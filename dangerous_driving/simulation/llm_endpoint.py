"""How the simulated LLM treats a request: limits, faults, latencies and counters. Pure but for the clock it is given."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from math import ceil, exp
from typing import Any

from dangerous_driving.assessment.key_pool import key_hash
from dangerous_driving.assessment.keys import Key

#: s; of the log-normal latencies: median, and sigma from the 95th percentile (1.645 standard deviations up).
FIRST_TOKEN_MEDIAN, FIRST_TOKEN_SIGMA = 0.4, 0.4214  # P95 0.8 s
WHOLE_MEDIAN, WHOLE_SIGMA = 1.2, 0.4462  # P95 2.5 s
#: How far the two latencies of one answer go together.
CORRELATION = 0.8
#: What each further group of a request costs: its part of the answer takes as long to write as that of the only one, since writing
#: is proportional to length; reading its picture adds this share to the time to first token (assumed: 0.1 s of a median of 0.4 s).
FURTHER_PICTURE = 0.25
#: Keys that are remembered where every key is accepted.
MAX_KEYS = 10_000


class Action(StrEnum):
    """What can be done to a key or to the whole endpoint; ``amount`` means something else for each."""

    REVOKE = "revoke"  # amount: the HTTP status, 401 or 403
    THROTTLE = "throttle"  # amount: the share of the limits that is left, 0 to 1
    SLOW = "slow"  # amount: a factor on the latencies
    BREAK = "break"  # amount: the share of requests answered with 503
    HANG = "hang"  # amount: the share of requests that get headers and then nothing
    CUT = "cut"  # amount: the share of answers that break off in the middle
    GARBAGE = "garbage"  # amount: the share of answers that are no usable JSON
    OMIT = "omit"  # amount: the share of groups that answers to several leave out
    RESTORE = "restore"  # all of the above undone


@dataclass(frozen=True)
class Faults:
    """What is wrong with a key, or with the whole endpoint."""

    revoke: float = 0.0
    throttle: float = 1.0
    slow: float = 1.0
    break_: float = 0.0
    hang: float = 0.0
    cut: float = 0.0
    garbage: float = 0.0
    omit: float = 0.0

    def changed(self, action: Action, amount: float) -> Faults:
        """With one more (or another amount of a) fault.

        Raises:
            ValueError: the amount makes no sense for the action.
        """
        if action is Action.RESTORE:
            return Faults()
        if action is Action.REVOKE:
            allowed = amount in {401, 403}
        elif action is Action.SLOW:
            allowed = 0 < amount <= 1000  # noqa: PLR2004
        else:
            allowed = 0 <= amount <= 1
        if not allowed:
            raise ValueError(f"{action} does not take the amount {amount:g}")
        return replace(self, **{"break_" if action is Action.BREAK else action.value: amount})

    def and_(self, other: Faults) -> Faults:
        """Both at once."""
        return Faults(
            revoke=self.revoke or other.revoke,
            throttle=self.throttle * other.throttle,
            slow=self.slow * other.slow,
            break_=_either(self.break_, other.break_),
            hang=_either(self.hang, other.hang),
            cut=_either(self.cut, other.cut),
            garbage=_either(self.garbage, other.garbage),
            omit=_either(self.omit, other.omit),
        )


@dataclass
class Account:
    """A key as the endpoint sees it. The counters count requests by what became of them."""

    key_hash: str
    qps_limit: int
    rpm_limit: int
    faults: Faults = Faults()
    accepted: list[float] = field(default_factory=list)  # times within the last minute
    requests: int = 0
    answered: int = 0
    rejected: int = 0
    rate_limited: int = 0
    broken: int = 0
    hung: int = 0
    cut: int = 0
    garbage: int = 0
    left: int = 0  # the client went before its answer was whole
    last_request_at: float | None = None

    def state(self) -> dict[str, Any]:
        """For ``/admin/state``."""
        values = asdict(self) | {"accepted_in_minute": len(self.accepted)}
        del values["accepted"]
        values["faults"] = {name.rstrip("_"): value for name, value in asdict(self.faults).items()}
        return values


@dataclass(frozen=True)
class Refusal:
    """The request gets no answer. ``retry_after`` in seconds, of a 429."""

    status: int
    code: str
    message: str
    retry_after: float | None = None


@dataclass(frozen=True)
class Plan:
    """How the request will be answered: s until the first part and until the end, and what goes wrong on the way."""

    account: Account
    first_token: float
    whole: float
    hang: bool
    cut: bool
    garbage: bool
    chance: random.Random
    omit: float = 0.0  # the share of groups that are left out

    def about(self, groups: int) -> Plan:
        """The plan when the request turns out to be about so many groups."""
        first = self.first_token * (1 + FURTHER_PICTURE * (groups - 1))
        return replace(self, first_token=first, whole=first + groups * (self.whole - self.first_token))


class SimulatedEndpoint:
    """The endpoint without its HTTP.

    Args:
        keys: those that are accepted, with their limits; none: every key is, with the default limits.
        seed: same seed and same order of requests, same latencies and faults.
        speed: divides the latencies.
        second: s; length of the short window.
        minute: s; length of the long window.
        qps_limit: of keys that are not listed.
        rpm_limit: of keys that are not listed.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        keys: Iterable[Key] = (),
        *,
        clock: Callable[[], float],
        seed: int = 0,
        speed: float = 1.0,
        second: float = 1.0,
        minute: float = 60.0,
        qps_limit: int = 10,
        rpm_limit: int = 300,
    ) -> None:
        self.seed = seed
        self.faults = Faults()
        self._accounts = {key.key_hash: Account(key.key_hash, key.qps_limit, key.rpm_limit) for key in keys}
        self._accepts_all = not self._accounts
        self._clock = clock
        self._speed = speed
        self._second, self._minute = second, minute
        self._limits = qps_limit, rpm_limit
        self._requests = 0
        self._unknown = 0

    def admit(self, secret: str) -> Plan | Refusal:
        """Decide on a chat request that has just arrived."""
        account = self.account_of(secret)
        self._requests += 1
        if account is None:
            self._unknown += 1
            return Refusal(401, "invalid_api_key", "Incorrect API key provided.")
        now = self._clock()
        chance = random.Random(f"{self.seed}:{self._requests}")  # noqa: S311  # repeatable is the point
        faults = self.faults.and_(account.faults)
        account.requests += 1
        account.last_request_at = now
        if faults.revoke:
            account.rejected += 1
            return Refusal(int(faults.revoke), "invalid_api_key", "This API key has been revoked.")
        wait = self._until_room(account, now, faults.throttle)
        if wait > 0:
            account.rate_limited += 1
            return Refusal(429, "rate_limit_exceeded", "Rate limit reached for this API key.", retry_after=wait)
        account.accepted.append(now)
        if chance.random() < faults.break_:
            account.broken += 1
            return Refusal(503, "server_error", "The simulated server is broken for now.")
        first, whole = self._latencies(chance, faults.slow)
        return Plan(
            account,
            first,
            whole,
            hang=chance.random() < faults.hang,
            cut=chance.random() < faults.cut,
            garbage=chance.random() < faults.garbage,
            chance=chance,
            omit=faults.omit,
        )

    def account_of(self, secret: str) -> Account | None:
        """The key's account; None for a key that is not accepted."""
        name = key_hash(secret)
        if self._accepts_all and secret and name not in self._accounts and len(self._accounts) < MAX_KEYS:
            self._accounts[name] = Account(name, *self._limits)
        return self._accounts.get(name)

    def rejects(self, secret: str) -> bool:
        """Whether the key is unknown or revoked (asked for a request that counts for no limit)."""
        account = self.account_of(secret)
        return account is None or bool(self.faults.and_(account.faults).revoke)

    def change(self, name: str | None, action: Action, amount: float) -> bool:
        """Change the faults of a key (by its hash) or of the whole endpoint; False for an unknown key.

        Restoring the whole endpoint restores its keys too.

        Raises:
            ValueError: the amount makes no sense for the action.
        """
        if name is None:
            self.faults = self.faults.changed(action, amount)
            if action is Action.RESTORE:
                for account in self._accounts.values():
                    account.faults = Faults()
            return True
        known = self._accounts.get(name)
        if known is None:
            return False
        known.faults = known.faults.changed(action, amount)
        return True

    def state(self) -> dict[str, Any]:
        """All counters, for ``/admin/state``."""
        now = self._clock()
        for account in self._accounts.values():
            self._prune(account, now)
        return {
            "simulated": True,
            "requests": self._requests,
            "unknown_keys": self._unknown,
            "rate_limited": sum(account.rate_limited for account in self._accounts.values()),
            "faults": {name.rstrip("_"): value for name, value in asdict(self.faults).items()},
            "keys": [account.state() for account in self._accounts.values()],
        }

    def _until_room(self, account: Account, now: float, share: float) -> float:
        """Seconds until both exact sliding windows have room for one more; 0 when they have."""
        self._prune(account, now)
        wait = 0.0
        for limit, length in ((account.qps_limit, self._second), (account.rpm_limit, self._minute)):
            left = ceil(limit * share)
            if left == 0:
                wait = max(wait, length)
            elif len(account.accepted) >= left:
                wait = max(wait, account.accepted[-left] + length - now)
        return wait

    def _prune(self, account: Account, now: float) -> None:
        del account.accepted[: bisect_right(account.accepted, now - self._minute)]

    def _latencies(self, chance: random.Random, slow: float) -> tuple[float, float]:
        shared, own = chance.gauss(), chance.gauss()
        other = CORRELATION * shared + (1 - CORRELATION**2) ** 0.5 * own
        factor = slow / self._speed
        first = FIRST_TOKEN_MEDIAN * exp(FIRST_TOKEN_SIGMA * shared)
        whole = WHOLE_MEDIAN * exp(WHOLE_SIGMA * other)
        return first * factor, max(whole, 1.05 * first) * factor


def _either(first: float, second: float) -> float:
    return 1 - (1 - first) * (1 - second)
