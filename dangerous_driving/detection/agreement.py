"""How much two detectors agree on the same pictures (pure)."""

from __future__ import annotations

from collections.abc import Sequence

from dangerous_driving.detection.engine import Detection

Box = Sequence[float]


def f1_of(found: Sequence[Sequence[Detection]], truth: Sequence[Sequence[Detection]], least: float = 0.5) -> float:
    """F1 of detections, picture by picture, against others taken for true.

    A detection hits one of the same class with an IoU of at least `least`, each only once, the most confident first.
    """
    hits = total = 0
    for these, those in zip(found, truth, strict=True):
        total += len(these) + len(those)
        left = list(those)
        for thing in these:
            same = [other for other in left if other.class_name == thing.class_name]
            best = max(same, key=lambda other: iou(thing.bbox, other.bbox), default=None)
            if best is not None and iou(thing.bbox, best.bbox) >= least:
                left.remove(best)
                hits += 1
    return 2 * hits / total if total else 1.0


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2)."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return shared / (areas - shared)
