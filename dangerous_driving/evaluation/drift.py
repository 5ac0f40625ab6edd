"""Whether a camera shows today what it has shown in the weeks before (pure).

Four variables of its detections, each a histogram by hour: the mix of classes, the confidences, the sizes of traffic
groups, and the road users of a frame (a camera that was turned to a wall finds none, and then only this one tells).

A day is held against what *its hours* were like before: a junction at 8 on a Monday is no junction at 3 on a Sunday. For
each hour of the day the shares come from the same hour of the same weekday, where there is too little from the same hour
of working days or of weekends, else from wider ranges; their mean, weighted by how much the day has of each hour, is what
was to be expected (direct standardisation). Weekday and hour are in UTC: a place in the week is one in any zone.

The distance is the population stability index, with the bounds that are in common use: 0.1 is worth a look, 0.25 is a
major change (Siddiqi, Credit Risk Scorecards, 2006). The index of equal distributions grows as counts shrink (Yurdakul and
Naranjo, Statistical properties of the population stability index, 2020), and consecutive frames show the same cars, so
that counts are worth less than they look. So a day has to be unusual for its camera, too: beyond the median of the past
days' own indices, each against the others, by three scaled median absolute deviations (Leys et al., Detecting outliers,
2013). The Jensen-Shannon divergence (Lin, 1991; in bits, 0 to 1) is told beside it, since it is bounded.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from math import log, log2
from statistics import median

#: Counts that a range of hours needs to stand for an hour; with fewer, a wider one is taken.
ENOUGH_FOR_AN_HOUR = 50
#: Added to each bin's count, as of the smaller of the two histograms, so that an empty one has a logarithm (Jeffreys' prior).
PRIOR = 0.5
#: Bins of which a day may expect fewer than so many counts are taken together: their shares are chance (Cochran's rule for
#: expected counts, Some methods for strengthening the common chi-square tests, 1954).
FEWEST_EXPECTED = 5
#: The bin that they become.
RARER = "rarer ones"
#: Scaled so that the median absolute deviation of a normal distribution is its standard deviation.
MAD_SCALE = 1.4826
DEVIATIONS = 3.0
#: The first day of the weekend, as `date.weekday` counts.
SATURDAY = 5
#: Bins that a score names at most.
NAMED = 3

Counts = Mapping[str, float]


class Variable(StrEnum):
    """What is watched."""

    CLASS = "class"
    CONFIDENCE = "confidence"
    GROUP_SIZE = "group_size"
    ROAD_USERS = "road_users"


class State(StrEnum):
    """What a day was, from calm to not; ``too_little``: nothing can be said."""

    TOO_LITTLE = "too_little"
    STABLE = "stable"
    MODERATE = "moderate"
    DRIFTED = "drifted"


@dataclass(frozen=True, slots=True)
class Profile:
    """A camera's histogram of one variable in one hour (UTC)."""

    hour: datetime
    counts: Counts
    model: str = ""


@dataclass(frozen=True, slots=True)
class Bounds:
    """See :class:`~dangerous_driving.settings.MonitoringSettings`."""

    moderate: float = 0.1
    major: float = 0.25
    days: int = 5
    counts: int = 200


@dataclass(frozen=True, slots=True)
class Change:
    """A bin's share, as it was to be expected and as it was."""

    bin: str
    expected: float
    actual: float


@dataclass(frozen=True, slots=True)
class Score:
    """A day of a camera in one variable.

    Attributes:
        variable: which.
        state: the verdict.
        psi: population stability index against the expectation; None where there is too little.
        jensen_shannon: divergence in bits, likewise.
        usual: the index above which a day of this camera is unusual; None where there are too few days to tell.
        count: of the day.
        baseline_count: of the days before.
        baseline_days: of them, those that have enough.
        changes: the bins that contribute most.
        model: the detector's weights on that day; several are joined by a comma.
        model_changed: whether the days before were seen by others, which alone may explain a drift.
    """

    variable: Variable
    state: State
    psi: float | None
    jensen_shannon: float | None
    usual: float | None
    count: int
    baseline_count: int
    baseline_days: int
    changes: tuple[Change, ...] = ()
    model: str = ""
    model_changed: bool = False


