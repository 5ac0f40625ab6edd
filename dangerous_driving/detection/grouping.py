"""Traffic groups: road users close to each other (pure)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: Vehicles that detectors take for one another.
MOTOR_VEHICLES = frozenset({"car", "bus", "truck"})

#: IoU from which two boxes of motor vehicles are one vehicle: non-maximum suppression works per class, so a van is at
#: times a car and a truck. On the road pictures this was tried on, such doubles have 0.84 to 0.99 and real neighbours
#: at most 0.46.
DOUBLE_IOU = 0.75

Boxes = NDArray[np.float64]
"""n x 4: x1, y1, x2, y2 in pixels of the frame."""

#: px; the frame width that ``detection.group_distance`` is given for.
REFERENCE_WIDTH = 1920

#: Fewer objects cannot endanger each other: they make no group and no task.
MIN_OBJECTS = 2


def as_boxes(bboxes: Sequence[Sequence[float]]) -> Boxes:
    """Boxes as one array, n x 4 also when there are none."""
    return np.asarray(bboxes, dtype=np.float64).reshape(-1, 4)


def without_doubles(boxes: Boxes, class_names: Sequence[str]) -> list[int]:
    """Which objects are left when every motor vehicle counts once.

    Args:
        boxes: n x 4, px, in falling order of confidence.
        class_names: of each.

    Returns:
        Rising indices; of boxes that are one vehicle the first.
    """
    vehicles = [index for index, name in enumerate(class_names) if name in MOTOR_VEHICLES]
    shared = shared_areas(boxes[vehicles])
    areas = np.diagonal(shared)
    same = shared > DOUBLE_IOU * (np.add.outer(areas, areas) - shared)
    dropped: set[int] = set()
    for place, index in enumerate(vehicles):
        if index not in dropped:
            dropped.update(vehicles[other] for other in np.flatnonzero(same[place, place + 1 :]) + place + 1)
    return [index for index in range(len(class_names)) if index not in dropped]


def group_boxes(boxes: Boxes, frame_width: int, distance: float) -> list[NDArray[np.intp]]:
    """Single-linkage clusters of box centres.

    Two boxes belong together when a chain of boxes leads from one to the other in which neighbours' centres are at
    most ``distance * frame_width / 1920`` px apart.

    Args:
        boxes: n x 4, px.
        frame_width: px.
        distance: px at 1920 px frame width.

    Returns:
        Indices into `boxes`, rising, of each group of at least two; the group with the lowest first index comes first.
    """
    count = len(boxes)
    if count < MIN_OBJECTS:
        return []
    reach = distance * frame_width / REFERENCE_WIDTH
    near = squared_distances(boxes) <= reach * reach
    labels = np.arange(count)
    # each box takes the lowest label around it, then that label's own label (pointer jumping), so that a chain of n
    # boxes needs about log n rounds; the first round's lowest label is the first neighbour
    lowest = near.argmax(axis=1)
    while True:
        lowest = lowest[lowest]
        if np.array_equal(lowest, labels):
            break
        labels = lowest
        lowest = np.where(near, labels, count).min(axis=1)
    order = np.argsort(labels, kind="stable")
    clusters = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return [cluster for cluster in clusters if len(cluster) >= MIN_OBJECTS]


def shared_areas(boxes: Boxes) -> NDArray[np.float64]:
    """Of all pairs' boxes: n x n, px²; the diagonal holds their own areas."""
    x1, y1, x2, y2 = boxes.T
    width = np.minimum.outer(x2, x2) - np.maximum.outer(x1, x1)
    height = np.minimum.outer(y2, y2) - np.maximum.outer(y1, y1)
    return np.asarray(np.maximum(width, 0) * np.maximum(height, 0))


def squared_distances(boxes: Boxes) -> NDArray[np.float64]:
    """Of all pairs' centres: n x n, px²."""
    x, y = ((boxes[:, axis] + boxes[:, axis + 2]) / 2 for axis in (0, 1))
    return np.asarray(np.square(np.subtract.outer(x, x)) + np.square(np.subtract.outer(y, y)))


def union_box(boxes: Boxes) -> tuple[float, float, float, float]:
    """The smallest box around all of them (at least one)."""
    x1, y1 = boxes[:, :2].min(axis=0).tolist()
    x2, y2 = boxes[:, 2:].max(axis=0).tolist()
    return x1, y1, x2, y2
