"""Simulated scenes: the same for the same spec, and their truth is what the pictures show."""

from __future__ import annotations

import itertools
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.assessment.risk import SEVERITIES
from dangerous_driving.camera.frame import Image
from dangerous_driving.contracts import RiskLevel
from dangerous_driving.errors import ConfigError
from dangerous_driving.simulation.scenes import Light, Scenario, Scene, SceneFrame, SceneSpec, Weather

SIZE = {"width": 320, "height": 180}

RISKS = {
    Scenario.TAILGATING: "tailgating",
    Scenario.CUT_IN: "dangerous_manoeuvre",
    Scenario.WRONG_WAY: "wrong_way",
    Scenario.STEPPING_OUT: "pedestrian_conflict",
    Scenario.PAVEMENT: "pavement_driving",
    Scenario.RED_LIGHT: "red_light",
}


def scene(scenario: Scenario = Scenario.FREE_FLOW, seed: int = 1, **more: object) -> Scene:
    return Scene(SceneSpec(scenario, seed=seed, **(SIZE | more)))  # type: ignore[arg-type]


@cache
def frames(scenario: Scenario, seed: int) -> tuple[SceneFrame, ...]:
    """One loop of a scene."""
    playing = scene(scenario, seed)
    return tuple(playing.frame(float(at)) for at in np.arange(0, playing.period_of_script, 1.6))


def same(first: SceneFrame, second: SceneFrame) -> bool:
    return (
        np.array_equal(first.image, second.image) and first.objects == second.objects and first.groups == second.groups
    )


def test_a_spec_gives_the_same_pictures_in_any_order_and_process() -> None:
    one, other = scene(Scenario.RED_LIGHT, 5), scene(Scenario.RED_LIGHT, 5)
    forwards = [one.frame(at) for at in (1.0, 8.0, 20.0)]
    backwards = [other.frame(at) for at in (20.0, 8.0, 1.0)]
    assert all(same(first, second) for first, second in zip(forwards, reversed(backwards), strict=True))


def test_seeds_differ_in_road_and_traffic() -> None:
    pictures = [scene(seed=seed).frame(3.0).image for seed in range(4)]
    assert all(np.abs(first.astype(int) - second).mean() > 8 for first, second in itertools.pairwise(pictures))


def test_the_traffic_repeats_and_the_noise_does_not() -> None:
    playing = scene(seed=2)
    first, later = playing.frame(4.0), playing.frame(4.0 + playing.period_of_script)
    assert first.objects == later.objects
    assert not np.array_equal(first.image, later.image)


@pytest.mark.parametrize(("light", "weather"), list(product(Light, Weather)))
def test_every_light_and_weather_shows_something(light: Light, weather: Weather) -> None:
    frame = scene(Scenario.FREE_FLOW, 3, light=light, weather=weather).frame(6.0)
    assert frame.image.shape == (180, 320, 3)
    assert frame.image.dtype == np.uint8
    assert frame.image.std() > 10
    assert frame.objects


def test_night_is_darker_than_day() -> None:
    day, night = (scene(seed=3, light=light).frame(6.0).image.mean() for light in (Light.DAY, Light.NIGHT))
    assert night < 0.9 * day


@pytest.mark.parametrize("scenario", list(Scenario))
def test_boxes_lie_in_the_picture_and_are_large_enough_to_matter(scenario: Scenario) -> None:
    for frame in frames(scenario, 1):
        for thing in frame.objects:
            x1, y1, x2, y2 = thing.bbox
            assert 0 <= x1 < x2 <= 320
            assert 0 <= y1 < y2 <= 180
            assert y2 - y1 >= 18 * 320 / 1280
            assert 0.25 <= thing.visible <= 1
        numbers = [thing.actor_id for thing in frame.objects]
        assert len(numbers) == len(set(numbers))
        people = {thing.actor_id: thing for thing in frame.objects if thing.rider_of is not None}
        assert all(thing.class_name == "person" for thing in people.values())


def without(playing: Scene, number: int) -> Scene:
    """The same scene with one road user less (and his rider)."""
    from dataclasses import replace

    less = Scene(playing.spec)
    actors = tuple(actor for actor in less._play.actors if number not in {actor.number, actor.rider_of})
    less._play = replace(less._play, actors=actors)
    return less


