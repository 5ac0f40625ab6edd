from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest

from dangerous_driving.camera.relay import StatusRelay
from dangerous_driving.camera.status import CameraState, CameraStatus
from dangerous_driving.errors import LedgerError

PATIENCE = 20.0  # s


def status(camera_id: str, state: CameraState = CameraState.ONLINE) -> CameraStatus:
    return CameraStatus(camera_id, state, "", datetime(2026, 1, 1, tzinfo=UTC))


def test_while_a_state_is_being_told_only_the_latest_of_each_camera_waits() -> None:
    told: list[CameraStatus] = []
    entered, go_on = threading.Event(), threading.Event()

    def slow(each: CameraStatus) -> None:
        told.append(each)
        entered.set()
        go_on.wait(PATIENCE)

    relay = StatusRelay(slow)
    relay.start()
    relay.tell(status("a"))
    assert entered.wait(PATIENCE)
    for state in (CameraState.OFFLINE, CameraState.ONLINE, CameraState.DEGRADED):
        relay.tell(status("b", state))
    relay.tell(status("c"))
    go_on.set()
    relay.close(PATIENCE)
    assert told == [status("a"), status("b", CameraState.DEGRADED), status("c")]


def test_a_state_that_cannot_be_told_keeps_none_of_the_others_back() -> None:
    told: list[str] = []

    def refuse_first(each: CameraStatus) -> None:
        told.append(each.camera_id)
        if len(told) == 1:
            raise LedgerError("the database is away")

    relay = StatusRelay(refuse_first)
    relay.start()
    for camera_id in "abc":
        relay.tell(status(camera_id))
    relay.close(PATIENCE)
    assert told == ["a", "b", "c"]
    assert relay.error is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_unforeseen_error_is_kept_for_the_service_to_raise() -> None:
    def broken(each: CameraStatus) -> None:
        raise ZeroDivisionError

    relay = StatusRelay(broken)
    relay.start()
    relay.tell(status("a"))
    relay.close(PATIENCE)
    assert isinstance(relay.error, ZeroDivisionError)


def test_closing_does_not_wait_for_ever() -> None:
    held = threading.Event()

    def stuck(each: CameraStatus) -> None:
        held.wait(PATIENCE)

    relay = StatusRelay(stuck)
    relay.start()
    relay.tell(status("a"))
    relay.close(0.01)
    held.set()
