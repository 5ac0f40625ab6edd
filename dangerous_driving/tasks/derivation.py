"""One detection result -> its assessment tasks. Pure, and shared by the tasks service and the Flink job."""

from __future__ import annotations

from dangerous_driving.contracts import (
    AssessmentTask,
    BBox,
    DetectedObject,
    DetectionResult,
    GroupMetadata,
    TrafficGroup,
    task_id_of,
)

#: A lone object is no conflict: groups below this make no task.
MIN_OBJECTS = 2


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
