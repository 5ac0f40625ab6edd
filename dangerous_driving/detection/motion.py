"""Whether anything moved in a camera's picture: an unchanged scene need not be looked at again (pure)."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dangerous_driving.camera.frame import Image

#: Cells of the reduced picture. At 1280 px width one is 13 px wide: a person 50 m away covers several.
CELLS = (96, 54)

#: Pixels of a cell's side that are looked at, at least (where the picture has them).
SAMPLES = 6

#: Grey levels a cell must differ by. The mean of 6 x 6 px with a sensor noise of 5 levels varies by 0.8, compression by
#: 1 to 2; a road user differs from the road by tens.
DIFFERENCE = 7

#: Cells that must differ: fewer are leaves, drops and flicker.
LEAST_CELLS = 3


class MotionGate:
    """Compares each picture with the last one that was let through, so that slow movement adds up.

    Args:
        max_gap: s; a picture is let through at the latest so long after the one before it.
    """

    def __init__(self, max_gap: float) -> None:
        self.max_gap = max_gap
        self._passed: NDArray[np.int16] | None = None
        self._passed_at = 0.0

    def passes(self, image: Image, now: float) -> bool:
        """Whether to look at a picture (height x width x 3) at a time in s of one monotonic clock."""
        # a few pixels of each cell tell its mean well enough, at a tenth of the cost of all
        step = max(1, image.shape[1] // (CELLS[0] * SAMPLES), image.shape[0] // (CELLS[1] * SAMPLES))
        few = np.ascontiguousarray(image[::step, ::step])
        cells = cv2.cvtColor(cv2.resize(few, CELLS, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY).astype(np.int16)
        before = self._passed
        if before is not None and now - self._passed_at < self.max_gap:
            change = cells - before
            change -= np.int16(np.median(change))  # a cloud, or the camera's exposure
            if int((np.abs(change) > DIFFERENCE).sum()) < LEAST_CELLS:
                return False
        self._passed, self._passed_at = cells, now
        return True
