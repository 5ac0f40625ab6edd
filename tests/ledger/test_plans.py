"""On a grown ledger the answers of one run are found by an index, however many there are of others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from dangerous_driving.ledger import assessments, backfills, shadows
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.schema import Partitions

pytestmark = pytest.mark.integration

DAYS = 3
ANSWERS = 3000  # a day and run
SHADOWED = 20  # a day
RUN = "shadow:v2:simulated-vl"
FIRST = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=DAYS)

FILLED = [f"{FIRST + timedelta(days=day):%Y%m%d}" for day in range(DAYS)]  # the other partitions are empty: read whole


@pytest.fixture
def grown(ledger: Engine) -> Engine:
    """Days of published answers, as many of a backfill, and a few of a challenger: neither is ever published."""
    Partitions().ensure(ledger, [FIRST + timedelta(days=day) for day in range(DAYS)])
    with transaction(ledger) as connection:
        for run, count, published in (("live", ANSWERS, True), ("old", ANSWERS, False), (RUN, SHADOWED, False)):
            connection.execute(
                text(_ANSWERS),
                {"run": run, "count": count, "published": published, "first": FIRST, "days": DAYS},
            )
    with ledger.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE risk_assessment"))
    return ledger


_ANSWERS = """
INSERT INTO risk_assessment (
    captured_at, task_id, run, message_id, camera_id, group_index, group_bbox, risk_level, risk_types, description,
    trigger_object_ids, is_current, lane, prompt_version, model, key_hash, call_id, retry_count, latency, input_tokens,
    output_tokens, cost, raw_answer, node, assessed_at, published_at
)
SELECT at, 'task' || n, CAST(:run AS text), 'm' || n, 'cam-1', 1, '[]', 'low', '{}', 'a road', '{}', :run = 'live',
       'window', 'v2', 'simulated-vl', 'key', 'call' || n, 0, 1, 1, 1, 0, repeat('x', 200), 'here', at,
       CASE WHEN :published THEN at END
FROM generate_series(0, CAST(:days AS int) - 1) AS day, generate_series(1, CAST(:count AS int)) AS n,
     LATERAL (SELECT CAST(:first AS timestamptz) + make_interval(days => day, secs => n) AS at) AS t
"""


@pytest.fixture
def statements(grown: Engine) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What is asked, as it goes to the driver."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: dict[str, Any], *_: Any) -> None:
        asked.append((statement, parameters))

    event.listen(grown, "before_cursor_execute", note)
    yield asked
    event.remove(grown, "before_cursor_execute", note)


def plan(engine: Engine, statement: str, parameters: dict[str, Any]) -> str:
    with transaction(engine) as connection:
        return "\n".join(connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars())


def generic_plan(engine: Engine, statement: str) -> str:
    """As for a statement that has been prepared, which knows no parameter's value."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement)))
    numbered = re.sub(r"%\((\w+)\)s", lambda found: f"${names.index(found[1]) + 1}", statement)
    with transaction(engine) as connection:
        connection.exec_driver_sql("SET LOCAL plan_cache_mode = force_generic_plan")
        connection.exec_driver_sql(f"PREPARE asked AS {numbered}")
        nothing = ", ".join("NULL" for _ in names)
        return "\n".join(connection.exec_driver_sql(f"EXPLAIN EXECUTE asked ({nothing})").scalars())


def test_the_look_for_unpublished_answers_passes_over_the_other_runs(
    grown: Engine, statements: list[tuple[str, dict[str, Any]]]
) -> None:
    assert assessments.unpublished(grown, older_than=0, limit=10) == []
    [(statement, parameters)] = statements
    for made in (plan(grown, statement, parameters), generic_plan(grown, statement)):
        assert "Seq Scan" not in made
        assert "Filter" not in made  # the index holds nothing else: no row is read and left out


@pytest.mark.parametrize(
    "ask",
    [
        lambda engine: (
            shadows.report(engine, shadows.Challenger(RUN, "v2", "simulated-vl", 0.1, datetime.now(UTC))).pairs
        ),
        lambda engine: backfills.compare(engine, RUN, only_different=False),
    ],
    ids=["report of a challenger", "comparison"],
)
def test_a_run_is_compared_without_reading_the_answers_of_the_others(
    grown: Engine, statements: list[tuple[str, dict[str, Any]]], ask: Callable[[Engine], Any]
) -> None:
    assert ask(grown)
    of_answers = [item for item in statements if "risk_assessment" in item[0]]
    assert of_answers
    for statement, parameters in of_answers:
        made = plan(grown, statement, parameters)
        for day in FILLED:
            assert f"risk_assessment_p{day}_run_idx" in made
            assert f"Seq Scan on risk_assessment_p{day}" not in made
