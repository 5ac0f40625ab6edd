"""Metrics of answers against the truth of cases; pure.

Everything of levels is a function of a confusion matrix of shape ``(…, 4, 5)``: rows are the true levels, columns the
answered ones and, last, "no answer". A case that was asked and not answered therefore lowers recall and accuracy as a wrong
answer does: an alert that is not raised is not raised, whatever the reason. Leading axes are free, so that thousands of
resamples are one call. Undefined values (0/0) are NaN.

Definitions are those of scikit-learn, which the tests hold them against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dangerous_driving.contracts import RiskLevel

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LEVELS = tuple(RiskLevel)
NO_ANSWER = len(LEVELS)  # the last column
#: From this level on a scene is worth an alert (``alerts.open_level`` by default).
DANGEROUS = RiskLevel.MEDIUM.rank
#: Bins of the reliability curve, of equal width; as in Guo et al., On Calibration of Modern Neural Networks (2017).
BINS = 10

Measure = Callable[[Floats], Floats]


def effective_truth(lowest: ArrayLike, highest: ArrayLike, answered: ArrayLike) -> Integers:
    """The true rank that an answer is held against: the answer itself within the known interval, else its nearer end.

    Without an answer it is the lower end.
    """
    low, high = np.asarray(lowest, np.int64), np.asarray(highest, np.int64)
    given = np.asarray(answered, np.int64)
    return np.where(given == NO_ANSWER, low, np.clip(given, low, high))


def confusion(truth: ArrayLike, answered: ArrayLike, clusters: ArrayLike, count: int) -> Floats:
    """Confusion matrices of clusters.

    Args:
        truth: ranks 0 to 3, from `effective_truth`.
        answered: ranks 0 to 3, or `NO_ANSWER`.
        clusters: which cluster each case belongs to, 0 to count - 1.
        count: of clusters.

    Returns:
        Shape (count, 4, 5).
    """
    matrices: Floats = np.zeros((count, len(LEVELS), len(LEVELS) + 1))
    np.add.at(
        matrices, (np.asarray(clusters, np.int64), np.asarray(truth, np.int64), np.asarray(answered, np.int64)), 1
    )
    return matrices


def _ratio(above: Floats, under: Floats) -> Floats:
    ratio: Floats = np.divide(above, under, out=np.full(np.shape(above), np.nan), where=np.asarray(under) > 0)
    return ratio


def _selected(matrix: Floats, levels: slice) -> tuple[Floats, Floats, Floats]:
    """Hits, cases and answers of a class that is made of some levels."""
    hits = matrix[..., levels, levels].sum((-2, -1))
    return hits, matrix[..., levels, :].sum((-2, -1)), matrix[..., :, levels].sum((-2, -1))


def _recall(levels: slice, matrix: Floats) -> Floats:
    hits, cases, _ = _selected(matrix, levels)
    return _ratio(hits, cases)


def _precision(levels: slice, matrix: Floats) -> Floats:
    hits, _, answers = _selected(matrix, levels)
    return _ratio(hits, answers)


def _f1(levels: slice, matrix: Floats) -> Floats:
    hits, cases, answers = _selected(matrix, levels)
    return _ratio(2 * hits, cases + answers)


def accuracy(matrix: Floats) -> Floats:
    """Share of all cases whose level is right."""
    return _ratio(np.trace(matrix[..., :, :NO_ANSWER], axis1=-2, axis2=-1), matrix.sum((-2, -1)))


def coverage(matrix: Floats) -> Floats:
    """Share of all cases that were answered."""
    return _ratio(matrix[..., :, :NO_ANSWER].sum((-2, -1)), matrix.sum((-2, -1)))


def weighted_kappa(matrix: Floats) -> Floats:
    """Quadratic weighted kappa (Cohen 1968) over the answered cases: 1 is perfect, 0 is chance, errors count squared."""
    answered = matrix[..., :, :NO_ANSWER]
    total = answered.sum((-2, -1))
    ranks = np.arange(len(LEVELS))
    weights = (ranks[:, None] - ranks[None, :]) ** 2.0
    expected = answered.sum(-1)[..., :, None] * answered.sum(-2)[..., None, :]
    observed_error = (weights * answered).sum((-2, -1))
    # with all cases and all answers on one level there is no chance to be better than
    return 1 - _ratio(observed_error * total, (weights * expected).sum((-2, -1)))


def _of_class(name: str, levels: slice) -> dict[str, Measure]:
    return {
        f"recall_{name}": partial(_recall, levels),
        f"precision_{name}": partial(_precision, levels),
        f"f1_{name}": partial(_f1, levels),
    }


#: name -> function of a confusion matrix. ``dangerous`` is medium and high taken together.
MEASURES: Mapping[str, Measure] = {
    **_of_class("dangerous", slice(DANGEROUS, NO_ANSWER)),
    **{
        name: measure
        for level in reversed(LEVELS)
        for name, measure in _of_class(level.value, slice(level.rank, level.rank + 1)).items()
    },
    "accuracy": accuracy,
    "weighted_kappa": weighted_kappa,
    "coverage": coverage,
}


def counted(name: str, matrices: Floats) -> NDArray[np.bool_]:
    """Which matrices hold a case or an answer that a measure counts: a recall cases of its class, a precision answers."""
    # kappa counts every case, also of a matrix that is too uniform to have a kappa of its own
    measure = coverage if name == "weighted_kappa" else MEASURES[name]
    return ~np.isnan(measure(matrices))


@dataclass(frozen=True)
class TypeScore:
    """How one risk type was recognised; ratios are None where undefined."""

    risk_type: str
    cases: int
    answers: int
    hits: int

    @property
    def recall(self) -> float | None:
        """Hits of the cases that have the type."""
        return self.hits / self.cases if self.cases else None

    @property
    def precision(self) -> float | None:
        """Hits of the answers that name the type."""
        return self.hits / self.answers if self.answers else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of the two."""
        both = self.cases + self.answers
        return 2 * self.hits / both if both else None


