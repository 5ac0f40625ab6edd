"""The drift watch of a day: profiles where they are missing, a verdict on every camera."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, timedelta

from sqlalchemy import Engine

from dangerous_driving.evaluation.drift import Bounds, Score, State, score_day, told
from dangerous_driving.ledger import drift as ledger
from dangerous_driving.settings import MonitoringSettings


@dataclass(frozen=True)
class CameraDay:
    """What the watch says of a camera's day, a score of each variable."""

    camera_id: str
    day: date
    scores: tuple[Score, ...]

    @property
    def state(self) -> State:
        """The worst of the variables; ``too_little`` only if nothing could be said of any."""
        states = list(State)
        return max((score.state for score in self.scores), key=states.index)

    @property
    def message(self) -> str:
        """What has drifted, in a sentence each; empty where nothing has."""
        drifted = [score for score in self.scores if score.state is State.DRIFTED]
        return "; ".join(told(score) for score in sorted(drifted, key=lambda score: -(score.psi or 0)))


def watch_day(
    engine: Engine, day: date, settings: MonitoringSettings, *, on_progress: Callable[[str], None] = lambda what: None
) -> list[CameraDay]:
    """Judge a day, and keep what was found.

    Days of the weeks before that have frames and no profiles get theirs first, so that the first watch on an old ledger
    can speak, too.

    Args:
        engine: of the ledger.
        day: in UTC; over, else its frames are not all there yet.
        settings: bounds and weeks.
        on_progress: told what is done next.

    Returns:
        Every camera that showed something on the day or in the weeks before. A camera that has shown nothing on the day
        counts as too little: that it is offline is told elsewhere.
    """
    first = day - timedelta(weeks=settings.drift_weeks)
    missing = ledger.days_with_frames(engine, first, day) - ledger.profiled_days(engine, first, day)
    for other in [*sorted(missing), day]:
        on_progress(f"profile of {other}")
        ledger.profile_day(engine, other)
    bounds = Bounds(settings.drift_moderate, settings.drift_major, settings.drift_days, settings.drift_counts)
    after = day + timedelta(days=1)
    found = []
    for camera_id in ledger.cameras_with_profiles(engine, first, after):
        on_progress(camera_id)
        profiles = ledger.profiles(engine, camera_id, first, after)
        before = ledger.days_moved(engine, camera_id, day - timedelta(days=settings.drift_repeated - 1), day)
        scores = tuple(
            repeated(score_day(variable, day, hours, bounds), before[variable], settings.drift_repeated)
            for variable, hours in profiles.items()
        )
        ledger.keep_scores(engine, camera_id, day, scores)
        found.append(CameraDay(camera_id, day, scores))
    return found


def repeated(score: Score, days_before: int, days: int) -> Score:
    """A moderate change that stays for so many days is a drift: chance does not repeat itself.

    Args:
        score: of the day.
        days_before: how many of the days just before it had a moderate or a major change.
        days: in a row, the day itself included.
    """
    if score.state is State.MODERATE and days_before >= days - 1:
        return replace(score, state=State.DRIFTED)
    return score