def population_stability_index(expected: Counts, actual: Counts) -> float:
    """Sum over the bins of (a - e) ln(a / e), with shares a and e of the two counts; 0 for equal ones, and symmetric."""
    first, second = _shares(expected, actual)
    return sum((second[bin_] - first[bin_]) * log(second[bin_] / first[bin_]) for bin_ in first)


def jensen_shannon_divergence(expected: Counts, actual: Counts) -> float:
    """Mean of the two Kullback-Leibler divergences to the mixture, in bits: 0 for equal shares, 1 for disjoint ones."""
    totals = sum(expected.values()), sum(actual.values())
    divergence = 0.0
    for bin_ in _bins(expected, actual):
        shares = expected.get(bin_, 0) / totals[0], actual.get(bin_, 0) / totals[1]
        middle = sum(shares) / 2
        divergence += sum(share / 2 * log2(share / middle) for share in shares if share > 0)
    return min(1.0, max(0.0, divergence))


def _bins(expected: Counts, actual: Counts) -> list[str]:
    return sorted({bin_ for counts in (expected, actual) for bin_, count in counts.items() if count > 0})


def _shares(expected: Counts, actual: Counts) -> tuple[dict[str, float], dict[str, float]]:
    bins, totals = _bins(expected, actual), (sum(expected.values()), sum(actual.values()))
    prior = PRIOR / min(totals)
    first, second = (
        {bin_: (counts.get(bin_, 0) / total + prior) / (1 + prior * len(bins)) for bin_ in bins}
        for counts, total in zip((expected, actual), totals, strict=True)
    )
    return first, second


def without_rare_bins(expected: Counts, actual: Counts) -> tuple[dict[str, float], dict[str, float]]:
    """Both with the bins taken together of which fewer than `FEWEST_EXPECTED` counts were to be expected in `actual`."""
    scale = sum(actual.values()) / sum(expected.values())
    pooled: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for bin_ in _bins(expected, actual):
        name = bin_ if expected.get(bin_, 0) * scale >= FEWEST_EXPECTED else RARER
        for counts, into in zip((expected, actual), pooled, strict=True):
            into[name] = into.get(name, 0) + counts.get(bin_, 0)
    return pooled


class Baseline:
    """What a camera's hours are like, summed over its past days; a day can be taken out again, to be judged by the rest."""

    def __init__(self, past: Iterable[Profile]) -> None:
        self._ranges: dict[tuple[object, ...], Counter[str]] = defaultdict(Counter)
        for profile in past:
            self._add(profile, 1)

    def _add(self, profile: Profile, sign: int) -> None:
        for key in ranges_of(profile.hour):
            counter = self._ranges[key]
            for bin_, count in profile.counts.items():
                counter[bin_] += sign * int(count)

    def without(self, day: Sequence[Profile]) -> Baseline:
        """The same without one day, of which it was made."""
        other = Baseline(())
        other._ranges = defaultdict(Counter, {key: Counter(counts) for key, counts in self._ranges.items()})
        for profile in day:
            other._add(profile, -1)
        return other

    @property
    def total(self) -> int:
        """All counts."""
        return self._ranges[()].total()

    def expected(self, day: Sequence[Profile]) -> dict[str, float]:
        """The shares to be expected of these hours, as counts that sum to `total`."""
        wanted = sum(sum(profile.counts.values()) for profile in day)
        shares: dict[str, float] = defaultdict(float)
        for profile in day:
            weight = sum(profile.counts.values()) / wanted
            known = next(
                (
                    self._ranges[key]
                    for key in ranges_of(profile.hour)
                    if self._ranges[key].total() >= ENOUGH_FOR_AN_HOUR
                ),
                self._ranges[()],
            )
            for bin_, count in known.items():
                if count > 0:
                    shares[bin_] += weight * count / known.total()
        return {bin_: share * self.total for bin_, share in shares.items()}


