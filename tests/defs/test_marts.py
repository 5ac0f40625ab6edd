"""The dbt models on real ledgers: empty, filled, changed after they were built, and without the days that retention took."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from sqlalchemy import Connection, Engine, Row, text

from dangerous_driving.assessment.inline_folder import InlineCall
from dangerous_driving.assessment.windows import window_of
from dangerous_driving.ledger import backfills
from dangerous_driving.ledger.assessments import CallOutcome
from dangerous_driving.ledger.claims import Claim
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.inline import hand_in
from dangerous_driving.ledger.retention import drop_day, prune_rows
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.ledger.tables import Base
from dangerous_driving.settings import DatabaseSettings
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import tasks_from_detection
from tests.defs.conftest import LENGTH, PROJECT, Ledger, answer, build, run

#: Tables of the ledger that analytics leave alone, and why.
NOT_STAGED = {
    "key_reservation": "the key pool's sliding windows, pruned within minutes",
    "key_pool_member": "the key pool's own",
    "audit_entry": "who did what is for an audit, not for statistics of persons",
    "camera_quiet": "settings, and who set them",
    "switch": "settings",
    "detector": "who reads cameras now; the past is in the frames' node",
    "evaluation_case": "pictures with what a prompt is told of them; runs over them are staged with their figures",
    "evaluation_label": "who said what of a case; the figures of the runs rest on it",
    "evaluation_set": "which cases a run was asked about",
    "evaluation_set_case": "the same",
    "evaluation_result": "single answers; a run's figures are computed with intervals, which SQL is no place for",
    "detection_profile": "histograms of which the drift watch makes its scores; those are staged",
    "drift_baseline": "settings, and who set them",
    "shadow_window": "how far a challenger has come",
}

#: Marts whose rows have the time of the build that wrote them.
INCREMENTAL = ("camera_hourly_risk", "coverage", "fct_assessments", "fct_alerts", "llm_usage")


def test_every_table_of_the_ledger_is_staged_or_left_out_for_a_reason() -> None:
    declared: set[str] = set()
    for path in (PROJECT / "models/staging").glob("*.yml"):
        for source in yaml.safe_load(path.read_text(encoding="utf-8")).get("sources", ()):
            declared |= {table["name"] for table in source["tables"]}
    staged = {
        name
        for path in (PROJECT / "models/staging").glob("stg_*.sql")
        for name in re.findall(r"source\('ledger', '(\w+)'\)", path.read_text(encoding="utf-8"))
    }
    assert declared == staged
    assert staged | set(NOT_STAGED) == set(Base.metadata.tables)
    assert not staged & set(NOT_STAGED)


def test_every_model_says_its_grain_and_has_tests() -> None:
    for path in (PROJECT / "models").rglob("*.sql"):
        [model] = yaml.safe_load(path.with_suffix(".yml").read_text(encoding="utf-8"))["models"]
        assert model["name"] == path.stem
        assert "ne row per" in model["description"], path.stem
        assert "data_tests" in str(model), path.stem


@pytest.mark.integration
def test_the_intervals_of_confidence_are_those_of_the_literature(ledger: Engine) -> None:
    macros = jinja2.Environment(autoescape=False).from_string(  # noqa: S701  # SQL
        (PROJECT / "macros/intervals.sql").read_text(encoding="utf-8")
    )

    def value(name: str, *arguments: int) -> float:
        with transaction(ledger) as connection:
            found = connection.scalar(text("SELECT " + getattr(macros.module, name)(*arguments)))
        return float(found) if found is not None else float("nan")

    # Wilson: Brown, Cai and DasGupta (2001)
    assert value("wilson_lower", 2, 10) == pytest.approx(0.0567, abs=1e-4)
    assert value("wilson_upper", 2, 10) == pytest.approx(0.5098, abs=1e-4)
    assert (value("wilson_lower", 0, 5), value("wilson_upper", 5, 5)) == (0, 1)
    assert value("wilson_upper", 0, 5) == pytest.approx(0.4345, abs=1e-4)
    # the exact gamma interval (Garwood 1936), which Byar's comes near to
    for count, lower, upper in ((10, 4.795, 18.390), (20, 12.217, 30.888), (100, 81.364, 121.627)):
        assert value("poisson_lower", count) == pytest.approx(lower, rel=0.002)
        assert value("poisson_upper", count) == pytest.approx(upper, rel=0.002)
    assert value("poisson_lower", 0) == 0
    assert value("poisson_upper", 0) == pytest.approx(3.689, rel=0.01)


@pytest.mark.integration
def test_all_models_and_tests_pass_on_an_empty_and_on_a_filled_ledger(
    database: DatabaseSettings, ledger: Engine, frames: Ledger, an_hour_ago: datetime, tmp_path: Path
) -> None:
    build(database, tmp_path)
    assert hours(ledger) == []

    hour = an_hour_ago.replace(minute=0, second=0)
    fill(ledger, frames, hour)
    build(database, tmp_path)
    # 2 frames of 2 groups of 2 objects; one answer is superseded, one group is still pending
    assert hours(ledger) == [("north-1", hour, 2, 8, 4, 3, 1, 1, 2, 1, 250.0)]


@pytest.mark.integration
def test_changes_of_any_hour_lead_to_the_marts_that_a_build_from_scratch_gives(
    database: DatabaseSettings, ledger: Engine, frames: Ledger, an_hour_ago: datetime, tmp_path: Path
) -> None:
    """Late and doubled rows, a backfill, a camera that is gone, no confidence, a row that commits after the build."""
    long_ago = an_hour_ago - timedelta(days=2)
    frames.capture("gone-1", long_ago, groups=1)
    fill(ledger, frames, an_hour_ago)
    run(database, tmp_path)

    frames.capture("north-1", long_ago + timedelta(minutes=1))  # late
    frames.capture("gone-1", long_ago, groups=1)  # twice
    with transaction(ledger) as connection:
        [late, *_] = tasks_of(connection, "north-1")
        insert_answer(connection, late, "live", "high", current=True, confidence=None)
        connection.execute(text("DELETE FROM camera WHERE id = 'gone-1'"))
        insert_alert(connection, late)
    backfill_becomes_current(ledger, an_hour_ago)
    under_way = long_ago - timedelta(hours=2)
    Partitions().ensure(ledger, [under_way])
    with ledger.connect() as slow:
        slow.execute(text(COPY_OF_A_FRAME), {"at": under_way, "id": "under-way"})
        run(database, tmp_path)
        assert count(ledger, "marts.camera_hourly_risk") == 3
        slow.commit()
    build(database, tmp_path)
    assert count(ledger, "marts.camera_hourly_risk") == 4
    assert count(ledger, "marts.fct_alerts") == 1
    assert count(ledger, "marts.dim_cameras WHERE camera_id = 'gone-1' AND NOT is_in_ledger") == 1
    assert count(ledger, "marts.fct_assessments WHERE is_current AND run = 'backfill-2'") == 1

    run(database, tmp_path, schema="scratch")
    for mart in INCREMENTAL:
        assert rows_of(ledger, "marts", mart) == rows_of(ledger, "scratch", mart), mart
        assert rows_of(ledger, "marts", mart), mart


@pytest.mark.integration
def test_hours_outlive_the_days_that_retention_drops(
    database: DatabaseSettings, ledger: Engine, frames: Ledger, an_hour_ago: datetime, tmp_path: Path
) -> None:
    fill(ledger, frames, an_hour_ago)
    long_ago = an_hour_ago - timedelta(days=5)
    frames.capture("north-1", long_ago)
    with transaction(ledger) as connection:
        insert_answer(connection, tasks_of(connection, "north-1")[0], "live", "high", current=True)
    run(database, tmp_path)
    assert count(ledger, f"marts.fct_assessments WHERE captured_at < '{long_ago + timedelta(days=1)}'") == 1

    drop_day(ledger, long_ago.date())
    run(database, tmp_path, "--full-refresh")
    with transaction(ledger) as connection:
        kept = connection.execute(
            text("SELECT frames, scenes_high FROM marts.camera_hourly_risk ORDER BY hour_started_at")
        )
        assert next(tuple(row) for row in kept) == (1, 1)
    assert count(ledger, "marts.coverage") == 2
    assert count(ledger, f"marts.fct_assessments WHERE captured_at < '{long_ago + timedelta(days=1)}'") == 0


@pytest.mark.integration
def test_a_call_that_is_handed_in_hours_later_is_counted_in_its_hour_and_so_is_its_answer(
    database: DatabaseSettings, ledger: Engine, frames: Ledger, an_hour_ago: datetime, tmp_path: Path
) -> None:
    at = an_hour_ago - timedelta(hours=5)
    fill(ledger, frames, an_hour_ago)
    frames.capture("south-1", at, groups=1)
    with transaction(ledger) as connection:
        # as if the frame had been recorded then
        for table, column in (("frame", "recorded_at"), ("assessment_task", "updated_at")):
            connection.execute(text(f"UPDATE {table} SET {column} = :at WHERE camera_id = 'south-1'"), {"at": at})
    run(database, tmp_path)
    hour = at.replace(minute=0, second=0)
    assert count(ledger, f"marts.llm_usage WHERE hour_started_at = '{hour}'") == 0

    [task] = tasks_from_detection(detection_result("south-1", at, groups=1))
    held = Claim(task, token=0, worker=1)
    record = replace(answer(held, "", level="high"), lane="inline", assessed_at=at + timedelta(seconds=2))
    call = InlineCall(
        task, at + timedelta(seconds=1), "key_2", "simulated-vl", "v1", CallOutcome("ok", cost=0.25), record,
        at + timedelta(seconds=2),
    )  # fmt: skip
    assert hand_in(ledger, Partitions(), call, worker=1, window_length=LENGTH)
    run(database, tmp_path)
    assert count(ledger, f"marts.llm_usage WHERE hour_started_at = '{hour}' AND calls_ok = 1 AND cost = 0.25") == 1
    assert count(ledger, f"marts.fct_assessments WHERE task_id = '{task.task_id}' AND risk_level = 'high'") == 1
    assert count(ledger, "marts.camera_hourly_risk WHERE camera_id = 'south-1' AND scenes_high = 1") == 1


@pytest.mark.integration
def test_what_is_known_of_notifications_outlives_those_that_retention_deletes(
    database: DatabaseSettings, ledger: Engine, frames: Ledger, an_hour_ago: datetime, tmp_path: Path
) -> None:
    long_ago = an_hour_ago - timedelta(days=5)
    frames.capture("north-1", long_ago)
    with transaction(ledger) as connection:
        alerts = [insert_alert(connection, task) for task in tasks_of(connection, "north-1")]
        for number, (alert, seconds) in enumerate(((alerts[0], 3), (alerts[0], 4), (alerts[1], 9))):
            values = {"id": str(number), "alert": alert, "at": long_ago, "sent": long_ago + timedelta(seconds=seconds)}
            connection.execute(text(NOTIFICATION), values)
    told = "SELECT alert_id, messages_sent, first_told_at - opened_at FROM marts.fct_alerts ORDER BY messages_sent"
    latency = "SELECT alerts, median_seconds FROM marts.alert_latency WHERE stage = 'notification' AND camera_id = '*'"
    known = [(alerts[1], 1, timedelta(seconds=9)), (alerts[0], 2, timedelta(seconds=3))]

    def built(*arguments: str) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        run(database, tmp_path, *arguments)
        with transaction(ledger) as connection:
            found = [connection.execute(text(query)).all() for query in (told, latency)]
        return [tuple(row) for row in found[0]], [tuple(row) for row in found[1]]

    assert built() == (known, [(2, 6.0)])
    assert prune_rows(ledger, long_ago.date() + timedelta(days=1))["notification"] == 3
    with transaction(ledger) as connection:  # one of the two changes afterwards
        connection.execute(
            text("UPDATE alert SET version = 2, state = 'closed' WHERE alert_id = :id"), {"id": alerts[0]}
        )
    assert built() == (known, [(2, 6.0)])
    assert count(ledger, "marts.fct_alerts WHERE version = 2 AND state = 'closed'") == 1
    assert built("--full-refresh") == (known, [(2, 6.0)])


@pytest.mark.integration
def test_a_row_that_breaks_an_invariant_fails_the_build(
    database: DatabaseSettings, ledger: Engine, frames: Ledger, an_hour_ago: datetime, tmp_path: Path
) -> None:
    fill(ledger, frames, an_hour_ago)
    with transaction(ledger) as connection:
        connection.execute(text("DELETE FROM risk_assessment WHERE risk_level = 'high'"))
    with pytest.raises(AssertionError, match="camera_hourly_risk_every_assessed_group_has_one_level"):
        build(database, tmp_path)


def fill(ledger: Engine, frames: Ledger, hour: datetime) -> None:
    for second in (10, 20):
        frames.capture("north-1", hour + timedelta(seconds=second), groups=2)
    with transaction(ledger) as connection:
        rows = connection.execute(
            text("SELECT captured_at, task_id FROM assessment_task ORDER BY captured_at, group_index")
        ).all()
        for row, level in zip(rows, ("none", "medium", "high"), strict=False):
            insert_answer(connection, row, "live", level, current=level != "none")
        insert_answer(connection, rows[0], "backfill-1", "low", current=True)


def insert_answer(
    connection: Connection,
    row: Row[Any],
    run: str,
    level: str,
    *,
    current: bool,
    confidence: float | None = 0.9,
) -> None:
    values = {
        "captured_at": row.captured_at, "task_id": row.task_id, "run": run, "level": level, "current": current,
        "confidence": confidence,
    }  # fmt: skip
    connection.execute(text(ANSWER), values)
    connection.execute(text(CALL), values)
    connection.execute(
        text("UPDATE assessment_task SET state = 'assessed', updated_at = now() WHERE task_id = :task_id"), values
    )


def tasks_of(connection: Connection, camera_id: str) -> list[Row[Any]]:
    """The earliest first."""
    query = (
        "SELECT captured_at, task_id FROM assessment_task WHERE camera_id = :camera ORDER BY captured_at, group_index"
    )
    return list(connection.execute(text(query), {"camera": camera_id}))


def insert_alert(connection: Connection, row: Row[Any]) -> str:
    """Its id."""
    values = {"captured_at": row.captured_at, "task_id": row.task_id}
    connection.execute(text(ALERT), values)
    connection.execute(text(EVENT), values)
    return f"a-{row.task_id}"


def backfill_becomes_current(ledger: Engine, at: datetime) -> None:
    """Another answer to the first task of this time, written long ago by the assessor's clock, is made the current one."""
    with transaction(ledger) as connection:
        query = "SELECT captured_at, task_id FROM assessment_task WHERE captured_at >= :at ORDER BY captured_at, group_index"
        row = connection.execute(text(query), {"at": at}).first()
        assert row is not None
        insert_answer(connection, row, "backfill-2", "medium", current=False)
        # nothing else of that hour was written since the marts were built
        for table, column in (("risk_assessment", "assessed_at"), ("assessment_task", "updated_at")):
            old = f"UPDATE {table} SET {column} = now() - interval '1 day' WHERE captured_at >= :at"
            connection.execute(text(old), {"at": at})
    assert backfills.make_current(ledger, "backfill-2", window_of("north-1", row.captured_at, LENGTH)) == 1


