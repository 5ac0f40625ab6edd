"""Challengers in the shadow: which assess now, which windows wait for them, and what they said beside the champion."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from dangerous_driving.assessment.shadow import shadow_run
from dangerous_driving.assessment.windows import Window
from dangerous_driving.contracts import RiskLevel
from dangerous_driving.ledger.backfills import open_backfill
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.tables import Shadow, ShadowWindow

#: Attempts at a window that a challenger could not complete; then it is left out.
MAX_ATTEMPTS = 3
LEVELS = tuple(level.value for level in sorted(RiskLevel, key=lambda level: level.rank))


@dataclass(frozen=True)
class Challenger:
    """A prompt version and model that assess a share of the groups of windows that ended after ``since``."""

    run: str
    prompt_version: str
    model: str
    share: float
    since: datetime
    ended_at: datetime | None = None
    started_by: str = ""


@dataclass(frozen=True)
class ShadowWindowDue:
    """A window whose sampled groups a challenger has not assessed; ``version`` of its content."""

    run: str
    window: Window
    version: int


@dataclass(frozen=True)
class Costs:
    """Of one run's answers, whose ``count`` is given; money and seconds."""

    count: int
    cost: float
    latency_p50: float | None
    latency_p95: float | None


@dataclass(frozen=True)
class Judged:
    """One group of an alert that a person has judged, with both answers."""

    dangerous: bool
    champion: str
    challenger: str


@dataclass(frozen=True)
class ShadowReport:
    """A challenger beside the champion, on the same groups.

    Attributes:
        challenger: who.
        states: its sampled groups by state.
        pairs: (champion's level, challenger's level) -> groups with both answers.
        champion: costs of the champion's answers to these groups.
        costs: of the challenger's.
        judged: groups of judged alerts; contradicting verdicts are left out.
        windows: that it has assessed.
        given_up: that it could not complete.
    """

    challenger: Challenger
    states: dict[str, int]
    pairs: dict[tuple[str, str], int]
    champion: Costs
    costs: Costs
    judged: list[Judged] = field(default_factory=list)
    windows: int = 0
    given_up: int = 0


def start_shadow(engine: Engine, prompt_version: str, model: str, share: float, *, by: str = "") -> Challenger:
    """Let a challenger assess a share of the groups from now on; one that was ended goes on under its old name.

    A change of the share does not reach back: windows that it has assessed stay as they are.
    """
    run = shadow_run(prompt_version, model)
    open_backfill(engine, run, prompt_version=prompt_version, model=model)
    values = {"prompt_version": prompt_version, "model": model, "share": share, "started_by": by}
    statement = insert(Shadow).values(run=run, **values)
    with transaction(engine) as connection:
        row = connection.execute(
            statement.on_conflict_do_update(
                index_elements=["run"],
                set_={
                    "share": share,
                    "started_by": by,
                    # what passed while it was ended is not made up for
                    "since": text("CASE WHEN shadow.ended_at IS NULL THEN shadow.since ELSE now() END"),
                    "ended_at": None,
                },
            ).returning(*_columns())
        ).one()
    return Challenger(*row)


def end_shadow(engine: Engine, run: str) -> bool:
    """End it; returns whether it was assessing. Its answers stay."""
    statement = update(Shadow).where(Shadow.run == run, Shadow.ended_at.is_(None)).values(ended_at=func.now())
    with transaction(engine) as connection:
        return bool(connection.execute(statement).rowcount)


def challengers(engine: Engine, *, active: bool = False) -> list[Challenger]:
    """All that ever assessed in the shadow, or those that do now; the newest first."""
    statement = select(*_columns()).order_by(Shadow.since.desc(), Shadow.run)
    if active:
        statement = statement.where(Shadow.ended_at.is_(None))
    with transaction(engine) as connection:
        return [Challenger(*row) for row in connection.execute(statement)]


def due_windows(engine: Engine, *, length: int, limit: int) -> list[ShadowWindowDue]:
    """Completed windows that active challengers have not assessed, oldest first.

    A window that late frames re-opened, and that the live lanes completed again, is due again: only its new groups are
    asked about.
    """
    with transaction(engine) as connection:
        rows = connection.execute(text(_DUE), {"length": length, "limit": limit, "attempts": MAX_ATTEMPTS})
        return [
            ShadowWindowDue(row.run, Window(row.camera_id, row.window_start, row.length), row.version) for row in rows
        ]


