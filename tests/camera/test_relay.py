from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from dangerous_driving.camera.relay import StatusRelay
from dangerous_driving.camera.status import CameraState, CameraStatus
from dangerous_driving.errors import LedgerError, StatementRefusedError

PATIENCE = 60.0  # s


def wait_for(condition: Callable[[], object]) -> None:
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends, "it did not come true in time"
        time.sleep(0.005)


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

    relay = StatusRelay(refuse_first, retry=0.01)
    relay.start()
    for camera_id in "abc":
        relay.tell(status(camera_id))
    wait_for(lambda: len(told) == 4)
    relay.close(PATIENCE)
    assert set(told[1:]) == {"a", "b", "c"}
    assert relay.error is None


class Ledger:
    """Refuses while it is away, and keeps the rest."""

    def __init__(self) -> None:
        self.away = True
        self.attempts = 0
        self.kept: list[CameraStatus] = []

    def __call__(self, each: CameraStatus) -> None:
        self.attempts += 1
        if self.away:
            raise LedgerError("the database is away")
        self.kept.append(each)


def test_the_newest_states_are_told_when_the_outage_is_over_and_it_is_logged_once() -> None:
    ledger = Ledger()
    relay = StatusRelay(ledger, retry=0.01)
    with capture_logs() as logs:
        relay.start()
        relay.tell(status("a", CameraState.OFFLINE))
        relay.tell(status("b", CameraState.OFFLINE))
        wait_for(lambda: ledger.attempts > 3)
        relay.tell(status("a", CameraState.ONLINE))
        before = ledger.attempts
        wait_for(lambda: ledger.attempts > before + 3)
        ledger.away = False
        wait_for(lambda: len(ledger.kept) == 2)
        relay.close(PATIENCE)
    assert {each.camera_id: each.state for each in ledger.kept} == {"a": CameraState.ONLINE, "b": CameraState.OFFLINE}
    assert [entry["event"] for entry in logs] == ["camera_statuses_wait", "camera_statuses_told_again"]


def test_closing_does_not_wait_for_the_next_attempt() -> None:
    ledger = Ledger()
    relay = StatusRelay(ledger, retry=PATIENCE)
    relay.start()
    relay.tell(status("a"))
    wait_for(lambda: ledger.attempts)
    begun = time.monotonic()
    relay.close(PATIENCE)
    assert time.monotonic() - begun < PATIENCE / 2
    assert ledger.attempts == 2  # once more, for it may be back


def test_a_state_that_can_never_be_told_is_not_tried_again() -> None:
    told: list[str] = []

    def refuse(each: CameraStatus) -> None:
        told.append(each.camera_id)
        raise StatementRefusedError("no such value")

    relay = StatusRelay(refuse, retry=0.01)
    relay.start()
    relay.tell(status("a"))
    relay.tell(status("b"))
    wait_for(lambda: len(told) == 2)
    relay.close(PATIENCE)
    assert told == ["a", "b"]


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
