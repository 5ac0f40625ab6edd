"""The thread that keeps a detector at its cameras: what ends it ends the detector, and one that hangs is not heard."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from pydantic import SecretStr

from dangerous_driving.camera.following import CameraFollower
from dangerous_driving.camera.inventory import CameraInventory
from dangerous_driving.camera.membership import Membership
from dangerous_driving.settings import CameraSpec
from tests.camera.test_membership import Ledger, Place

CAMERAS = (CameraSpec(id="gate", source=SecretStr("0")),)
PATIENCE = 60.0


class User:
    def __init__(self) -> None:
        self.reads: tuple[CameraSpec, ...] = ()
        self.idle = 0.0

    def apply(self, cameras: tuple[CameraSpec, ...]) -> None:
        self.reads = cameras

    def tell_again(self) -> None:
        pass

    def idle_for(self) -> float:
        return self.idle


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the condition was never met"
        time.sleep(0.005)


def follower(user: User, place: Place, register: Callable[[object], None] = lambda _: None) -> CameraFollower:
    inventory = CameraInventory({"settings": lambda: CAMERAS})
    return CameraFollower(inventory, Membership("one", "one", place), user, register=register, refresh=0.01, lease=20.0)


def test_an_error_of_ours_stops_the_detector_and_gives_its_cameras_away() -> None:
    ledger, stop, looks = Ledger(), threading.Event(), []

    def register(_: object) -> None:
        looks.append(1)
        if len(looks) == 3:
            raise KeyError("a slip")

    following = follower(User(), Place(ledger, "one"), register)
    following.start((), stop)
    assert stop.wait(PATIENCE)
    wait_for(lambda: not ledger.rows)
    with pytest.raises(KeyError, match="a slip"):
        following.check()


def test_one_that_hangs_keeps_its_cameras_but_is_not_heard_until_it_goes_on() -> None:
    user, place, stop = User(), Place(Ledger(), "one"), threading.Event()
    looks: list[object] = []
    following = follower(user, place, looks.append)
    following.start((), stop)
    wait_for(lambda: user.reads == CAMERAS and place.reports > 2)
    user.idle = 20.0
    begun = len(looks)
    wait_for(lambda: len(looks) > begun + 1)  # a look that had begun is over
    reports, begun = place.reports, len(looks)
    wait_for(lambda: len(looks) > begun + 5)
    assert (place.reports, user.reads) == (reports, CAMERAS)
    user.idle = 0.0
    wait_for(lambda: place.reports > reports)
    stop.set()
    following.check()
