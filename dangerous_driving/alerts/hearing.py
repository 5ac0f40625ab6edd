"""Up to when a service has heard everything: silence is only what was listened to. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from datetime import datetime
from typing import Generic, TypeVar

from dangerous_driving.messaging.consumer import Standing

PartitionT = TypeVar("PartitionT", bound=Hashable)


class Hearing(Generic[PartitionT]):
    """Notes how far the partitions went at a time, and waits until all of that was handed out and worked on."""

    def __init__(self) -> None:
        self._noted: tuple[datetime, dict[PartitionT, int]] | None = None

    def heard_until(self, standing: Mapping[PartitionT, Standing], *, at: datetime) -> datetime | None:
        """The latest time known up to which everything was heard; None while there is none.

        Args:
            standing: of all partitions that are read, when everything handed out has been worked on.
            at: a time before `standing` was asked for.
        """
        if not standing:  # nothing to listen to yet
            self._noted = None
            return None
        if self._noted is None or self._noted[1].keys() != standing.keys():
            self._noted = at, _ends(standing)
        then, ends = self._noted
        if any(standing[partition].position < end for partition, end in ends.items()):
            return None
        self._noted = at, _ends(standing)
        return at if all(now.position >= now.end for now in standing.values()) else then


def _ends(standing: Mapping[PartitionT, Standing]) -> dict[PartitionT, int]:
    return {partition: now.end for partition, now in standing.items()}