def note_window(engine: Engine, due: ShadowWindowDue, problem: str | None) -> None:
    """Note that a challenger has assessed a window, or why not."""
    values = {"version": due.version, "problem": problem}
    statement = insert(ShadowWindow).values(
        run=due.run,
        camera_id=due.window.camera_id,
        window_start=due.window.start,
        length=due.window.length,
        attempts=1,
        **values,
    )
    with transaction(engine) as connection:
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["run", "camera_id", "window_start", "length"],
                set_=values
                | {
                    "attempts": text(
                        "CASE WHEN shadow_window.version = excluded.version THEN shadow_window.attempts + 1 ELSE 1 END"
                    ),
                    "assessed_at": func.now(),
                },
            )
        )


def report(engine: Engine, challenger: Challenger) -> ShadowReport:
    """What a challenger said, beside what the live lanes said of the same groups."""
    run = {"run": challenger.run}
    with transaction(engine) as connection:
        states = dict(connection.execute(text(_STATES), run).tuples().all())
        pairs = {(row[0], row[1]): row[2] for row in connection.execute(text(_PAIRS), run)}
        costs = {row[0]: Costs(*row[1:]) for row in connection.execute(text(_COSTS), run)}
        judged = [Judged(*row) for row in connection.execute(text(_JUDGED), run)]
        done, given_up = connection.execute(text(_WINDOWS), run | {"attempts": MAX_ATTEMPTS}).one()
    nothing = Costs(0, 0.0, None, None)
    return ShadowReport(
        challenger,
        states,
        pairs,
        costs.get("live", nothing),
        costs.get(challenger.run, nothing),
        judged,
        done,
        given_up,
    )


def _columns() -> tuple[Any, ...]:
    return tuple(getattr(Shadow, name) for name in Challenger.__dataclass_fields__)


_DUE = """
SELECT s.run, w.camera_id, w.window_start, w.length, w.version
FROM shadow s
JOIN camera_window w ON w.length = :length AND w.window_start + make_interval(secs => w.length) > s.since
LEFT JOIN shadow_window d
  ON d.run = s.run AND d.camera_id = w.camera_id AND d.window_start = w.window_start AND d.length = w.length
WHERE s.ended_at IS NULL AND w.assessed_version >= w.version
  AND (d.run IS NULL OR d.version < w.version OR (d.problem IS NOT NULL AND d.attempts < :attempts))
ORDER BY w.window_start, w.camera_id, s.run LIMIT :limit
"""

_STATES = "SELECT state, count(*) FROM backfill_task WHERE run = :run GROUP BY 1"

_BOTH = """
FROM risk_assessment c
JOIN risk_assessment l ON l.captured_at = c.captured_at AND l.task_id = c.task_id AND l.run = 'live'
WHERE c.run = :run AND c.run <> 'live'
"""

_PAIRS = f"SELECT l.risk_level, c.risk_level, count(*) {_BOTH} GROUP BY 1, 2"  # constants

_COSTS = f"""
SELECT r.run, count(*), sum(r.cost), percentile_cont(0.5) WITHIN GROUP (ORDER BY r.latency),
       percentile_cont(0.95) WITHIN GROUP (ORDER BY r.latency)
FROM (SELECT c.captured_at, c.task_id {_BOTH}) b
JOIN risk_assessment r ON r.captured_at = b.captured_at AND r.task_id = b.task_id AND r.run IN ('live', :run)
GROUP BY 1
"""  # noqa: S608

# of a group that two alerts share and two people judged differently nothing is known
_JUDGED = f"""
SELECT bool_and(v.dangerous), min(b.champion), min(b.challenger)
FROM (SELECT c.task_id, l.risk_level AS champion, c.risk_level AS challenger {_BOTH}) b
JOIN (
    SELECT DISTINCT e.task_id, a.alert_id, a.verdict = 'acknowledged' AS dangerous
    FROM alert_event e JOIN alert a ON a.alert_id = e.alert_id WHERE a.verdict IS NOT NULL AND e.task_id IS NOT NULL
) v ON v.task_id = b.task_id
GROUP BY b.task_id HAVING bool_and(v.dangerous) = bool_or(v.dangerous) ORDER BY b.task_id
"""  # noqa: S608

_WINDOWS = """
SELECT count(*) FILTER (WHERE problem IS NULL), count(*) FILTER (WHERE problem IS NOT NULL AND attempts >= :attempts)
FROM shadow_window WHERE run = :run
"""
