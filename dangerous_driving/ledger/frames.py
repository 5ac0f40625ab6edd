"""Frames and the tasks they imply, as the tasks service records them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, select, text

from dangerous_driving.contracts import AssessmentTask as TaskMessage
from dangerous_driving.contracts import DetectionResult, Lane
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.ledger.tables import Frame
from dangerous_driving.ledger.windows import touch_windows

#: Bounds the size of one parameter; the tasks of a thousand frames fit.
TASKS_PER_STATEMENT = 5000

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
        connection.execute(_INSERT_CAMERAS, {"ids": sorted({result.camera_id for result in results})})
        inserted = connection.execute(_INSERT_FRAMES, {"frames": _as_json_list(map(_frame_json, results))}).all()
        new_tasks = insert_tasks(connection, tasks, lane=lane, reason=reason)
        touch_windows(connection, {(row.camera_id, row.captured_at) for row in inserted} | new_tasks, window_length)
    return len(inserted)


def insert_tasks(
    connection: Connection, tasks: Sequence[TaskMessage], *, lane: Lane, reason: str
) -> set[tuple[str, datetime]]:
    """Insert the tasks that are not there as pending; returns camera and capture time of the new ones."""
    new: set[tuple[str, datetime]] = set()
    for part in statements_of(tasks):
        inserted = connection.execute(
            _INSERT_TASKS, {"tasks": tasks_as_json(part), "lane": lane.value, "reason": reason}
        )
        new |= {(row.camera_id, row.captured_at) for row in inserted}
    return new


def name_pictures(engine: Engine, tasks: Sequence[TaskMessage]) -> None:
    """Keep the tasks' URLs where their rows have none yet."""
    with transaction(engine) as connection:
        connection.execute(_NAME_PICTURES, {"tasks": tasks_as_json(in_key_order(tasks))})


# The database reads the messages as they lie on the topic: a batch is one parameter of one statement that is prepared
# once, instead of fourteen parameters a row. Pictures in base64 stay out (the store has them). Rows go in the order of
# their key, as a scheduler that claims the same tasks writes them: no deadlock between the two, nor between two services.
_INSERT_CAMERAS = text("""
INSERT INTO camera (id, name) SELECT id, id FROM unnest(CAST(:ids AS text[])) AS id ON CONFLICT DO NOTHING
""")

_INSERT_FRAMES = text("""
INSERT INTO frame (captured_at, message_id, camera_id, image_width, image_height, raw_frame_url, detected_objects,
                   traffic_groups, detection_latency, model, node)
SELECT "timestamp", "messageId", "cameraId", "imageWidth", "imageHeight", "rawFrameUrl", "detectedObjects",
       "trafficGroups", (metadata ->> 'detectionLatency')::float8, metadata ->> 'yoloModel',
       metadata ->> 'processingNode'
FROM json_to_recordset(CAST(:frames AS json)) AS message(
    "timestamp" timestamptz, "messageId" text, "cameraId" text, "imageWidth" int, "imageHeight" int, "rawFrameUrl" text,
    "detectedObjects" jsonb, "trafficGroups" jsonb, metadata jsonb)
ORDER BY "timestamp", "messageId"
ON CONFLICT DO NOTHING
RETURNING camera_id, captured_at
""")

#: The columns of a task that come from its message, how they are read from it, and from where (the parameter ``tasks``).
TASK_COLUMNS = """captured_at, task_id, message_id, camera_id, group_index, group_image_url, group_bbox, classes, object_count,
    detected_objects, priority"""
TASK_VALUES = """"timestamp", "taskId", "requestId", "cameraId", "groupIndex", "groupImageUrl", "groupMetadata" -> 'bbox',
    ARRAY(SELECT jsonb_array_elements_text("groupMetadata" -> 'classes')), ("groupMetadata" ->> 'objectCount')::int,
    "detectedObjects", priority"""
TASK_RECORD = """"timestamp" timestamptz, "taskId" text, "requestId" text, "cameraId" text, "groupIndex" int,
    "groupImageUrl" text, "detectedObjects" jsonb, "groupMetadata" jsonb, priority float8"""
TASK_MESSAGES = f"json_to_recordset(CAST(:tasks AS json)) AS message({TASK_RECORD})"

_INSERT_TASKS = text(f"""
INSERT INTO assessment_task ({TASK_COLUMNS}, state, lane, reason)
SELECT {TASK_VALUES}, 'pending', :lane, :reason
FROM {TASK_MESSAGES}
ORDER BY "timestamp", "taskId"
ON CONFLICT DO NOTHING
RETURNING camera_id, captured_at
""")  # noqa: S608  # constants

_NAME_PICTURES = text(f"""
UPDATE assessment_task AS task SET group_image_url = message."groupImageUrl"
FROM {TASK_MESSAGES}
WHERE task.captured_at = message."timestamp" AND task.task_id = message."taskId" AND task.group_image_url IS NULL
""")  # noqa: S608  # constants


def _as_json_list(messages: Iterable[str]) -> str:
    return f"[{','.join(messages)}]"


def _frame_json(result: DetectionResult) -> str:
    return result.model_dump_json(by_alias=True, exclude=_FRAME_PICTURES)


def tasks_as_json(tasks: Iterable[TaskMessage]) -> str:
    """The tasks as one parameter of a statement that reads records of :data:`TASK_RECORD`."""
    return _as_json_list(task.model_dump_json(by_alias=True, exclude={"group_image_base64"}) for task in tasks)


_FRAME_PICTURES: Any = {"traffic_groups": {"__all__": {"group_image_base64"}}}


def known_frames(engine: Engine, camera_id: str, day: date) -> set[str]:
    """Message ids of the camera's frames of one UTC day."""
    start = datetime.fromisoformat(f"{day.isoformat()}T00:00:00+00:00")
    statement = select(Frame.message_id).where(
        Frame.camera_id == camera_id, Frame.captured_at >= start, Frame.captured_at < start + timedelta(days=1)
    )
    with transaction(engine) as connection:
        return set(connection.scalars(statement))


def statements_of(tasks: Iterable[TaskMessage]) -> Iterator[list[TaskMessage]]:
    """The tasks of one statement after another, all in the order of their rows' key."""
    ordered = in_key_order(tasks)
    for start in range(0, len(ordered), TASKS_PER_STATEMENT):
        yield ordered[start : start + TASKS_PER_STATEMENT]


def in_key_order(tasks: Iterable[TaskMessage]) -> list[TaskMessage]:
    """The tasks in the order of their rows' key, each once."""
    return [task for _, task in sorted({(task.timestamp, task.task_id): task for task in tasks}.items())]
