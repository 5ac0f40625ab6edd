"""Shadow mode on a real ledger, asking the simulated endpoint: a share of the groups, apart from all else, and no sound."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from dangerous_driving.assessment.backfill_run import BackfillPlan, backfill_plan, backfill_windows, settings_of
from dangerous_driving.assessment.keys import open_pool
from dangerous_driving.assessment.opening import open_assessor
from dangerous_driving.assessment.shadow import is_sampled, shadow_run
from dangerous_driving.assessment.window_run import WindowReport, assess_windows
from dangerous_driving.assessment.windows import Window, window_of
from dangerous_driving.contracts import Lane
from dangerous_driving.errors import ConfigError, LedgerError
from dangerous_driving.evaluation.shadow_report import markdown, shadow_figures
from dangerous_driving.ledger import shadows
from dangerous_driving.ledger.backfills import make_current
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.shadows import Challenger, Costs, Judged, ShadowReport
from tests.assessment.conftest import LENGTH, Bench

AT = datetime.now(UTC).replace(second=5, microsecond=0) - timedelta(hours=1)
SHARE = 0.4


@given(st.text(min_size=1), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_holds_the_smaller_one(task_id: str, first: float, second: float) -> None:
    smaller, larger = sorted((first, second))
    assert not is_sampled(task_id, smaller) or is_sampled(task_id, larger)
    assert is_sampled(task_id, 1.0)
    assert not is_sampled(task_id, 0.0)


def test_the_share_is_about_the_share_of_ids_that_differ_in_a_digit() -> None:
    ids = [f"cam-1_20251020T103045{number:03d}Z_group{group}" for number in range(1000) for group in range(1, 6)]
    assert sum(is_sampled(task_id, 0.1) for task_id in ids) == pytest.approx(500, abs=4 * 450**0.5)


@pytest.fixture
def captured(bench: Bench) -> list[Window]:
    for camera_id in ("north-1", "south-2"):
        for second in range(0, 40, 10):
            bench.record(AT + timedelta(seconds=second), groups=3, camera_id=camera_id, lane=Lane.WINDOW)
    return [window_of(camera_id, AT, LENGTH) for camera_id in ("north-1", "south-2")]


async def live(bench: Bench, windows: Sequence[Window]) -> list[WindowReport]:
    async with bench.assessor() as assessor:
        return await assess_windows(assessor, windows, run_id="1", settings=bench.settings.assessment)


def start(bench: Bench, share: float = SHARE) -> Challenger:
    shadows.start_shadow(bench.engine, "v1", "simulated-vl", share, by="ann")
    # as if it had begun before the windows of this test
    with transaction(bench.engine) as connection:
        connection.execute(text("UPDATE shadow SET since = now() - interval '2 hours'"))
    [challenger] = shadows.challengers(bench.engine, active=True)
    return challenger


async def shadow(bench: Bench, challenger: Challenger) -> list[str | None]:
    """What the Dagster asset does: the windows that are due, through the backfill's own functions."""
    due = shadows.due_windows(bench.engine, length=LENGTH, limit=100)
    plan = BackfillPlan(challenger.run, challenger.prompt_version, challenger.model, share=challenger.share)
    settings = settings_of(bench.settings, plan)
    pool = open_pool(settings.keys, bench.engine)
    try:
        async with open_assessor(
            settings,
            service="shadow",
            engine=bench.engine,
            store=bench.store,
            pool=pool,
            producer=bench.sent,
            follows_promotions=False,
        ) as assessor:
            reports = await backfill_windows(
                assessor, [item.window for item in due], plan, settings=settings.assessment
            )
    finally:
        await pool.close()
    for item, report in zip(due, reports, strict=True):
        shadows.note_window(bench.engine, item, report.problem)
    return [report.problem for report in reports]


