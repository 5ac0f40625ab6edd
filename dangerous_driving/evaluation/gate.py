"""The gate: whether a challenger may take the champion's place, with its reasons; pure.

Two candidates are compared on the held-out cases that the set holds for both. The challenger is

- **refused** when it is significantly worse on any guarded metric, or leaves too many cases without an answer;
- **better** when it is significantly better on at least one guarded metric and on none significantly worse;
- else there is **no evidence** either way.

Recall of ``high`` is the first guard and is judged by itself, at the full level: people are harmed by what it misses.
The other guarded metrics are adjusted for being several (Holm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from dangerous_driving.evaluation.comparison import Difference, holm

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
        min_coverage: share of the cases that the challenger must have answered.
        min_cases: held-out cases below which nothing is decided.
    """

    guarded: tuple[str, ...]
    significance: float
    min_coverage: float
    min_cases: int


@dataclass(frozen=True)
class GateDecision:
    """The verdict in words; ``adjusted`` are the p-values that were compared with the level."""

    verdict: GateVerdict
    reasons: tuple[str, ...]
    adjusted: Mapping[str, float]


def decide(differences: Mapping[str, Difference], *, cases: int, coverage: float, policy: GatePolicy) -> GateDecision:
    """Judge a challenger.

    Args:
        differences: of the guarded metrics, by name.
        cases: held-out cases with an agreed truth.
        coverage: the challenger's, of these.
        policy: when a difference counts.
    """
    guarded = [differences[name] for name in policy.guarded]
    adjusted = _adjusted(guarded)
    worse = _significant(guarded, adjusted, policy.significance, better=False)
    better = _significant(guarded, adjusted, policy.significance, better=True)
    refusals = [f"significantly worse {_words(item, adjusted)}" for item in worse]
    if coverage < policy.min_coverage:
        refusals.append(
            f"it answered {coverage:.1%} of the cases, asked for are {policy.min_coverage:.1%} "
            "(a figure over the rest would say nothing)"
        )
    if refusals:
        return GateDecision(GateVerdict.REFUSED, tuple(refusals), adjusted)
    missing = [
        f"{item.metric} cannot be measured: the held-out cases have none of its class"
        for item in guarded
        if not item.defined
    ]
    if cases < policy.min_cases:
        missing.append(f"{cases} held-out cases, at least {policy.min_cases} are needed (evaluation.min_cases)")
    if missing:
        return GateDecision(GateVerdict.NO_EVIDENCE, tuple(missing), adjusted)
    if better:
        return GateDecision(
            GateVerdict.BETTER, tuple(f"significantly better {_words(item, adjusted)}" for item in better), adjusted
        )
    closest = min(guarded, key=lambda item: adjusted[item.metric])
    return GateDecision(
        GateVerdict.NO_EVIDENCE,
        (f"no guarded metric differs by more than chance; the nearest to it {_words(closest, adjusted)}",),
        adjusted,
    )


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
