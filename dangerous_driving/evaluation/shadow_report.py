"""A challenger in the shadow beside the champion, on one page (pure).

The two answered the same groups, so they are compared pair by pair: how often they agree (quadratic weighted kappa, as in
the evaluation), who would have alerted where the other would not, and, where people have judged an alert, who was right
(McNemar's exact test). Only what the champion alerted on was ever judged: of what the challenger alone sees nobody knows
whether it is right. So this page shows how live answers would change; the gate is what decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dangerous_driving.evaluation.comparison import mcnemar
from dangerous_driving.evaluation.metrics import DANGEROUS, LEVELS, NO_ANSWER, weighted_kappa
from dangerous_driving.ledger.shadows import Costs, ShadowReport

_RANKS = {level.value: level.rank for level in LEVELS}


@dataclass(frozen=True)
class ShadowFigures:
    """What the pairs say.

    Attributes:
        both: groups with both answers.
        agreed: of them, those of one level.
        kappa: quadratic weighted; None where there is nothing to agree on.
        only_champion: groups that only the champion finds dangerous (medium or high).
        only_challenger: likewise.
        failed: sampled groups that the challenger could not answer.
        judged: groups of judged alerts.
        champion_right: of them, by whether they are dangerous.
        challenger_right: likewise.
        p: of McNemar's test on the judged ones, two-sided; None without any.
    """

    both: int
    agreed: int
    kappa: float | None
    only_champion: int
    only_challenger: int
    failed: int
    judged: int
    champion_right: int
    challenger_right: int
    p: float | None


def shadow_figures(report: ShadowReport) -> ShadowFigures:
    """The figures of a report."""
    matrix = np.zeros((len(LEVELS), NO_ANSWER + 1))
    for (champion, challenger), count in report.pairs.items():
        matrix[_RANKS[champion], _RANKS[challenger]] += count
    kappa = float(weighted_kappa(matrix))
    right = [
        (one.dangerous == _dangerous(one.champion), one.dangerous == _dangerous(one.challenger))
        for one in report.judged
    ]
    _, _, p = mcnemar([first for first, _ in right], [second for _, second in right])
    return ShadowFigures(
        both=int(matrix.sum()),
        agreed=int(np.trace(matrix)),
        kappa=None if np.isnan(kappa) else kappa,
        only_champion=_where(report, champion=True),
        only_challenger=_where(report, champion=False),
        failed=report.states.get("failed", 0),
        judged=len(right),
        champion_right=sum(first for first, _ in right),
        challenger_right=sum(second for _, second in right),
        p=p if right else None,
    )


def _dangerous(level: str) -> bool:
    return _RANKS[level] >= DANGEROUS


def _where(report: ShadowReport, *, champion: bool) -> int:
    return sum(
        count
        for (first, second), count in report.pairs.items()
        if _dangerous(first) is champion and _dangerous(second) is not champion
    )


def markdown(report: ShadowReport) -> str:
    """The page."""
    found, who = shadow_figures(report), report.challenger
    names = [level.value for level in LEVELS]
    lines = [
        f"**{who.prompt_version}** with {who.model}, in the shadow of {who.share:.0%} of the groups since "
        f"{who.since:%Y-%m-%d %H:%M} UTC" + (f", ended {who.ended_at:%Y-%m-%d %H:%M}" if who.ended_at else ""),
        "",
        f"- {found.both} groups with both answers, {_share(found.agreed, found.both)} of the same level"
        + (f", weighted kappa {found.kappa:.2f}" if found.kappa is not None else ""),
        f"- only the champion finds {found.only_champion} dangerous, only the challenger {found.only_challenger}",
        f"- {found.failed} sampled groups the challenger could not answer; {report.given_up} windows were given up",
        f"- champion: {_costs(report.champion)}; challenger: {_costs(report.costs)}",
    ]
    if found.judged:
        lines.append(
            f"- of {found.judged} groups of alerts that people judged the champion has {found.champion_right} right, the "
            f"challenger {found.challenger_right} (McNemar p = {found.p:.3f}); only what the champion alerted on was judged"
        )
    lines += [
        "",
        f"| champion \\ challenger | {' | '.join(names)} |",
        "|---|" + "---|" * len(names),
        *(
            f"| {first} | {' | '.join(str(report.pairs.get((first, second), 0)) for second in names)} |"
            for first in names
        ),
    ]
    return "\n".join(lines)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"


def _costs(costs: Costs) -> str:
    if not costs.count:
        return "nothing yet"
    latency = "" if costs.latency_p50 is None else f", {costs.latency_p50:.2f} s (P95 {costs.latency_p95 or 0:.2f} s)"
    return f"{1000 * costs.cost / costs.count:.4g} of money per 1,000 groups{latency}"