def test_a_box_is_tight_around_what_the_picture_shows_of_somebody() -> None:
    playing = scene(Scenario.FREE_FLOW, 8, width=960, height=540)
    frame = playing.frame(5.0)
    checked = 0
    for thing in frame.objects:
        small = thing.bbox[3] - thing.bbox[1] < 40
        if small or thing.visible < 0.99 or thing.rider_of or thing.class_name in {"bicycle", "motorcycle"}:
            continue
        change = np.abs(frame.image.astype(int) - without(playing, thing.actor_id).frame(5.0).image).max(axis=2) > 12
        x1, y1, x2, y2 = (int(side) for side in thing.bbox)
        # its shadow lies on the ground around it, so only the upper half is bare of all but itself
        upper = change[: y1 + (y2 - y1) // 2]
        rows, columns = np.flatnonzero(upper.any(axis=1)), np.flatnonzero(upper[:, x1:x2].any(axis=0)) + x1
        assert rows.size
        assert abs(rows[0] - y1) <= 2, thing
        assert columns[0] - x1 <= 0.35 * (x2 - x1) + 2
        checked += 1
    assert checked >= 3


@pytest.mark.parametrize("scenario", list(RISKS))
@pytest.mark.parametrize("seed", [1, 2])
def test_the_scripted_danger_happens_is_named_and_passes(scenario: Scenario, seed: int) -> None:
    dangerous = [[group.risk_type for group in frame.groups if group.dangerous] for frame in frames(scenario, seed)]
    with_it = [RISKS[scenario] in types for types in dangerous]
    assert any(with_it)
    assert not all(with_it)
    for frame in frames(scenario, seed):
        for group in frame.groups:
            assert (group.risk_type is not None) == (group.risk_level is not RiskLevel.NONE)
            assert group.risk_type is None or group.risk_type in SEVERITIES


@pytest.mark.parametrize("scenario", [Scenario.FREE_FLOW, Scenario.QUEUE])
def test_ordinary_traffic_is_harmless_though_it_may_be_close(scenario: Scenario) -> None:
    for seed in (1, 2, 3):
        levels = [group.risk_level for frame in frames(scenario, seed) for group in frame.groups]
        assert levels
        assert sum(level is RiskLevel.HIGH for level in levels) <= 0.05 * len(levels)  # somebody always hurries


def test_groups_hold_who_is_in_sight_and_are_boxed_around_them() -> None:
    for frame in frames(Scenario.STEPPING_OUT, 1):
        boxes = {thing.actor_id: thing.bbox for thing in frame.objects}
        for group in frame.groups:
            members = np.array([boxes[number] for number in group.actor_ids])
            assert group.bbox == (*members[:, :2].min(axis=0), *members[:, 2:].max(axis=0))


def test_every_kind_of_road_user_is_seen() -> None:
    seen = {
        thing.class_name
        for scenario in Scenario
        for seed in (1, 2)
        for frame in (frames(scenario, seed) if seed == 1 or scenario in RISKS else ())
        for thing in frame.objects
    }
    assert seen == {"person", "bicycle", "car", "motorcycle", "bus", "truck"}


specs = st.builds(
    SceneSpec,
    st.sampled_from(Scenario),
    st.sampled_from(Light),
    st.sampled_from(Weather),
    st.integers(0, 999_999_999),
    st.integers(160, 3840),
    st.integers(160, 3840),
    st.sampled_from([0.5, 1.0, 5.0, 12.5, 30.0]),
)


@given(specs)
def test_a_spec_can_be_written_as_a_source_and_read_back(spec: SceneSpec) -> None:
    assert SceneSpec.parse(str(spec)) == spec


def test_what_is_left_out_of_a_source_has_its_default() -> None:
    assert SceneSpec.parse("simulated:") == SceneSpec.parse("simulated") == SceneSpec()
    assert SceneSpec.parse("simulated:queue?seed=3") == SceneSpec(Scenario.QUEUE, seed=3)
    assert {SceneSpec.parse(f"simulated:any?seed={seed}").scenario for seed in range(8)} == set(Scenario)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("simulated:nonsense", "nonsense"),
        ("simulated:queue?light=noon", "noon"),
        ("simulated:queue?colour=red", "colour"),
        ("simulated:queue?seed=-1", "-1"),
        ("simulated:queue?size=10x10", "10x10"),
        ("simulated:queue?size=99999x99999", "99999x99999"),
        ("simulated:queue?fps=0", "fps '0'"),
        ("simulated:queue?fps=nan", "nan"),
        ("rtsp://camera", "no simulated scene"),
    ],
)
def test_a_wrong_source_is_refused_by_name(source: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        SceneSpec.parse(source)


def caption(image: Image) -> Image:
    return image[: image.shape[0] // 20, : image.shape[1] // 4]


def test_every_picture_says_that_it_is_simulated() -> None:
    # white letters on a darkened strip, which is nowhere else in the upper corner
    strip = caption(scene(seed=4).frame(2.0).image)
    assert (strip > 200).any()
    assert np.median(strip) < 90
