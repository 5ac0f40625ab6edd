from __future__ import annotations

import cv2
import numpy as np
import pytest

from dangerous_driving.detection.crops import crop, encode_jpeg
from dangerous_driving.errors import InferenceError

IMAGE = np.arange(100 * 200 * 3, dtype=np.uint32).reshape(100, 200, 3).astype(np.uint8)


def test_a_crop_holds_the_box_and_the_margin_around_it() -> None:
    part = crop(IMAGE, (50.4, 40.6, 79.2, 60.0), margin=12)
    assert np.array_equal(part, IMAGE[28:72, 38:92])


def test_a_crop_ends_at_the_edge_of_the_picture() -> None:
    assert crop(IMAGE, (0, 0, 200, 100), margin=12).shape == (100, 200, 3)
    assert crop(IMAGE, (190, 95, 200, 100), margin=12).shape == (17, 22, 3)


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (200, 100, 200, 100), (900, 900, 950, 950)])
def test_a_crop_has_at_least_one_pixel(box: tuple[int, int, int, int]) -> None:
    assert crop(IMAGE, box, margin=0).shape == (1, 1, 3)


def test_jpeg_keeps_the_size_and_quality_costs_bytes() -> None:
    picture = np.random.default_rng(1).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    good, poor = encode_jpeg(picture, 95), encode_jpeg(picture, 10)
    assert len(good) > len(poor)
    decoded = cv2.imdecode(np.frombuffer(good, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert decoded.shape == picture.shape


def test_a_picture_too_large_for_jpeg_is_an_error() -> None:
    with pytest.raises(InferenceError, match="70000 x 1 px"):
        encode_jpeg(np.zeros((1, 70_000, 3), np.uint8), 85)
