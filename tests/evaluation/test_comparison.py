"""Intervals and tests: against SciPy, and what clusters do."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dangerous_driving.evaluation import comparison
from dangerous_driving.evaluation.comparison import differences, estimates, fewest_clusters, holm, mcnemar
from dangerous_driving.evaluation.metrics import Floats, confusion


def answers(draw: np.random.Generator, truth: list[int], *, right: float) -> list[int]:
    return [level if draw.random() < right else int(draw.integers(0, 4)) for level in truth]


def by_cluster(truth: list[int], answered: list[int], clusters: list[int]) -> Floats:
    return confusion(truth, answered, clusters, max(clusters) + 1)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_mcnemar_agrees_with_the_binomial_test(pairs: list[tuple[bool, bool]]) -> None:
    lost, won, p = mcnemar([one for one, _ in pairs], [two for _, two in pairs])
    assert lost == sum(one and not two for one, two in pairs)
    expected = stats.binomtest(lost, lost + won, 0.5).pvalue if lost + won else 1.0
    assert p == pytest.approx(expected, abs=1e-9)


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.floats(0, 1), max_size=8))
def test_holm_is_between_each_p_and_bonferroni(p_values: dict[str, float]) -> None:
    adjusted = holm(p_values)
    for name, p in p_values.items():
        assert p <= adjusted[name] <= min(1.0, len(p_values) * p) + 1e-12
    ordered = sorted(p_values, key=lambda name: p_values[name])
    assert all(adjusted[one] <= adjusted[two] for one, two in pairwise(ordered))


def test_holm_on_a_known_example() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


def test_a_clear_difference_is_seen_and_its_interval_leaves_zero_out() -> None:
    draw = np.random.default_rng(1)
    clusters = list(range(40)) * 5
    truth = [int(level) for level in draw.integers(0, 4, len(clusters))]
    good, bad = answers(draw, truth, right=0.9), answers(draw, truth, right=0.4)
    found = differences(
        by_cluster(truth, good, clusters), by_cluster(truth, bad, clusters), names=["accuracy"], resamples=500
    )["accuracy"]
    assert found.difference is not None
    assert found.low is not None
    assert found.high is not None
    assert found.p is not None
    assert found.low < found.difference < found.high < 0
    assert found.p < 0.01


def test_equal_candidates_are_rarely_told_apart() -> None:
    told_apart = 0
    for seed in range(60):
        draw = np.random.default_rng(seed)
        clusters = list(range(30)) * 4
        truth = [int(level) for level in draw.integers(0, 4, len(clusters))]
        one, two = answers(draw, truth, right=0.7), answers(draw, truth, right=0.7)
        found = differences(
            by_cluster(truth, one, clusters), by_cluster(truth, two, clusters), names=["accuracy"], resamples=100
        )["accuracy"]
        assert found.p is not None
        told_apart += found.p < 0.05
    assert told_apart <= 9  # of 60 at a level of 0.05: more than that happens once in 2,000 times


@pytest.mark.parametrize(("level", "needed"), [(0.05, 6), (2 / 64, 7), (0.01, 8), (0.4, 3)])
def test_from_so_many_clusters_on_a_total_loss_is_significant(level: float, needed: int) -> None:
    assert fewest_clusters(level) == needed
    for clusters in (needed - 1, needed):
        each = list(range(clusters))
        good, bad = by_cluster([3] * clusters, [3] * clusters, each), by_cluster([3] * clusters, [0] * clusters, each)
        found = differences(good, bad, names=["recall_high"], resamples=100)["recall_high"]
        assert found.p is not None
        assert (found.p < level) == (clusters == needed)


def test_the_clusters_of_a_difference_are_those_that_speak_of_the_metric() -> None:
    clusters = [0, 0, 1, 2, 3]
    truth, before, after = [3, 0, 3, 0, 1], [3, 0, 3, 2, 1], [0, 0, 3, 0, 3]
    names = ["recall_high", "precision_high", "precision_dangerous", "accuracy", "weighted_kappa", "recall_medium"]
    found = differences(
        by_cluster(truth, before, clusters), by_cluster(truth, after, clusters), names=names, resamples=100
    )
    # high cases in two; called high by one of the two in a third; called dangerous in all
    assert {name: item.clusters for name, item in found.items()} == {
        "recall_high": 2, "precision_high": 3, "precision_dangerous": 4, "accuracy": 4, "weighted_kappa": 4,
        "recall_medium": 0,
    }  # fmt: skip


def test_a_hundred_frames_of_one_scene_are_one_observation() -> None:
    # the challenger is wrong on all frames of one camera and day, and as good elsewhere
    clusters = [0] * 100 + list(range(1, 21))
    truth = [3] * 120
    champion, challenger = [3] * 120, [0] * 100 + [3] * 20
    found = differences(
        by_cluster(truth, champion, clusters), by_cluster(truth, challenger, clusters), names=["recall_high"],
        resamples=500,
    )["recall_high"]  # fmt: skip
    assert found.p == 1.0
    assert mcnemar([True] * 120, [False] * 100 + [True] * 20)[2] < 1e-20  # what a test of single cases would say


def test_few_clusters_are_enumerated_exactly() -> None:
    # five clusters that all say the same: two of the 32 ways to swap are as far apart
    clusters = [0, 1, 2, 3, 4]
    found = differences(
        by_cluster([3] * 5, [3] * 5, clusters), by_cluster([3] * 5, [0] * 5, clusters), names=["recall_high"],
        resamples=50,
    )["recall_high"]  # fmt: skip
    assert found.p == 2 / 32


def test_what_cannot_be_measured_has_no_difference() -> None:
    matrix = by_cluster([0, 0], [0, 1], [0, 1])
    found = differences(matrix, matrix, names=["recall_high", "accuracy"], resamples=50)
    assert not found["recall_high"].defined
    assert found["recall_high"].p is None
    assert found["accuracy"].p == 1.0


def test_the_interval_of_a_share_is_that_of_a_binomial_where_each_case_is_a_cluster() -> None:
    draw = np.random.default_rng(3)
    answered = [3 if draw.random() < 0.7 else 0 for _ in range(400)]
    matrix = by_cluster([3] * 400, answered, list(range(400)))
    found = estimates(matrix, resamples=4000)["recall_high"]
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    half = 1.96 * (found.value * (1 - found.value) / 400) ** 0.5
    assert found.low == pytest.approx(found.value - half, abs=0.01)
    assert found.high == pytest.approx(found.value + half, abs=0.01)


def test_nothing_at_all_has_no_values() -> None:
    found = estimates(np.zeros((0, 4, 5)), resamples=20)
    assert all(item.value is None and item.low is None for item in found.values())


def test_the_same_data_give_the_same_figures() -> None:
    matrix = by_cluster([3, 2, 1, 0] * 10, [3, 1, 1, 0] * 10, [number // 2 for number in range(40)])
    assert estimates(matrix, resamples=100) == estimates(matrix, resamples=100)
    assert comparison.SEED  # it is fixed on purpose: a report can be made again
