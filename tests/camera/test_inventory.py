"""Cameras of a file and of a table together, while both change."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import SecretStr
from structlog.testing import capture_logs

from dangerous_driving.camera.inventory import CameraInventory, Registration, SettingsFile, Switched
from dangerous_driving.errors import LedgerError
from dangerous_driving.settings import CameraSpec


def spec(camera_id: str, source: str = "0") -> CameraSpec:
    return CameraSpec(id=camera_id, source=SecretStr(source))


class Table:
    """An origin that can be away."""

    def __init__(self, *cameras: CameraSpec) -> None:
        self.cameras: Sequence[CameraSpec] = cameras
        self.away = False

    def __call__(self) -> Sequence[CameraSpec]:
        if self.away:
            raise LedgerError("no database answers")
        return self.cameras


def write(file: Path, *camera_ids: str) -> None:
    lines = [f"    - {{id: {camera_id}, source: '0'}}" for camera_id in camera_ids]
    file.write_text("\n".join(["camera:", "  cameras:", *lines]) if lines else "camera: {}\n")


def ids(inventory: CameraInventory) -> list[str]:
    return [camera.id for camera in inventory.look()]


def test_all_origins_together_in_the_order_of_ids() -> None:
    assert ids(CameraInventory({"settings": Table(spec("b")), "table": Table(spec("c"), spec("a"))})) == ["a", "b", "c"]


def test_the_later_origin_wins_and_the_log_says_so_once() -> None:
    inventory = CameraInventory({"settings": Table(spec("a", "1")), "table": Table(spec("a", "2"))})
    with capture_logs() as logs:
        cameras = [inventory.look() for _ in range(3)]
    assert cameras == [(spec("a", "2"),)] * 3
    assert [entry["event"] for entry in logs] == ["camera_defined_twice"]


def test_an_origin_that_is_away_keeps_its_cameras_and_is_told_once() -> None:
    table = Table(spec("a"))
    inventory = CameraInventory({"table": table})
    assert ids(inventory) == ["a"]
    table.away = True
    with capture_logs() as logs:
        assert [ids(inventory) for _ in range(3)] == [["a"]] * 3
        table.away, table.cameras = False, [spec("b")]
        assert ids(inventory) == ["b"]
    assert [entry["event"] for entry in logs] == ["cameras_unreadable", "cameras_readable_again"]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    write(file, "a")
    inventory = CameraInventory({"settings": SettingsFile(file)})
    assert ids(inventory) == ["a"]
    write(file, "a", "b")
    assert ids(inventory) == ["a", "b"]
    write(file)
    assert ids(inventory) == []


def test_a_slip_in_the_file_changes_nothing_until_it_is_mended(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    write(file, "a", "b")
    inventory = CameraInventory({"settings": SettingsFile(file)})
    assert ids(inventory) == ["a", "b"]
    with capture_logs() as logs:
        for content in ("camera: [", "camera: {cameras: [{id: a, source: '0'}, {id: a, source: '1'}]}"):
            file.write_text(content)
            assert ids(inventory) == ["a", "b"]
        file.write_bytes(b"camera: {cameras: [{id: a, name: \xff, source: '0'}]}")
        assert ids(inventory) == ["a", "b"]
        file.unlink()
        assert ids(inventory) == ["a", "b"]
    assert any("used twice" in entry["reason"] for entry in logs)
    write(file, "c")
    assert ids(inventory) == ["c"]


def test_changes_are_told_and_nothing_else() -> None:
    table = Table(spec("a"))
    told: list[tuple[CameraSpec, ...]] = []
    stop = threading.Event()
    thread = threading.Thread(target=CameraInventory({"table": table}).follow, args=(told.append, 0.001, stop))
    thread.start()
    try:
        for cameras in ((spec("a"),), (spec("a"), spec("b")), (spec("b", "7"),), ()):
            table.cameras = cameras
            deadline = time.monotonic() + 20
            while not told or told[-1] != cameras:
                assert time.monotonic() < deadline
                time.sleep(0.002)
    finally:
        stop.set()
        thread.join()
    assert len(told) == 4


def test_only_own_cameras_are_told_and_all_are_looked_at() -> None:
    looked: list[tuple[CameraSpec, ...]] = []
    told: list[tuple[CameraSpec, ...]] = []
    mine = [{"a", "b"}, {"a", "b"}, {"b"}]  # at one look after the other
    stop = threading.Event()

    def own(cameras: tuple[CameraSpec, ...]) -> tuple[CameraSpec, ...]:
        ids = mine.pop(0)
        if not mine:
            stop.set()
        return tuple(camera for camera in cameras if camera.id in ids)

    CameraInventory({"table": Table(spec("a"), spec("b"))}).follow(
        told.append, 0.001, stop, on_look=looked.append, own=own
    )
    assert looked == [(spec("a"), spec("b"))] * 3
    assert told == [(spec("a"), spec("b")), (spec("b"),)]


def test_cameras_are_registered_at_the_first_look_at_which_it_works() -> None:
    away = [True]
    attempts: list[Sequence[CameraSpec]] = []
    written: list[Sequence[CameraSpec]] = []
    looked: list[Sequence[CameraSpec]] = []
    stop = threading.Event()

    def write(cameras: Sequence[CameraSpec]) -> None:
        attempts.append(cameras)
        if away[0]:
            raise LedgerError("no database answers")
        written.append(cameras)

    register = Registration(write)

    def on_look(cameras: Sequence[CameraSpec]) -> None:
        register(cameras)
        looked.append(cameras)

    def look_again(count: int) -> None:
        before, deadline = len(looked), time.monotonic() + 20
        while len(looked) < before + count:
            assert time.monotonic() < deadline
            time.sleep(0.002)

    table = Table(spec("a"))
    told: list[tuple[CameraSpec, ...]] = []
    thread = threading.Thread(
        target=CameraInventory({"table": table}).follow, args=(told.append, 0.001, stop), kwargs={"on_look": on_look}
    )
    with capture_logs() as logs:
        thread.start()
        try:
            look_again(3)
            assert len(attempts) > 1
            away[0] = False
            look_again(3)
            table.cameras = [spec("a"), spec("b")]
            look_again(3)
        finally:
            stop.set()
            thread.join()
    assert written == told == [(spec("a"),), (spec("a"), spec("b"))]  # each once, and nothing kept the cameras back
    assert [entry["event"] for entry in logs] == ["cameras_not_registered", "cameras_registered"]


def test_a_camera_that_an_operator_stopped_is_not_watched_until_it_is_started() -> None:
    stopped = {"a"}
    inventory = CameraInventory({"settings": Switched(Table(spec("a"), spec("b")), lambda: frozenset(stopped))})
    assert ids(inventory) == ["b"]
    stopped.clear()
    assert ids(inventory) == ["a", "b"]


def test_while_the_ledger_is_away_the_last_word_on_stopped_cameras_counts() -> None:
    away = [True]

    def look() -> frozenset[str]:
        if away[0]:
            raise LedgerError("no database answers")
        return frozenset({"a"})

    inventory = CameraInventory({"settings": Switched(Table(spec("a"), spec("b")), look)})
    with capture_logs() as logs:
        assert ids(inventory) == ids(inventory) == ["a", "b"]
    assert [entry["event"] for entry in logs] == ["stopped_cameras_unreadable"]
    away[0] = False
    assert ids(inventory) == ["b"]
    away[0] = True
    assert ids(inventory) == ["b"]
