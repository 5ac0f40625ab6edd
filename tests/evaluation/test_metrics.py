"""The metrics against scikit-learn, and what failures and unknown levels do to them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from dangerous_driving.evaluation import metrics
from dangerous_driving.evaluation.metrics import LEVELS, MEASURES, NO_ANSWER

AGREEMENT = 1e-9


def matrix_of(truth: list[int], answered: list[int]) -> metrics.Floats:
    matrix: metrics.Floats = metrics.confusion(truth, answered, np.zeros(len(truth), int), 1)[0]
    return matrix


def same(ours: float, theirs: float) -> bool:
    return (np.isnan(ours) and np.isnan(theirs)) or abs(ours - theirs) < AGREEMENT


@pytest.mark.parametrize("seed", range(20))
def test_levels_agree_with_scikit_learn_on_random_answers(seed: int) -> None:
    draw = np.random.default_rng(seed)
    count = int(draw.integers(5, 400))
    truth = draw.integers(0, 4, count)
    answered = np.where(draw.random(count) < 0.6, truth, draw.integers(0, 5, count))  # 4: no answer
    matrix = matrix_of(truth.tolist(), answered.tolist())
    precision, recall, f1, _ = reference.precision_recall_fscore_support(
        truth, answered, labels=[0, 1, 2, 3], zero_division=np.nan
    )
    for level in LEVELS:
        assert same(float(MEASURES[f"precision_{level}"](matrix)), precision[level.rank])
        assert same(float(MEASURES[f"recall_{level}"](matrix)), recall[level.rank])
        assert same(float(MEASURES[f"f1_{level}"](matrix)), f1[level.rank])
    dangerous = truth >= 2
    alarmed = (answered >= 2) & (answered != NO_ANSWER)
    assert same(float(MEASURES["recall_dangerous"](matrix)), reference.recall_score(dangerous, alarmed))
    assert same(float(MEASURES["precision_dangerous"](matrix)), reference.precision_score(dangerous, alarmed))
    assert same(float(MEASURES["f1_dangerous"](matrix)), reference.f1_score(dangerous, alarmed))
    assert same(float(MEASURES["accuracy"](matrix)), reference.accuracy_score(truth, answered))
    kept = answered != NO_ANSWER
    kappa = reference.cohen_kappa_score(truth[kept], answered[kept], weights="quadratic", labels=[0, 1, 2, 3])
    assert same(float(MEASURES["weighted_kappa"](matrix)), kappa)
    assert same(float(MEASURES["coverage"](matrix)), kept.mean())


@pytest.mark.parametrize("seed", range(10))
def test_types_agree_with_scikit_learn_on_random_sets(seed: int) -> None:
    draw = np.random.default_rng(seed)
    names = ["collision", "queue", "tailgating", "wrong_way"]
    true, given_ = draw.random((150, 4)) < 0.3, draw.random((150, 4)) < 0.3
    scores = metrics.type_scores(
        [frozenset(name for name, on in zip(names, row, strict=True) if on) for row in true],
        [frozenset(name for name, on in zip(names, row, strict=True) if on) for row in given_],
    )
    precision, recall, f1, support = reference.precision_recall_fscore_support(true, given_, zero_division=np.nan)
    assert {score.risk_type for score in scores} == set(names)
    for score in scores:
        at = names.index(score.risk_type)
        assert score.cases == support[at]
        assert abs((score.precision or 0) - precision[at]) < AGREEMENT
        assert abs((score.recall or 0) - recall[at]) < AGREEMENT
        assert abs((score.f1 or 0) - f1[at]) < AGREEMENT


@pytest.mark.parametrize("seed", range(10))
def test_the_reliability_curve_agrees_with_scikit_learn(seed: int) -> None:
    draw = np.random.default_rng(seed)
    confidence = np.round(draw.random(300), 2)  # as models give them: often on the edge of a bin
    right = draw.random(300) < confidence
    bins = metrics.reliability(confidence, right)
    shares, means = calibration_curve(right, confidence, n_bins=metrics.BINS)
    assert np.allclose([item.right for item in bins], shares, atol=AGREEMENT, rtol=0)
    assert np.allclose([item.confidence for item in bins], means, atol=AGREEMENT, rtol=0)
    error = metrics.calibration_error(bins)
    assert error is not None
    assert abs(error - sum(item.answers / 300 * abs(item.right - item.confidence) for item in bins)) < AGREEMENT


def test_a_case_without_an_answer_lowers_recall_as_a_wrong_answer_does() -> None:
    answered = matrix_of([3, 3, 3, 3], [3, 3, NO_ANSWER, NO_ANSWER])
    assert MEASURES["recall_high"](answered) == 0.5
    assert MEASURES["coverage"](answered) == 0.5
    assert MEASURES["accuracy"](answered) == 0.5
    assert MEASURES["precision_high"](answered) == 1.0


def test_what_was_never_asked_or_never_true_is_not_a_number_and_not_zero() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_class = matrix_of([0, 0, 0], [0, 0, 1])
        assert np.isnan(MEASURES["recall_high"](one_class))
        assert np.isnan(MEASURES["precision_dangerous"](one_class))
        assert MEASURES["recall_none"](one_class) == pytest.approx(2 / 3)
        nothing = matrix_of([], [])
        assert all(np.isnan(measure(nothing)) for measure in MEASURES.values())


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 4)), max_size=50))
def test_an_answer_within_the_known_interval_is_right(cases: list[tuple[int, int, int]]) -> None:
    lowest = [min(one, two) for one, two, _ in cases]
    highest = [max(one, two) for one, two, _ in cases]
    answered = [answer for *_, answer in cases]
    truth = metrics.effective_truth(lowest, highest, answered)
    for low, high, answer, true in zip(lowest, highest, answered, truth, strict=True):
        assert low <= true <= high
        assert (true == answer) == (low <= answer <= high)
        assert answer != NO_ANSWER or true == low  # a rejected alert without an answer is no missed danger


def test_a_rejected_alert_is_a_false_alarm_only_for_an_answer_that_would_alert() -> None:
    # a rejection: none or low
    assert metrics.effective_truth([0], [1], [1]).tolist() == [1]
    alarmed = matrix_of(metrics.effective_truth([0], [1], [3]).tolist(), [3])
    assert MEASURES["precision_dangerous"](alarmed) == 0.0


def test_stability_and_quantiles() -> None:
    assert metrics.stability([0, 1, 3, NO_ANSWER], [0, 2, 3, NO_ANSWER]) == 0.75
    assert metrics.stability([], []) is None
    assert metrics.quantile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert metrics.quantile([], 0.5) is None
