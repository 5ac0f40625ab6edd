"""Asking about a set: resumed, without pictures, with keys and endpoints that fail."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from dangerous_driving.assessment.keys import configured_hashes
from dangerous_driving.contracts import RiskLevel
from dangerous_driving.errors import ConfigError
from dangerous_driving.evaluation.asking import asks_of
from dangerous_driving.evaluation.cases import Split
from dangerous_driving.evaluation.gate import GateVerdict
from dangerous_driving.evaluation.promotion import nightly_rulings, rule
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.evaluation_cases import add_cases, set_cases
from dangerous_driving.ledger.evaluation_runs import list_runs
from dangerous_driving.ledger.invariants import verify
from dangerous_driving.settings.assessment import BudgetSettings

from .conftest import Bench, cases, write_prompt


def fault(bench: Bench, action: str, *, amount: float = 1.0) -> None:
    order = json.dumps({"action": action, "key": None, "amount": amount}).encode()
    url = bench.settings.llm.base_url.removesuffix("/v1") + "/admin/faults"
    urllib.request.urlopen(urllib.request.Request(url, order, {"content-type": "application/json"}), timeout=5).close()


def rows(bench: Bench, query: str) -> list[Any]:
    with transaction(bench.engine) as connection:
        return list(connection.execute(text(query)).tuples())


def changed(bench: Bench, section: str, **values: Any) -> None:
    part = getattr(bench.settings, section).model_copy(update=values)
    bench.settings = bench.settings.model_copy(update={section: part})


def test_a_share_of_the_cases_is_asked_twice_always_the_same_ones(bench: Bench) -> None:
    bench.add(80)
    members = set_cases(bench.engine, bench.freeze().version)
    asks = asks_of(members, stability_share=0.25)
    again = {case.case_id for case, ask in asks if ask == 1}
    assert 8 <= len(again) <= 35
    assert again == {case.case_id for case, ask in asks_of(members, stability_share=0.25) if ask == 1}
    assert len(asks) == 80 + len(again)


async def test_a_run_that_is_broken_off_goes_on_where_it_was(bench: Bench) -> None:
    bench.add(60)
    changed(bench, "evaluation", max_in_flight=4, stability_share=0.0)
    under_way = asyncio.create_task(bench.evaluate("a"))
    while len(rows(bench, "SELECT 1 FROM evaluation_result WHERE state = 'answered'")) < 10:
        await asyncio.sleep(0.02)
    under_way.cancel()
    with pytest.raises(asyncio.CancelledError):
        await under_way
    [(answered,)] = rows(bench, "SELECT count(*) FROM evaluation_result WHERE state = 'answered'")
    assert 10 <= answered < 60
    assert rows(bench, "SELECT 1 FROM llm_call WHERE status = 'started'") == []
    found = await bench.evaluate("a")
    assert found.asking.stopped is None
    assert found.asking.asked == 60 - answered
    assert rows(bench, "SELECT count(*) FROM evaluation_result WHERE state = 'answered'") == [(60,)]
    # every call that brought an answer brought one, none was paid twice
    assert rows(bench, "SELECT count(*) FROM llm_call WHERE status = 'ok'") == [(60,)]


async def test_the_invariants_of_the_ledger_hold_of_an_evaluation(bench: Bench) -> None:
    bench.add(8)
    await bench.evaluate("a")
    now = datetime.now(UTC)
    found = verify(
        bench.engine,
        bench.store,
        since=now - timedelta(hours=1),
        until=now + timedelta(hours=1),
        window_length=3600,
        key_hashes=configured_hashes(bench.settings.keys),
    )
    assert found.violations == ()
    with transaction(bench.engine) as connection:
        connection.execute(text("DELETE FROM evaluation_case WHERE case_id = (SELECT min(task_id) FROM llm_call)"))
    broken = verify(bench.engine, bench.store, since=now - timedelta(hours=1), until=now, window_length=3600)
    assert {item.rule for item in broken.violations} == {"every call belongs to a task or to a case of the evaluation"}


async def test_cases_without_a_picture_are_answers_that_are_missing(bench: Bench) -> None:
    bench.add(40)
    changed(bench, "evaluation", held_out_share=1.0, stability_share=0.0)
    gone = cases(40)[0].case
    bench.store.delete([gone.picture_key])
    found = await bench.evaluate("a")
    assert found.held_out is not None
    assert dict(found.held_out.failures) == {"no_picture": 1}
    assert found.held_out.coverage == pytest.approx(39 / 40)
    assert "no_picture" in (found.report.html if found.report else "")
    assert rows(bench, f"SELECT 1 FROM llm_call WHERE task_id = '{gone.case_id}'") == []


async def test_a_model_that_fails_on_half_the_cases_is_refused_for_it(bench: Bench) -> None:
    write_prompt(bench.prompts, "b", skill=1.0)
    bench.add(40)
    changed(bench, "evaluation", challengers=("b",), max_attempts=1, held_out_share=1.0)
    bench.answer("a")
    fault(bench, "garbage", amount=0.5)
    found = await bench.evaluate("b")
    assert found.held_out is not None
    assert 0.2 < found.held_out.coverage < 0.8
    assert found.held_out.failures["unparsable"] > 5
    [ruling] = nightly_rulings(bench.settings, bench.engine, bench.store)
    assert ruling.decision.verdict is GateVerdict.REFUSED
    assert "of the cases, asked for are 95.0%" in ruling.statistics


async def test_a_failure_is_tried_again_and_then_kept_with_its_cause(bench: Bench) -> None:
    bench.add(8)
    changed(bench, "evaluation", stability_share=0.0, max_attempts=2)
    fault(bench, "break")
    found = await bench.evaluate("a")
    assert found.asking.stopped is None
    assert rows(bench, "SELECT DISTINCT state, attempts, failure_code FROM evaluation_result") == [
        ("failed", 2, "unavailable")
    ]
    assert found.held_out is not None
    assert found.held_out.coverage == 0.0


async def test_what_the_endpoint_failed_is_asked_again_after_a_pause(bench: Bench) -> None:
    bench.add(8)
    changed(bench, "evaluation", stability_share=0.0, max_attempts=2, retry_pause=2.0)
    fault(bench, "break")
    under_way = asyncio.create_task(bench.evaluate("a"))
    while len(rows(bench, "SELECT 1 FROM evaluation_result WHERE state = 'failed'")) < 8:
        await asyncio.sleep(0.02)
    fault(bench, "restore")
    found = await under_way
    assert (found.asking.stopped, found.asking.asked) == (None, 16)
    assert found.held_out is not None
    assert dict(found.held_out.failures) == {}
    [(pause,)] = rows(
        bench,
        "SELECT extract(epoch FROM min(started_at) FILTER (WHERE call_number = 2) "
        "- max(started_at) FILTER (WHERE call_number = 1)) FROM llm_call",
    )
    assert pause >= 2.0


@pytest.mark.parametrize(
    ("failure", "asked_again", "result", "coverage"),
    [("break", 8, ("answered", 3, None), 1.0), ("garbage", 0, ("failed", 2, "unparsable"), 0.0)],
    ids=["the endpoint's failure", "the prompt's failure"],
)
async def test_only_what_the_endpoint_failed_is_asked_again_when_it_is_evaluated_again(
    bench: Bench, failure: str, asked_again: int, result: tuple[object, ...], coverage: float
) -> None:
    bench.add(8)
    changed(bench, "evaluation", stability_share=0.0, max_attempts=2)
    fault(bench, failure)
    await bench.evaluate("a")
    fault(bench, "restore")
    found = await bench.evaluate("a")
    assert found.asking.asked == asked_again
    assert rows(bench, "SELECT DISTINCT state, attempts, failure_code FROM evaluation_result") == [result]
    [run] = list_runs(bench.engine, limit=5)
    assert {item["value"] for item in run.figures if item["metric"] == "coverage"} == {coverage}


async def test_a_spent_budget_stops_the_run_and_it_goes_on_later(bench: Bench) -> None:
    bench.add(40)
    changed(bench, "evaluation", stability_share=0.0, max_in_flight=2)
    changed(bench, "keys", budgets={"evaluation": BudgetSettings(calls=15)})
    found = await bench.evaluate("a")
    assert found.asking.stopped is not None
    assert "budget" in found.asking.stopped
    assert found.held_out is None
    assert 15 <= found.asking.settled <= 20  # what was under way may end
    changed(bench, "keys", budgets={})
    again = await bench.evaluate("a")
    assert (again.asking.stopped, again.asking.asked) == (None, 40 - found.asking.settled)


async def test_an_unknown_model_ends_the_run_at_once_with_what_the_endpoint_says(bench: Bench) -> None:
    bench.add(40)
    with pytest.raises(ConfigError, match=r"endpoint refuses the request .*check the model and the prompt"):
        await bench.evaluate("a", model="gpt-unknown")


async def test_a_prompt_that_was_changed_under_its_version_is_refused(bench: Bench) -> None:
    bench.add(4)
    await bench.evaluate("a")
    write_prompt(bench.prompts, "a", skill=0.5)
    with pytest.raises(ConfigError, match="file was changed since it was evaluated"):
        await bench.evaluate("a")


def test_a_set_of_one_class_only_proves_nothing(bench: Bench) -> None:
    write_prompt(bench.prompts, "b", skill=0.1)
    harmless = [item for item in cases(120) if item.truth and item.truth.highest is RiskLevel.NONE]
    add_cases(bench.engine, harmless)
    changed(bench, "evaluation", guarded=("recall_high", "recall_dangerous"))
    for version in ("a", "b"):
        bench.answer(version)
    ruling = rule(bench.settings, bench.engine, bench.store, "b", by="ann", promotes=True, accepts_no_evidence=False)
    assert ruling.decision.verdict is GateVerdict.NO_EVIDENCE
    assert "recall_high cannot be measured" in ruling.statistics
    assert ruling.promotion is None
    assert "cannot be measured" in ruling.report.markdown


def test_a_set_is_frozen_and_the_same_again_while_nothing_changes(bench: Bench) -> None:
    bench.add(40)
    first = bench.freeze()
    assert bench.freeze().version == first.version == 1
    more = [item for item in cases(120) if item.case.case_id not in {one.case.case_id for one in cases(40)}][:10]
    add_cases(bench.engine, more)
    second = bench.freeze()
    assert (second.version, second.cases) == (2, 50)
    assert len(set_cases(bench.engine, 1)) == 40  # the old one is as it was
    before = {item.case.case_id: item.split for item in set_cases(bench.engine, 1)}
    after = {item.case.case_id: item.split for item in set_cases(bench.engine, 2)}
    assert before.items() <= after.items()
    assert set(after.values()) == set(Split)
