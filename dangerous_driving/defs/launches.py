"""Which due windows a sensor tick launches, in which runs, and which it gives up. Pure.

Several windows share a run, since its start costs seconds: those of one time over neighbouring cameras (what closes
together), or neighbouring times of one camera (a backlog). The ledger knows the run of each window by its key, with
the content that it was launched with. A run that ended without success, for whatever reason (an error, a cancel, a killed
process), leaves its windows due: after a rest they are launched again as another attempt. Content that came after the launch
is launched anew at once and counts as no attempt.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum

from dangerous_driving.defs.partitions import partition_key
from dangerous_driving.ledger.windows import MAX_ATTEMPTS, DueWindow

#: After each failure a window rests this many times longer.
BACKOFF = 4
#: s after a run's success in which a window of it that is still due is left alone: the ledger was asked before.
GRACE = 30.0


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
    failed: list[DueWindow] = field(default_factory=list)  # given up: their last attempt is to be counted
    busy: int = 0  # have a run, queued or running
    resting: int = 0  # failed a moment ago
    given_up: int = 0  # by this tick, after MAX_ATTEMPTS
    left: int = 0  # had no room in this tick


def run_key(batch: Sequence[DueWindow]) -> str:
    """The key of the run on these windows: the same for the same contents and attempts, whatever their order.

    For one window it can be read (``CAMERA|2025-10-20-10:00/LENGTH@VERSION.ATTEMPTS``), for several it ends with a hash.
    The length is in it, since Dagster makes one run of a key, ever: an hour's first minute is another window than the hour.
    """
    names = sorted(f"{partition_key(due.window)}/{due.window.length}@{due.version}.{due.attempts}" for due in batch)
    if len(names) == 1:
        return names[0]
    return f"{names[0]}+{len(names) - 1}#{hashlib.sha256(chr(10).join(names).encode()).hexdigest()[:16]}"


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
        room: windows that may wait in the queue, those that do already included.
    """
    start: list[DueWindow] = []
    failed: list[DueWindow] = []
    busy = resting = given_up = left = 0
    known = [(window, runs.get(window.run_key) if window.run_key else None) for window in due]
    room -= sum(run is not None and run.state is RunState.WAITING for _, run in known)
    for window, run in known:
        candidate = window
        if run is not None:
            if run.state in (RunState.WAITING, RunState.RUNNING):
                busy += 1
                continue
            if window.version <= window.launched_version:  # the content that the run was about
                delay = (
                    timedelta(seconds=GRACE) if run.state is RunState.SUCCEEDED else rest(window.attempts, retry_delay)
                )
                if run.ended_at is not None and now < run.ended_at + delay:
                    resting += 1
                    continue
                candidate = replace(window, attempts=window.attempts + 1)
                if candidate.attempts >= MAX_ATTEMPTS:
                    failed.append(window)
                    given_up += 1
                    continue
        if len(start) >= room:
            left += 1
            continue
        start.append(candidate)
    return Launches(start, failed, busy=busy, resting=resting, given_up=given_up, left=left)


def batches(start: Sequence[DueWindow], cameras: Sequence[str], size: int) -> list[list[DueWindow]]:
    """Put windows into runs of at most `size`, each of which is a rectangle of partitions: Dagster knows runs as ranges.

    Args:
        start: windows to launch.
        cameras: the cameras in the order of their partitions; those of `start` are among them.
        size: windows of one run at most.

    Returns:
        The runs; first the one with the oldest window.
    """
    place = {camera_id: number for number, camera_id in enumerate(cameras)}
    by_time: dict[datetime, list[DueWindow]] = defaultdict(list)
    for window in start:
        by_time[window.window.start].append(window)
    found: list[list[DueWindow]] = []
    open_ones: dict[tuple[int, int], list[DueWindow]] = {}  # by first and last camera: may go on in the next window
    for _, windows in sorted(by_time.items()):
        strips = {
            (place[strip[0].window.camera_id], place[strip[-1].window.camera_id]): strip
            for strip in _strips(sorted(windows, key=lambda due: place[due.window.camera_id]), place, size)
        }
        going_on: dict[tuple[int, int], list[DueWindow]] = {}
        for span, strip in strips.items():
            before = open_ones.get(span)
            if before and len(before) + len(strip) <= size and before[-1].window.end == strip[0].window.start:
                before += strip
                going_on[span] = before
            else:
                found.append(strip)
                going_on[span] = strip
        open_ones = going_on
    return found


def _strips(windows: Sequence[DueWindow], place: Mapping[str, int], size: int) -> list[list[DueWindow]]:
    """Windows of one time, cut into runs of neighbouring cameras."""
    strips: list[list[DueWindow]] = []
    for window in windows:
        number = place[window.window.camera_id]
        if strips and len(strips[-1]) < size and place[strips[-1][-1].window.camera_id] == number - 1:
            strips[-1].append(window)
        else:
            strips.append([window])
    return strips
