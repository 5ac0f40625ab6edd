"""What noise leaves of a difference: intervals and tests that know which cases belong together; pure.

Cases of one camera and day are not independent: ten frames of one queue are one observation, about. So the bootstrap draws
clusters, not cases (Field and Welsh, Bootstrapping clustered data, 2007), and the test of a difference swaps the two
candidates' answers cluster by cluster (a paired permutation test; Good, Permutation, Parametric and Bootstrap Tests of
Hypotheses, 2005). With few clusters it cannot become significant, which is right: too little was seen.
McNemar's exact test, which takes cases for independent, is shown beside it as the usual figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, isnan

import numpy as np

from dangerous_driving.evaluation.metrics import MEASURES, Floats, Measure, counted

SEED = 20261
#: A resample without a single case of a class has no recall of it; below this share of defined ones there is no interval.
FEWEST_DEFINED = 0.5
#: So many clusters are enumerated in full instead of drawn.
ENUMERATED = 12


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % bootstrap interval; None where undefined. ``cases``: of the metric's denominator in truth."""

    metric: str
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """Challenger less champion on the same cases.

    ``p``: two-sided, of the paired permutation test over clusters. ``clusters``: those that hold a case or an answer which
    the metric counts; the others say nothing of it.
    """

    metric: str
    champion: float | None
    challenger: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    clusters: int

    @property
    def defined(self) -> bool:
        """Whether both have a value."""
        return self.difference is not None


def estimates(matrices: Floats, *, resamples: int, measures: Mapping[str, Measure] = MEASURES) -> dict[str, Estimate]:
    """Each measure with its interval.

    Args:
        matrices: confusion by cluster, (clusters, 4, 5).
        resamples: of clusters, with replacement.
        measures: name -> function.
    """
    total, drawn = matrices.sum(0), _resampled(matrices, resamples)
    found = {}
    for name, measure in measures.items():
        low, high = _interval(measure(drawn))
        found[name] = Estimate(name, _number(measure(total)), low, high)
    return found


def differences(champion: Floats, challenger: Floats, *, names: Sequence[str], resamples: int) -> dict[str, Difference]:
    """Compare two candidates on the same cases, measure by measure.

    Args:
        champion: its confusion by cluster, (clusters, 4, 5).
        challenger: the same clusters in the same order.
        names: of `MEASURES`.
        resamples: of the bootstrap; the permutation test draws five times as many.
    """
    totals = champion.sum(0), challenger.sum(0)
    weights = _weights(len(champion), resamples)
    drawn = np.tensordot(weights, champion, 1), np.tensordot(weights, challenger, 1)
    swaps = _swaps(len(champion), 5 * resamples)
    moved = np.tensordot(swaps, challenger - champion, 1)
    swapped = totals[0] + moved, totals[1] - moved
    found = {}
    for name in names:
        measure = MEASURES[name]
        clusters = int((counted(name, champion) | counted(name, challenger)).sum())
        before, after = _number(measure(totals[0])), _number(measure(totals[1]))
        if before is None or after is None:
            found[name] = Difference(name, before, after, None, None, None, None, clusters)
            continue
        low, high = _interval(measure(drawn[1]) - measure(drawn[0]))
        by_chance = np.abs(measure(swapped[1]) - measure(swapped[0]))
        found[name] = Difference(
            name, before, after, after - before, low, high, _p(by_chance, abs(after - before), len(champion)), clusters
        )
    return found


def fewest_clusters(level: float) -> int:
    """How many clusters have to speak of a metric, for its difference ever to be significant at this level.

    The most extreme of the 2**k ways to swap k clusters is as far as its mirror image: no p is below 2 / 2**k.
    """
    clusters = 1
    while 2 / 2**clusters >= level:
        clusters += 1
    return clusters


def mcnemar(champion_right: Sequence[bool], challenger_right: Sequence[bool]) -> tuple[int, int, float]:
    """McNemar's exact test: how often only the champion, only the challenger was right, and the two-sided p."""
    pairs = list(zip(champion_right, challenger_right, strict=True))
    lost = sum(before and not after for before, after in pairs)
    won = sum(after and not before for before, after in pairs)
    trials, fewer = lost + won, min(lost, won)
    tail = sum(comb(trials, count) for count in range(fewer + 1)) / 2**trials
    return lost, won, min(1.0, 2 * tail)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted for testing several metrics at once (Holm 1979): compare each with the level itself."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for number, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(p_values) - number) * p))
        adjusted[name] = highest
    return adjusted


def _weights(clusters: int, resamples: int) -> Floats:
    """How often each cluster is drawn in each resample."""
    if not clusters:
        return np.zeros((resamples, 0))
    draw = np.random.default_rng(SEED)
    return draw.multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples).astype(float)


def _resampled(matrices: Floats, resamples: int) -> Floats:
    resampled: Floats = np.tensordot(_weights(len(matrices), resamples), matrices, 1)
    return resampled


def _swaps(clusters: int, draws: int) -> Floats:
    """Which clusters are swapped in each draw; all ways where they are few."""
    if clusters <= ENUMERATED:
        return ((np.arange(2**clusters)[:, None] >> np.arange(clusters)) & 1).astype(float)
    return np.random.default_rng(SEED + 1).integers(0, 2, (draws, clusters)).astype(float)


def _p(by_chance: Floats, seen: float, clusters: int) -> float:
    # an undefined draw says nothing against chance
    as_far = int((~(by_chance < seen - 1e-12)).sum())
    if clusters <= ENUMERATED:
        return as_far / len(by_chance)
    return (1 + as_far) / (1 + len(by_chance))


def _interval(values: Floats) -> tuple[float | None, float | None]:
    defined = values[~np.isnan(values)]
    if not len(values) or len(defined) < FEWEST_DEFINED * len(values):
        return None, None
    low, high = np.quantile(defined, (0.025, 0.975))
    return float(low), float(high)


def _number(value: Floats) -> float | None:
    return None if isnan(float(value)) else float(value)
