"""The motion gate passes what moved, and holds what did not, though cameras are noisy."""

from __future__ import annotations

import numpy as np
import pytest

from dangerous_driving.camera.frame import Image
from dangerous_driving.detection.motion import MotionGate
from dangerous_driving.simulation.scenes import Light, Scenario, Scene, SceneSpec

RANDOM = np.random.default_rng(3)


def street(noise: float = 5.0, brightness: int = 0) -> Image:
    still = np.full((720, 1280, 3), 100 + brightness, np.int16)
    still[300:, 400:900] = 60 + brightness
    return (still + np.round(RANDOM.normal(0, noise, still.shape))).clip(0, 255).astype(np.uint8)


def with_person(x: int) -> Image:
    picture = street()
    picture[400:460, x : x + 22] = (30, 40, 160)
    return picture


def test_a_still_street_is_passed_over_whatever_the_noise() -> None:
    gate = MotionGate(max_gap=60)
    assert gate.passes(street(), 0)
    assert not any(gate.passes(street(), at) for at in range(1, 20))


def test_somebody_who_walks_is_passed() -> None:
    gate = MotionGate(max_gap=60)
    assert gate.passes(with_person(500), 0)
    assert not gate.passes(with_person(500), 1)
    assert gate.passes(with_person(530), 2)


def test_slow_movement_adds_up() -> None:
    gate = MotionGate(max_gap=1000)
    gate.passes(with_person(500), 0)
    passed = [gate.passes(with_person(500 + 3 * step), step) for step in range(1, 30)]
    assert any(passed)
    assert not all(passed)


def test_a_cloud_is_no_movement() -> None:
    gate = MotionGate(max_gap=60)
    gate.passes(street(), 0)
    assert not gate.passes(street(brightness=25), 1)


def test_at_most_the_gap_without_a_look() -> None:
    gate = MotionGate(max_gap=10)
    passed = [at for at in range(31) if gate.passes(street(), at)]
    assert passed == [0, 10, 20, 30]


@pytest.mark.parametrize("light", [Light.DAY, Light.NIGHT])
def test_traffic_is_always_passed(light: Light) -> None:
    scene = Scene(SceneSpec(Scenario.TAILGATING, light, seed=3))
    gate = MotionGate(max_gap=60)
    moved = [gate.passes(scene.frame(at * 1.8).image, at * 1.8) for at in range(6)]
    assert all(moved)