def ranges_of(hour: datetime) -> tuple[tuple[object, ...], ...]:
    """The ranges of hours that can stand for one, the most alike first; the last, (), is all."""
    weekday, of_day = hour.weekday(), hour.hour
    weekend = weekday >= SATURDAY
    return ("weekday", weekday, of_day), ("kind", weekend, of_day), ("hour", of_day), ("kind", weekend), ()


def score_day(variable: Variable, day: date, profiles: Sequence[Profile], bounds: Bounds) -> Score:
    """Hold a day against the days before it.

    Args:
        variable: which one the profiles are of.
        day: in UTC; profiles after it are passed over.
        profiles: of one camera and variable, of the day and of the weeks before.
        bounds: when to speak.
    """
    by_day: dict[date, list[Profile]] = defaultdict(list)
    for profile in profiles:
        if profile.hour.date() <= day:
            by_day[profile.hour.date()].append(profile)
    today = by_day.pop(day, [])
    count = _total(today)
    past = {one: hours for one, hours in by_day.items() if _total(hours) >= bounds.counts}
    baseline = Baseline(profile for hours in past.values() for profile in hours)
    models, before = _models(today), {profile.model for hours in past.values() for profile in hours}
    said = {
        "count": count,
        "baseline_count": baseline.total,
        "baseline_days": len(past),
        "model": ", ".join(sorted(models)),
        "model_changed": bool(before) and bool(models - before),
    }
    if count < bounds.counts or len(past) < bounds.days:
        return Score(variable, State.TOO_LITTLE, None, None, None, **said)  # type: ignore[arg-type]
    expected, actual = without_rare_bins(baseline.expected(today), _summed(today))
    psi = population_stability_index(expected, actual)
    usual = usual_index([_index_of(hours, baseline.without(hours)) for hours in past.values()])
    state = State.STABLE
    if psi > usual:
        state = State.DRIFTED if psi >= bounds.major else State.MODERATE if psi >= bounds.moderate else State.STABLE
    return Score(
        variable,
        state,
        psi,
        jensen_shannon_divergence(expected, actual),
        usual,
        changes=changes(expected, actual),
        **said,  # type: ignore[arg-type]
    )


def usual_index(indices: Sequence[float]) -> float:
    """The index above which a day is unusual: median and `DEVIATIONS` scaled median absolute deviations of the past ones."""
    middle = median(indices)
    return middle + DEVIATIONS * MAD_SCALE * median(abs(index - middle) for index in indices)


def changes(expected: Counts, actual: Counts) -> tuple[Change, ...]:
    """The bins that contribute most to the index, the largest contribution first."""
    first, second = _shares(expected, actual)
    order = sorted(first, key=lambda bin_: -(second[bin_] - first[bin_]) * log(second[bin_] / first[bin_]))
    return tuple(Change(bin_, first[bin_], second[bin_]) for bin_ in order[:NAMED])


def told(score: Score) -> str:
    """A drift in a sentence."""
    parts = ", ".join(f"{one.bin} {one.expected:.0%} -> {one.actual:.0%}" for one in score.changes)
    name = {
        Variable.CLASS: "the mix of classes",
        Variable.CONFIDENCE: "the detector's confidence",
        Variable.GROUP_SIZE: "the size of traffic groups",
        Variable.ROAD_USERS: "the number of road users in a frame",
    }[score.variable]
    weights = f"; the detector's weights changed, too ({score.model})" if score.model_changed else ""
    return f"{name} has changed (PSI {score.psi or 0:.2f}, usual up to {score.usual or 0:.2f}): {parts}{weights}"


def _index_of(day: Sequence[Profile], baseline: Baseline) -> float:
    return population_stability_index(*without_rare_bins(baseline.expected(day), _summed(day)))


def _summed(profiles: Iterable[Profile]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for profile in profiles:
        counts.update({bin_: int(count) for bin_, count in profile.counts.items()})
    return counts


def _total(profiles: Iterable[Profile]) -> int:
    return _summed(profiles).total()


def _models(profiles: Iterable[Profile]) -> set[str]:
    return {profile.model for profile in profiles}
