from __future__ import annotations

import itertools
from random import Random

from hypothesis import assume, given
from hypothesis import strategies as st

from dangerous_driving.detection.grouping import as_boxes
from dangerous_driving.detection.priority import RoadUsers, priority_of

CLASSES = ("person", "bicycle", "car", "motorcycle", "bus", "truck")

Thing = tuple[str, float, float, float, float]  # class, centre x, centre y, width, height


def users(*things: Thing) -> RoadUsers:
    boxes = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for _, x, y, w, h in things]
    return RoadUsers.of(as_boxes(boxes), [name for name, *_ in things])


def person(x: float, y: float = 500.0, size: float = 1.0) -> Thing:
    return ("person", x, y, 40 * size, 100 * size)


def car(x: float, y: float = 500.0, size: float = 1.0) -> Thing:
    return ("car", x, y, 200 * size, 120 * size)


coordinates = st.floats(0, 2000)
sides = st.floats(1, 400)
things = st.lists(st.tuples(st.sampled_from(CLASSES), coordinates, coordinates, sides, sides), min_size=2, max_size=8)


@given(things)
def test_it_is_between_0_and_1_and_the_same_each_time(scene: list[Thing]) -> None:
    group = users(*scene)
    assert 0 <= priority_of(group) <= 1
    assert priority_of(group) == priority_of(users(*scene))
    assert 0 <= priority_of(group, users(*scene[:1])) <= 1


@given(things, st.floats(0, 1), coordinates, coordinates)
def test_it_never_falls_when_road_users_come_closer(scene: list[Thing], factor: float, x: float, y: float) -> None:
    closer = [(name, x + factor * (cx - x), y + factor * (cy - y), w, h) for name, cx, cy, w, h in scene]
    assert priority_of(users(*closer)) >= priority_of(users(*scene)) - 1e-12


@given(st.sampled_from(CLASSES), st.sampled_from(CLASSES), st.floats(0, 400), st.floats(0, 400))
def test_it_rises_with_the_closeness_of_a_pair(one: str, other: str, near: float, far: float) -> None:
    assume(far - near > 1)
    pairs = [users((one, 0, 0, 100, 100), (other, apart, 0, 100, 100)) for apart in (near, far)]
    assert priority_of(pairs[0]) > priority_of(pairs[1])


@given(things, st.floats(0.1, 10))
def test_the_same_scene_nearer_to_the_camera_has_the_same_priority(scene: list[Thing], zoom: float) -> None:
    zoomed = [(name, zoom * x, zoom * y, zoom * w, zoom * h) for name, x, y, w, h in scene]
    assert abs(priority_of(users(*zoomed)) - priority_of(users(*scene))) < 1e-6


@given(things, st.randoms())
def test_the_order_of_objects_does_not_matter(scene: list[Thing], random: Random) -> None:
    shuffled = list(scene)
    random.shuffle(shuffled)
    assert abs(priority_of(users(*shuffled)) - priority_of(users(*scene))) < 1e-12


def test_a_person_beside_a_vehicle_comes_before_two_vehicles_before_two_persons() -> None:
    beside = [
        priority_of(users((one, 0, 0, 100, 100), (other, 100, 0, 100, 100)))
        for one, other in (("person", "truck"), ("bicycle", "car"), ("motorcycle", "car"), ("car", "car"))
    ]
    assert beside == sorted(beside, reverse=True)
    assert beside[-1] > priority_of(users(person(0), person(40)))


def test_a_rider_beside_their_two_wheeler_is_no_conflict_with_a_vehicle() -> None:
    rider = users(("person", 100, 100, 40, 90), ("motorcycle", 100, 130, 50, 90))
    assert priority_of(rider) < 0.5


def test_the_scale_is_as_documented() -> None:
    def of_two_cars(apart: float) -> float:
        return priority_of(users(("car", 0, 0, 60, 80), ("car", apart, 0, 60, 80)))

    assert abs(of_two_cars(0) - 0.55) < 1e-9
    assert abs(of_two_cars(100) - 0.55 / 2) < 1e-9  # one object size (the diagonal) apart
    assert abs(of_two_cars(200) - 0.55 / 16) < 1e-9


def test_only_a_person_close_to_a_vehicle_can_open_an_alert_by_geometry_alone() -> None:
    threshold = 0.9  # default of alerts.geometry_priority
    assert priority_of(users(person(20), car(0))) >= threshold
    vehicles = [name for name in CLASSES if name not in {"person", "bicycle", "motorcycle"}]
    queue = [priority_of(users((a, 0, 0, 99, 99), (b, 0, 0, 99, 99))) for a, b in itertools.product(vehicles, vehicles)]
    assert max(queue) < threshold


def test_growing_overlap_raises_it_and_a_standing_queue_does_not() -> None:
    before = users(person(300), car(0))
    now = users(person(100), car(0))
    assert priority_of(now, before) > priority_of(now)
    assert priority_of(now, now) == priority_of(now)
    assert priority_of(before, now) == priority_of(before)  # they part


def test_overlap_elsewhere_in_the_frame_before_is_not_counted_here() -> None:
    elsewhere = users(person(1500), car(1500))
    now = users(person(100), car(0))
    assert priority_of(now, elsewhere) > priority_of(now)


def test_more_kinds_of_road_users_weigh_more() -> None:
    same = users(car(0), car(100), car(600))
    mixed = users(car(0), car(100), ("bus", 600, 500, 200, 120))
    assert priority_of(mixed) > priority_of(same)


def test_boxes_without_extent_and_unknown_classes_are_no_error() -> None:
    points = users(("car", 5, 5, 0, 0), ("car", 5, 5, 0, 0), ("car", 9, 9, 0, 0))
    assert 0 <= priority_of(points, points) <= 1
    assert priority_of(users(("tram", 0, 0, 99, 99), person(0))) == priority_of(users(("car", 0, 0, 99, 99), person(0)))
