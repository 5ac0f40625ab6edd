"""Clips made on the spot, and sources without OpenCV."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

WriteClip = Callable[..., Path]


@pytest.fixture
def write_clip(tmp_path: Path) -> WriteClip:
    """Writes a clip whose n-th frame is grey of value 10 n."""

    def write(name: str = "clip.mp4", *, frames: int = 5, fps: float = 50.0, size: tuple[int, int] = (64, 48)) -> Path:
        path = tmp_path / name
        codec = "mp4v" if path.suffix == ".mp4" else "MJPG"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, size)
        assert writer.isOpened()
        for number in range(frames):
            writer.write(np.full((size[1], size[0], 3), 10 * number, np.uint8))
        writer.release()
        return path

    return write