@pytest.mark.integration
async def test_a_share_of_completed_windows_is_assessed_apart_and_nobody_hears_of_it(
    bench: Bench, captured: list[Window]
) -> None:
    challenger = start(bench)
    assert shadows.due_windows(bench.engine, length=LENGTH, limit=9) == []  # no window is completed yet
    await live(bench, captured)
    sent = len(bench.sent.results)
    current = "SELECT task_id, run, risk_level FROM risk_assessment WHERE is_current ORDER BY 1"
    before = bench.rows(current)
    assert {item.window for item in shadows.due_windows(bench.engine, length=LENGTH, limit=9)} == set(captured)
    assert await shadow(bench, challenger) == [None, None]

    tasks = [row[0] for row in bench.rows("SELECT task_id FROM assessment_task")]
    answered = {row[0] for row in bench.rows("SELECT task_id FROM risk_assessment WHERE run LIKE 'shadow:%'")}
    assert answered == {task for task in tasks if is_sampled(task, SHARE)}  # SQL and Python choose alike
    assert 0 < len(answered) < len(tasks) == 24
    assert len(bench.sent.results) == sent
    assert bench.rows(current) == before
    calls = "SELECT DISTINCT run, lane, prompt_version FROM llm_call WHERE run <> 'live'"
    assert bench.rows(calls) == [("shadow:v1:simulated-vl", "evaluation", "v1")]
    assert bench.rows("SELECT DISTINCT state, failure_code FROM assessment_task") == [("assessed", None)]

    asked = bench.rows("SELECT count(*) FROM llm_call")
    assert await shadow(bench, challenger) == []  # nothing is due any more
    assert bench.rows("SELECT count(*) FROM llm_call") == asked


@pytest.mark.integration
async def test_late_frames_make_a_window_due_again_and_only_their_groups_are_asked_about(
    bench: Bench, captured: list[Window]
) -> None:
    challenger = start(bench, share=1.0)
    await live(bench, captured)
    await shadow(bench, challenger)
    bench.record(AT + timedelta(seconds=45), groups=2, camera_id="north-1", lane=Lane.WINDOW)
    assert shadows.due_windows(bench.engine, length=LENGTH, limit=9) == []  # open until the live lane has done it
    await live(bench, captured[:1])
    assert [item.window for item in shadows.due_windows(bench.engine, length=LENGTH, limit=9)] == captured[:1]
    calls = bench.rows("SELECT count(*) FROM llm_call WHERE run <> 'live'")[0][0]
    assert await shadow(bench, challenger) == [None]
    assert bench.rows("SELECT count(*) FROM llm_call WHERE run <> 'live'")[0][0] == calls + 2


@pytest.mark.integration
async def test_what_a_challenger_said_can_never_become_current(bench: Bench, captured: list[Window]) -> None:
    challenger = start(bench)
    await live(bench, captured)
    await shadow(bench, challenger)
    with pytest.raises(ConfigError, match="never made current"):
        make_current(bench.engine, challenger.run, captured[0])
    # not by a statement of whoever, either: the database refuses it
    with pytest.raises(LedgerError, match="ck_risk_assessment_shadow"), transaction(bench.engine) as connection:
        connection.execute(text("UPDATE risk_assessment SET is_current = (run <> 'live')"))
    with pytest.raises(ConfigError, match="is the name of a challenger"):
        backfill_plan(bench.settings, run=challenger.run, prompt_version=None, model=None)


@pytest.mark.integration
async def test_a_challenger_that_cannot_be_asked_is_given_up_after_some_attempts_and_harms_nobody(
    bench: Bench, captured: list[Window]
) -> None:
    await live(bench, captured)
    shadows.start_shadow(bench.engine, "v1", "unheard-of", 1.0)
    with transaction(bench.engine) as connection:
        connection.execute(text("UPDATE shadow SET since = now() - interval '2 hours'"))
    [challenger] = shadows.challengers(bench.engine)
    for _ in range(shadows.MAX_ATTEMPTS):
        problems = await shadow(bench, challenger)
        assert len(problems) == 2
        assert all("refuses every request" in (problem or "") for problem in problems)
    assert shadows.due_windows(bench.engine, length=LENGTH, limit=9) == []
    found = shadows.report(bench.engine, challenger)
    assert (found.windows, found.given_up, found.pairs) == (0, 2, {})
    assert bench.rows("SELECT DISTINCT state FROM assessment_task") == [("assessed",)]
    assert "nothing yet" in markdown(found)


