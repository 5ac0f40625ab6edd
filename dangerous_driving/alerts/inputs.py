"""What the lifecycle of alerts is fed with, and how messages become it. Pure.

An input is kept as JSON beside the change that it made (``alert_event.input``), so that alerts can be made again from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from dangerous_driving.alerts.quiet import Quiet
from dangerous_driving.contracts import (
    LIVE_RUN,
    AlertBasis,
    BBox,
    CameraId,
    DetectionResult,
    Message,
    RiskAssessment,
    RiskAssessmentResult,
    RiskLevel,
    Stage,
    Timestamp,
    Verdict,
    iso_milliseconds,
    task_id_of,
)

#: A lone object is no conflict: it makes no task, so that no answer would ever come.
MIN_OBJECTS = 2


class Sighting(Message):
    """One look at one traffic group: its geometry, the level read from the stream, or the whole answer."""

    kind: Literal[AlertBasis.GEOMETRY, AlertBasis.PROVISIONAL, AlertBasis.FINAL]
    at: Timestamp  # when it came to the lifecycle
    camera_id: CameraId
    task_id: str
    request_id: str  # messageId of the frame
    captured_at: Timestamp
    level: RiskLevel
    bbox: BBox
    risk_types: tuple[str, ...] = ()
    description: str = ""
    group_image_url: str | None = None
    simulated: bool = False
    frame_interval: float | None = None  # s, of the camera then; kept, since a replay must not see a later one
    quiet: Quiet | None = None  # notifications were held then

    @property
    def input_id(self) -> str:
        """``TASKID:STAGE``: the same look always has the same id."""
        return input_id_of(self.task_id, self.kind)


class Tick(Message):
    """The clock: silence closes alerts, an answer that stays away withdraws them, what nobody judges rings again."""

    kind: Literal["tick"] = "tick"
    at: Timestamp
    frame_interval: float | None = None
    quiet: Quiet | None = None

    @property
    def input_id(self) -> str:
        """``tick:TIME``."""
        return f"tick:{iso_milliseconds(self.at)}"


class VerdictGiven(Message):
    """What a person said of an alert."""

    kind: Literal["verdict"] = "verdict"
    at: Timestamp
    alert_id: str
    verdict: Verdict
    by: str
    note: str = ""

    @property
    def input_id(self) -> str:
        """``verdict:ALERTID:TIME``."""
        return f"verdict:{self.alert_id}:{iso_milliseconds(self.at)}"


Input = Annotated[Sighting | Tick | VerdictGiven, Field(discriminator="kind")]
AnyInput: TypeAdapter[Sighting | Tick | VerdictGiven] = TypeAdapter(Input)


def input_id_of(task_id: str, kind: AlertBasis) -> str:
    """The id of the sighting of this task at this stage."""
    return f"{task_id}:{kind}"


def task_ids(result: RiskAssessmentResult) -> list[str]:
    """The task of each entry of ``results``; a message without ``taskId`` is accepted, its tasks are derived."""
    if result.task_id is not None and len(result.results) == 1:
        return [result.task_id]
    return [task_id_of(result.request_id, entry.group_index) for entry in result.results]


def sightings_of_detection(
    result: DetectionResult, *, at: datetime, priority: float | None, level: RiskLevel
) -> list[Sighting]:
    """The groups of a frame that are alarming by geometry alone, as sightings of `level`.

    Args:
        result: the frame.
        at: now.
        priority: of a group from which on it counts; None: none does.
        level: what geometry is worth (the level at which alerts open).
    """
    if priority is None:
        return []
    return [
        Sighting(
            kind=AlertBasis.GEOMETRY,
            at=at,
            camera_id=result.camera_id,
            task_id=task_id_of(result.message_id, group.group_index),
            request_id=result.message_id,
            captured_at=result.timestamp,
            level=level,
            bbox=group.bbox,
            group_image_url=group.group_image_url,
        )
        for group in result.traffic_groups
        if group.priority >= priority and group.object_count >= MIN_OBJECTS
    ]


@dataclass(frozen=True)
class TaskDetails:
    """What a result message does not carry, from the ledger's task: its picture, and its box for old messages."""

    bbox: BBox
    group_image_url: str | None


def sightings_of_result(
    result: RiskAssessmentResult, *, at: datetime, details: Mapping[str, TaskDetails] | None = None
) -> list[Sighting]:
    """The answers in a message as sightings.

    None of a failure (it says nothing of the level), of a run other than `live` (a backfill alarms nobody), or of a
    group whose place is known neither from the message nor from `details`.

    Args:
        result: one message.
        at: now.
        details: of the message's tasks, by task id.
    """
    if result.error is not None or result.metadata.run != LIVE_RUN:
        return []
    known = details or {}
    entries = zip(task_ids(result), result.results, strict=True)
    sightings = [_sighting(result, task_id, entry, known.get(task_id), at) for task_id, entry in entries]
    return [sighting for sighting in sightings if sighting is not None]


def _sighting(
    result: RiskAssessmentResult, task_id: str, entry: RiskAssessment, details: TaskDetails | None, at: datetime
) -> Sighting | None:
    bbox = entry.group_bbox or (details.bbox if details else None)
    if bbox is None:
        return None
    model = result.metadata.llm_model or ""
    return Sighting(
        kind=AlertBasis.FINAL if result.stage is Stage.FINAL else AlertBasis.PROVISIONAL,
        at=at,
        camera_id=result.camera_id,
        task_id=task_id,
        request_id=result.request_id,
        # messages from before `capturedAt`: the answer's own time is the nearest that is known
        captured_at=result.captured_at or result.timestamp,
        level=entry.risk_level,
        bbox=bbox,
        risk_types=entry.risk_types,
        description=entry.description,
        group_image_url=details.group_image_url if details else None,
        simulated=model.startswith("simulated"),
    )
