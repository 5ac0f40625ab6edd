"""What a camera's pictures say of the camera: frozen, black, covered (pure)."""

from __future__ import annotations

import zlib
from enum import StrEnum

import cv2
import numpy as np

from dangerous_driving.camera.frame import Image


class Flaw(StrEnum):
    """Why a camera that sends frames is of no use all the same."""

    FROZEN = "frozen"
    BLACK = "black"
    COVERED = "covered"


#: Grey levels. Black is a picture whose brightest hundredth is darker than this: sensors behind a closed shutter or
#: without power for their lens give 0 to 16 with noise, video black is 16. Of the night pictures this was tried on, the
#: brightest hundredth has at least 97.
BLACK_BELOW = 32

#: Grey levels of standard deviation within a picture reduced to 64 x 36. A cap, a plastic bag, paint or the sun in the
#: lens leave less than 2; the road pictures this was tried on, fog, night and a blurred lens among them, have 19 and more.
FEATURELESS_BELOW = 4.0
REDUCED = (64, 36)

#: Every eighth pixel of every eighth line tells whether a picture is the same as before: all of them would take 1 ms.
STEP = 8


class PictureWatch:
    """Looks at a camera's pictures, one now and then.

    Args:
        frozen_after: identical ones in a row that make a picture frozen.
        blind_after: black or featureless ones in a row that make a camera blind.
        gap: s between two that are looked at. A stream may well repeat a picture for some tenths of a second.
        stills: the source is made of pictures that may be alike: they are never frozen.
    """

    def __init__(self, frozen_after: int, blind_after: int, gap: float, *, stills: bool = False) -> None:
        self._frozen_after, self._blind_after, self._gap, self._stills = frozen_after, blind_after, gap, stills
        self._flaw: Flaw | None = None
        self._looked_at: float | None = None
        self._content: int | None = None
        self._alike = self._blind = 0

    def look(self, image: Image, now: float) -> Flaw | None:
        """What is wrong with the camera.

        Args:
            image: its newest picture, height x width x 3.
            now: s of one monotonic clock.
        """
        if self._looked_at is not None and now - self._looked_at < self._gap:
            return self._flaw
        self._looked_at = now
        content = zlib.crc32(image[::STEP, ::STEP].tobytes(), image.shape[0] * 65_537 + image.shape[1])
        self._alike = self._alike + 1 if content == self._content else 1
        self._content = content
        seen = _blindness(image)
        self._blind = self._blind + 1 if seen else 0
        if self._alike >= self._frozen_after and not self._stills:
            self._flaw = Flaw.FROZEN
        elif self._blind >= self._blind_after:
            self._flaw = seen
        else:
            self._flaw = None
        return self._flaw


def _blindness(image: Image) -> Flaw | None:
    grey = cv2.cvtColor(cv2.resize(image, REDUCED, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY)
    if np.percentile(grey, 99) < BLACK_BELOW:
        return Flaw.BLACK
    return Flaw.COVERED if float(grey.std()) < FEATURELESS_BELOW else None
