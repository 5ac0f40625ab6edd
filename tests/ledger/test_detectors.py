"""Detectors in the ledger: who lives, who is given up, and whose word on a camera counts."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import Engine, text

from dangerous_driving.camera.sharing import owner_of
from dangerous_driving.errors import LedgerError
from dangerous_driving.ledger.cameras import set_camera_status
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.detectors import LedgerRegister, live_detectors
from dangerous_driving.ledger.retention import prune_rows

pytestmark = pytest.mark.integration

LEASE = 600.0
CAMERAS = ["east", "north", "south", "west", "bridge", "tunnel", "market", "harbour"]


def register(ledger: Engine, name: str, *, lease: float = LEASE) -> LedgerRegister:
    return LedgerRegister(ledger, name, f"node of {name}", lease=lease)


def live(ledger: Engine) -> dict[str, frozenset[str]]:
    with transaction(ledger) as connection:
        return {detector.name: detector.cameras for detector in live_detectors(connection)}


def age(ledger: Engine, name: str, seconds: float) -> None:
    """As if the detector had reported that long ago."""
    with transaction(ledger) as connection:
        connection.execute(
            text(
                "UPDATE detector SET seen_at = seen_at - make_interval(secs => :seconds),"
                " live_until = live_until - make_interval(secs => :seconds) WHERE name = :name"
            ),
            {"name": name, "seconds": seconds},
        )


def test_those_that_report_are_named_to_each_other_with_what_they_know(ledger: Engine) -> None:
    one, two = register(ledger, "one"), register(ledger, "two")
    assert one.report(["a", "b"]).lapsed  # nobody knew it yet
    attendance = two.report(["b"])
    assert [(each.name, each.node, each.cameras) for each in attendance.detectors] == [
        ("one", "node of one", frozenset("ab")),
        ("two", "node of two", frozenset("b")),
    ]
    again = one.report(["c"])
    assert not again.lapsed
    assert live(ledger) == {"one": frozenset("c"), "two": frozenset("b")}


def test_one_that_is_silent_is_given_up_after_its_own_time_and_learns_of_it(ledger: Engine) -> None:
    one, two = register(ledger, "one"), register(ledger, "two", lease=2 * LEASE)
    one.report(["a"]), two.report(["a"])
    age(ledger, "one", LEASE + 1)
    age(ledger, "two", LEASE + 1)
    assert live(ledger) == {"two": frozenset("a")}
    attendance = one.report(["a"])
    assert attendance.lapsed
    assert len(attendance.detectors) == 2


def test_a_restart_under_the_same_name_takes_the_place_of_its_ghost(ledger: Engine) -> None:
    register(ledger, "one").report(["a"])
    restarted = register(ledger, "one")
    attendance = restarted.report(["b"])
    assert [each.cameras for each in attendance.detectors] == [frozenset("b")]
    assert not attendance.namesake
    assert not restarted.report(["b"]).namesake


def test_two_processes_of_one_name_notice_each_other(ledger: Engine) -> None:
    first, second = register(ledger, "one"), register(ledger, "one")
    first.report(["a"]), second.report(["a"])
    assert first.report(["a"]).namesake
    assert second.report(["a"]).namesake
    first.report(["a"])
    second.leave()  # of the other's row it keeps its hands off
    assert live(ledger) == {"one": frozenset("a")}
    first.leave()
    assert live(ledger) == {}


def test_one_that_leaves_is_given_up_at_once(ledger: Engine) -> None:
    one = register(ledger, "one")
    one.leave()  # before it ever reported
    one.report(["a"])
    one.leave()
    assert live(ledger) == {}


def test_the_dead_are_forgotten_after_a_day(ledger: Engine) -> None:
    for name in ("dead", "lately dead", "lives"):
        register(ledger, name).report([])
    age(ledger, "dead", 25 * 3600)
    age(ledger, "lately dead", 23 * 3600)
    assert prune_rows(ledger, date(2020, 1, 1))["detector"] == 1
    with transaction(ledger) as connection:
        assert set(connection.scalars(text("SELECT name FROM detector"))) == {"lately dead", "lives"}


def state(ledger: Engine, camera_id: str) -> str | None:
    with transaction(ledger) as connection:
        found = connection.scalar(text("SELECT status FROM camera WHERE id = :id"), {"id": camera_id})
    return None if found is None else str(found)


def shared(ledger: Engine, one: LedgerRegister, two: LedgerRegister) -> tuple[str, str]:
    """A camera of each."""
    one.report(CAMERAS)
    detectors = two.report(CAMERAS).detectors
    owners = {camera_id: owner_of(camera_id, detectors) for camera_id in CAMERAS}
    of = {owner.name: camera_id for camera_id, owner in owners.items() if owner}
    return of["one"], of["two"]


def test_only_the_word_of_its_reader_counts_of_a_camera(ledger: Engine) -> None:
    of_one, of_two = shared(ledger, register(ledger, "one"), register(ledger, "two"))
    at = datetime.now(UTC)
    for camera_id in (of_one, of_two):
        set_camera_status(ledger, camera_id, "online", "", at, by="one")
        set_camera_status(ledger, camera_id, "degraded", "black", at + timedelta(seconds=1), by="two")
    assert (state(ledger, of_one), state(ledger, of_two)) == ("online", "degraded")


def test_one_that_was_given_up_is_to_report_before_it_speaks(ledger: Engine) -> None:
    one, two = register(ledger, "one"), register(ledger, "two")
    of_one, of_two = shared(ledger, one, two)
    age(ledger, "one", LEASE + 1)
    at = datetime.now(UTC)
    set_camera_status(ledger, of_one, "online", "", at, by="two")  # it has taken the camera over
    with pytest.raises(LedgerError, match="after its next look") as refused:
        set_camera_status(ledger, of_one, "offline", "no frame", at + timedelta(seconds=1), by="one")
    assert refused.value.retriable
    assert state(ledger, of_one) == "online"
    one.report(CAMERAS)
    set_camera_status(ledger, of_one, "offline", "no frame", at + timedelta(seconds=1), by="one")
    set_camera_status(ledger, of_one, "online", "", at + timedelta(seconds=2), by="two")
    assert state(ledger, of_one) == "offline"
    set_camera_status(ledger, of_two, "online", "", at, by="one")
    assert state(ledger, of_two) is None


def test_a_new_reader_s_word_counts_though_its_clock_is_behind(ledger: Engine) -> None:
    of_one, _ = shared(ledger, register(ledger, "one"), register(ledger, "two"))
    at = datetime.now(UTC)
    set_camera_status(ledger, of_one, "offline", "no frame", at, by="one")
    age(ledger, "one", LEASE + 1)
    set_camera_status(ledger, of_one, "online", "", at - timedelta(minutes=1), by="two")
    assert state(ledger, of_one) == "online"


def test_one_that_knows_a_camera_no_more_says_that_it_was_removed_though_another_has_not_noticed_yet(
    ledger: Engine,
) -> None:
    one = register(ledger, "one")
    of_one, _ = shared(ledger, one, register(ledger, "two"))
    one.report([camera_id for camera_id in CAMERAS if camera_id != of_one])
    set_camera_status(ledger, of_one, "offline", "the camera was removed", datetime.now(UTC), by="one")
    assert state(ledger, of_one) == "offline"
