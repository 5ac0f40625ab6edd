"""Result messages: what an assessment, a streamed level or a failure looks like on the topic. Pure."""

from __future__ import annotations

from datetime import datetime

from dangerous_driving.contracts import (
    AssessmentFailure,
    AssessmentMetadata,
    AssessmentTask,
    Lane,
    RiskAssessment,
    RiskAssessmentResult,
    RiskLevel,
    Stage,
    result_id_of,
)
from dangerous_driving.errors import (
    ContractError,
    DangerousDrivingError,
    ObjectNotFoundError,
    PictureError,
)
from dangerous_driving.ledger.assessments import AssessmentRecord

#: Why a task's picture cannot be had, and the cause that its failure gets. A store that is away is none: the task waits.
PICTURE_FAILURES: dict[type[DangerousDrivingError], str] = {
    ObjectNotFoundError: "image_missing",
    ContractError: "image_address",  # not one of this store
    PictureError: "image_unreadable",
}

#: A result at one of these levels says hasDangerousDriving.
DANGEROUS = (RiskLevel.MEDIUM, RiskLevel.HIGH)


def final_result(record: AssessmentRecord) -> RiskAssessmentResult:
    """The message of an answer as the ledger keeps it; the same row always makes the same message."""
    level = RiskLevel(record.risk_level)
    return RiskAssessmentResult(
        message_id=result_id_of(record.task_id, record.run, Stage.FINAL),
        request_id=record.message_id,
        camera_id=record.camera_id,
        timestamp=record.assessed_at,
        results=(
            RiskAssessment(
                group_index=record.group_index,
                risk_level=level,
                confidence=record.confidence,
                risk_types=tuple(record.risk_types),
                description=record.description,
                trigger_object_ids=tuple(record.trigger_object_ids),
                danger_object_count=record.danger_object_count,
                group_bbox=_box(record.group_bbox),
            ),
        ),
        has_dangerous_driving=level in DANGEROUS,
        max_risk_level=level,
        metadata=AssessmentMetadata(
            llm_latency=record.latency,
            llm_model=record.model,
            api_key=record.key_hash,
            retry_count=record.retry_count,
            processing_node=record.node,
            lane=Lane(record.lane),
            run=record.run,
            prompt_version=record.prompt_version,
            reused_from=record.reused_from,
        ),
        task_id=record.task_id,
        stage=Stage.FINAL,
        captured_at=record.captured_at,
    )


def provisional_result(
    task: AssessmentTask, level: RiskLevel, metadata: AssessmentMetadata, *, at: datetime
) -> RiskAssessmentResult:
    """The message of a level that was read from the stream, before the answer is whole."""
    return RiskAssessmentResult(
        message_id=result_id_of(task.task_id, metadata.run, Stage.PROVISIONAL),
        request_id=task.request_id,
        camera_id=task.camera_id,
        timestamp=at,
        results=(RiskAssessment(group_index=task.group_index, risk_level=level, group_bbox=task.group_metadata.bbox),),
        has_dangerous_driving=level in DANGEROUS,
        max_risk_level=level,
        metadata=metadata,
        task_id=task.task_id,
        stage=Stage.PROVISIONAL,
        captured_at=task.timestamp,
    )


def failed_result(
    task: AssessmentTask, failure: AssessmentFailure, metadata: AssessmentMetadata, *, at: datetime
) -> RiskAssessmentResult:
    """The message of a task that has no answer: no results, and the cause."""
    return RiskAssessmentResult(
        message_id=result_id_of(task.task_id, metadata.run, Stage.FINAL),
        request_id=task.request_id,
        camera_id=task.camera_id,
        timestamp=at,
        results=(),
        has_dangerous_driving=False,
        max_risk_level=RiskLevel.NONE,
        metadata=metadata,
        error=failure,
        task_id=task.task_id,
        stage=Stage.FINAL,
        captured_at=task.timestamp,
    )


def _box(sides: list[float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = sides
    return x1, y1, x2, y2
