"""A camera that sends frames may still show nothing: frozen, black, covered."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from dangerous_driving.camera.frame import Image
from dangerous_driving.camera.picture import Flaw, PictureWatch
from dangerous_driving.simulation.scenes import Light, Scenario, Scene, SceneSpec, Weather

RANDOM = np.random.default_rng(1)


def watch(**changes: bool) -> PictureWatch:
    return PictureWatch(frozen_after=4, blind_after=3, gap=1.0, **changes)


def street() -> Image:
    return RANDOM.integers(0, 255, (72, 128, 3), dtype=np.uint8)


def flaws(watch: PictureWatch, pictures: list[Image], step: float = 1.0) -> list[Flaw | None]:
    return [watch.look(picture, at * step) for at, picture in enumerate(pictures)]


def test_a_picture_is_frozen_from_the_nth_identical_one_and_well_at_the_first_that_differs() -> None:
    same = street()
    assert flaws(watch(), [street(), same, same, same, same, same, street()]) == [None] * 4 + [Flaw.FROZEN] * 2 + [None]


def test_noise_alone_shows_that_a_camera_lives() -> None:
    base = np.full((72, 128, 3), 90, np.uint8)
    base[:30] = 200
    noisy = [(base + RANDOM.integers(0, 3, base.shape, dtype=np.uint8)).astype(np.uint8) for _ in range(20)]
    assert set(flaws(watch(), noisy)) == {None}


def test_repetitions_within_a_moment_are_one_look() -> None:
    same = street()
    assert set(flaws(watch(), [same] * 20, step=0.05)) == {None}


def test_stills_are_never_frozen() -> None:
    assert set(flaws(watch(stills=True), [street()] * 1 + [street()] * 9)) == {None}
    same = street()
    assert set(flaws(watch(stills=True), [same] * 10)) == {None}


def test_black_with_the_noise_of_a_sensor() -> None:
    dark = [RANDOM.integers(0, 14, (72, 128, 3), dtype=np.uint8) for _ in range(5)]
    assert flaws(watch(), dark) == [None, None, Flaw.BLACK, Flaw.BLACK, Flaw.BLACK]


@pytest.mark.parametrize("colour", [(40, 60, 70), (128, 128, 128), (250, 252, 255)])
def test_covered_or_dazzled(colour: tuple[int, int, int]) -> None:
    blank = [
        np.clip(np.full((72, 128, 3), colour) + RANDOM.normal(0, 4, (72, 128, 3)), 0, 255).astype(np.uint8)
        for _ in range(4)
    ]
    assert flaws(watch(), blank)[-1] is Flaw.COVERED


def test_one_dark_picture_is_no_blindness() -> None:
    assert set(flaws(watch(), [street(), np.zeros((72, 128, 3), np.uint8), street(), street()])) == {None}


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2)])
def test_pictures_of_any_size(size: tuple[int, int]) -> None:
    looking = watch()
    looking.look(np.zeros((*size, 3), np.uint8), 0.0)
    assert looking.look(RANDOM.integers(0, 255, (*size, 3), dtype=np.uint8), 5.0) in {None, Flaw.BLACK, Flaw.COVERED}


def test_a_change_of_resolution_is_a_change() -> None:
    grey = [np.full((72 + 8 * number, 128, 3), 99, np.uint8) for number in range(8)]
    assert Flaw.FROZEN not in flaws(watch(), grey)


def test_real_night_fog_and_dirt_are_not_blindness(shared: Path) -> None:
    for path in sorted((shared / "samples/images").glob("*.jpg")):
        picture = cv2.imread(str(path))
        assert picture is not None
        looking = PictureWatch(frozen_after=99, blind_after=1, gap=0.0)
        assert looking.look(np.asarray(picture, np.uint8), 0.0) is None, path.name


@pytest.mark.parametrize("light", list(Light))
@pytest.mark.parametrize("weather", list(Weather))
def test_simulated_night_and_rain_are_not_blindness(light: Light, weather: Weather) -> None:
    looking = PictureWatch(frozen_after=2, blind_after=1, gap=0.0)
    scene = Scene(SceneSpec(Scenario.FREE_FLOW, light, weather, seed=2, width=640, height=360))
    assert [looking.look(scene.frame(at).image, at) for at in (0.0, 2.0, 4.0)] == [None] * 3
