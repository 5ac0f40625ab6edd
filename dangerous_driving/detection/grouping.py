"""Traffic groups: road users close to each other (pure)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]
"""n x 4: x1, y1, x2, y2 in pixels of the frame."""

#: px; the frame width that ``detection.group_distance`` is given for.
REFERENCE_WIDTH = 1920

#: Fewer objects cannot endanger each other: they make no group and no task.
MIN_OBJECTS = 2


def as_boxes(bboxes: Sequence[Sequence[float]]) -> Boxes:
    """Boxes as one array, n x 4 also when there are none."""
    return np.asarray(bboxes, dtype=np.float64).reshape(-1, 4)


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
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    reach = distance * frame_width / REFERENCE_WIDTH
    near = np.square(centres[:, None] - centres[None]).sum(axis=2) <= reach * reach
    labels = np.arange(count)
    while True:
        # each box takes the lowest label around it, then that label's own label (pointer jumping), so that a chain
        # of n boxes needs about log n rounds
        lowest = np.where(near, labels, count).min(axis=1)
        lowest = lowest[lowest]
        if np.array_equal(lowest, labels):
            break
        labels = lowest
    order = np.argsort(labels, kind="stable")
    clusters = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return [cluster for cluster in clusters if len(cluster) >= MIN_OBJECTS]


def union_box(boxes: Boxes) -> tuple[float, float, float, float]:
    """The smallest box around all of them (at least one)."""
    x1, y1 = boxes[:, :2].min(axis=0).tolist()
    x2, y2 = boxes[:, 2:].max(axis=0).tolist()
    return x1, y1, x2, y2
