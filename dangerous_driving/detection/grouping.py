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

#: Of the labels of a cluster.
MAX_SMALL = np.iinfo(np.int16).max - 1

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
    same = shared > DOUBLE_IOU * (sizes[first] + sizes[second] - shared)
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
    near = _near(boxes, reach)
    # small integers: the rounds below are bound by memory
    labels: NDArray[np.signedinteger] = np.arange(count, dtype=np.int32 if count > MAX_SMALL else np.int16)
    # each box takes the lowest label around it, then that label's own label (pointer jumping), so that a chain of n
    # boxes needs about log n rounds; the first round's lowest label is the first neighbour
    lowest = near.argmax(axis=1).astype(labels.dtype)
    far = np.where(near, 0, count).astype(labels.dtype)
    while True:
        lowest = lowest[lowest]
        if np.array_equal(lowest, labels):
            break
        labels = lowest
        lowest = np.maximum(far, labels).min(axis=1)
    order = np.argsort(labels, kind="stable")
    clusters = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return [cluster for cluster in clusters if len(cluster) >= MIN_OBJECTS]


def overlapping(boxes: Boxes) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Pairs of boxes that have some area in common: the lower index, the higher one, the area in px².

    A sweep from left to right: in the order of their left sides, a box can meet those only that begin before it ends.
    """
    order = np.argsort(boxes[:, 0], kind="stable")
    swept = boxes[order]
    following = np.arange(1, len(boxes) + 1)
    met = np.maximum(np.searchsorted(swept[:, 0], swept[:, 2]) - following, 0)
    one = np.repeat(following - 1, met)
    other = np.arange(met.sum()) - np.repeat(np.cumsum(met) - met, met) + one + 1
    sides = np.minimum(swept[one, 2:], swept[other, 2:]) - np.maximum(swept[one, :2], swept[other, :2])
    common = (sides > 0).all(axis=1)
    first, second = order[one[common]], order[other[common]]
    return np.minimum(first, second), np.maximum(first, second), np.asarray(sides[common].prod(axis=1))


def row_blocks(count: int) -> list[slice]:
    """Rows of a `count` x `count` table in pieces of less than 128 KiB, as numbers of 8 bytes.

    Larger pieces of memory come fresh from the system each time, and its page faults take longer than the arithmetic.
    """
    step = max(1, 15_000 // max(1, count))
    return [slice(start, min(count, start + step)) for start in range(0, count, step)]


def areas(boxes: Boxes) -> NDArray[np.float64]:
    """px² of each."""
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def _near(boxes: Boxes, reach: float) -> NDArray[np.bool_]:
    """Whether the centres of two boxes are at most so many px apart: n x n."""
    x, y = ((boxes[:, axis] + boxes[:, axis + 2]) / 2 for axis in (0, 1))
    near = np.empty((len(boxes), len(boxes)), dtype=bool)
    for rows in row_blocks(len(boxes)):
        across, down = np.subtract.outer(x[rows], x), np.subtract.outer(y[rows], y)
        across *= across
        down *= down
        across += down
        np.less_equal(across, reach * reach, out=near[rows])
    return near


def union_box(boxes: Boxes) -> tuple[float, float, float, float]:
    """The smallest box around all of them (at least one)."""
    x1, y1 = boxes[:, :2].min(axis=0).tolist()
    x2, y2 = boxes[:, 2:].max(axis=0).tolist()
    return x1, y1, x2, y2
