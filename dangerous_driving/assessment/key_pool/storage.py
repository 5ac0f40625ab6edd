"""What the pool needs of the place where keys' windows and health are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dangerous_driving.assessment.key_pool.core import KeyUsage
from dangerous_driving.assessment.key_pool.health import Grant, Key, Report, Request, Spent


@dataclass(frozen=True)
class Exchange:
    """Answer to one exchange: for each request, in order, a grant or the seconds until it is worth asking again.

    ``inf`` seconds: every key that the request may use is disabled.
    """

    grants: tuple[Grant | None, ...]
    waits: tuple[float, ...]


class Storage(Protocol):
    """Keeps the accounts of all keys; one exchange is atomic among all who share them.

    Attributes:
        pause: s between two exchanges of one process at least, so that slots that come free one by one are fetched
            together.
        patience: s until a waiting process asks again although nothing happened that it knows of: another process may
            have given something back. `inf` where there are no others.
    """

    pause: float
    patience: float

    async def exchange(self, reports: Sequence[Report], requests: Sequence[Request]) -> Exchange:
        """Note the outcomes, then give keys to the requests.

        Raises:
            LedgerError: the storage is away; nothing was noted and nothing given.
        """
        ...

    async def set_enabled(self, key_hash: str, *, enabled: bool, reason: str) -> None:
        """A person disables a key, or enables it with a clean slate.

        Raises:
            LedgerError: the storage is away.
        """
        ...

    def apply(self, keys: Sequence[Key]) -> None:
        """Have these keys, from the next exchange on at the latest: others are forgotten, new ones come in, limits follow."""
        ...

    def sent(self, grant: Grant, late: float) -> None:
        """The request left so many seconds after its grant: its windows count from then."""
        ...

    def spend(self, lane: str, *, calls: int = 0, cost: float = 0.0) -> None:
        """Note what a lane spends."""
        ...

    def spent(self, lane: str) -> Spent:
        """What the lane has spent today, as far as is known."""
        ...

    def worth_noting(self, report: Report) -> bool:
        """Whether the outcome changes anything, as far as this process knows."""
        ...

    def snapshot(self) -> tuple[KeyUsage, ...]:
        """Each key as of the last exchange, in the order in which the keys were given."""
        ...

    async def close(self) -> None:
        """Let go of what it holds."""
        ...