@pytest.mark.integration
async def test_the_report_pairs_answers_and_asks_the_people_who_judged(bench: Bench, captured: list[Window]) -> None:
    challenger = start(bench, share=1.0)
    await live(bench, captured)
    await shadow(bench, challenger)
    [(task, level)] = bench.rows(
        "SELECT task_id, risk_level FROM risk_assessment WHERE run = 'live' ORDER BY task_id LIMIT 1"
    )
    with transaction(bench.engine) as connection:
        connection.execute(text(_ALERT), {"task": task})
    found = shadows.report(bench.engine, challenger)
    assert sum(found.pairs.values()) == 24
    assert (found.champion.count, found.costs.count, found.states) == (24, 24, {"assessed": 24})
    assert found.costs.cost > 0
    [judged] = found.judged
    assert (judged.dangerous, judged.champion) == (True, level)


@pytest.mark.integration
def test_a_challenger_ends_and_goes_on_from_then_and_not_for_what_passed_meanwhile(bench: Bench) -> None:
    first = shadows.start_shadow(bench.engine, "v1", "m", 0.1)
    assert shadows.start_shadow(bench.engine, "v1", "m", 0.2).since == first.since
    assert shadows.end_shadow(bench.engine, shadow_run("v1", "m"))
    assert not shadows.end_shadow(bench.engine, shadow_run("v1", "m"))
    assert shadows.challengers(bench.engine, active=True) == []
    again = shadows.start_shadow(bench.engine, "v1", "m", 0.3)
    assert again.since > first.since
    assert [(one.share, one.ended_at) for one in shadows.challengers(bench.engine)] == [(0.3, None)]


def test_figures_of_pairs_and_of_what_people_judged() -> None:
    who = Challenger("shadow:v3:m", "v3", "m", 0.1, AT)
    costs = Costs(100, 0.5, 1.0, 2.0)
    judged = [Judged(True, "high", "medium"), Judged(False, "medium", "none"), Judged(True, "medium", "low")]
    pairs = {("none", "none"): 80, ("high", "high"): 10, ("medium", "none"): 7, ("low", "high"): 3}
    found = shadow_figures(ShadowReport(who, {"assessed": 100, "failed": 4}, pairs, costs, costs, judged, 3))
    assert (found.both, found.agreed, found.only_champion, found.only_challenger, found.failed) == (100, 90, 7, 3, 4)
    assert (found.judged, found.champion_right, found.challenger_right, found.p) == (3, 2, 2, 1.0)
    assert found.kappa is not None
    assert 0.5 < found.kappa < 1
    page = markdown(ShadowReport(who, {"assessed": 100}, pairs, costs, costs, judged, 3))
    assert "| medium | 7 | 0 | 0 | 0 |" in page
    assert "5 of money per 1,000 groups" in page
    empty = shadow_figures(ShadowReport(who, {}, {}, Costs(0, 0, None, None), Costs(0, 0, None, None)))
    assert (empty.both, empty.kappa, empty.p) == (0, None, None)


_ALERT = """
WITH made AS (
    INSERT INTO alert (alert_id, version, camera_id, state, basis, risk_level, peak_level, risk_types, description,
        group_bbox, opened_at, last_seen_at, updated_at, first_task_id, last_task_id, last_request_id, tracking, verdict)
    VALUES ('a1', 1, 'north-1', 'closed', 'final', 'high', 'high', '{}', '', '[]', now(), now(), now(), :task, :task, 'r',
        '{}', 'acknowledged')
)
INSERT INTO alert_event (alert_id, version, input_id, kind, camera_id, task_id, at, input, alert)
VALUES ('a1', 1, 'x', 'final', 'north-1', :task, now(), '{}', '{}')
"""
