"""The report of a run, and of a challenger against the champion: one HTML page that needs nothing beside it.

It is written for somebody who never saw the project: what was asked, what came out, what it means, and how sure one can be.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from dangerous_driving.assessment.picture import fit_jpeg
from dangerous_driving.errors import ObjectNotFoundError, PictureError
from dangerous_driving.evaluation.answers import Answer
from dangerous_driving.evaluation.cases import SetCase, Truth
from dangerous_driving.evaluation.figures import Compared, Figures
from dangerous_driving.evaluation.gate import GateDecision, GateVerdict
from dangerous_driving.objects import ObjectStore

#: What each metric says, in words that end a sentence such as "share of …".
WORDS = {
    "recall_high": "scenes of level high that were called high",
    "precision_high": "answers “high” that were right",
    "f1_high": "both of these for high in one figure (F1)",
    "recall_medium": "scenes of level medium that were called medium",
    "precision_medium": "answers “medium” that were right",
    "f1_medium": "both of these for medium in one figure (F1)",
    "recall_dangerous": "dangerous scenes that would raise an alert",
    "precision_dangerous": "alerts that would be right",
    "f1_dangerous": "both of these for alerts in one figure (F1)",
    "accuracy": "scenes whose level was exactly right",
    "weighted_kappa": "agreement on the level beyond chance (weighted kappa)",
    "coverage": "scenes that got an answer at all",
}
#: Those that the summary plot shows, the most important first.
SHOWN = ("recall_high", "recall_dangerous", "precision_dangerous", "accuracy", "weighted_kappa", "coverage")
VERDICTS = {
    GateVerdict.BETTER: "better",
    GateVerdict.REFUSED: "refused",
    GateVerdict.NO_EVIDENCE: "no evidence",
}
#: px of the pictures of mistakes.
THUMBNAIL = 220
MISTAKES = 6


@dataclass(frozen=True)
class ReportHead:
    """What a report is about. ``simulated``: answers of the simulated LLM, which says nothing of real ones."""

    prompt_version: str
    model: str
    set_version: int
    run: str
    at: datetime
    simulated: bool


@dataclass(frozen=True)
class Judged:
    """A challenger held against the champion."""

    champion: str
    compared: Compared
    decision: GateDecision
    outcome: str  # what was done about it, in a sentence


@dataclass(frozen=True)
class Report:
    """The page, and its plots by name, as PNG."""

    html: str
    markdown: str
    plots: Mapping[str, bytes] = field(default_factory=dict)


def build_report(
    head: ReportHead,
    held_out: Figures,
    train: Figures,
    *,
    mistakes: Sequence[tuple[SetCase, Answer]],
    store: ObjectStore,
    judged: Judged | None = None,
    significance: float = 0.05,
) -> Report:
    """Write the report.

    Args:
        head: what it is about.
        held_out: the figures that count.
        train: those of the cases that prompt writers may look at.
        mistakes: shown with their pictures.
        store: of the pictures.
        judged: the comparison with the prompt in use, if this is a challenger.
        significance: level of the tests.
    """
    # matplotlib takes as long to load as all else here, and few runs draw
    from dangerous_driving.evaluation import plots

    drawn = {
        "metrics": plots.estimates_plot([(WORDS[name], held_out.estimates[name]) for name in SHOWN]),
        "confusion": plots.confusion_plot(held_out.confusion),
        "reliability": plots.reliability_plot(held_out.bins),
    }
    if judged is not None:
        drawn["differences"] = plots.differences_plot(
            WORDS,
            judged.compared.differences,
            {name: p < significance for name, p in judged.decision.adjusted.items()},
        )
    html = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            head=head,
            figures=held_out,
            train=train,
            judged=judged,
            verdict=None if judged is None else VERDICTS[judged.decision.verdict],
            words=WORDS,
            plots={name: _data(png, "png") for name, png in drawn.items()},
            mistakes=[_mistake(case, answer, store) for case, answer in mistakes],
            significance=significance,
        )
    )
    return Report(html, _markdown(head, held_out, judged, drawn), drawn)


def report_prefix(run: str) -> str:
    """Where the files of a run's report lie in the object store."""
    return f"reports/evaluation/{re.sub(r'[^A-Za-z0-9._-]+', '-', run)}"


def keep_report(store: ObjectStore, prefix: str, report: Report) -> str:
    """Put the page and its plots into the store; returns the page's URL."""
    for name, png in report.plots.items():
        store.put(f"{prefix}/{name}.png", png, "image/png")
    return store.put(f"{prefix}/report.html", report.html.encode(), "text/html; charset=utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dangerous_driving.evaluation", "templates"),
        autoescape=select_autoescape(["html", "jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["share"] = lambda value: "–" if value is None else f"{value:.0%}"
    environment.filters["figure"] = lambda value: "–" if value is None else f"{value:.3f}"
    environment.filters["signed"] = lambda value: "–" if value is None else f"{value:+.3f}"
    environment.filters["p"] = lambda value: "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"  # noqa: PLR2004
    return environment


def _mistake(case: SetCase, answer: Answer, store: ObjectStore) -> dict[str, Any]:
    try:
        picture = _data(fit_jpeg(store.get(case.case.picture_key), longest_side=THUMBNAIL), "jpeg")
    except (ObjectNotFoundError, PictureError):
        picture = None
    assert case.truth is not None  # mistakes have a truth  # noqa: S101
    assert answer.risk_level is not None  # and an answer  # noqa: S101
    return {
        "picture": picture,
        "truth": truth_words(case.truth),
        "missed": answer.risk_level.rank < case.truth.lowest.rank,
        "answered": answer.risk_level.value,
        "description": answer.description,
        "source": case.case.source.value,
        "case_id": case.case.case_id,
    }


def truth_words(truth: Truth) -> str:
    """``high``, or ``none or low``."""
    if truth.lowest is truth.highest:
        return truth.lowest.value
    between = [truth.lowest.value, truth.highest.value]
    return " or ".join(between) if truth.highest.rank - truth.lowest.rank == 1 else " to ".join(between)


def _markdown(head: ReportHead, figures: Figures, judged: Judged | None, drawn: Mapping[str, bytes]) -> str:
    """Short, for the page of a Dagster asset."""
    lines = []
    if head.simulated:
        lines.append("*Answers of the simulated LLM: they say nothing of a real one.*\n")
    if judged is not None:
        lines.append(f"**{head.prompt_version} against {judged.champion}: {VERDICTS[judged.decision.verdict]}.**")
        lines += [f"- {reason}" for reason in judged.decision.reasons]
        lines += [f"- {judged.outcome}", ""]
    lines += ["| share of … | value | 95 % interval |", "|---|---|---|"]
    for name in SHOWN:
        item = figures.estimates[name]
        value = "cannot be measured" if item.value is None else f"{item.value:.3f}"
        interval = "" if item.low is None or item.high is None else f"{item.low:.3f} to {item.high:.3f}"
        lines.append(f"| {WORDS[name]} | {value} | {interval} |")
    lines.append(
        f"\n{figures.cases} held-out cases of {figures.clusters} camera-days; {figures.disagreements} more with "
        f"contradicting labels; {sum(figures.failures.values())} without an answer.\n"
    )
    chosen = "differences" if judged is not None else "confusion"
    lines.append(f"![{chosen}]({_data(drawn[chosen], 'png')})")
    return "\n".join(lines)


def _data(picture: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
