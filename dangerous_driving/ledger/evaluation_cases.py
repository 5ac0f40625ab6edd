"""Evaluation cases and sets in the ledger: added once, labelled by many, frozen as versioned sets."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Row, func, select, text
from sqlalchemy.dialects.postgresql import insert

from dangerous_driving.contracts import AssessmentTask, RiskLevel, Verdict
from dangerous_driving.evaluation.cases import Case, CaseSource, Label, SetCase, Split, Truth, split_of, truth_of
from dangerous_driving.ledger.claims import task_message
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.tables import EvaluationCase, EvaluationLabel, EvaluationSet, EvaluationSetCase

#: One lock for making sets, so that two nights' runs do not make the same version twice.
SET_LOCK = 7_261_020
#: Rows of one insert.
BATCH = 1000


@dataclass(frozen=True)
class LabelledCase:
    """A case and all that was said of it, in no order."""

    case: Case
    labels: tuple[Label, ...]

    @property
    def truth(self) -> Truth | None:
        """What the labels agree on; None: they contradict each other."""
        return truth_of(self.labels)


@dataclass(frozen=True)
class VerdictRow:
    """What a person said of an alert, and the group that they saw then; ``task`` is None when its row is gone."""

    event_id: int
    alert_id: str
    at: datetime
    verdict: Verdict
    by: str
    note: str
    level: RiskLevel
    risk_types: tuple[str, ...]
    task: AssessmentTask | None


@dataclass(frozen=True)
class SetVersion:
    """A frozen set. ``disagreements``: cases whose labels contradict each other; they are in it, without a truth."""

    version: int
    created_at: datetime
    cases: int
    held_out: int
    disagreements: int


def add_cases(engine: Engine, items: Iterable[LabelledCase]) -> int:
    """Add cases and labels; what is there already stays as it is. Returns how many cases are new."""
    wanted = list(items)
    added = 0
    for start in range(0, len(wanted), BATCH):
        part = wanted[start : start + BATCH]
        with transaction(engine) as connection:
            rows = [_case_row(item.case) for item in part]
            statement = insert(EvaluationCase).on_conflict_do_nothing().returning(EvaluationCase.case_id)
            added += len(connection.execute(statement, rows).all())
            labels = [_label_row(item.case.case_id, label) for item in part for label in item.labels]
            if labels:
                connection.execute(insert(EvaluationLabel).on_conflict_do_nothing(), labels)
    return added


def add_verdict(engine: Engine, case_id: str, label: Label, *, event_id: int, case: Case | None) -> None:
    """Add what a person said of an alert as a label, and the case itself where it is the first word on it."""
    with transaction(engine) as connection:
        if case is not None:
            connection.execute(insert(EvaluationCase).values(**_case_row(case)).on_conflict_do_nothing())
        connection.execute(
            insert(EvaluationLabel).values(**_label_row(case_id, label, event_id)).on_conflict_do_nothing()
        )


def list_cases(engine: Engine, *, source: CaseSource | None = None, camera_id: str | None = None) -> list[LabelledCase]:
    """All cases with their labels, in the order of their ids."""
    statement = select(EvaluationCase.__table__).order_by(EvaluationCase.case_id)
    if source is not None:
        statement = statement.where(EvaluationCase.source == source.value)
    if camera_id is not None:
        statement = statement.where(EvaluationCase.camera_id == camera_id)
    with transaction(engine) as connection:
        return _labelled(connection, connection.execute(statement).all())


def labels_of(engine: Engine, case_id: str) -> list[Label]:
    """What was said of a case."""
    with transaction(engine) as connection:
        statement = select(EvaluationLabel.__table__).where(EvaluationLabel.case_id == case_id)
        return [_label(row) for row in connection.execute(statement)]


def new_verdicts(engine: Engine) -> list[VerdictRow]:
    """Verdicts on alerts that no label follows from yet, in their order."""
    with transaction(engine) as connection:
        rows = connection.execute(text(_NEW_VERDICTS)).all()
    return [
        VerdictRow(
            event_id=row.event_id,
            alert_id=row.alert_id,
            at=row.at,
            verdict=Verdict(row.input["verdict"]),
            by=row.input["by"],
            note=row.input.get("note", ""),
            level=RiskLevel(row.alert["riskLevel"]),
            risk_types=tuple(row.alert.get("riskTypes") or ()),
            task=None if row.task_id is None else task_message(row),
        )
        for row in rows
    ]


def freeze_set(engine: Engine, *, held_out_share: float) -> SetVersion:
    """All cases as they are now, as a set; the newest set again where nothing has changed since."""
    with transaction(engine) as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": SET_LOCK})
        cases = _labelled(
            connection,
            connection.execute(select(EvaluationCase.__table__).order_by(EvaluationCase.case_id)).all(),
        )
        rows = [_member_row(item, held_out_share) for item in cases]
        digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
        newest = connection.execute(
            select(EvaluationSet.version, EvaluationSet.content_digest).order_by(EvaluationSet.version.desc()).limit(1)
        ).one_or_none()
        if newest is not None and newest.content_digest == digest:
            return _set_version(connection, newest.version)
        version = 1 if newest is None else newest.version + 1
        connection.execute(
            insert(EvaluationSet).values(version=version, content_digest=digest, held_out_share=held_out_share)
        )
        for start in range(0, len(rows), BATCH):
            connection.execute(
                insert(EvaluationSetCase),
                [{"set_version": version, **row} for row in rows[start : start + BATCH]],
            )
        return _set_version(connection, version)


def newest_set(engine: Engine) -> SetVersion | None:
    """The set that was frozen last."""
    with transaction(engine) as connection:
        version = connection.scalar(select(func.max(EvaluationSet.version)))
        return None if version is None else _set_version(connection, version)


def set_cases(engine: Engine, version: int) -> list[SetCase]:
    """The members of a set, in the order of their ids."""
    member, case = EvaluationSetCase, EvaluationCase
    statement = (
        select(case.__table__, member.split, member.lowest, member.highest, member.risk_types)
        .join(case, case.case_id == member.case_id)
        .where(member.set_version == version)
        .order_by(member.case_id)
    )
    with transaction(engine) as connection:
        return [
            SetCase(
                case=_case(row),
                split=Split(row.split),
                truth=None
                if row.lowest is None
                else Truth(
                    RiskLevel(row.lowest),
                    RiskLevel(row.highest),
                    None if row.risk_types is None else tuple(row.risk_types),
                ),
            )
            for row in connection.execute(statement)
        ]


def _set_version(connection: Connection, version: int) -> SetVersion:
    row = connection.execute(text(_SET_COUNTS), {"version": version}).one()
    return SetVersion(version, row.created_at, row.cases, row.held_out, row.disagreements)


def _labelled(connection: Connection, rows: Sequence[Row[Any]]) -> list[LabelledCase]:
    labels: dict[str, list[Label]] = defaultdict(list)
    statement = select(EvaluationLabel.__table__)
    if len(rows) < BATCH:
        statement = statement.where(EvaluationLabel.case_id.in_([row.case_id for row in rows]))
    for label in connection.execute(statement):
        labels[label.case_id].append(_label(label))
    return [LabelledCase(_case(row), tuple(labels[row.case_id])) for row in rows]


def _case_row(case: Case) -> dict[str, Any]:
    # pictures lie in the store: a picture in the message would be kept twice
    task = case.task.model_copy(update={"group_image_base64": None, "group_image_url": None})
    return {
        "case_id": case.case_id,
        "source": case.source.value,
        "origin": case.origin,
        "camera_id": case.task.camera_id,
        "captured_at": case.task.timestamp,
        "cluster": case.cluster,
        "task": task.model_dump(mode="json", by_alias=True),
        "picture_key": case.picture_key,
    }


def _label_row(case_id: str, label: Label, event_id: int | None = None) -> dict[str, Any]:
    return {
        "case_id": case_id,
        "labelled_by": label.by,
        "labelled_at": label.at,
        "lowest": label.lowest.value,
        "highest": label.highest.value,
        "risk_types": None if label.risk_types is None else list(label.risk_types),
        "note": label.note,
        "alert_event_id": event_id,
    }


def _member_row(item: LabelledCase, held_out_share: float) -> dict[str, Any]:
    truth = item.truth
    return {
        "case_id": item.case.case_id,
        "split": split_of(item.case.cluster, held_out_share=held_out_share).value,
        "lowest": None if truth is None else truth.lowest.value,
        "highest": None if truth is None else truth.highest.value,
        "risk_types": None if truth is None or truth.risk_types is None else sorted(truth.risk_types),
    }


def _case(row: Row[Any]) -> Case:
    return Case(
        case_id=row.case_id,
        source=CaseSource(row.source),
        origin=row.origin,
        task=AssessmentTask.model_validate(row.task),
        picture_key=row.picture_key,
        cluster=row.cluster,
    )


def _label(row: Row[Any]) -> Label:
    return Label(
        by=row.labelled_by,
        lowest=RiskLevel(row.lowest),
        highest=RiskLevel(row.highest),
        at=row.labelled_at,
        risk_types=None if row.risk_types is None else tuple(row.risk_types),
        note=row.note,
    )


# the alert in the event is as it stood when the verdict was given: its last task is the picture that was judged
_NEW_VERDICTS = """
SELECT e.id AS event_id, e.alert_id, e.at, e.input, e.alert, t.*
FROM alert_event e
LEFT JOIN assessment_task t
    ON t.captured_at = CAST(e.alert ->> 'lastSeenAt' AS timestamptz) AND t.task_id = e.alert ->> 'lastTaskId'
WHERE e.kind = 'verdict'
  AND NOT EXISTS (SELECT 1 FROM evaluation_label l WHERE l.alert_event_id = e.id)
ORDER BY e.id
"""

_SET_COUNTS = """
SELECT s.created_at, count(m.case_id) AS cases,
    count(*) FILTER (WHERE m.split = 'held_out') AS held_out,
    count(*) FILTER (WHERE m.case_id IS NOT NULL AND m.lowest IS NULL) AS disagreements
FROM evaluation_set s LEFT JOIN evaluation_set_case m ON m.set_version = s.version
WHERE s.version = :version GROUP BY s.version, s.created_at
"""