def count(ledger: Engine, what: str) -> int:
    with transaction(ledger) as connection:
        return int(connection.scalar(text(f"SELECT count(*) FROM {what}")) or 0)


def rows_of(ledger: Engine, schema: str, mart: str) -> list[str]:
    """All but the time of the build, in an order of their own."""
    with transaction(ledger) as connection:
        query = f"SELECT (to_jsonb(m) - 'ledger_read_at')::text FROM {schema}.{mart} AS m"
        return sorted(connection.scalars(text(query)))


ANSWER = """
INSERT INTO risk_assessment (captured_at, task_id, run, message_id, camera_id, group_index, group_bbox, risk_level,
    confidence, risk_types, description, trigger_object_ids, is_current, lane, prompt_version, model, key_hash, call_id,
    retry_count, latency, input_tokens, output_tokens, cost, raw_answer, node, assessed_at)
SELECT captured_at, task_id, :run, message_id, camera_id, group_index, group_bbox, :level,
    :confidence, '{}', '', '{}', :current,
    'window', 'v1', 'simulated-vl', 'key_1', task_id || '_call1', 0, 1.0, 10, 5, 0.0, '{}', 'here', now()
FROM assessment_task WHERE captured_at = :captured_at AND task_id = :task_id
"""

CALL = """
INSERT INTO llm_call (captured_at, call_id, task_id, camera_id, call_number, run, lane, worker, key_hash, model,
    prompt_version, status, started_at, finished_at, input_tokens, output_tokens, cost)
SELECT captured_at, task_id || '_' || :run, task_id, camera_id, 1, :run, 'window', 1, 'key_1', 'simulated-vl', 'v1', 'ok',
    now(), now() + interval '1 second', 10, 5, 0.5
FROM assessment_task WHERE captured_at = :captured_at AND task_id = :task_id
"""

