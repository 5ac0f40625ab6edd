"""Frames and the tasks they imply, as the tasks service records them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, select
from sqlalchemy.dialects.postgresql import insert

from dangerous_driving.contracts import AssessmentTask as TaskMessage
from dangerous_driving.contracts import DetectionResult, Lane
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.ledger.tables import AssessmentTask, Camera, Frame
from dangerous_driving.ledger.windows import touch_windows

#: PostgreSQL takes 65,535 parameters in one statement; a task has 14.
ROWS_PER_STATEMENT = 1000

#: Why a task that nobody has claimed yet is pending.
WAITING_FOR_SCHEDULER = "new: waiting for a scheduler"


def record_detections(
    engine: Engine,
    partitions: Partitions,
    results: Sequence[DetectionResult],
    tasks: Sequence[TaskMessage],
    *,
    window_length: int,
    lane: Lane = Lane.REALTIME,
    reason: str = WAITING_FOR_SCHEDULER,
) -> int:
    """Write frames and their tasks in one transaction. A replay changes nothing.

    Args:
        engine: of the ledger.
        partitions: which days have partitions already.
        results: the frames.
        tasks: all tasks that follow from `results`; a task that a scheduler has claimed before is left alone.
        window_length: s; windows with new frames or tasks get a new content version.
        lane: which lane takes the new tasks.
        reason: why they are pending.

    Returns:
        How many frames were new.
    """
    if not results:
        return 0
    partitions.ensure(engine, (result.timestamp for result in results))
    with transaction(engine) as connection:
        cameras = [{"id": camera_id, "name": camera_id} for camera_id in sorted({r.camera_id for r in results})]
        connection.execute(insert(Camera).values(cameras).on_conflict_do_nothing())
        inserted = connection.execute(
            insert(Frame)
            .values([frame_row(result) for result in results])
            .on_conflict_do_nothing()
            .returning(Frame.camera_id, Frame.captured_at)
        ).all()
        new_tasks = insert_tasks(connection, tasks, lane=lane, reason=reason)
        touch_windows(connection, {(row.camera_id, row.captured_at) for row in inserted} | new_tasks, window_length)
    return len(inserted)


def insert_tasks(
    connection: Connection, tasks: Sequence[TaskMessage], *, lane: Lane, reason: str
) -> set[tuple[str, datetime]]:
    """Insert the tasks that are not there as pending; returns camera and capture time of the new ones."""
    if not tasks:
        return set()
    # in the order of the key, as a scheduler that claims the same tasks writes them: no deadlock between the two
    rows = [
        {**task_row(task), "state": "pending", "lane": lane.value, "reason": reason} for task in in_key_order(tasks)
    ]
    new: set[tuple[str, datetime]] = set()
    for start in range(0, len(rows), ROWS_PER_STATEMENT):
        inserted = connection.execute(
            insert(AssessmentTask)
            .values(rows[start : start + ROWS_PER_STATEMENT])
            .on_conflict_do_nothing()
            .returning(AssessmentTask.camera_id, AssessmentTask.captured_at)
        )
        new |= {(row.camera_id, row.captured_at) for row in inserted}
    return new


def frame_row(result: DetectionResult) -> dict[str, Any]:
    """The columns of a frame; pictures in base64 are left out (the store has them)."""
    return {
        "captured_at": result.timestamp,
        "message_id": result.message_id,
        "camera_id": result.camera_id,
        "image_width": result.image_width,
        "image_height": result.image_height,
        "raw_frame_url": result.raw_frame_url,
        "detected_objects": [item.model_dump(mode="json", by_alias=True) for item in result.detected_objects],
        "traffic_groups": [
            group.model_dump(mode="json", by_alias=True, exclude={"group_image_base64"})
            for group in result.traffic_groups
        ],
        "detection_latency": result.metadata.detection_latency,
        "model": result.metadata.yolo_model,
        "node": result.metadata.processing_node,
    }


def task_row(task: TaskMessage) -> dict[str, Any]:
    """The columns of a task that come from its message."""
    return {
        "captured_at": task.timestamp,
        "task_id": task.task_id,
        "message_id": task.request_id,
        "camera_id": task.camera_id,
        "group_index": task.group_index,
        "group_image_url": task.group_image_url,
        "group_bbox": list(task.group_metadata.bbox),
        "classes": list(task.group_metadata.classes),
        "object_count": task.group_metadata.object_count,
        "detected_objects": [item.model_dump(mode="json", by_alias=True) for item in task.detected_objects],
        "priority": task.priority,
    }


def known_frames(engine: Engine, camera_id: str, day: date) -> set[str]:
    """Message ids of the camera's frames of one UTC day."""
    start = datetime.fromisoformat(f"{day.isoformat()}T00:00:00+00:00")
    statement = select(Frame.message_id).where(
        Frame.camera_id == camera_id, Frame.captured_at >= start, Frame.captured_at < start + timedelta(days=1)
    )
    with transaction(engine) as connection:
        return set(connection.scalars(statement))


def in_key_order(tasks: Iterable[TaskMessage]) -> list[TaskMessage]:
    """The tasks in the order of their rows' key, each once."""
    return [task for _, task in sorted({(task.timestamp, task.task_id): task for task in tasks}.items())]
