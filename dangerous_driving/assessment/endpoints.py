"""Endpoints in the order in which they are asked: the next one only while the one before it is out of order."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from dangerous_driving.assessment.key_pool import KeyPool, Reservation
from dangerous_driving.assessment.llm import LlmClient
from dangerous_driving.errors import LlmError, LlmTimeoutError, LlmUnavailableError
from dangerous_driving.settings import LlmSettings

#: Answers that the running P95 looks back on, and that it needs at least.
LATENCIES, FEWEST_LATENCIES = 200, 20


@dataclass
class Breaker:
    """Opens after failures in a row on whatever key, and lets one request through once its rest is over.

    Attributes:
        failures_to_open: 5xx and time-outs in a row.
        rest: s; doubled by each failed probe, up to `longest_rest`.
    """

    failures_to_open: int = 10
    rest: float = 2.0
    longest_rest: float = 60.0
    failures: int = 0
    openings: int = 0
    open_until: float = 0.0
    probing_until: float = 0.0

    def allows(self, now: float) -> bool:
        """Whether a request may be sent now."""
        if self.failures < self.failures_to_open:
            return True
        return now >= self.open_until and now >= self.probing_until

    def sending(self, now: float, *, timeout: float) -> None:
        """A request leaves; of a half-open breaker it is the one probe."""
        if self.failures >= self.failures_to_open:
            self.probing_until = now + timeout

    def ended(self, error: LlmError | None, now: float) -> None:
        """How a request ended; an error that shows a working endpoint counts as none."""
        if not isinstance(error, LlmUnavailableError | LlmTimeoutError):
            self.failures = self.openings = 0
            self.open_until = self.probing_until = 0.0
            return
        probe = self.failures >= self.failures_to_open
        self.failures += 1
        if self.failures == self.failures_to_open or (probe and now >= self.open_until):
            self.open_until = now + min(self.rest * 2.0**self.openings, self.longest_rest)
            self.openings = min(self.openings + 1, 30)
            self.probing_until = 0.0


class Latencies:
    """The running P95 of whole answers."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, seconds: float) -> None:
        """Note an answer."""
        self._recent.append(seconds)
        insort(self._sorted, seconds)
        if len(self._recent) > LATENCIES:
            self._sorted.remove(self._recent.popleft())

    @property
    def p95(self) -> float | None:
        """In seconds; None while there are too few answers."""
        if len(self._sorted) < FEWEST_LATENCIES:
            return None
        return self._sorted[int(0.95 * (len(self._sorted) - 1))]


@dataclass
class Endpoint:
    """One endpoint with one model: its client, the pool of the keys it takes, and how it fares."""

    llm: LlmSettings
    client: LlmClient
    pool: KeyPool
    breaker: Breaker = field(default_factory=Breaker)
    latencies: Latencies = field(default_factory=Latencies)  # of answers to one group
    shared_latencies: dict[int, Latencies] = field(default_factory=dict)  # of those to more, by how many

    def latencies_of(self, groups: int) -> Latencies:
        """Of answers to so many groups: what is slow for one is not for three."""
        return self.latencies if groups == 1 else self.shared_latencies.setdefault(groups, Latencies())


@dataclass(frozen=True)
class Held:
    """A key that was reserved, and the endpoint that it is for."""

    endpoint: Endpoint
    reservation: Reservation


def usable(endpoints: Sequence[Endpoint], now: float) -> list[Endpoint]:
    """Those that may be asked, in order; all of them when none may: an attempt tells more than none."""
    return [endpoint for endpoint in endpoints if endpoint.breaker.allows(now)] or list(endpoints)