def type_scores(truth: Sequence[frozenset[str]], answered: Sequence[frozenset[str]]) -> list[TypeScore]:
    """Per risk type, over cases whose types are known; no answer is an empty set. The commonest in truth first."""
    scores = []
    for name in sorted(frozenset().union(*truth, *answered)):
        pairs = [(name in true, name in given) for true, given in zip(truth, answered, strict=True)]
        scores.append(
            TypeScore(
                name,
                cases=sum(true for true, _ in pairs),
                answers=sum(given for _, given in pairs),
                hits=sum(true and given for true, given in pairs),
            )
        )
    return sorted(scores, key=lambda score: (-score.cases, score.risk_type))


@dataclass(frozen=True)
class Bin:
    """One bin of the reliability curve: answers with about this confidence, and how many of them were right."""

    answers: int
    confidence: float  # mean
    right: float  # share


def reliability(confidences: ArrayLike, right: ArrayLike) -> list[Bin]:
    """The reliability curve over `BINS` bins of equal width, empty ones left out."""
    given, hits = np.asarray(confidences, float), np.asarray(right, float)
    which = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], given)
    return [
        Bin(int(inside.sum()), float(given[inside].mean()), float(hits[inside].mean()))
        for number in range(BINS)
        if (inside := which == number).any()
    ]


def calibration_error(bins: Sequence[Bin]) -> float | None:
    """Expected calibration error: how far confidence and being right are apart on average (0: as sure as right)."""
    total = sum(item.answers for item in bins)
    if not total:
        return None
    return sum(item.answers * abs(item.right - item.confidence) for item in bins) / total


def stability(first: ArrayLike, again: ArrayLike) -> float | None:
    """Share of pictures asked twice whose two answers name the same level; no answer twice counts as the same."""
    one, two = np.asarray(first), np.asarray(again)
    return float((one == two).mean()) if one.size else None


def quantile(values: Sequence[float], share: float) -> float | None:
    """Linear between the two nearest, as NumPy's default; None without values."""
    return float(np.quantile(values, share)) if values else None