ALERT = """
INSERT INTO alert (alert_id, version, camera_id, state, basis, risk_level, peak_level, risk_types, description, group_bbox,
    opened_at, last_seen_at, updated_at, first_task_id, last_task_id, last_request_id, tracking)
SELECT 'a-' || task_id, 1, camera_id, 'open', 'final', 'high', 'high', '{}', '', '[]', captured_at, captured_at, now(),
    task_id, task_id, message_id, '{}'
FROM assessment_task WHERE captured_at = :captured_at AND task_id = :task_id
"""

EVENT = """
INSERT INTO alert_event (alert_id, version, input_id, kind, camera_id, task_id, captured_at, at, input, alert)
SELECT 'a-' || task_id, 1, task_id || '_final', 'final', camera_id, task_id, captured_at, captured_at + interval '2 seconds',
    '{}', '{}'
FROM assessment_task WHERE captured_at = :captured_at AND task_id = :task_id
"""

NOTIFICATION = """
INSERT INTO notification (notification_id, receiver, kind, alert_id, level, state, created_at, due_at, sent_at)
VALUES (:id, 'desk', 'ring', :alert, 'high', 'sent', :at, :at, :sent)
"""

COPY_OF_A_FRAME = """
INSERT INTO frame (captured_at, message_id, camera_id, image_width, image_height, detected_objects, traffic_groups)
SELECT :at, :id, camera_id, image_width, image_height, detected_objects, '[]' FROM frame LIMIT 1
"""


def hours(ledger: Engine) -> list[tuple[object, ...]]:
    with transaction(ledger) as connection:
        rows = connection.execute(
            text(
                "SELECT camera_id, hour_started_at, frames, road_users_seen, groups, groups_assessed, groups_open, "
                "scenes_low, dangerous_scenes, scenes_high, dangerous_scenes_per_1000_road_users "
                "FROM marts.camera_hourly_risk ORDER BY 1, 2"
            )
        )
        return [tuple(row) for row in rows]
