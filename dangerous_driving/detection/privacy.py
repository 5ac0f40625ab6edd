"""Makes parts of a picture unrecognisable before it leaves the site (pure).

A light blur can be undone to a degree, and faces blurred by it are still matched (McPherson, Shokri, Shmatikov:
Defeating Image Obfuscation with Deep Learning, 2016). So a region is reduced to a few mean colours: what is finer is no
longer in the picture at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from dangerous_driving.camera.frame import Image
from dangerous_driving.detection.engine import Detection
from dangerous_driving.settings import PrivacySpec

#: Mean colours across and down that are left of a head or plate; of a polygon, px of a block at 1920 px width.
BLOCKS = 3
POLYGON_BLOCK = 48
REFERENCE_WIDTH = 1920

#: The head is an eighth of a standing body (Drillis, Contini 1966); with hair, hats, riders and boxes that are not exact
#: the upper quarter is taken, and a margin at its sides.
HEAD_SHARE, HEAD_MARGIN = 0.25, 0.10

#: Plates are fixed near the middle of a vehicle's front or back, in the lower half of its box from whatever side it is
#: seen; from the side they may be anywhere along it.
PLATE_TOP = 0.45

PEOPLE = frozenset({"person"})
VEHICLES = frozenset({"car", "bus", "truck", "motorcycle"})

Region = tuple[int, int, int, int]


def masked(image: Image, detections: Sequence[Detection], spec: PrivacySpec) -> Image:
    """The picture as it may leave the site.

    Args:
        image: height x width x 3, BGR; it is not changed.
        detections: everything that was found in it, whether it counts elsewhere or not.
        spec: what is masked.

    Returns:
        A masked copy, or the picture itself where there is nothing to mask.
    """
    if not spec.any:
        return image
    out = image.copy()
    height, width = image.shape[:2]
    for region in _regions(detections, spec, width, height):
        _reduce(out, region, (BLOCKS, BLOCKS))
    if spec.polygons:
        _reduce_polygons(out, image, spec)
    return out


def _regions(detections: Iterable[Detection], spec: PrivacySpec, width: int, height: int) -> list[Region]:
    regions = []
    for found in detections:
        x1, y1, x2, y2 = found.bbox
        wide, tall = x2 - x1, y2 - y1
        if spec.heads and found.class_name in PEOPLE:
            margin = wide * HEAD_MARGIN
            regions.append((x1 - margin, y1 - tall * 0.03, x2 + margin, y1 + tall * HEAD_SHARE))
        if spec.plates and found.class_name in VEHICLES:
            regions.append((x1, y1 + tall * PLATE_TOP, x2, y2))
    return [
        (max(0, int(x1)), max(0, int(y1)), min(width, int(np.ceil(x2))), min(height, int(np.ceil(y2))))
        for x1, y1, x2, y2 in regions
    ]


def _reduce(out: Image, region: Region, blocks: tuple[int, int]) -> None:
    left, top, right, bottom = region
    if right <= left or bottom <= top:
        return
    place = out[top:bottom, left:right]
    small = cv2.resize(
        place, (min(blocks[0], right - left), min(blocks[1], bottom - top)), interpolation=cv2.INTER_AREA
    )
    place[:] = cv2.resize(small, (right - left, bottom - top), interpolation=cv2.INTER_NEAREST)


def _reduce_polygons(out: Image, image: Image, spec: PrivacySpec) -> None:
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    for polygon in spec.polygons:
        corners = np.round(np.asarray(polygon) * (width, height)).astype(np.int32)
        cv2.fillPoly(mask, [corners], 255)
    block = max(2.0, POLYGON_BLOCK * width / REFERENCE_WIDTH)
    reduced = image.copy()
    _reduce(reduced, (0, 0, width, height), (max(1, int(width / block)), max(1, int(height / block))))
    out[mask > 0] = reduced[mask > 0]
