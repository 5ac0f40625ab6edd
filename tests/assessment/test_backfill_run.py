"""Backfills on a real ledger, asking the simulated endpoint: both answers are kept, nothing leaves, nothing is asked twice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dangerous_driving.assessment.backfill_run import BackfillPlan, backfill_plan, backfill_windows, settings_of
from dangerous_driving.assessment.keys import open_pool
from dangerous_driving.assessment.opening import open_assessor
from dangerous_driving.assessment.window_run import WindowReport, assess_windows
from dangerous_driving.assessment.windows import Window, window_of
from dangerous_driving.contracts import Lane
from dangerous_driving.errors import ConfigError
from dangerous_driving.ledger import backfills
from dangerous_driving.ledger.backfills import Estimate, compare, estimate, make_current
from tests.assessment.conftest import LENGTH, Bench

pytestmark = pytest.mark.integration

AT = datetime.now(UTC).replace(second=5, microsecond=0) - timedelta(hours=1)


@pytest.fixture
def captured(bench: Bench) -> list[Window]:
    for camera_id in ("north-1", "south-2"):
        bench.record(AT, groups=3, camera_id=camera_id, lane=Lane.WINDOW)
    return [window_of(camera_id, AT, LENGTH) for camera_id in ("north-1", "south-2")]


async def assess(bench: Bench, windows: Sequence[Window]) -> list[WindowReport]:
    async with bench.assessor() as assessor:
        return await assess_windows(assessor, windows, run_id="1", settings=bench.settings.assessment)


async def again(bench: Bench, windows: Sequence[Window], plan: BackfillPlan) -> list[WindowReport]:
    settings = settings_of(bench.settings, plan)
    pool = open_pool(settings.keys, bench.engine)
    try:
        async with open_assessor(
            settings, service="backfill", engine=bench.engine, store=bench.store, pool=pool, producer=bench.sent
        ) as assessor:
            return await backfill_windows(assessor, windows, plan, settings=settings.assessment)
    finally:
        await pool.close()


def plan_of(bench: Bench, **asked: Any) -> BackfillPlan:
    return backfill_plan(
        bench.settings,
        run=asked.pop("run", "better-prompt"),
        prompt_version=None,
        model=asked.pop("model", None),
        **asked,
    )


async def test_both_answers_are_kept_the_live_one_stays_current_and_nothing_is_sent(
    bench: Bench, captured: list[Window]
) -> None:
    first = await assess(bench, captured)
    sent = len(bench.sent.results)
    second = await again(bench, captured, plan_of(bench))
    assert [report.complete for report in (*first, *second)] == [True] * 4
    assert [(report.run, report.assessed, report.problem) for report in second] == [("better-prompt", 3, None)] * 2
    assert len(bench.sent.results) == sent
    query = "SELECT run, model, is_current, count(*) FROM risk_assessment GROUP BY 1, 2, 3 ORDER BY 1"
    assert bench.rows(query) == [
        ("better-prompt", "simulated-vl", False, 6),
        ("live", "simulated-vl", True, 6),
    ]
    assert bench.rows("SELECT DISTINCT state FROM assessment_task") == [("assessed",)]
    assert bench.rows("SELECT run, lane, count(*) FROM llm_call GROUP BY 1, 2 ORDER BY 1") == [
        ("better-prompt", "evaluation", 6),
        ("live", "window", 6),
    ]
    both = compare(bench.engine, "better-prompt", only_different=False)
    assert len(both) == 6
    # the same question to the same simulated model: compare() finds no difference where there is none
    assert compare(bench.engine, "better-prompt") == []


async def test_a_second_run_of_the_backfill_asks_nothing(bench: Bench, captured: list[Window]) -> None:
    await again(bench, captured, plan_of(bench))
    [report, _] = await again(bench, captured, plan_of(bench))
    assert (report.assessed, report.already, report.complete) == (0, 3, True)
    assert bench.rows("SELECT count(*) FROM llm_call") == [(6,)]
    # the live lanes know nothing of it
    assert bench.rows("SELECT DISTINCT state, calls FROM assessment_task") == [("pending", 1)]


async def test_a_run_that_is_cut_off_goes_on_where_it_was(bench: Bench, captured: list[Window]) -> None:
    bench.fault("hang", amount=0.5)
    running = asyncio.create_task(again(bench, captured, plan_of(bench)))
    while bench.rows("SELECT count(*) FROM llm_call WHERE status = 'ok'")[0][0] < 2:
        await asyncio.sleep(0.05)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    done = bench.rows("SELECT count(*) FROM risk_assessment")[0][0]
    bench.fault("restore")
    reports = await again(bench, captured, plan_of(bench))
    assert [report.complete for report in reports] == [True, True]
    assert sum(report.assessed for report in reports) == 6 - done
    assert bench.rows("SELECT task_id FROM llm_call WHERE status = 'ok' GROUP BY 1 HAVING count(*) > 1") == []


async def test_what_a_dead_worker_held_is_taken_over(bench: Bench, captured: list[Window]) -> None:
    await again(bench, captured, plan_of(bench))
    bench.rows("DELETE FROM risk_assessment WHERE camera_id = 'north-1' RETURNING 1")
    bench.rows("UPDATE backfill_task SET state = 'claimed', worker = 999 WHERE camera_id = 'north-1' RETURNING 1")
    [report] = await again(bench, captured[:1], plan_of(bench))
    assert (report.assessed, report.complete) == (3, True)


async def test_current_moves_only_when_asked_and_the_live_answer_stays(bench: Bench, captured: list[Window]) -> None:
    await assess(bench, captured)
    await again(bench, captured[:1], plan_of(bench, make_current=True))
    query = "SELECT camera_id, run, count(*) FROM risk_assessment WHERE is_current GROUP BY 1, 2 ORDER BY 1"
    assert bench.rows(query) == [("north-1", "better-prompt", 3), ("south-2", "live", 3)]
    assert bench.rows("SELECT count(*) FROM risk_assessment WHERE run = 'live'") == [(6,)]
    assert make_current(bench.engine, "live", captured[0]) == 3  # and back
    assert bench.rows(query) == [("north-1", "live", 3), ("south-2", "live", 3)]


async def test_the_cost_is_estimated_and_a_limit_stops_before_it_is_passed(
    bench: Bench, captured: list[Window]
) -> None:
    unknown = estimate(bench.engine, "x", captured, prompt_version="v1", model="simulated-vl", max_attempts=3)
    assert (unknown.groups, unknown.calls, unknown.cost) == (6, 6, None)
    await again(bench, captured[:1], plan_of(bench, run="first"))
    known = estimate(bench.engine, "x", captured, prompt_version="v1", model="simulated-vl", max_attempts=3)
    assert known.cost is not None
    assert known.cost > 0
    [report] = await again(bench, captured[1:], plan_of(bench, run="x", cost_limit=known.cost / 100))
    assert not report.complete
    assert report.problem is not None
    assert "cost limit" in report.problem
    assert bench.rows("SELECT count(*) FROM llm_call WHERE run = 'x'") == [(0,)]


async def test_an_estimate_reads_so_many_of_the_newest_calls_and_those_of_its_own_backfill(
    bench: Bench, captured: list[Window], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfills, "ESTIMATE_AMONG", 3)
    await again(bench, captured[:1], plan_of(bench, run="first"))
    bench.rows("UPDATE llm_call SET model = 'another' RETURNING 1")
    await again(bench, captured[1:], plan_of(bench, run="second"))  # three calls, the newest ones

    def known(run: str, model: str) -> bool:
        return estimate(bench.engine, run, captured, prompt_version="v1", model=model, max_attempts=3).cost is not None

    assert known("x", "simulated-vl")
    assert not known("x", "another")
    assert known("first", "another")
    assert not known("x", "never-called")


async def test_a_failed_group_has_its_cause_and_leaves_the_live_task_alone(
    bench: Bench, captured: list[Window]
) -> None:
    await assess(bench, captured)
    bench.fault("garbage")
    [report] = await again(bench, captured[:1], plan_of(bench))
    assert (report.failed, report.complete) == ({"unparsable": 3}, True)
    assert bench.rows("SELECT DISTINCT state FROM assessment_task") == [("assessed",)]


async def test_a_window_whose_groups_failed_for_good_is_finished_however_little_the_limit_leaves(
    bench: Bench, captured: list[Window]
) -> None:
    bench.fault("garbage")
    await again(bench, captured[:1], plan_of(bench))
    [(spent,)] = bench.rows("SELECT sum(cost) FROM llm_call")
    [report] = await again(bench, captured[:1], plan_of(bench, cost_limit=spent))
    assert (report.complete, report.problem, report.failed) == (True, None, {"unparsable": 3})
    attempts = bench.settings.assessment.max_attempts

    def left(max_attempts: int) -> Estimate:
        return estimate(
            bench.engine,
            "better-prompt",
            captured,
            prompt_version="v1",
            model="simulated-vl",
            max_attempts=max_attempts,
        )

    found = left(attempts)
    assert (found.groups, found.answered, found.failed, found.calls) == (6, 0, 3, 3)
    assert left(attempts + 1).calls == 6  # with another attempt allowed they are still to be asked about


async def test_a_model_that_the_endpoint_does_not_know_ends_the_window_at_once(
    bench: Bench, captured: list[Window]
) -> None:
    [report] = await again(bench, captured[:1], plan_of(bench, model="unheard-of"))
    assert not report.complete
    assert report.problem is not None
    assert "refuses every request" in report.problem
    assert bench.rows("SELECT count(*) FROM llm_call") == [(3,)]  # once each, and not time and again


async def test_a_prompt_for_one_group_alone_can_be_tried_where_the_live_lanes_share_calls(
    bench: Bench, captured: list[Window]
) -> None:
    sharing = bench.settings.assessment.model_copy(update={"coalesce_groups": 3})
    bench.settings = bench.settings.model_copy(update={"assessment": sharing})
    plan = BackfillPlan("first-prompt", "v1", "simulated-vl")  # v1 has no file for several groups
    [report] = await again(bench, captured[:1], plan)
    assert (report.complete, report.problem) == (True, None)
    assert bench.rows("SELECT count(*), count(*) FILTER (WHERE shared_with = '{}') FROM llm_call") == [(3, 3)]


async def test_a_name_stands_for_one_prompt_and_model(bench: Bench, captured: list[Window]) -> None:
    await again(bench, captured[:1], plan_of(bench))
    other = backfill_plan(bench.settings, run="better-prompt", prompt_version=None, model="another")
    with pytest.raises(
        ConfigError, match=f"was begun with prompt {bench.settings.llm.prompt_version} and model simulated-vl"
    ):
        await again(bench, captured, other)


async def test_one_window_that_the_ledger_refuses_does_not_end_the_others(
    bench: Bench, captured: list[Window], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dangerous_driving.assessment import window_run
    from dangerous_driving.errors import LedgerError
    from dangerous_driving.ledger.windows import start_window

    def away(engine: Any, window: Window, run_id: str) -> int:
        if window == captured[0]:
            raise LedgerError("the database did not answer")
        return start_window(engine, window, run_id)

    monkeypatch.setattr(window_run, "start_window", away)
    monkeypatch.setattr(window_run, "PATIENCE_SECONDS", 0.0)
    broken, good = await assess(bench, captured)
    assert (broken.complete, broken.problem) == (False, "the database did not answer")
    assert good.complete
