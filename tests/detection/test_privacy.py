"""What is masked cannot be told from the picture any more; everything else is as it was."""

from __future__ import annotations

import numpy as np
import pytest

from dangerous_driving.camera.frame import Image
from dangerous_driving.detection.engine import Detection
from dangerous_driving.detection.privacy import masked
from dangerous_driving.settings import PrivacySpec

PERSON = Detection("person", 0.9, (200.0, 100.0, 260.0, 260.0))
CAR = Detection("car", 0.9, (400.0, 150.0, 560.0, 250.0))


@pytest.fixture
def picture() -> Image:
    return np.random.default_rng(0).integers(0, 256, (360, 640, 3), dtype=np.uint8)


def changed(before: Image, after: Image) -> np.ndarray:
    return np.asarray((before != after).any(axis=2))


def test_nothing_is_masked_by_default(picture: Image) -> None:
    assert masked(picture, [PERSON, CAR], PrivacySpec()) is picture


def test_the_picture_that_was_given_stays(picture: Image) -> None:
    before = picture.copy()
    masked(picture, [PERSON, CAR], PrivacySpec(heads=True, plates=True, polygons=(((0, 0), (1, 0), (1, 1)),)))
    assert np.array_equal(picture, before)


def test_heads_are_reduced_to_a_few_colours_and_bodies_stay(picture: Image) -> None:
    out = masked(picture, [PERSON, CAR], PrivacySpec(heads=True))
    head = out[100:140, 200:260]
    assert len(np.unique(head.reshape(-1, 3), axis=0)) <= 9
    where = changed(picture, out)
    assert not where[145:].any()
    assert not where[:, 300:].any()


def test_plates_are_reduced_and_windscreens_stay(picture: Image) -> None:
    out = masked(picture, [PERSON, CAR], PrivacySpec(plates=True))
    assert len(np.unique(out[196:250, 400:560].reshape(-1, 3), axis=0)) <= 9
    where = changed(picture, out)
    assert not where[:194].any()
    assert not where[:, :399].any()


def test_two_pictures_that_differ_within_a_block_only_are_masked_alike(picture: Image) -> None:
    other = picture.copy()
    block = other[100:113, 194:214]  # swapping pixels keeps the block's mean
    block[2, 4], block[3, 5] = block[3, 5].copy(), block[2, 4].copy()
    spec = PrivacySpec(heads=True)
    assert not np.array_equal(picture, other)
    assert np.array_equal(masked(picture, [PERSON], spec), masked(other, [PERSON], spec))


def test_polygons_are_masked_whoever_is_there(picture: Image) -> None:
    quarter = ((0.0, 0.0), (0.5, 0.0), (0.5, 0.5), (0.0, 0.5))
    out = masked(picture, [], PrivacySpec(polygons=(quarter,)))
    assert len(np.unique(out[:170, :310].reshape(-1, 3), axis=0)) < 400
    assert not changed(picture, out)[185:].any()
    assert not changed(picture, out)[:, 325:].any()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 400)])
def test_pictures_and_boxes_of_any_size(size: tuple[int, int]) -> None:
    picture = np.zeros((*size, 3), np.uint8)
    everything = PrivacySpec(heads=True, plates=True, polygons=(((0, 0), (1, 0), (1, 1)),))
    beyond = Detection("person", 0.9, (0.0, 0.0, float(size[1]), float(size[0])))
    assert masked(picture, [beyond, PERSON, CAR], everything).shape == picture.shape
