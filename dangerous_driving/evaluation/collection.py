"""Operators' verdicts become cases: the picture that was judged is copied, so that retention cannot take it."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from sqlalchemy import Engine

from dangerous_driving.contracts import RiskLevel, Verdict
from dangerous_driving.errors import ContractError, ObjectNotFoundError
from dangerous_driving.evaluation.cases import (
    Case,
    CaseSource,
    Label,
    below,
    case_id_of,
    cluster_of,
    picture_key_of,
)
from dangerous_driving.ledger import evaluation_cases as ledger
from dangerous_driving.ledger.evaluation_cases import VerdictRow
from dangerous_driving.objects import ObjectStore

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Collected:
    """What became of new verdicts: ``without_picture`` names alerts whose picture or task is gone."""

    labels: int
    cases: int
    without_picture: tuple[str, ...]


def collect_verdicts(engine: Engine, store: ObjectStore, *, open_level: RiskLevel) -> Collected:
    """Turn every verdict that no label follows from yet into a label, and alerts judged for the first time into cases.

    Args:
        engine: of the ledger.
        store: of the pictures.
        open_level: level at which alerts open (``alerts.open_level``): a rejected alert lies below it.
    """
    labels = cases = 0
    without: list[str] = []
    for verdict in ledger.new_verdicts(engine):
        case_id = case_id_of(CaseSource.OPERATOR, verdict.alert_id)
        said = ledger.labels_of(engine, case_id)
        case = None
        if not said:
            case = _case(case_id, verdict, store)
            if case is None:
                without.append(verdict.alert_id)
                continue
            cases += 1
        label = verdict_label(verdict, said, open_level=open_level)
        ledger.add_verdict(engine, case_id, label, event_id=verdict.event_id, case=case)
        labels += 1
    if without:
        log.warning("verdicts_without_picture", alerts=without[:10], count=len(without))
    return Collected(labels, cases, tuple(without))


def verdict_label(verdict: VerdictRow, said: list[Label], *, open_level: RiskLevel) -> Label:
    """What a verdict says of the level.

    A rejection: below the level at which alerts open. A confirmation: the level that the alert showed; a second one
    confirms what the first did, even where the alert was raised in between.
    """
    if verdict.verdict is Verdict.REJECTED:
        highest = below(open_level) if open_level is not RiskLevel.NONE else RiskLevel.NONE
        # "no alert" says nothing of the kinds of danger, but that there is none worth an alert
        return Label(verdict.by, RiskLevel.NONE, highest, verdict.at, None, verdict.note)
    confirmed = next((label for label in said if label.lowest.rank >= open_level.rank), None)
    level = confirmed.lowest if confirmed is not None else max(verdict.level, open_level, key=lambda item: item.rank)
    types = confirmed.risk_types if confirmed is not None else verdict.risk_types
    return Label(verdict.by, level, level, verdict.at, types or None, verdict.note)


def _case(case_id: str, verdict: VerdictRow, store: ObjectStore) -> Case | None:
    task = verdict.task
    if task is None or task.group_image_url is None:
        return None
    try:
        picture = store.get(store.key(task.group_image_url))
    except (ObjectNotFoundError, ContractError):
        return None
    key = picture_key_of(case_id)
    store.put(key, picture, "image/jpeg")
    return Case(
        case_id=case_id,
        source=CaseSource.OPERATOR,
        origin=f"alert {verdict.alert_id}",
        task=task,
        picture_key=key,
        cluster=cluster_of(task.camera_id, task.timestamp),
    )
