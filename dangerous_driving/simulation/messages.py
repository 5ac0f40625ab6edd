"""Simulated detection results without a picture: traffic in numbers, for tests and benchmarks."""

from __future__ import annotations

import random
from datetime import UTC, datetime

from dangerous_driving.contracts import (
    DetectedObject,
    DetectionMetadata,
    DetectionResult,
    TrafficGroup,
    message_id_of,
)

WIDTH, HEIGHT = 1920, 1080
CLASSES = ("car", "car", "car", "truck", "bus", "motorcycle", "bicycle", "person")


def detection_result(
    camera_id: str = "sim-1",
    captured_at: datetime | None = None,
    *,
    groups: int = 2,
    objects_per_group: int = 2,
    priority: float = 0.5,
    seed: int = 0,
) -> DetectionResult:
    """One frame's result with `groups` groups of `objects_per_group` objects each; the same arguments give the same result."""
    captured_at = captured_at or datetime.now(UTC)
    draw = random.Random(f"{seed}:{camera_id}:{captured_at}")  # noqa: S311  # traffic, not secrets
    objects: list[DetectedObject] = []
    found: list[TrafficGroup] = []
    for index in range(groups):
        left, top = draw.randrange(0, WIDTH - 400), draw.randrange(0, HEIGHT - 300)
        members: list[DetectedObject] = []
        for _ in range(objects_per_group):
            x, y = left + draw.randrange(0, 200), top + draw.randrange(0, 120)
            members.append(
                DetectedObject(
                    object_id=len(objects) + len(members) + 1,
                    class_name=draw.choice(CLASSES),
                    confidence=round(draw.uniform(0.35, 0.95), 2),
                    bbox=(x, y, x + draw.randrange(40, 200), y + draw.randrange(40, 150)),
                )
            )
        objects += members
        boxes = [member.bbox for member in members]
        found.append(
            TrafficGroup(
                group_index=index + 1,
                object_count=len(members),
                bbox=(
                    min(box[0] for box in boxes),
                    min(box[1] for box in boxes),
                    max(box[2] for box in boxes),
                    max(box[3] for box in boxes),
                ),
                classes=tuple(sorted({member.class_name for member in members})),
                priority=priority,
            )
        )
    return DetectionResult(
        message_id=message_id_of(camera_id, captured_at),
        camera_id=camera_id,
        timestamp=captured_at,
        image_width=WIDTH,
        image_height=HEIGHT,
        detected_objects=tuple(objects),
        traffic_groups=tuple(found),
        metadata=DetectionMetadata(detection_latency=0.05, yolo_model="simulated", processing_node="simulated"),
    )
