"""When a challenger is refused, when it is better, and when there is no telling."""

from __future__ import annotations

import pytest

from dangerous_driving.evaluation.comparison import Difference
from dangerous_driving.evaluation.gate import GatePolicy, GateVerdict, decide

GUARDED = ("recall_high", "recall_dangerous", "precision_dangerous", "accuracy")
POLICY = GatePolicy(guarded=GUARDED, significance=0.05, min_coverage=0.95, min_cases=30)


def seen(**changes: tuple[float, float]) -> dict[str, Difference]:
    """Differences of the guarded metrics: (difference, p); those not named do not differ."""
    found = {}
    for name in GUARDED:
        difference, p = changes.get(name, (0.0, 1.0))
        found[name] = Difference(name, 0.7, 0.7 + difference, difference, difference - 0.1, difference + 0.1, p)
    return found


def verdict(differences: dict[str, Difference], *, cases: int = 100, coverage: float = 1.0) -> GateVerdict:
    return decide(differences, cases=cases, coverage=coverage, policy=POLICY).verdict


def test_worse_on_any_guarded_metric_is_refused_even_where_it_is_better_on_another() -> None:
    assert verdict(seen(recall_high=(-0.2, 0.01))) is GateVerdict.REFUSED
    assert verdict(seen(recall_high=(0.2, 0.001), precision_dangerous=(-0.2, 0.01))) is GateVerdict.REFUSED


def test_the_reason_shows_the_statistics() -> None:
    [reason] = decide(seen(recall_high=(-0.2, 0.01)), cases=100, coverage=1.0, policy=POLICY).reasons
    assert reason == (
        "significantly worse on recall_high: 0.700 -> 0.500 (-0.200, 95 % interval -0.300 to -0.100, p = 0.0100)"
    )


def test_better_needs_significance() -> None:
    assert verdict(seen(recall_dangerous=(0.2, 0.001))) is GateVerdict.BETTER
    assert verdict(seen(recall_dangerous=(0.2, 0.2))) is GateVerdict.NO_EVIDENCE


def test_recall_of_high_is_judged_at_the_full_level_and_the_others_adjusted() -> None:
    assert verdict(seen(recall_high=(-0.1, 0.04))) is GateVerdict.REFUSED
    assert verdict(seen(precision_dangerous=(-0.1, 0.04))) is GateVerdict.NO_EVIDENCE  # 3 x 0.04


def test_a_model_that_fails_on_half_the_cases_may_not_win() -> None:
    decision = decide(seen(recall_high=(0.3, 0.0001)), cases=100, coverage=0.5, policy=POLICY)
    assert decision.verdict is GateVerdict.REFUSED
    assert "answered 50.0% of the cases" in decision.reasons[0]


def test_a_set_without_the_class_of_a_guard_proves_nothing() -> None:
    differences = seen(accuracy=(0.3, 0.0001))
    differences["recall_high"] = Difference("recall_high", None, None, None, None, None, None)
    decision = decide(differences, cases=100, coverage=1.0, policy=POLICY)
    assert decision.verdict is GateVerdict.NO_EVIDENCE
    assert "recall_high cannot be measured" in decision.reasons[0]


def test_too_few_cases_prove_nothing_but_may_refuse() -> None:
    assert verdict(seen(recall_high=(0.5, 0.001)), cases=10) is GateVerdict.NO_EVIDENCE
    assert verdict(seen(recall_high=(-0.5, 0.001)), cases=10) is GateVerdict.REFUSED


@pytest.mark.parametrize("metric", GUARDED)
def test_equal_is_no_evidence_and_names_the_nearest(metric: str) -> None:
    decision = decide(seen(**{metric: (0.01, 0.3)}), cases=100, coverage=1.0, policy=POLICY)
    assert decision.verdict is GateVerdict.NO_EVIDENCE
    assert metric in decision.reasons[0]
