"""A rider and his two-wheeler are one road user; somebody on foot beside one is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.detection.engine import Detection
from dangerous_driving.detection.grouping import as_boxes
from dangerous_driving.detection.riders import riders
from dangerous_driving.detection.scene import Scene, scene_of
from dangerous_driving.settings import DetectionSettings
from dangerous_driving.simulation.scenes import Light, Scenario, SceneSpec
from dangerous_driving.simulation.scenes import Scene as SimulatedScene

MACHINE = (100.0, 200.0, 180.0, 300.0)
RIDER = (115.0, 130.0, 165.0, 285.0)  # from above it to the foot rests
ON_FOOT_BEFORE = (115.0, 150.0, 165.0, 330.0)  # nearer to the camera: feet below the wheels
BESIDE = (190.0, 140.0, 240.0, 295.0)
CAR = (260.0, 180.0, 420.0, 300.0)


def found(*things: tuple[str, tuple[float, float, float, float]]) -> Scene:
    detections = [Detection(name, 0.9 - 0.01 * index, bbox) for index, (name, bbox) in enumerate(things)]
    return scene_of(detections, 1920, 1080, DetectionSettings(group_distance=400))


def moved(box: tuple[float, float, float, float], by: float) -> tuple[float, float, float, float]:
    return box[0] + by, box[1], box[2] + by, box[3]


@pytest.mark.parametrize("machine", ["bicycle", "motorcycle"])
@pytest.mark.parametrize(
    ("person", "rides"), [(RIDER, True), (ON_FOOT_BEFORE, False), (BESIDE, False), (CAR, False)], ids=str
)
def test_who_rides(machine: str, person: tuple[float, float, float, float], rides: bool) -> None:
    assert riders(as_boxes([person, MACHINE]), ["person", machine]) == ({0: 1} if rides else {})


def test_nobody_rides_a_car() -> None:
    assert riders(as_boxes([RIDER, MACHINE]), ["person", "car"]) == {}


def test_a_passenger_rides_too_but_nobody_else() -> None:
    people = [moved(RIDER, shift) for shift in (-8, 0, 9)]
    assert len(riders(as_boxes([*people, MACHINE]), ["person"] * 3 + ["motorcycle"])) == 2


def test_of_two_machines_one_rides_the_nearer() -> None:
    further = moved(MACHINE, 30.0)
    assert riders(as_boxes([RIDER, further, MACHINE]), ["person", "bicycle", "bicycle"]) == {0: 2}


def test_a_lone_rider_is_no_group() -> None:
    scene = found(("motorcycle", MACHINE), ("person", RIDER))
    assert len(scene.objects) == 2
    assert scene.groups == ()


def test_a_rider_near_a_car_counts_as_his_two_wheeler() -> None:
    with_rider = found(("car", CAR), ("bicycle", MACHINE), ("person", RIDER)).groups[0]
    alone = found(("car", CAR), ("bicycle", MACHINE)).groups[0]
    assert with_rider.object_count == 2
    assert with_rider.priority == alone.priority
    assert with_rider.classes == ("bicycle", "car")
    # the picture of the group shows the rider all the same
    assert with_rider.bbox[1] <= RIDER[1]


def test_somebody_on_foot_before_a_parked_bicycle_counts_himself() -> None:
    assert found(("car", CAR), ("bicycle", MACHINE), ("person", ON_FOOT_BEFORE)).groups[0].object_count == 3


sides = st.floats(1, 300)
places = st.tuples(st.floats(0, 1500), st.floats(0, 900), sides, sides).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)
users = st.lists(st.tuples(st.sampled_from(["person", "bicycle", "motorcycle", "car"]), places), max_size=12)


@given(users)
def test_riders_are_people_on_two_wheelers_each_on_one(
    things: list[tuple[str, tuple[float, float, float, float]]],
) -> None:
    names = [name for name, _ in things]
    pairs = riders(as_boxes([box for _, box in things]), names)
    assert all(names[who] == "person" and names[what] in {"bicycle", "motorcycle"} for who, what in pairs.items())
    assert all(list(pairs.values()).count(what) <= 2 for what in pairs.values())


@given(users, st.sampled_from([0.25, 0.5, 2.0, 4.0]), st.integers(-64, 64))
def test_neither_place_nor_size_of_a_picture_matters(
    things: list[tuple[str, tuple[float, float, float, float]]], scale: float, shift: int
) -> None:
    names, boxes = [name for name, _ in things], np.round(as_boxes([box for _, box in things]))
    assert riders(boxes, names) == riders(boxes * scale, names)
    assert riders(boxes, names) == riders(boxes + shift, names)


def test_on_a_real_picture_of_riders_and_people_on_foot(shared: Path) -> None:
    picture = json.loads((shared / "samples/detections.json").read_text())["images"]["motorcycles_pedestrians.jpg"]
    names = [thing["class"] for thing in picture]
    pairs = riders(as_boxes([thing["bbox"] for thing in picture]), names)
    assert 1 <= len(pairs) < names.count("person")


def test_simulated_riders_are_told_from_people_on_foot() -> None:
    right = wrong = 0
    for seed in range(40, 46):
        scene = SimulatedScene(SceneSpec(Scenario.FREE_FLOW, Light.DAY, seed=seed))
        for at in (3.0, 17.0, 31.0):
            objects = [thing for thing in scene.frame(at).objects if thing.visible > 0.7]
            pairs = riders(as_boxes([thing.bbox for thing in objects]), [thing.class_name for thing in objects])
            numbers = {thing.actor_id for thing in objects}
            for index, thing in enumerate(objects):
                if thing.class_name != "person":
                    continue
                truly = thing.rider_of if thing.rider_of in numbers else None
                said = objects[pairs[index]].actor_id if index in pairs else None
                right += said == truly
                wrong += said != truly
    assert right > 30
    assert wrong <= 0.05 * right
