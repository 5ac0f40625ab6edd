"""Which road users of a picture count: those that stand where a camera is meant to look (pure)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dangerous_driving.detection.grouping import Boxes
from dangerous_driving.settings import Polygon

#: Share of width and height. A box is cut at the picture's edge, and an edge belongs to no polygon: a foot there is taken
#: to stand just inside, for whoever the lower edge cuts off stands nearest to the camera.
JUST_INSIDE = 1 - 1e-6


def counted(
    boxes: Boxes, width: int, height: int, region_of_interest: Sequence[Polygon], ignore: Sequence[Polygon]
) -> NDArray[np.bool_]:
    """Whether each object counts: its foot (middle of the lower edge, where it touches the ground) decides.

    Args:
        boxes: n x 4, px.
        width: px of the picture.
        height: px of the picture.
        region_of_interest: polygons in shares of width and height; none: the whole picture.
        ignore: polygons that do not count, also within a region of interest.

    Returns:
        n truth values.
    """
    feet = np.stack([(boxes[:, 0] + boxes[:, 2]) / 2 / width, boxes[:, 3] / height], axis=1).clip(0, JUST_INSIDE)
    inside = within(feet, region_of_interest) if region_of_interest else np.ones(len(boxes), dtype=bool)
    return inside & ~within(feet, ignore)


def within(points: NDArray[np.float64], polygons: Sequence[Polygon]) -> NDArray[np.bool_]:
    """Whether each point (n x 2) lies in one of the polygons.

    By the even-odd rule: a ray to the right crosses the outline an odd number of times (Shimrat: Algorithm 112, 1962).
    A polygon may be concave. Of a point on an edge only one of two polygons that share the edge is said to hold it.
    """
    found = np.zeros(len(points), dtype=bool)
    x, y = points[:, :1], points[:, 1:]
    for polygon in polygons:
        begin = np.asarray(polygon, dtype=np.float64)
        end = np.roll(begin, -1, axis=0)
        spans = (begin[:, 1] > y) != (end[:, 1] > y)  # n x edges
        rise = np.where(end[:, 1] == begin[:, 1], 1.0, end[:, 1] - begin[:, 1])  # level edges span nothing
        crossing = begin[:, 0] + (y - begin[:, 1]) * (end[:, 0] - begin[:, 0]) / rise
        found |= (spans & (x < crossing)).sum(axis=1) % 2 == 1
    return found
