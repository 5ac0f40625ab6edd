"""The figures of a run, and of two runs against each other; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dangerous_driving.assessment.risk import types_named
from dangerous_driving.evaluation import metrics
from dangerous_driving.evaluation.answers import Answer, AskedCase
from dangerous_driving.evaluation.cases import SetCase, Split
from dangerous_driving.evaluation.comparison import Difference, Estimate, differences, estimates, mcnemar
from dangerous_driving.evaluation.metrics import Bin, Floats, TypeScore


@dataclass(frozen=True)
class Figures:
    """One side of a set, answered by one prompt and model.

    Attributes:
        cases: with an agreed truth; all figures are over these, answered or not.
        clusters: camera-days, which the intervals are drawn from.
        disagreements: cases whose labels contradict each other; asked, counted, and in no figure.
        by_source: of the cases.
        confusion: 4 x 5, rows are true levels, the last column is "no answer".
        estimates: of `metrics.MEASURES`.
        types: per risk type, over the cases whose types are known.
        bins: the reliability curve.
        calibration_error: expected calibration error.
        failures: by cause.
        latency_p50: s of a whole answer; so is ``latency_p95``.
        tokens: mean per answer, input and output.
        cost_per_1000: money per 1,000 groups.
        stability: share of the pictures asked twice with the same level twice; ``asked_twice`` of them.
    """

    cases: int
    clusters: int
    disagreements: int
    by_source: Mapping[str, int]
    confusion: Floats
    estimates: Mapping[str, Estimate]
    types: Sequence[TypeScore]
    bins: Sequence[Bin]
    calibration_error: float | None
    failures: Mapping[str, int]
    latency_p50: float | None
    latency_p95: float | None
    tokens: tuple[float, float] | None
    cost_per_1000: float | None
    stability: float | None
    asked_twice: int

    @property
    def coverage(self) -> float:
        """Share of the cases that were answered; 0 without cases."""
        return self.estimates["coverage"].value or 0.0

    def rows(self, split: Split) -> list[dict[str, Any]]:
        """As they are kept: one row per metric."""
        plain: dict[str, float | None] = {
            "cases": self.cases,
            "clusters": self.clusters,
            "disagreements": self.disagreements,
            "failed": sum(self.failures.values()),
            "calibration_error": self.calibration_error,
            "latency_p50": self.latency_p50,
            "latency_p95": self.latency_p95,
            "tokens_input": self.tokens[0] if self.tokens else None,
            "tokens_output": self.tokens[1] if self.tokens else None,
            "cost_per_1000": self.cost_per_1000,
            "stability": self.stability,
            **{f"cases_{source}": count for source, count in self.by_source.items()},
            **{f"recall_type_{score.risk_type}": score.recall for score in self.types},
            **{f"precision_type_{score.risk_type}": score.precision for score in self.types},
            **{f"f1_type_{score.risk_type}": score.f1 for score in self.types},
        }
        return [
            {"split": split.value, "metric": name, "value": item.value, "low": item.low, "high": item.high}
            for name, item in self.estimates.items()
        ] + [
            {"split": split.value, "metric": name, "value": value, "low": None, "high": None}
            for name, value in plain.items()
        ]


@dataclass(frozen=True)
class Compared:
    """Two runs on the held-out cases. ``only_champion`` and ``only_challenger``: cases whose level one alone had right."""

    differences: Mapping[str, Difference]
    cases: int
    clusters: int
    coverage: float  # the challenger's
    champion_coverage: float
    only_champion: int
    only_challenger: int
    mcnemar_p: float


def figures_of(cases: Sequence[SetCase], asked: Sequence[AskedCase], split: Split, *, resamples: int) -> Figures:
    """The figures of one side of a set."""
    members = [item for item in cases if item.split is split]
    agreed = [item for item in members if item.truth is not None]
    answers = _by_case(asked, 0)
    held = _Held(agreed, answers)
    given = [answers[item.case.case_id] for item in agreed if item.case.case_id in answers]
    answered = [item for item in given if item.risk_level is not None]
    sure = [
        (answer.confidence, bool(right))
        for answer, right in zip(held.answers, held.right, strict=True)
        if answer is not None and answer.confidence is not None and answer.risk_level is not None
    ]
    bins = metrics.reliability([confidence for confidence, _ in sure], [right for _, right in sure])
    again = _by_case(asked, 1)
    twice = [item.case.case_id for item in members if item.case.case_id in again and item.case.case_id in answers]
    latencies = [item.latency for item in answered if item.latency is not None]
    typed = [item for item in agreed if item.truth is not None and item.truth.risk_types is not None]
    return Figures(
        cases=len(agreed),
        clusters=held.count,
        disagreements=len(members) - len(agreed),
        by_source=Counter(item.case.source.value for item in agreed),
        confusion=held.matrices.sum(0),
        estimates=estimates(held.matrices, resamples=resamples),
        types=metrics.type_scores(
            [frozenset((item.truth.risk_types or ()) if item.truth else ()) for item in typed],
            [_types(answers.get(item.case.case_id)) for item in typed],
        ),
        bins=bins,
        calibration_error=metrics.calibration_error(bins),
        failures=Counter(
            (answers[item.case.case_id].failure_code or "unknown") if item.case.case_id in answers else "not_asked"
            for item in agreed
            if (answer := answers.get(item.case.case_id)) is None or answer.risk_level is None
        ),
        latency_p50=metrics.quantile(latencies, 0.5),
        latency_p95=metrics.quantile(latencies, 0.95),
        tokens=(
            float(np.mean([item.input_tokens for item in answered])),
            float(np.mean([item.output_tokens for item in answered])),
        )
        if answered
        else None,
        # what failed was paid for as well
        cost_per_1000=1000 * sum(item.cost for item in given) / len(agreed) if agreed and given else None,
        stability=metrics.stability(
            [_rank(answers[name]) for name in twice], [_rank(again[name]) for name in twice]
        ),
        asked_twice=len(twice),
    )  # fmt: skip


def compare(
    cases: Sequence[SetCase],
    champion: Sequence[AskedCase],
    challenger: Sequence[AskedCase],
    *,
    names: Sequence[str],
    resamples: int,
) -> Compared:
    """Hold two runs over the same set against each other, on its held-out side."""
    agreed = [item for item in cases if item.split is Split.HELD_OUT and item.truth is not None]
    before, after = _Held(agreed, _by_case(champion, 0)), _Held(agreed, _by_case(challenger, 0))
    lost, won, p = mcnemar(before.right, after.right)
    return Compared(
        differences(before.matrices, after.matrices, names=names, resamples=resamples),
        cases=len(agreed),
        clusters=before.count,
        coverage=after.coverage,
        champion_coverage=before.coverage,
        only_champion=lost,
        only_challenger=won,
        mcnemar_p=p,
    )


def mistakes(cases: Sequence[SetCase], asked: Sequence[AskedCase], *, limit: int) -> list[tuple[SetCase, Answer]]:
    """The worst answers of the held-out side: the farthest from the truth first, missed dangers before false alarms."""
    answers = _by_case(asked, 0)
    found: list[tuple[tuple[int, int, str], SetCase, Answer]] = []
    for item in cases:
        answer = answers.get(item.case.case_id)
        if item.split is not Split.HELD_OUT or item.truth is None or answer is None or answer.risk_level is None:
            continue
        missed = item.truth.lowest.rank - answer.risk_level.rank
        alarmed = answer.risk_level.rank - item.truth.highest.rank
        if max(missed, alarmed) > 0:
            found.append(((-max(missed, alarmed), -missed, item.case.case_id), item, answer))
    return [(item, answer) for _, item, answer in sorted(found, key=lambda entry: entry[0])[:limit]]


class _Held:
    """Answers held against the truth of cases, cluster by cluster."""

    def __init__(self, agreed: Sequence[SetCase], answers: Mapping[str, Answer]) -> None:
        self.answers = [answers.get(item.case.case_id) for item in agreed]
        given = [_rank(answer) for answer in self.answers]
        truths = [item.truth for item in agreed if item.truth is not None]
        lowest = [truth.lowest.rank for truth in truths]
        highest = [truth.highest.rank for truth in truths]
        numbers = {name: number for number, name in enumerate(sorted({item.case.cluster for item in agreed}))}
        self.count = len(numbers)
        truth = metrics.effective_truth(lowest, highest, given)
        answered = sum(rank != metrics.NO_ANSWER for rank in given)
        self.coverage = answered / len(given) if given else 0.0
        self.right: list[bool] = [bool(true == answer) for true, answer in zip(truth, given, strict=True)]
        self.matrices = metrics.confusion(truth, given, [numbers[item.case.cluster] for item in agreed], self.count)


def _by_case(asked: Sequence[AskedCase], ask: int) -> dict[str, Answer]:
    return {item.case_id: item.answer for item in asked if item.ask == ask}


def _rank(answer: Answer | None) -> int:
    if answer is None or answer.risk_level is None:
        return metrics.NO_ANSWER
    return answer.risk_level.rank


def _types(answer: Answer | None) -> frozenset[str]:
    return frozenset(types_named(answer.risk_types)) if answer is not None else frozenset()
