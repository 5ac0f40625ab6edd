"""What was asked and spent, by key and by lane."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine, text

from dangerous_driving.ledger.database import transaction


@dataclass(frozen=True)
class KeySpending:
    """One key's calls; costs in money, latencies in seconds."""

    key_hash: str
    calls: int
    ok: int
    rate_limited: int
    failed: int
    cancelled: int
    input_tokens: int
    output_tokens: int
    cost: float
    p95: float | None


def key_spending(engine: Engine, *, hours: float) -> list[KeySpending]:
    """Calls of the last hours, by key. Raises LedgerError when the database is away."""
    statement = text(
        """
        SELECT key_hash, count(*), count(*) FILTER (WHERE status = 'ok'), count(*) FILTER (WHERE status = 'rate_limited'),
               count(*) FILTER (WHERE status IN ('unparsable', 'key_rejected', 'timeout', 'unavailable', 'bad_request',
                                                 'error', 'lost')),
               count(*) FILTER (WHERE status = 'cancelled'),
               coalesce(sum(input_tokens), 0)::bigint, coalesce(sum(output_tokens), 0)::bigint,
               coalesce(sum(cost), 0)::float8,
               percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - started_at))
                   FILTER (WHERE status = 'ok')
        FROM llm_call WHERE started_at > now() - make_interval(secs => :seconds) GROUP BY 1 ORDER BY 2 DESC, 1
        """
    )
    with transaction(engine) as connection:
        return [KeySpending(*row) for row in connection.execute(statement, {"seconds": hours * 3600})]


def lane_spending(engine: Engine) -> dict[str, tuple[int, float]]:
    """Calls and money of today (UTC) of the lanes that have a budget."""
    statement = text(
        "SELECT lane, calls, cost FROM lane_spending WHERE day = (clock_timestamp() AT TIME ZONE 'UTC')::date"
    )
    with transaction(engine) as connection:
        return {lane: (calls, cost) for lane, calls, cost in connection.execute(statement)}
