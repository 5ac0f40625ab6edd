"""A detector among others, while the ledger comes and goes."""

from __future__ import annotations

import threading
from collections.abc import Collection

import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr
from structlog.testing import capture_logs

from dangerous_driving.camera import membership as membership_module
from dangerous_driving.camera.membership import GRACE_LOOKS, Attendance, Membership
from dangerous_driving.camera.sharing import Detector, owner_of
from dangerous_driving.errors import LedgerError
from dangerous_driving.settings import CameraSpec

CAMERAS = tuple(CameraSpec(id=f"camera-{number:02d}", source=SecretStr("0")) for number in range(20))
ALL = {camera.id for camera in CAMERAS}


class Ledger:
    """Detectors' rows, shared by the places of several; ``dead`` ones are no longer named."""

    def __init__(self) -> None:
        self.rows: dict[str, Detector] = {}
        self.away = False

    def require(self) -> None:
        if self.away:
            raise LedgerError("no database answers")


class Place:
    """One detector's."""

    def __init__(self, ledger: Ledger, name: str) -> None:
        self.ledger, self.name = ledger, name
        self.namesake = False
        self.reports = 0

    def report(self, cameras: Collection[str]) -> Attendance:
        self.ledger.require()
        self.reports += 1
        lapsed = self.name not in self.ledger.rows
        self.ledger.rows[self.name] = Detector(self.name, self.name, frozenset(cameras))
        return Attendance(tuple(self.ledger.rows.values()), lapsed=lapsed, namesake=self.namesake)

    def leave(self) -> None:
        self.ledger.require()
        del self.ledger.rows[self.name]


def member(ledger: Ledger, name: str) -> Membership:
    return Membership(name, name, Place(ledger, name))


def own(membership: Membership, cameras: tuple[CameraSpec, ...] = CAMERAS) -> set[str]:
    return {camera.id for camera in membership.own(cameras)}


def gauge(name: str) -> float | None:
    return REGISTRY.get_sample_value(name)


def test_one_alone_reads_all_that_it_knows_and_says_nothing() -> None:
    alone = member(Ledger(), "one")
    with capture_logs() as logs:
        assert alone.own(CAMERAS) == alone.own(CAMERAS) == CAMERAS
    assert (logs, alone.doubted) == ([], False)
    assert (gauge("detect_cameras"), gauge("detect_detectors")) == (20, 1)


def test_two_share_and_the_log_says_what_moved() -> None:
    ledger = Ledger()
    one, two = member(ledger, "one"), member(ledger, "two")
    assert own(one) == ALL
    with capture_logs() as logs:
        of_two, of_one = own(two), own(one)
    assert of_one | of_two == ALL
    assert not of_one & of_two
    assert of_one
    assert of_two
    shared, given = logs
    assert (shared["event"], shared["own"], shared["others"]) == ("cameras_shared", len(of_two), ["one"])
    assert (given["event"], given["count"], set(given["camera_ids"])) == ("cameras_given_away", len(of_two), of_two)
    assert (gauge("detect_cameras"), gauge("detect_detectors")) == (len(of_one), 2)
    with capture_logs() as logs:
        two.leave()
        assert own(one) == ALL
    assert [(entry["event"], set(entry["camera_ids"])) for entry in logs] == [("cameras_taken_over", of_two)]


def test_cameras_that_are_added_or_removed_are_no_hand_over() -> None:
    ledger = Ledger()
    one, two = member(ledger, "one"), member(ledger, "two")
    for _ in range(2):
        own(one), own(two)
    with capture_logs() as logs:
        for known in (CAMERAS[:5], CAMERAS):
            own(one, known), own(two, known)
            assert own(one, known) | own(two, known) == {camera.id for camera in known}
    given, taken = (
        {camera_id for entry in logs if entry["event"] == event for camera_id in entry["camera_ids"]}
        for event in ("cameras_given_away", "cameras_taken_over")
    )
    # what one read for a moment since the other did not know it yet
    assert taken <= given <= ALL - {camera.id for camera in CAMERAS[:5]}


def test_without_the_ledger_it_keeps_what_it_had_and_says_so_once() -> None:
    ledger = Ledger()
    one, two = member(ledger, "one"), member(ledger, "two")
    own(one)
    of_two = own(two)
    of_one = own(one)
    ledger.away = True
    with capture_logs() as logs:
        for _ in range(3):
            assert (own(one), own(two)) == (of_one, of_two)
        assert one.away
        # known to the others or not: nobody can say, and a frame that is read twice is not lost
        more = CameraSpec(id="more", source=SecretStr("0"))
        assert own(one, (*CAMERAS, more)) == of_one | {"more"}
        ledger.away = False
        own(one)
    assert [entry["event"] for entry in logs if entry["detector"] == "one"] == [
        "detectors_unreadable",
        "detectors_readable_again",
    ]


