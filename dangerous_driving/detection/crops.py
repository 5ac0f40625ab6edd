"""Pictures of groups, cut out of their frame, and JPEG."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2

from dangerous_driving.camera.frame import Image
from dangerous_driving.errors import InferenceError

JPEG = "image/jpeg"


def crop(image: Image, bbox: Sequence[float], margin: int) -> Image:
    """The part of a picture within a box and a margin around it, as far as the picture goes; at least one pixel.

    Args:
        image: height x width x 3.
        bbox: x1, y1, x2, y2 in px.
        margin: px.

    Returns:
        A view, not a copy.
    """
    height, width = image.shape[:2]
    left = min(max(0, math.floor(bbox[0]) - margin), width - 1)
    top = min(max(0, math.floor(bbox[1]) - margin), height - 1)
    right = max(left + 1, min(width, math.ceil(bbox[2]) + margin))
    bottom = max(top + 1, min(height, math.ceil(bbox[3]) + margin))
    return image[top:bottom, left:right]


def encode_jpeg(image: Image, quality: int) -> bytes:
    """A picture as JPEG.

    Args:
        image: height x width x 3, BGR; at most 65,500 px a side.
        quality: 1 to 100.

    Raises:
        InferenceError: it cannot be encoded (JPEG has no room for larger sides).
    """
    try:
        encoded, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    except cv2.error as error:
        raise InferenceError(f"a picture of {image.shape[1]} x {image.shape[0]} px cannot be encoded") from error
    if not encoded:
        raise InferenceError(f"a picture of {image.shape[1]} x {image.shape[0]} px cannot be encoded")
    return data.tobytes()
