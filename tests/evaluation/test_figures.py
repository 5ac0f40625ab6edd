"""The figures of a run, what is in them and what is not; and the report, also of nothing at all."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from dangerous_driving.contracts import RiskLevel
from dangerous_driving.evaluation.answers import Answer, AskedCase
from dangerous_driving.evaluation.cases import SetCase, Split, Truth
from dangerous_driving.evaluation.comparison import Difference
from dangerous_driving.evaluation.figures import Compared, compare, figures_of, mistakes
from dangerous_driving.evaluation.gate import GateDecision, GateVerdict
from dangerous_driving.evaluation.report import Judged, ReportHead, build_report, report_prefix, truth_words
from dangerous_driving.objects import FolderStore

from .conftest import cases

NONE, LOW, MEDIUM, HIGH = RiskLevel


def members(*truths: Truth | None) -> list[SetCase]:
    return [
        SetCase(item.case, Split.HELD_OUT, truth) for item, truth in zip(cases(120), truths, strict=False)
    ]  # as many as there are truths


def exactly(level: RiskLevel, types: tuple[str, ...] | None = None) -> Truth:
    return Truth(level, level, types)


def asked(held: list[SetCase], *answers: Answer | None) -> list[AskedCase]:
    return [
        AskedCase(item.case.case_id, 0, answer)
        for item, answer in zip(held, answers, strict=True)
        if answer is not None
    ]


def given(level: RiskLevel, **more: object) -> Answer:
    return Answer(level, **{"confidence": 0.9, "latency": 1.0, "cost": 0.01, "input_tokens": 100, **more})  # type: ignore[arg-type]


FAILED = Answer(None, failure_code="timeout", failure_message="too late", cost=0.0)


def test_failures_and_what_was_not_asked_count_against_it_and_disagreements_do_not() -> None:
    held = members(exactly(HIGH), exactly(HIGH), exactly(HIGH), exactly(NONE), None)
    found = figures_of(
        held, asked(held, given(HIGH), FAILED, None, given(NONE), given(LOW)), Split.HELD_OUT, resamples=100
    )
    assert (found.cases, found.disagreements) == (4, 1)
    assert dict(found.failures) == {"timeout": 1, "not_asked": 1}
    assert found.estimates["recall_high"].value == pytest.approx(1 / 3)
    assert found.coverage == 0.5
    assert found.cost_per_1000 == pytest.approx(1000 * 0.02 / 4)
    assert found.latency_p50 == 1.0


def test_types_are_measured_where_they_are_known_by_whatever_word_they_are_called() -> None:
    held = members(exactly(HIGH, ("wrong_way",)), exactly(HIGH, ("collision",)), exactly(HIGH, None))
    answers = [
        given(HIGH, risk_types=("wrong_way",)), given(HIGH, risk_types=("逆行",)), given(HIGH, risk_types=("queue",)),
    ]  # fmt: skip
    found = figures_of(held, asked(held, *answers), Split.HELD_OUT, resamples=100)
    assert {score.risk_type: (score.cases, score.answers, score.hits) for score in found.types} == {
        "wrong_way": (1, 2, 1), "collision": (1, 0, 0),
    }  # fmt: skip


def test_stability_is_of_the_pictures_that_were_asked_twice() -> None:
    held = members(exactly(HIGH), exactly(HIGH), exactly(HIGH))
    first = asked(held, given(HIGH), given(HIGH), given(HIGH))
    again = [AskedCase(held[0].case.case_id, 1, given(HIGH)), AskedCase(held[1].case.case_id, 1, given(LOW))]
    found = figures_of(held, [*first, *again], Split.HELD_OUT, resamples=100)
    assert (found.stability, found.asked_twice) == (0.5, 2)


def test_the_worst_mistakes_come_first_and_misses_before_false_alarms() -> None:
    held = members(exactly(HIGH), exactly(NONE), exactly(HIGH), exactly(LOW), Truth(NONE, LOW))
    answers = asked(held, given(NONE), given(HIGH), given(MEDIUM), given(LOW), given(LOW))
    worst = mistakes(held, answers, limit=5)
    assert [(item.truth, answer.risk_level) for item, answer in worst] == [
        (exactly(HIGH), NONE), (exactly(NONE), HIGH), (exactly(HIGH), MEDIUM),
    ]  # fmt: skip


def test_two_runs_are_compared_on_the_held_out_side_alone() -> None:
    held = members(*[exactly(HIGH)] * 20)
    train = [SetCase(item.case, Split.TRAIN, exactly(HIGH)) for item in cases(120)[60:80]]
    everything = [*held, *train]
    champion = asked(everything, *[given(HIGH)] * 40)
    challenger = asked(everything, *[given(HIGH)] * 20, *[given(NONE)] * 20)
    found = compare(everything, champion, challenger, names=["recall_high"], resamples=100)
    assert found.cases == 20
    assert found.differences["recall_high"].difference == 0.0
    assert (found.only_champion, found.only_challenger) == (0, 0)


def test_the_coverage_of_both_runs_is_told() -> None:
    held = members(*[exactly(HIGH)] * 4)
    champion = asked(held, given(HIGH), FAILED, FAILED, None)
    challenger = asked(held, given(HIGH), given(HIGH), given(HIGH), FAILED)
    found = compare(held, champion, challenger, names=["recall_high"], resamples=100)
    assert (found.champion_coverage, found.coverage) == (0.25, 0.75)


def head() -> ReportHead:
    return ReportHead("v3<b>", "simulated-vl", 3, "run", datetime(2025, 10, 20, tzinfo=UTC), simulated=True)


def test_a_report_of_nothing_says_so_and_does_not_fail(tmp_path: Path) -> None:
    nothing = figures_of([], [], Split.HELD_OUT, resamples=100)
    report = build_report(head(), nothing, nothing, mistakes=[], store=FolderStore(tmp_path))
    assert "cannot be measured" in report.markdown
    assert "0 scenes" in report.html


def test_a_report_is_whole_says_that_it_is_simulated_and_lets_nobody_write_into_it(tmp_path: Path) -> None:
    held = members(exactly(HIGH), exactly(NONE), exactly(HIGH))
    answers = asked(held, given(NONE, description="<script>alert(1)</script>"), given(NONE), FAILED)
    figures = figures_of(held, answers, Split.HELD_OUT, resamples=100)
    difference = Difference("recall_high", 0.5, 0.25, -0.25, -0.4, -0.1, 0.0004, 2)
    judged = Judged(
        "v2",
        Compared({"recall_high": difference}, 3, 2, 1.0, 1.0, 4, 1, 0.03),
        GateDecision(GateVerdict.REFUSED, ("significantly worse on recall_high",), {"recall_high": 0.0004}),
        "v2 stays in use.",
    )
    report = build_report(
        head(), figures, figures, mistakes=mistakes(held, answers, limit=3), store=FolderStore(tmp_path), judged=judged
    )
    assert "<script>" not in report.html
    assert "v3<b>" not in report.html
    for words in (
        "simulated",
        "refused",
        "significantly worse on recall_high",
        "v2 stays in use.",
        "&lt; 0.001",
        "timeout",
    ):
        assert words in report.html
    assert "(no picture)" in report.html  # of the mistake: its picture is not in this store
    assert 'src="http' not in report.html
    assert set(report.plots) == {"metrics", "confusion", "reliability", "differences"}
    assert all(png.startswith(b"\x89PNG") for png in report.plots.values())


def test_names_of_reports_and_of_truths() -> None:
    assert (
        report_prefix("evaluation:v2:org/model:set1:20251020")
        == "reports/evaluation/evaluation-v2-org-model-set1-20251020"
    )
    assert truth_words(Truth(NONE, LOW)) == "none or low"
    assert truth_words(Truth(NONE, MEDIUM)) == "none to medium"
    assert truth_words(exactly(HIGH)) == "high"
