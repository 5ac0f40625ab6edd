"""The stages that a frame and its groups pass from capture to push: each is a histogram's label and a span's name.

``capture_to_stage_seconds{stage}`` counts from capture, so that the seconds between two stages are the difference of their
means, and the differences add up to the whole (``infra/prometheus/rules/recording.yml`` has them as ``hop:…``).

======================  =====================================================  =============
stage                   reached when                                           told by
======================  =====================================================  =============
``detected``            the brokers have the detection result                  detect
``recorded``            a group's task is in the ledger, about to be sent      tasks
``claimed``             a scheduler holds the task                             assess
``called``              its first request to the endpoint leaves               assess
``level``               the risk level was read from the answer's stream       assess
``assessed``            the whole answer is in the ledger                      assess
``alert_BASIS``         an alert with that basis is in the ledger              alerts
``push_BASIS``          it was handed to the browsers                          realtime
``push_detection``      a frame's boxes were handed to the browsers            realtime
======================  =====================================================  =============

BASIS is ``geometry``, ``provisional`` (the streamed level) or ``final``. The lanes below realtime are not in it: what they
assess was captured long ago.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from dangerous_driving.contracts import Alert, AssessmentTask, DetectionResult, Lane
from dangerous_driving.observability import tracing
from dangerous_driving.observability.metrics import STAGE_SECONDS, exemplar


class Stage(StrEnum):
    """See above; those of alerts end in their basis."""

    DETECTED = "detected"
    RECORDED = "recorded"
    CLAIMED = "claimed"
    CALLED = "called"
    LEVEL = "level"
    ASSESSED = "assessed"
    ALERT = "alert"
    PUSH = "push"


#: Spans of a task that last from one stage to the next have names of what is waited for.
SPANS = {
    Stage.RECORDED: "task",
    Stage.CLAIMED: "claim",
    Stage.CALLED: "wait for key",
    Stage.LEVEL: "first token",
    Stage.ASSESSED: "call",
    Stage.ALERT: "alert",
    Stage.PUSH: "push",
}


def frame_detected(result: DetectionResult, *, known_after: float, at: datetime) -> None:
    """The brokers have a frame's detection result.

    Args:
        result: as it was sent.
        known_after: s from its capture until its detections were known.
        at: when the receipt came.
    """
    _observe(Stage.DETECTED, result.timestamp, at, exemplar("message_id", result.message_id))
    tracer = tracing.current()
    if tracer is not None:
        told = {"camera_id": result.camera_id, "message_id": result.message_id}
        known = result.timestamp + timedelta(seconds=known_after)
        tracer.span("detect", result.message_id, since=result.timestamp, until=known, attributes=told)
        tracer.begin(result.message_id, result.timestamp, at, told)


def task_reached(
    stage: Stage, task: AssessmentTask, lane: Lane = Lane.REALTIME, *, since: datetime | None = None
) -> None:
    """A task of the realtime lane reached a stage, just now; other lanes are passed over.

    Args:
        stage: which.
        task: the task.
        lane: whose it is.
        since: when what the span is about began; None: at the stage before.
    """
    if lane is not Lane.REALTIME:
        return
    now = datetime.now(UTC)
    _observe(stage, task.timestamp, now, exemplar("task_id", task.task_id))
    tracer = tracing.current()
    if tracer is not None:
        tracer.span(
            SPANS[stage], task.request_id, task.task_id, since=since, until=now,
            attributes={"camera_id": task.camera_id, "task_id": task.task_id},
        )  # fmt: skip


def tasks_reached(stage: Stage, tasks: Collection[AssessmentTask]) -> None:
    """The same for many."""
    for task in tasks:
        task_reached(stage, task)


def alert_reached(stage: Stage, alert: Alert, *, at: datetime) -> None:
    """An alert with a new basis reached a stage (``alert`` or ``push``)."""
    _observe(f"{stage}_{alert.basis}", alert.last_seen_at, at, exemplar("task_id", alert.last_task_id))
    tracer = tracing.current()
    if tracer is not None:
        tracer.span(
            SPANS[stage], alert.last_request_id, alert.last_task_id, until=at,
            attributes={
                "camera_id": alert.camera_id, "alert_id": alert.alert_id, "basis": alert.basis.value,
                "risk_level": alert.risk_level.value,
            },
        )  # fmt: skip


def result_delivered(message_id: str, task_id: str, camera_id: str) -> None:
    """The brokers have a task's final result, since just now. A span, no stage: the alerts service goes on meanwhile."""
    tracer = tracing.current()
    if tracer is not None:
        told = {"camera_id": camera_id, "task_id": task_id}
        tracer.span("result", message_id, task_id, until=datetime.now(UTC), attributes=told)


def frame_pushed(result: DetectionResult, *, at: datetime) -> None:
    """A frame's boxes were handed to the browsers."""
    _observe(f"{Stage.PUSH}_detection", result.timestamp, at, exemplar("message_id", result.message_id))


def _observe(stage: str, captured_at: datetime, at: datetime, remembered: dict[str, str] | None) -> None:
    # a camera's clock may be ahead of ours
    STAGE_SECONDS.labels(str(stage)).observe(max(0.0, (at - captured_at).total_seconds()), remembered)
