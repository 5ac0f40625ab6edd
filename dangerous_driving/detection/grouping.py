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

#: Share of the smaller box inside the larger one, and its size as a share of the larger one's, from which two boxes of
#: motor vehicles are one vehicle, found whole and in part. Of 262 overlapping pairs that the simulated scenes' weights
#: found in 128 pictures this names 19 of 53 doubles (`DOUBLE_IOU` alone 11) and none of 209 pairs of two vehicles; on the
#: road pictures it named 5 more, all doubles. A small box within a large one is often a far vehicle before a near one.
DOUBLE_INSIDE = 0.85
DOUBLE_SIZE = 0.25

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
    first, second, shared = overlapping(boxes[vehicles])
    sizes = areas(boxes[vehicles])
    smaller, larger = np.minimum(sizes[first], sizes[second]), np.maximum(sizes[first], sizes[second])
    same = (shared > DOUBLE_IOU * (smaller + larger - shared)) | (
        (shared > DOUBLE_INSIDE * smaller) & (smaller > DOUBLE_SIZE * larger)
    )
    dropped: set[int] = set()
    for one, other in sorted(zip(first[same].tolist(), second[same].tolist(), strict=True)):
        if vehicles[one] not in dropped:
            dropped.add(vehicles[other])
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
    first, second = _near(boxes, reach)
    labels = np.arange(count)
    # each box takes the lowest label around it, then that label's own label (pointer jumping), so that a chain of n
    # boxes needs about log n rounds
    while True:
        lowest = labels.copy()
        np.minimum.at(lowest, first, labels[second])
        np.minimum.at(lowest, second, labels[first])
        lowest = lowest[lowest]
        if np.array_equal(lowest, labels):
            break
        labels = lowest
    order = np.argsort(labels, kind="stable")
    clusters = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return [cluster for cluster in clusters if len(cluster) >= MIN_OBJECTS]


def overlapping(boxes: Boxes) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Pairs of boxes that have some area in common: the lower index, the higher one, the area in px².

    A sweep from left to right: in the order of their left sides, a box can meet those only that begin before it ends.
    """
    order = np.argsort(boxes[:, 0], kind="stable")
    swept = boxes[order]
    one, other = _met(swept[:, 0], swept[:, 2])
    sides = np.minimum(swept[one, 2:], swept[other, 2:]) - np.maximum(swept[one, :2], swept[other, :2])
    common = (sides > 0).all(axis=1)
    first, second = order[one[common]], order[other[common]]
    return np.minimum(first, second), np.maximum(first, second), np.asarray(sides[common].prod(axis=1))


def areas(boxes: Boxes) -> NDArray[np.float64]:
    """px² of each."""
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def _met(begins: NDArray[np.float64], ends: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs of intervals, given in the order of their beginnings, of which the later one begins before the other's end."""
    following = np.arange(1, len(begins) + 1)
    met = np.maximum(np.searchsorted(begins, ends) - following, 0)
    one = np.repeat(following - 1, met)
    return one, np.arange(met.sum()) - np.repeat(np.cumsum(met) - met, met) + one + 1


def _near(boxes: Boxes, reach: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs of boxes whose centres are at most so many px apart; a sweep from left to right, as in `overlapping`."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    order = np.argsort(centres[:, 0], kind="stable")
    x, y = centres[order].T
    one, other = _met(x, np.nextafter(x + reach, np.inf))
    near = (x[one] - x[other]) ** 2 + (y[one] - y[other]) ** 2 <= reach * reach
    return order[one[near]], order[other[near]]


def union_box(boxes: Boxes) -> tuple[float, float, float, float]:
    """The smallest box around all of them (at least one)."""
    x1, y1 = boxes[:, :2].min(axis=0).tolist()
    x2, y2 = boxes[:, 2:].max(axis=0).tolist()
    return x1, y1, x2, y2
