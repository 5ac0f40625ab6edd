"""When a challenger is refused, when it is better, and when there is no telling."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dangerous_driving.evaluation.comparison import Difference
from dangerous_driving.evaluation.gate import GateDecision, GatePolicy, GateVerdict, decide

GUARDED = ("recall_high", "recall_dangerous", "precision_dangerous", "accuracy")
POLICY = GatePolicy(guarded=GUARDED, significance=0.05, min_coverage=0.95, min_cases=30, margin=0.05)


def seen(**changes: tuple[float, float]) -> dict[str, Difference]:
    """Differences of the guarded metrics: (difference, p); those not named do not differ."""
    found = {}
    for name in GUARDED:
        difference, p = changes.get(name, (0.0, 1.0))
        found[name] = Difference(name, 0.7, 0.7 + difference, difference, difference - 0.03, difference + 0.03, p, 20)
    return found


def judged(
    differences: dict[str, Difference],
    *,
    cases: int = 100,
    coverage: float = 1.0,
    champion_coverage: float = 1.0,
    policy: GatePolicy = POLICY,
) -> GateDecision:
    return decide(differences, cases=cases, coverage=coverage, champion_coverage=champion_coverage, policy=policy)


def verdict(differences: dict[str, Difference], *, cases: int = 100) -> GateVerdict:
    return judged(differences, cases=cases).verdict


def test_worse_on_any_guarded_metric_is_refused_even_where_it_is_better_on_another() -> None:
    assert verdict(seen(recall_high=(-0.2, 0.01))) is GateVerdict.REFUSED
    assert verdict(seen(recall_high=(0.2, 0.001), precision_dangerous=(-0.2, 0.01))) is GateVerdict.REFUSED


def test_the_reason_shows_the_statistics() -> None:
    [reason] = judged(seen(recall_high=(-0.2, 0.01))).reasons
    assert reason == (
        "significantly worse on recall_high: 0.700 -> 0.500 (-0.200, 95 % interval -0.230 to -0.170, p = 0.0100)"
    )


def test_better_needs_significance() -> None:
    assert verdict(seen(recall_dangerous=(0.2, 0.001))) is GateVerdict.BETTER
    assert verdict(seen(recall_dangerous=(0.2, 0.2))) is GateVerdict.NO_EVIDENCE


def test_recall_of_high_is_judged_at_the_full_level_and_the_others_adjusted() -> None:
    assert verdict(seen(recall_high=(-0.1, 0.04))) is GateVerdict.REFUSED
    assert verdict(seen(precision_dangerous=(-0.1, 0.04))) is GateVerdict.NO_EVIDENCE  # 3 x 0.04


def test_a_model_that_fails_on_half_the_cases_may_not_win() -> None:
    decision = judged(seen(recall_high=(0.3, 0.0001)), coverage=0.5)
    assert decision.verdict is GateVerdict.REFUSED
    assert "answered 50.0% of the cases" in decision.reasons[0]


def test_a_champion_that_an_endpoint_failed_on_loses_to_nobody() -> None:
    decision = judged(seen(accuracy=(0.3, 0.0001)), champion_coverage=0.6)
    assert decision.verdict is GateVerdict.NO_EVIDENCE
    assert decision.reasons == (
        "the champion answered only 60.0% of the cases, asked for are 95.0%: evaluate it again",
    )


def test_without_held_out_cases_nobody_is_refused_for_not_answering_them() -> None:
    nothing = {name: Difference(name, None, None, None, None, None, None, 0) for name in GUARDED}
    decision = judged(nothing, cases=0, coverage=0.0, champion_coverage=0.0)
    assert decision.verdict is GateVerdict.NO_EVIDENCE
    assert "0 held-out cases, at least 30 are needed (evaluation.min_cases)" in decision.reasons


def test_a_loss_that_its_interval_does_not_rule_out_is_in_the_way_of_a_gain_elsewhere() -> None:
    differences = seen(precision_dangerous=(0.3, 0.0001), recall_high=(-0.1, 0.2))
    decision = judged(differences)
    assert decision.verdict is GateVerdict.NO_EVIDENCE
    assert decision.reasons[0] == (
        "recall_high: a loss of 0.130 cannot be ruled out (95 % interval -0.130 to -0.070), "
        "0.05 at most is let pass (evaluation.margin)"
    )
    assert decision.reasons[1].startswith("significantly better on precision_dangerous")
    assert judged(differences, policy=replace(POLICY, margin=0.15)).verdict is GateVerdict.BETTER


def test_a_guard_without_an_interval_is_in_the_way_of_a_gain_elsewhere() -> None:
    differences = seen(accuracy=(0.3, 0.0001))
    differences["recall_high"] = replace(differences["recall_high"], low=None, high=None)
    decision = judged(differences)
    assert decision.verdict is GateVerdict.NO_EVIDENCE
    assert decision.reasons[0] == "recall_high: its difference has no interval, too few camera-days hold such cases"


def test_too_few_camera_days_to_see_a_guard_get_worse_prove_nothing() -> None:
    differences = seen(accuracy=(0.3, 0.0001))
    differences["recall_high"] = replace(differences["recall_high"], clusters=5)
    differences["precision_dangerous"] = replace(differences["precision_dangerous"], clusters=1)
    decision = judged(differences)
    assert decision.verdict is GateVerdict.NO_EVIDENCE
    assert decision.reasons == (
        "recall_high: 5 camera-days hold such cases, 6 are needed for a difference to be seen",
        "precision_dangerous: 1 camera-day holds such answers, 6 are needed for a difference to be seen",
    )
    enough = {name: replace(item, clusters=6) for name, item in differences.items()}
    assert verdict(enough) is GateVerdict.BETTER


def test_a_set_without_the_class_of_a_guard_proves_nothing() -> None:
    differences = seen(accuracy=(0.3, 0.0001))
    differences["recall_high"] = Difference("recall_high", None, None, None, None, None, None, 0)
    decision = judged(differences)
    assert decision.verdict is GateVerdict.NO_EVIDENCE
    assert "recall_high cannot be measured" in decision.reasons[0]


def test_too_few_cases_prove_nothing_but_may_refuse() -> None:
    assert verdict(seen(recall_high=(0.5, 0.001)), cases=10) is GateVerdict.NO_EVIDENCE
    assert verdict(seen(recall_high=(-0.5, 0.001)), cases=10) is GateVerdict.REFUSED


@pytest.mark.parametrize("metric", GUARDED)
def test_equal_is_no_evidence_and_names_the_nearest(metric: str) -> None:
    decision = judged(seen(**{metric: (0.01, 0.3)}))
    assert decision.verdict is GateVerdict.NO_EVIDENCE
    assert metric in decision.reasons[0]
