"""From detections to the message about a frame (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dangerous_driving.camera.frame import Frame
from dangerous_driving.contracts import DetectedObject, DetectionMetadata, DetectionResult, TrafficGroup, message_id_of
from dangerous_driving.detection.engine import Detection
from dangerous_driving.detection.grouping import Boxes, as_boxes, group_boxes, union_box, without_doubles
from dangerous_driving.detection.priority import RoadUsers, priorities
from dangerous_driving.detection.regions import counted
from dangerous_driving.detection.riders import riders
from dangerous_driving.settings import CameraSpec, DetectionSettings


@dataclass(frozen=True, slots=True)
class FoundGroup:
    """A traffic group before its picture has an address. ``object_count`` and ``classes`` are of its road users."""

    object_count: int
    bbox: tuple[float, float, float, float]
    classes: tuple[str, ...]
    priority: float


@dataclass(frozen=True, slots=True)
class Scene:
    """What is in one frame. ``road_users`` is kept for the growth of overlap in the camera's next frame."""

    objects: tuple[DetectedObject, ...]
    groups: tuple[FoundGroup, ...]
    road_users: RoadUsers


@dataclass(frozen=True, slots=True)
class GroupPicture:
    """Where the picture of a group lies, and (if receivers shall have it) its base64."""

    url: str
    base64: str | None = None


def scene_of(
    detections: Sequence[Detection],
    width: int,
    height: int,
    settings: DetectionSettings,
    *,
    camera: CameraSpec | None = None,
    previous: RoadUsers | None = None,
) -> Scene:
    """Number the objects, group them and rate the groups.

    A vehicle that was detected as two kinds is one object. What stands outside the camera's region of interest, or in an
    area that it ignores, is left out altogether: a group's task lists all objects in its box, and would list it too. A
    rider is an object, but no road user of his own: he belongs to his two-wheeler, and makes no group with it.

    Objects keep the detections' order (the most confident first). Groups come riskiest first, then from top to bottom
    and left to right, so that equal frames give equal results. Coordinates are cut to a tenth of a pixel, confidence
    and priority to four digits, before anything is derived from them: all follows from the message itself.

    Args:
        detections: of the frame, the most confident first.
        width: px of the frame.
        height: px of the frame.
        settings: group distance.
        camera: its own group distance, region of interest and ignored areas.
        previous: `Scene.road_users` of the frame before of the same camera, if it is recent and of the same size.
    """
    boxes = as_boxes([detection.bbox for detection in detections])
    names = [detection.class_name for detection in detections]
    kept = without_doubles(boxes, names)
    if camera is not None and (camera.region_of_interest or camera.ignore):
        inside = counted(boxes, width, height, camera.region_of_interest, camera.ignore)
        kept = [index for index in kept if inside[index]]
    objects = tuple(
        DetectedObject(
            object_id=number,
            class_name=detection.class_name,
            confidence=round(detection.confidence, 4),
            bbox=_rounded(detection.bbox),
            track_id=detection.track_id,
        )
        for number, detection in enumerate((detections[index] for index in kept), 1)
    )
    everything = RoadUsers.of(as_boxes([thing.bbox for thing in objects]), [thing.class_name for thing in objects])
    ridden_by = _ridden_by(everything.boxes, objects)
    riding = {rider for several in ridden_by.values() for rider in several}
    own = np.array([index for index in range(len(objects)) if index not in riding], dtype=np.intp)
    users = everything[own]
    distance = (camera and camera.group_distance) or settings.group_distance
    groups = []
    clusters = group_boxes(users.boxes, width, distance)
    for members, priority in zip(clusters, priorities(users, clusters, previous), strict=True):
        indices = own[members].tolist()
        shown = [*indices, *(rider for index in indices for rider in ridden_by.get(index, ()))]
        groups.append(
            FoundGroup(
                object_count=len(members),
                bbox=union_box(everything.boxes[shown]),
                classes=tuple(sorted({objects[index].class_name for index in indices})),
                priority=round(priority, 4),
            )
        )
    groups.sort(key=lambda group: (-group.priority, group.bbox[1], group.bbox[0]))
    return Scene(objects, tuple(groups), users)


def _ridden_by(boxes: Boxes, objects: Sequence[DetectedObject]) -> dict[int, list[int]]:
    """Riders of each two-wheeler."""
    found: dict[int, list[int]] = {}
    for rider, machine in riders(boxes, [thing.class_name for thing in objects]).items():
        found.setdefault(machine, []).append(rider)
    return found


def detection_result(
    frame: Frame,
    scene: Scene,
    *,
    frame_url: str,
    pictures: Sequence[GroupPicture],
    metadata: DetectionMetadata,
) -> DetectionResult:
    """The message about a frame.

    Args:
        frame: for its camera, time and size.
        scene: what is in it.
        frame_url: of the frame's picture.
        pictures: of the groups, in their order.
        metadata: how it came about.
    """
    height, width = frame.image.shape[:2]
    return DetectionResult(
        message_id=message_id_of(frame.camera_id, frame.captured_at),
        camera_id=frame.camera_id,
        timestamp=frame.captured_at,
        image_width=width,
        image_height=height,
        raw_frame_url=frame_url,
        detected_objects=scene.objects,
        traffic_groups=tuple(
            TrafficGroup(
                group_index=index,
                object_count=group.object_count,
                bbox=group.bbox,
                classes=group.classes,
                group_image_url=picture.url,
                group_image_base64=picture.base64,
                priority=group.priority,
            )
            for index, (group, picture) in enumerate(zip(scene.groups, pictures, strict=True), 1)
        ),
        metadata=metadata,
    )


def _rounded(bbox: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (round(side, 1) for side in bbox)
    return x1, y1, x2, y2
