"""One detection result -> its assessment tasks. Pure, and shared by the tasks service and the Flink job."""

from __future__ import annotations

from datetime import datetime, timedelta

from dangerous_driving.contracts import (
    AssessmentTask,
    BBox,
    DetectedObject,
    DetectionResult,
    GroupMetadata,
    TrafficGroup,
    require_key,
    task_id_of,
)
from dangerous_driving.errors import ContractError

#: A lone object is no conflict: groups below this make no task.
MIN_OBJECTS = 2

#: A capture time further ahead is a sender's wrong clock: its frame would stand in a window that closes in the future,
#: with nobody to assess it until then.
MAX_AHEAD = timedelta(days=1)

#: Bytes of a task as JSON, for Flink. The topic takes 1 MiB as compressed, of which a picture hardly loses any, so this leaves
#: room for the key and what surrounds a message.
MAX_TASK_BYTES = 1_000_000


def require_captured_by(result: DetectionResult, now: datetime) -> None:
    """Refuse a frame from the future; one from the past is recorded under its time, for the window lane.

    Raises:
        ContractError: its capture time is more than `MAX_AHEAD` after `now`.
    """
    if result.timestamp > now + MAX_AHEAD:
        raise ContractError(
            "DetectionResult",
            "timestamp",
            f"{result.timestamp:%Y-%m-%d %H:%M} UTC lies in the future; is the sender's clock right?",
        )


def tasks_from_message(value: bytes, key: bytes | None, now: datetime) -> list[tuple[bytes, bytes]]:
    """The tasks that follow from a message as it lies on ``detection-results``, as keys and messages for theirs.

    For the Flink job, which would start anew for ever over a message that the topic does not take: one larger than
    `MAX_TASK_BYTES` goes without its picture if it has the URL, and is left to the window lane, which has it from the
    ledger, if it is too large even so.

    Raises:
        ContractError: it cannot be used; the tasks service sends it to ``dead-letter``.
    """
    result = DetectionResult.from_json(value)
    require_key(result, None if key is None else key.decode(errors="replace"))
    require_captured_by(result, now)
    made = [(task.camera_id.encode(), _fitting(task)) for task in tasks_from_detection(result)]
    return [(camera, message) for camera, message in made if message is not None]


def _fitting(task: AssessmentTask) -> bytes | None:
    message = task.to_json()
    if len(message) > MAX_TASK_BYTES and task.group_image_url:
        message = task.model_copy(update={"group_image_base64": None}).to_json()
    return message if len(message) <= MAX_TASK_BYTES else None


def tasks_from_detection(result: DetectionResult) -> list[AssessmentTask]:
    """The tasks of a frame, one per traffic group of at least two objects, in the order of the groups.

    A task's detected objects are those whose centre lies in the group's box (borders included).
    """
    return [_task(result, group) for group in result.traffic_groups if group.object_count >= MIN_OBJECTS]


def _task(result: DetectionResult, group: TrafficGroup) -> AssessmentTask:
    return AssessmentTask(
        task_id=task_id_of(result.message_id, group.group_index),
        request_id=result.message_id,
        camera_id=result.camera_id,
        timestamp=result.timestamp,
        group_index=group.group_index,
        group_image_url=group.group_image_url,
        group_image_base64=group.group_image_base64,
        detected_objects=tuple(item for item in result.detected_objects if _centre_in(item, group.bbox)),
        group_metadata=GroupMetadata(object_count=group.object_count, classes=group.classes, bbox=group.bbox),
        priority=group.priority,
    )


def _centre_in(item: DetectedObject, box: BBox) -> bool:
    x = (item.bbox[0] + item.bbox[2]) / 2
    y = (item.bbox[1] + item.bbox[3]) / 2
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]
