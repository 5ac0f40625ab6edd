"""Who reads which camera: every camera has one reader, and a detector that comes or goes moves no more than it must."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.camera.sharing import Detector, owner_of, shown_names

names = st.text(min_size=1, max_size=30)
camera_ids = st.frozensets(st.text("abc-0123", min_size=1, max_size=6), max_size=8)


def detector(name: str, *cameras: str, node: str = "") -> Detector:
    return Detector(name, node or name, frozenset(cameras))


@st.composite
def several(draw: st.DrawFn) -> list[Detector]:
    """Detectors that know cameras, in part the same."""
    return [
        Detector(name, name, draw(camera_ids)) for name in draw(st.lists(names, min_size=1, max_size=6, unique=True))
    ]


def owners(detectors: list[Detector]) -> dict[str, str | None]:
    known = frozenset[str]().union(*(each.cameras for each in detectors))
    found = {camera_id: owner_of(camera_id, detectors) for camera_id in known}
    return {camera_id: owner.name if owner else None for camera_id, owner in found.items()}


@given(several())
def test_every_known_camera_has_an_owner_who_knows_it(detectors: list[Detector]) -> None:
    knows = {each.name: each.cameras for each in detectors}
    for camera_id, name in owners(detectors).items():
        assert name is not None
        assert camera_id in knows[name]


def test_a_camera_that_nobody_knows_has_none() -> None:
    assert owner_of("a", [detector("one", "b")]) is None
    assert owner_of("a", []) is None


@given(st.data(), several())
def test_the_order_in_which_detectors_are_named_does_not_matter(data: st.DataObject, detectors: list[Detector]) -> None:
    assert owners(data.draw(st.permutations(detectors))) == owners(detectors)


@given(several(), st.integers(0, 5))
def test_one_that_joins_or_leaves_moves_only_cameras_that_go_to_it_or_were_its(
    detectors: list[Detector], number: int
) -> None:
    mover = detectors[number % len(detectors)]
    with_it, without = owners(detectors), owners([each for each in detectors if each is not mover])
    for camera_id, owner in without.items():
        assert with_it[camera_id] in {owner, mover.name}


@given(st.integers(2, 6), st.text(max_size=10))
def test_cameras_are_spread_roughly_evenly(count: int, prefix: str) -> None:
    ids = [f"camera-{number:03d}" for number in range(600)]
    detectors = [detector(f"{prefix}{number}", *ids) for number in range(count)]
    mine = list(owners(detectors).values())
    for each in detectors:
        assert 0.5 < mine.count(each.name) * count / len(ids) < 1.5  # of six: five standard deviations


def test_every_process_comes_to_the_same_answer() -> None:
    """Also of another interpreter, whose hash() of a text is another one; and of another release, as long as this stands."""
    ids = ["north", "south", "east", "west"]
    script = (
        "from dangerous_driving.camera.sharing import Detector, owner_of\n"
        f"both = [Detector(name, name, frozenset({ids})) for name in ('one', 'two')]\n"
        f"print(*(owner_of(camera_id, both).name for camera_id in {ids}))"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    both = [detector("one", *ids), detector("two", *ids)]
    assert said.split() == [owners(both)[camera_id] for camera_id in ids]


def test_a_detector_is_called_by_its_machine_where_it_is_alone_there() -> None:
    alone, first, second = detector("a:/spool", node="a"), detector("b:/1", node="b"), detector("b:/2", node="b")
    assert shown_names([alone, first, second]) == {"a:/spool": "a", "b:/1": "b:/1", "b:/2": "b:/2"}
