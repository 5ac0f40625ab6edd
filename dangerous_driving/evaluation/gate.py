"""The gate: whether a challenger may take the champion's place, with its reasons; pure.

Two candidates are compared on the held-out cases that the set holds for both. The challenger is

- **refused** when it is significantly worse on any guarded metric, or leaves too many cases without an answer;
- **better** when it is significantly better on at least one guarded metric and on none significantly worse;
- else there is **no evidence** either way.

Not to be significantly worse proves little where few cases could have shown it. So there is no evidence, either, where too few
camera-days speak of a guarded metric, or where its interval does not rule out a loss that would matter; nor where the
champion itself left too many cases without an answer: what an endpoint lost is no mistake of its prompt.

Recall of ``high`` is the first guard and is judged by itself, at the full level: people are harmed by what it misses.
The other guarded metrics are adjusted for being several (Holm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from dangerous_driving.evaluation.comparison import Difference, fewest_clusters, holm

FIRST_GUARD = "recall_high"


class GateVerdict(StrEnum):
    """What the gate says of a challenger."""

    BETTER = "better"
    REFUSED = "refused"
    NO_EVIDENCE = "no_evidence"


@dataclass(frozen=True)
class GatePolicy:
    """When a difference counts.

    Attributes:
        guarded: metrics on which a challenger may not be worse.
        significance: level of the tests, such as 0.05.
        min_coverage: share of the cases that each of the two must have answered.
        min_cases: held-out cases below which nothing is decided.
        margin: loss of a guarded metric that its interval has to rule out before a challenger is better.
    """

    guarded: tuple[str, ...]
    significance: float
    min_coverage: float
    min_cases: int
    margin: float


@dataclass(frozen=True)
class GateDecision:
    """The verdict in words; ``adjusted`` are the p-values that were compared with the level."""

    verdict: GateVerdict
    reasons: tuple[str, ...]
    adjusted: Mapping[str, float]


def decide(
    differences: Mapping[str, Difference],
    *,
    cases: int,
    coverage: float,
    champion_coverage: float,
    policy: GatePolicy,
) -> GateDecision:
    """Judge a challenger.

    Args:
        differences: of the guarded metrics, by name.
        cases: held-out cases with an agreed truth.
        coverage: the challenger's, of these.
        champion_coverage: the champion's.
        policy: when a difference counts.
    """
    guarded = [differences[name] for name in policy.guarded]
    adjusted = _adjusted(guarded)
    worse = _significant(guarded, adjusted, policy.significance, better=False)
    better = _significant(guarded, adjusted, policy.significance, better=True)
    refusals = [f"significantly worse {_words(item, adjusted)}" for item in worse]
    if cases and coverage < policy.min_coverage:  # of no case nobody can answer a share
        refusals.append(
            f"it answered {coverage:.1%} of the cases, asked for are {policy.min_coverage:.1%} "
            "(a figure over the rest would say nothing)"
        )
    if refusals:
        return GateDecision(GateVerdict.REFUSED, tuple(refusals), adjusted)
    missing = _missing(guarded, cases=cases, champion_coverage=champion_coverage, policy=policy)
    if missing:
        return GateDecision(GateVerdict.NO_EVIDENCE, tuple(missing), adjusted)
    if better:
        gains = tuple(f"significantly better {_words(item, adjusted)}" for item in better)
        unsure = tuple(
            _may_lose(item, policy.margin) for item in guarded if item.low is None or item.low < -policy.margin
        )
        return GateDecision(GateVerdict.NO_EVIDENCE if unsure else GateVerdict.BETTER, (*unsure, *gains), adjusted)
    closest = min(guarded, key=lambda item: adjusted[item.metric])
    return GateDecision(
        GateVerdict.NO_EVIDENCE,
        (f"no guarded metric differs by more than chance; the nearest to it {_words(closest, adjusted)}",),
        adjusted,
    )


def _missing(guarded: Sequence[Difference], *, cases: int, champion_coverage: float, policy: GatePolicy) -> list[str]:
    """What is not there, and without which nothing can be decided."""
    missing = []
    if cases and champion_coverage < policy.min_coverage:
        missing.append(
            f"the champion answered only {champion_coverage:.1%} of the cases, asked for are {policy.min_coverage:.1%}: "
            "evaluate it again"
        )
    fewest = fewest_clusters(policy.significance)
    for item in guarded:
        if not item.defined:
            missing.append(f"{item.metric} cannot be measured: the held-out cases have none of its class")
        elif item.clusters < fewest:
            days = f"{item.clusters} camera-day{'s hold' if item.clusters != 1 else ' holds'}"
            missing.append(
                f"{item.metric}: {days} such {_counted(item)}, {fewest} are needed for a difference to be seen"
            )
    if cases < policy.min_cases:
        missing.append(f"{cases} held-out cases, at least {policy.min_cases} are needed (evaluation.min_cases)")
    return missing


def _may_lose(item: Difference, margin: float) -> str:
    if item.low is None or item.high is None:
        return f"{item.metric}: its difference has no interval, too few camera-days hold such {_counted(item)}"
    return (
        f"{item.metric}: a loss of {-item.low:.3f} cannot be ruled out (95 % interval {item.low:+.3f} to {item.high:+.3f}), "
        f"{margin:g} at most is let pass (evaluation.margin)"
    )


def _counted(item: Difference) -> str:
    return "answers" if item.metric.startswith("precision_") else "cases"


def _adjusted(guarded: Sequence[Difference]) -> dict[str, float]:
    known = {item.metric: item.p for item in guarded if item.p is not None}
    first = {name: p for name, p in known.items() if name == FIRST_GUARD}
    return {**first, **holm({name: p for name, p in known.items() if name not in first})}


def _significant(
    guarded: Sequence[Difference], adjusted: Mapping[str, float], level: float, *, better: bool
) -> list[Difference]:
    return [
        item
        for item in guarded
        if item.difference is not None
        and adjusted[item.metric] < level
        and (item.difference > 0 if better else item.difference < 0)
    ]


def _words(item: Difference, adjusted: Mapping[str, float]) -> str:
    interval = "" if item.low is None or item.high is None else f", 95 % interval {item.low:+.3f} to {item.high:+.3f}"
    return (
        f"on {item.metric}: {item.champion:.3f} -> {item.challenger:.3f} "
        f"({item.difference:+.3f}{interval}, p = {adjusted[item.metric]:.4f})"
    )
