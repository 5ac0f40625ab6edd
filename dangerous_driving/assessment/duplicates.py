"""Groups that look as one answered moments ago on the same camera: their answer can be reused.

Two groups are near-identical when their pictures' difference hashes differ in few bits and their boxes overlap. The difference hash
(Krawetz, "Kind of Like That", 2013) is 64 bits: of the grey picture at 9 x 8 pixels, whether each is brighter than the one to its
right. It is blind to small shifts and light, and also to small changes: what that costs is measured by benchmarks/duplicates.py.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta

import cv2
import numpy as np

from dangerous_driving.contracts import AssessmentTask, BBox
from dangerous_driving.ledger.assessments import AssessmentRecord
from dangerous_driving.settings import AssessmentSettings

WIDTH, HEIGHT = 9, 8
#: Answers that are remembered of a camera.
REMEMBERED = 50


def difference_hash(picture: bytes) -> int | None:
    """64 bits of an encoded picture; None where it cannot be decoded, or is so even that its hash says nothing."""
    pixels = cv2.imdecode(np.frombuffer(picture, dtype=np.uint8), cv2.IMREAD_GRAYSCALE) if picture else None
    if pixels is None:
        return None
    small = cv2.resize(pixels, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).astype(np.int16)
    if int(small.max()) == int(small.min()):
        return None
    bits = (small[:, :-1] > small[:, 1:]).flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def overlap(first: BBox, second: BBox) -> float:
    """Intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return both / (areas - both)


@dataclass(frozen=True)
class Scene:
    """What is compared of a group."""

    camera_id: str
    captured_at: datetime
    box: BBox
    classes: tuple[str, ...]
    picture_hash: int


def scene_of(task: AssessmentTask, picture: bytes) -> Scene | None:
    """What is compared of a task's group; None where its picture says nothing."""
    picture_hash = difference_hash(picture)
    if picture_hash is None:
        return None
    group = task.group_metadata
    classes = tuple(sorted(item.class_name for item in task.detected_objects))
    return Scene(task.camera_id, task.timestamp, group.bbox, classes, picture_hash)


class RecentAnswers:
    """The last answers of each camera.

    Args:
        settings: how near is near enough, and for how long.
    """

    def __init__(self, settings: AssessmentSettings) -> None:
        self._settings = settings
        self._answers: dict[str, deque[tuple[Scene, AssessmentRecord]]] = {}

    def add(self, scene: Scene, record: AssessmentRecord) -> None:
        """Remember an answer (never a reused one: an answer must not age by being passed on)."""
        self._answers.setdefault(scene.camera_id, deque(maxlen=REMEMBERED)).append((scene, record))

    def like(self, scene: Scene) -> AssessmentRecord | None:
        """The newest answer to a near-identical group captured at most `reuse_seconds` before."""
        settings = self._settings
        oldest = scene.captured_at - timedelta(seconds=settings.reuse_seconds)
        for before, record in reversed(self._answers.get(scene.camera_id, ())):
            if (
                oldest <= before.captured_at < scene.captured_at
                and before.classes == scene.classes
                and (before.picture_hash ^ scene.picture_hash).bit_count() <= settings.reuse_distance
                and overlap(before.box, scene.box) >= settings.reuse_overlap
            ):
                return record
        return None
