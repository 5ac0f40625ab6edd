"""Pictures of groups: where they are, and made small enough to send."""

from __future__ import annotations

import base64

import cv2
import numpy as np

from dangerous_driving.contracts import AssessmentTask
from dangerous_driving.errors import ObjectNotFoundError, PictureError
from dangerous_driving.objects import ObjectStore

JPEG_MAGIC = b"\xff\xd8\xff"


def task_picture(task: AssessmentTask, store: ObjectStore) -> bytes:
    """The encoded picture of a task's group: what the task carries itself, else what its URL names.

    Raises:
        ObjectNotFoundError: the task names no picture, or the store has none there.
        ObjectStoreError: the store refused or did not answer in time.
        ContractError: the URL is not of this store.
    """
    if task.group_image_base64:
        return base64.b64decode(task.group_image_base64)
    if not task.group_image_url:
        raise ObjectNotFoundError("(the task names no picture)")
    return store.get(store.key(task.group_image_url))


def fit_jpeg(data: bytes, *, longest_side: int, quality: int = 85) -> bytes:
    """The picture as JPEG whose longer side is at most `longest_side` pixels; a JPEG that fits is handed back as it is.

    Args:
        data: an encoded picture of any kind that OpenCV reads.
        longest_side: px.
        quality: of the JPEG, 1 to 100.

    Raises:
        PictureError: the data cannot be decoded.
    """
    try:
        pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error as error:
        raise PictureError(f"the group's picture cannot be decoded ({error})") from error
    if pixels is None:
        raise PictureError(f"the group's picture cannot be decoded ({len(data)} bytes); was it written whole?")
    height, width = pixels.shape[:2]
    scale = longest_side / max(height, width)
    if scale >= 1:
        if data.startswith(JPEG_MAGIC):
            return data
    else:
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    encoded, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not encoded:
        raise PictureError(f"the group's picture of {width}x{height} px cannot be encoded as JPEG")
    return jpeg.tobytes()