def test_one_that_starts_without_the_ledger_reads_all_and_gives_away_what_is_anothers_when_it_is_back() -> None:
    ledger = Ledger()
    one, two = member(ledger, "one"), member(ledger, "two")
    own(one)
    ledger.away = True
    assert own(two) == ALL
    ledger.away = False
    assert own(two) == {camera_id for camera_id in ALL if owner_of(camera_id, ledger.rows.values()).name == "two"}  # type: ignore[union-attr]


def test_after_an_outage_the_first_to_return_does_not_take_over_all_cameras() -> None:
    ledger = Ledger()
    one, two = member(ledger, "one"), member(ledger, "two")
    own(two)
    of_one = own(one)
    ledger.rows.clear()  # all are given up by then
    ledger.away = True
    own(one), own(two)
    ledger.away = False
    for _ in range(GRACE_LOOKS):
        assert own(one) == of_one
    assert own(one) == ALL  # the other has died meanwhile


def test_one_that_died_is_given_up_though_the_ledger_is_slow_at_every_look() -> None:
    ledger = Ledger()
    one, two = member(ledger, "one"), member(ledger, "two")
    own(two)
    of_one = own(one)
    for _ in range(GRACE_LOOKS):
        ledger.rows.clear()  # it comes too late each time, and the other never
        assert own(one) == of_one
    ledger.rows.clear()
    assert own(one) == ALL


def test_one_that_died_is_given_up_though_the_ledger_is_away_at_every_other_look() -> None:
    ledger = Ledger()
    one, two = member(ledger, "one"), member(ledger, "two")
    own(two)
    own(one)
    ledger.away = True
    own(one)
    assert gauge("detect_heard") == 0
    ledger.away = False
    del ledger.rows["two"]
    assert own(one) == ALL
    assert gauge("detect_heard") == 1


def test_states_are_told_again_after_it_was_given_up_and_at_the_look_after_it_took_over() -> None:
    ledger = Ledger()
    one, two = member(ledger, "one"), member(ledger, "two")

    def doubted(membership: Membership) -> bool:
        own(membership)
        return membership.doubted

    assert [doubted(member) for member in (one, two, one, two)] == [False] * 4
    del ledger.rows["two"]  # it was silent for too long
    assert [doubted(one), doubted(one), doubted(one)] == [False, True, False]
    assert [doubted(two), doubted(two)] == [True, False]


def test_after_leaving_it_reports_no_more() -> None:
    ledger = Ledger()
    one = member(ledger, "one")
    own(one)
    one.leave()
    own(one)
    one.leave()
    assert ledger.rows == {}
    assert one.left


def test_leaving_without_the_ledger_ends_too() -> None:
    ledger = Ledger()
    one = member(ledger, "one")
    own(one)
    ledger.away = True
    with capture_logs() as logs:
        one.leave()
    assert [entry["event"] for entry in logs] == ["detector_not_signed_off"]
    never = member(ledger, "never")
    never.leave()
    assert never.left


def test_leaving_does_not_wait_for_a_ledger_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership_module, "SIGN_OFF_SECONDS", 0.05)
    goes_on = threading.Event()
    place = Place(Ledger(), "one")
    one = Membership("one", "one", place)
    own(one)

    def hang(_: Collection[str]) -> Attendance:
        goes_on.wait(60)
        raise LedgerError("no database answers")

    monkeypatch.setattr(place, "report", hang)
    looking = threading.Thread(target=one.own, args=(CAMERAS,), daemon=True)
    looking.start()
    with capture_logs() as logs:
        one.leave()
    assert (one.left, [entry["event"] for entry in logs]) == (True, ["detector_not_signed_off"])
    goes_on.set()
    looking.join(60)


def test_another_process_of_its_name_is_an_error_told_once() -> None:
    place = Place(Ledger(), "one")
    one = Membership("one", "one", place)
    own(one)
    place.namesake = True
    with capture_logs() as logs:
        assert own(one) == own(one) == ALL
    assert [entry["event"] for entry in logs] == ["detector_name_used_twice"]
    assert "spool.folder" in logs[0]["reason"]
