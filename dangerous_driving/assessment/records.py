"""Rows of the ledger: what an answer looks like there, and how a call ended. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from dangerous_driving.assessment.answer import ParsedAnswer
from dangerous_driving.assessment.llm import Reply
from dangerous_driving.contracts import LIVE_RUN, AssessmentTask, Lane
from dangerous_driving.ledger.assessments import AssessmentRecord, CallOutcome
from dangerous_driving.settings import LlmSettings


@dataclass(frozen=True)
class Provenance:
    """Where an answer came from."""

    lane: Lane
    prompt_version: str
    key_hash: str
    call_id: str
    retry_count: int
    node: str
    reused_from: str | None = None


def assessment_record(
    task: AssessmentTask, answer: ParsedAnswer, reply: Reply, provenance: Provenance, llm: LlmSettings
) -> AssessmentRecord:
    """The row of an answer to a task."""
    return AssessmentRecord(
        captured_at=task.timestamp,
        task_id=task.task_id,
        run=LIVE_RUN,
        message_id=task.request_id,
        camera_id=task.camera_id,
        group_index=task.group_index,
        group_bbox=list(task.group_metadata.bbox),
        risk_level=answer.risk_level.value,
        confidence=answer.confidence,
        risk_types=list(answer.risk_types),
        description=answer.description,
        trigger_object_ids=list(answer.trigger_object_ids),
        danger_object_count=answer.danger_object_count,
        lane=provenance.lane.value,
        prompt_version=provenance.prompt_version,
        model=reply.model,
        key_hash=provenance.key_hash,
        call_id=provenance.call_id,
        retry_count=provenance.retry_count,
        first_token_latency=reply.first_token_latency,
        latency=reply.latency,
        input_tokens=reply.input_tokens,
        output_tokens=reply.output_tokens,
        cost=cost_of(llm, reply),
        reused_from=provenance.reused_from,
        raw_answer=reply.text,
        node=provenance.node,
        assessed_at=datetime.now(UTC),
    )


def reused_record(like: AssessmentRecord, task: AssessmentTask, lane: Lane, node: str) -> AssessmentRecord:
    """The row of an answer that was given to a near-identical group; its object ids are of another frame."""
    return replace(
        like,
        captured_at=task.timestamp,
        task_id=task.task_id,
        message_id=task.request_id,
        group_index=task.group_index,
        group_bbox=list(task.group_metadata.bbox),
        trigger_object_ids=[],
        lane=lane.value,
        retry_count=0,
        first_token_latency=None,
        latency=0.0,
        input_tokens=0,
        output_tokens=0,
        cost=0.0,
        reused_from=like.task_id,
        node=node,
        assessed_at=datetime.now(UTC),
    )


def call_outcome(
    llm: LlmSettings, status: str, reply: Reply, started: datetime, *, error: str | None = None
) -> CallOutcome:
    """How a call ended that brought a whole answer."""
    first = reply.first_token_latency
    return CallOutcome(
        status,
        http_status=200,
        first_token_at=None if first is None else started + timedelta(seconds=first),
        input_tokens=reply.input_tokens,
        output_tokens=reply.output_tokens,
        cost=cost_of(llm, reply),
        error=error,
    )


def cost_of(llm: LlmSettings, reply: Reply) -> float:
    """Money; prices are per million tokens."""
    return (reply.input_tokens * llm.price_input + reply.output_tokens * llm.price_output) / 1_000_000
