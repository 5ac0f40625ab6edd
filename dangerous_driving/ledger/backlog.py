"""What waits in the ledger, and what ended there lately: for the metrics of those whose processes nobody can ask."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, text

from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.drift import DRIFT_INCIDENT
from dangerous_driving.ledger.incidents import HELD

#: Kinds of incidents of which somebody says that they are over, however seldom they are told again.
ENDED_EXPLICITLY = (DRIFT_INCIDENT, HELD)


@dataclass(frozen=True)
class Waiting:
    """Tasks of one lane that nobody has claimed, and the seconds since the capture of the oldest."""

    lane: str
    tasks: int
    oldest: float


@dataclass(frozen=True)
class Backlog:
    """How the queue of record stands; times in seconds, 0 where nothing waits.

    ``overdue``: since the oldest window closed that no run has completed. ``incidents``: those that are not over, by
    kind; of the kinds that nobody ends, those told of within the last hour.
    """

    waiting: tuple[Waiting, ...]
    claimed: int
    windows_due: int
    overdue: float
    incidents: dict[str, int]


@dataclass(frozen=True)
class EndedCall:
    """One request to the endpoint that is over; ``seconds`` from its beginning."""

    key_hash: str
    status: str
    seconds: float
    task_id: str


def backlog(engine: Engine, *, lateness: float) -> Backlog:
    """Count it, by partial indices alone, which hold only what waits.

    Args:
        engine: of the ledger.
        lateness: s after its end until a window counts as closed (``windows.lateness``).

    Raises:
        LedgerError: the database is away.
    """
    closing = {"lateness": lateness}
    with transaction(engine) as connection:
        waiting = tuple(Waiting(*row) for row in connection.execute(text(_WAITING)))
        claimed = connection.scalar(text(_CLAIMED)) or 0
        due, overdue = connection.execute(text(_WINDOWS), closing).one()
        incidents = dict(connection.execute(text(_INCIDENTS), {"ended": list(ENDED_EXPLICITLY)}).tuples().all())
    return Backlog(waiting, claimed, due, overdue, incidents)


def ended_calls(
    engine: Engine, after: datetime | None, *, lanes: Collection[str], longest: float, settle: float
) -> tuple[datetime, list[EndedCall]]:
    """Requests that ended after a time, and the time to ask from next; with None for the time: none, and only that.

    Args:
        engine: of the ledger.
        after: what the look before returned.
        lanes: whose.
        longest: s that a request may take; one that took longer is not found.
        settle: s until what ended is looked at, since a row is seen only when its transaction is over.

    Raises:
        LedgerError: the database is away.
    """
    with transaction(engine) as connection:
        until: datetime = connection.execute(
            text("SELECT clock_timestamp() - make_interval(secs => :settle)"), {"settle": settle}
        ).scalar_one()
        if after is None:
            return until, []
        parameters = {"after": after, "until": until, "longest": longest, "lanes": list(lanes)}
        return until, [EndedCall(*row) for row in connection.execute(text(_ENDED), parameters)]


_WAITING = """
SELECT lane, count(*), greatest(extract(epoch FROM now() - min(captured_at)), 0)::float8
FROM assessment_task WHERE state = 'pending' GROUP BY lane
"""

_CLAIMED = "SELECT count(*) FROM assessment_task WHERE state = 'claimed'"

# of every length: after a change of it nobody may have taken over yet what was counted before
_WINDOWS = """
SELECT count(*), coalesce(extract(epoch FROM now() - min(closed_at)), 0)::float8
FROM (
    SELECT window_start + make_interval(secs => length + CAST(:lateness AS float8)) AS closed_at
    FROM camera_window WHERE assessed_version < version
) w
WHERE closed_at <= now()
"""

_INCIDENTS = """
SELECT kind, count(*) FROM incident
WHERE ended_at IS NULL AND (kind = ANY(:ended) OR last_at > now() - interval '1 hour') GROUP BY kind
"""

_ENDED = """
SELECT key_hash, status, extract(epoch FROM finished_at - started_at)::float8, task_id FROM llm_call
WHERE started_at > CAST(:after AS timestamptz) - make_interval(secs => :longest)
  AND finished_at > :after AND finished_at <= :until AND lane = ANY(:lanes)
"""
