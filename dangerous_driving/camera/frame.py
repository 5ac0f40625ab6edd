"""A picture of a camera, as every part after the camera sees it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""height x width x 3, BGR (OpenCV's order)."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a camera.

    ``image``: height x width x 3, BGR, never changed by anyone. ``captured_at``: UTC in whole milliseconds, taken when
    the frame was read, strictly rising per camera (ids derive from it). ``sequence`` counts the frames that were read.
    """

    camera_id: str
    image: Image
    captured_at: datetime
    sequence: int
