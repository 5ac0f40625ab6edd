"""Evaluations of the detector, kept so that weights can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import Engine, and_, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from dangerous_driving.evaluation.detection_scores import ALL
from dangerous_driving.evaluation.detector import DetectorReport
from dangerous_driving.evaluation.group_recall import GROUP
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.tables import DetectorEvaluation, DetectorGroupRecall, DetectorScoreRow


@dataclass(frozen=True)
class KnownEvaluation:
    """One evaluation in short; ``ap`` and ``ap50`` are means over all classes."""

    evaluation_id: str
    weights: str
    weights_hash: str
    data_set: str
    data_hash: str
    simulated: bool
    pictures: int
    ap: float | None
    ap50: float | None
    recall: float | None
    groups: int
    groups_found: int
    evaluated_at: datetime


def keep_report(engine: Engine, report: DetectorReport) -> None:
    """Write an evaluation; the same one again takes the place of the first."""
    settings = report.settings
    key = {"evaluation_id": report.evaluation_id}
    with transaction(engine) as connection:
        connection.execute(delete(DetectorEvaluation).where(DetectorEvaluation.evaluation_id == report.evaluation_id))
        connection.execute(
            insert(DetectorEvaluation).values(
                **key,
                weights=report.weights,
                weights_hash=report.weights_hash,
                data_set=report.data_set,
                data_hash=report.data_hash,
                simulated=report.simulated,
                pictures=report.pictures,
                engine=settings.engine,
                input_size=settings.input_size,
                confidence=settings.confidence,
                iou=settings.iou,
                group_distance=settings.group_distance,
            )
        )
        connection.execute(insert(DetectorScoreRow), [key | asdict(score) for score in report.scores])
        connection.execute(insert(DetectorGroupRecall), [key | asdict(recall) for recall in report.groups])


def evaluations(engine: Engine, *, data_hash: str | None = None) -> Sequence[KnownEvaluation]:
    """All evaluations, newest first, or those on the same pictures."""
    table, score, recall = DetectorEvaluation, DetectorScoreRow, DetectorGroupRecall
    of_all = [score.class_name == ALL, score.size == ALL, score.light == ALL, score.weather == ALL]
    of_groups = [recall.kind == GROUP, recall.risk_type == ALL, recall.light == ALL, recall.weather == ALL]
    statement = (
        select(
            table.evaluation_id, table.weights, table.weights_hash, table.data_set, table.data_hash, table.simulated,
            table.pictures, score.ap, score.ap50, score.recall, func.coalesce(recall.groups, 0),
            func.coalesce(recall.found, 0), table.evaluated_at,
        )
        .join(score, and_(score.evaluation_id == table.evaluation_id, *of_all))
        .outerjoin(recall, and_(recall.evaluation_id == table.evaluation_id, *of_groups))
        .order_by(table.evaluated_at.desc(), table.evaluation_id)
    )  # fmt: skip
    if data_hash is not None:
        statement = statement.where(table.data_hash == data_hash)
    with transaction(engine) as connection:
        return [KnownEvaluation(*row) for row in connection.execute(statement)]
