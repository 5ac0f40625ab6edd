"""Which due windows a sensor tick launches, and which earlier runs it counts as failed attempts. Pure.

A window is launched once per attempt on its content: the run key is made of partition, content version and the number of
failed attempts, and Dagster runs a key once. A run that ended without success, for whatever reason (an error, a cancel, a
killed process), is found by its key; after a rest its attempt is counted, which makes the next key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum

from dangerous_driving.defs.partitions import partition_key
from dangerous_driving.ledger.windows import MAX_ATTEMPTS, DueWindow

#: After each failure a window rests this many times longer.
BACKOFF = 4


class RunState(Enum):
    """What a tick has to know of a run."""

    WAITING = "waiting"  # queued: its process has not started
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # or canceled


@dataclass(frozen=True)
class KnownRun:
    """The newest run of a key."""

    state: RunState
    ended_at: datetime | None = None


@dataclass(frozen=True)
class Launches:
    """What a tick does."""

    start: list[DueWindow] = field(default_factory=list)  # with the attempt that the new run is
    failed: list[DueWindow] = field(default_factory=list)  # whose last attempt is to be counted as failed
    busy: int = 0  # have a run, queued or running
    resting: int = 0  # failed a moment ago
    given_up: int = 0  # by this tick, after MAX_ATTEMPTS
    left: int = 0  # had no room in this tick


def run_key(due: DueWindow) -> str:
    """``CAMERA|2025-10-20-10:00@VERSION.ATTEMPTS``."""
    return f"{partition_key(due.window)}@{due.version}.{due.attempts}"


def rest(attempts: int, retry_delay: float) -> timedelta:
    """How long a window rests after its run number ``attempts + 1`` failed; `retry_delay` in seconds."""
    return timedelta(seconds=retry_delay * BACKOFF**attempts)


def plan(
    due: Iterable[DueWindow], runs: Mapping[str, KnownRun], *, now: datetime, retry_delay: float, room: int
) -> Launches:
    """Decide on the due windows, in their order.

    Args:
        due: closed windows with content that no run has completed, oldest first.
        runs: the newest run of each run key that has one.
        now: with time zone.
        retry_delay: s a window rests after its first failure.
        room: runs that may wait in the queue, those that do already included.
    """
    start: list[DueWindow] = []
    failed: list[DueWindow] = []
    busy = resting = given_up = left = 0
    due = list(due)
    room -= sum(run.state is RunState.WAITING for run in (runs.get(run_key(window)) for window in due) if run)
    for window in due:
        run = runs.get(run_key(window))
        candidate = window
        if run is not None:
            if run.state is not RunState.FAILED:
                # a success completed the window after the ledger was asked
                busy += run.state is not RunState.SUCCEEDED
                continue
            if run.ended_at is not None and now < run.ended_at + rest(window.attempts, retry_delay):
                resting += 1
                continue
            candidate = DueWindow(window.window, window.version, window.attempts + 1)
            if candidate.attempts >= MAX_ATTEMPTS:
                failed.append(window)
                given_up += 1
                continue
        if len(start) >= room:
            left += 1
            continue
        if candidate is not window:
            failed.append(window)
        start.append(candidate)
    return Launches(start, failed, busy=busy, resting=resting, given_up=given_up, left=left)
