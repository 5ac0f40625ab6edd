"""What waits on disk survives any kill, keeps its order, and makes room by priority and age."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from prometheus_client import REGISTRY

from dangerous_driving.errors import ConfigError, SpoolError
from dangerous_driving.messaging.spool import BAD_KEPT, Spool, SpooledFrame, SpooledObject, _content, _cost

START = datetime(2026, 11, 1, tzinfo=UTC)
ROOM = 10**9


def frame(number: int, camera_id: str = "a", priority: float | None = 0.5, size: int = 100) -> SpooledFrame:
    captured_at = START + timedelta(milliseconds=number)
    picture = SpooledObject(f"frames/{camera_id}/{number}.jpg", "image/jpeg", bytes([number % 256]) * size)
    return SpooledFrame(camera_id, captured_at, priority, f"result {number}".encode(), (picture,))


def names(spool: Spool) -> list[bytes]:
    return [waiting.result for waiting in spool.oldest(10_000)]


def dropped(reason: str, camera_id: str = "a") -> float:
    labels = {"camera_id": camera_id, "reason": reason}
    return REGISTRY.get_sample_value("spool_dropped_frames_total", labels) or 0.0


_opened: list[Spool] = []


def opened(folder: Path, max_bytes: int) -> Spool:
    """A spool that is closed with the test."""
    spool = Spool(folder, max_bytes)
    _opened.append(spool)
    return spool


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


def test_frames_come_out_whole_in_the_order_of_capture(tmp_path: Path) -> None:
    spool = opened(tmp_path, ROOM)
    given = [frame(3, "b"), frame(1, "a"), frame(2, "c", None)]
    for one in given:
        spool.put(one)
    assert spool.oldest(10) == sorted(given, key=lambda one: one.captured_at)
    assert spool.oldest(1) == [given[1]]
    assert (spool.holds("a"), spool.holds("d")) == (True, False)


def test_only_what_is_done_leaves(tmp_path: Path) -> None:
    spool = opened(tmp_path, ROOM)
    for number in range(3):
        spool.put(frame(number))
    spool.done(frame(1))
    assert names(spool) == [b"result 0", b"result 2"]
    spool.done(frame(1))
    assert len(spool) == 2
    spool.done(frame(0))
    spool.done(frame(2))
    assert not spool.holds("a")
    assert spool.bytes_used == 0


def test_a_new_process_finds_what_the_last_one_left(tmp_path: Path) -> None:
    first = opened(tmp_path, ROOM)
    for number in range(5):
        first.put(frame(number))
    used = first.bytes_used
    first.close()
    second = opened(tmp_path, ROOM)
    assert second.oldest(10) == [frame(number) for number in range(5)]
    assert second.bytes_used == used
    assert second.holds("a")


def test_when_full_the_oldest_of_the_lowest_priority_goes_and_is_counted(tmp_path: Path) -> None:
    one = opened(tmp_path / "one", ROOM)
    one.put(frame(0))
    spool = opened(tmp_path / "full", int(4.5 * one.bytes_used))
    before = dropped("full")
    for number, priority in enumerate([0.9, None, 0.2, None, 0.2, 0.9]):
        spool.put(frame(number, priority=priority))
    # those without groups went first, the older one before the newer
    assert names(spool) == [b"result 0", b"result 2", b"result 4", b"result 5"]
    spool.put(frame(6, priority=0.8))
    assert names(spool) == [b"result 0", b"result 4", b"result 5", b"result 6"]
    spool.put(frame(7, priority=None))  # the least worth of all is the new one itself
    assert names(spool) == [b"result 0", b"result 4", b"result 5", b"result 6"]
    assert dropped("full") - before == 4


def test_a_smaller_limit_holds_from_the_start(tmp_path: Path) -> None:
    large = opened(tmp_path, ROOM)
    for number in range(10):
        large.put(frame(number))
    used = large.bytes_used
    large.close()
    small = opened(tmp_path, int(0.55 * used))
    assert names(small) == [f"result {number}".encode() for number in range(5, 10)]


def test_a_folder_belongs_to_one_process(tmp_path: Path) -> None:
    spool = opened(tmp_path, ROOM)
    with pytest.raises(ConfigError, match=r"spool\.folder"):
        opened(tmp_path, ROOM)
    spool.close()
    opened(tmp_path, ROOM).close()


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"spool\.folder"):
        opened(tmp_path / "file" / "spool", ROOM)


def test_a_frame_that_can_never_fit_takes_no_other_with_it(tmp_path: Path) -> None:
    spool = opened(tmp_path, 20_000)
    spool.put(frame(0, priority=None))
    before = dropped("full")
    spool.put(frame(1, priority=1.0, size=30_000))
    assert names(spool) == [b"result 0"]
    assert dropped("full") - before == 1


def test_a_frame_is_replaced_by_its_result_once_its_pictures_are_stored(tmp_path: Path) -> None:
    spool = opened(tmp_path, ROOM)
    given = frame(0, size=50_000)
    spool.put(given)
    used = spool.bytes_used
    spool.stored(given)
    assert spool.oldest(10) == [SpooledFrame("a", given.captured_at, 0.5, given.result)]
    assert spool.bytes_used < used / 5
    spool.close()
    again = opened(tmp_path, ROOM)
    assert again.oldest(10) == [SpooledFrame("a", given.captured_at, 0.5, given.result)]
    again.done(given)
    assert (len(again), again.bytes_used) == (0, 0)


def test_what_was_put_is_on_the_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[tuple[bool, int]] = []

    def fsync(handle: int) -> None:
        flushed.append((stat.S_ISDIR(os.fstat(handle).st_mode), len(list(tmp_path.glob("*.spool")))))

    spool = opened(tmp_path, ROOM)
    monkeypatch.setattr(os, "fsync", fsync)
    spool.put(frame(0))
    # the content before it gets its name, and the folder once it has
    assert flushed == [(False, 0), (True, 1)]


@pytest.mark.parametrize("problem", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_takes_no_more_loses_one_frame_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: int
) -> None:
    spool = opened(tmp_path, ROOM)
    spool.put(frame(0))
    used = spool.bytes_used

    def fsync(_: int) -> None:
        raise OSError(problem, os.strerror(problem))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(SpoolError, match=os.strerror(problem)):
            spool.put(frame(1))
    assert (names(spool), spool.bytes_used) == ([b"result 0"], used)
    assert not list(tmp_path.glob("*.draft"))
    spool.put(frame(2))
    assert names(spool) == [b"result 0", b"result 2"]


def test_a_closed_spool_takes_nothing(tmp_path: Path) -> None:
    spool = opened(tmp_path, ROOM)
    spool.close()
    with pytest.raises(SpoolError, match="closed"):
        spool.put(frame(0))


def test_the_oldest_frame_of_each_camera_is_its_head(tmp_path: Path) -> None:
    spool = opened(tmp_path, ROOM)
    for number, camera_id in ((5, "a"), (2, "b"), (3, "a"), (4, "b")):
        spool.put(frame(number, camera_id))
    assert [(head.camera_id, spool.read(head)) for head in spool.heads()] == [
        ("b", frame(2, "b")),
        ("a", frame(3, "a")),
    ]


def test_the_age_of_the_oldest_frame_is_told(tmp_path: Path) -> None:
    def age() -> float:
        return REGISTRY.get_sample_value("spool_oldest_age_seconds") or 0.0

    spool = opened(tmp_path, ROOM)
    assert age() == 0
    hour_ago = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    spool.put(SpooledFrame("a", hour_ago, None, b"result"))
    assert 3600 <= age() < 3700
    spool.close()
    assert age() == 0


def test_a_folder_that_vanishes_loses_one_frame_loudly(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    spool = opened(folder, ROOM)
    (folder / "lock").unlink()
    folder.rmdir()
    with pytest.raises(SpoolError, match="cannot be written"):
        spool.put(frame(0))
    assert len(spool) == 0


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "another version"])
def test_a_damaged_file_is_set_aside_and_blocks_nobody(tmp_path: Path, damage: str) -> None:
    spool = opened(tmp_path, ROOM)
    for number in range(3):
        spool.put(frame(number))
    spool.close()
    path = min(tmp_path.glob("*.spool"))
    content = path.read_bytes()
    damaged = {
        "cut": content[:-20],
        "changed": content[:-1] + b"!",
        "empty": b"",
        "another version": b"DDSPOOL9" + content[8:],
    }
    path.write_bytes(damaged[damage])
    again = opened(tmp_path, ROOM)
    before = dropped("damaged")
    assert names(again) == [b"result 1", b"result 2"]
    assert dropped("damaged") == before + 1
    assert len(list(tmp_path.glob("*.bad"))) == 1
    assert len(again) == 2


def test_few_damaged_files_are_kept_and_they_count(tmp_path: Path) -> None:
    spool = opened(tmp_path, ROOM)
    for number in range(BAD_KEPT + 5):
        spool.put(frame(number))
    for path in tmp_path.glob("*.spool"):
        path.write_bytes(b"damaged")
    assert names(spool) == []
    assert len(list(tmp_path.glob("*.bad"))) == BAD_KEPT
    used = spool.bytes_used
    assert used > 0
    spool.close()
    small = opened(tmp_path, used // 2)
    assert len(list(tmp_path.glob("*.bad"))) == BAD_KEPT // 2
    for number in range(BAD_KEPT // 2):
        small.put(frame(number))  # frames are worth more than what is set aside
    assert len(small) == BAD_KEPT // 2
    assert not list(tmp_path.glob("*.bad"))


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.messaging.test_spool import ROOM, frame
from dangerous_driving.messaging.spool import Spool
spool = Spool(Path({folder!r}), ROOM)
for number in range(100_000):
    spool.put(frame(number, size=20_000))
    print(number, flush=True)
"""


def test_a_kill_at_any_moment_leaves_whole_frames_only(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    for after in (1, 7, 30):
        folder = tmp_path / str(after)
        script = WRITER.format(root=root, folder=str(folder))
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            kept = [int(process.stdout.readline()) for _ in range(after)]
            process.send_signal(signal.SIGKILL)
        spool = opened(folder, ROOM)
        found = spool.oldest(100_000)
        assert len(found) >= len(kept)
        assert found == [frame(number, size=20_000) for number in range(len(found))]
        assert not list(folder.glob("*.draft"))
        spool.close()


class Spooling(RuleBasedStateMachine):
    """Any sequence of frames, acknowledgements and restarts, against a plain list."""

    @initialize(limit=st.integers(1, 8))
    def begin(self, limit: int) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        probe = Spool(Path(self.folder.name) / "probe", ROOM)
        probe.put(frame(100_000))
        self.limit = int(probe.bytes_used * (limit + 0.5))
        probe.close()
        self.spool = Spool(Path(self.folder.name) / "spool", self.limit)
        self.kept: list[SpooledFrame] = []
        self.size: dict[SpooledFrame, int] = {}
        self.number = 0

    @rule(camera=st.sampled_from("abc"), priority=st.sampled_from([None, 0.0, 0.5, 1.0]), size=st.integers(0, 9000))
    def put(self, camera: str, priority: float | None, size: int) -> None:
        self.number += 1
        new = frame(self.number, camera, priority, size)
        before = self.spool.bytes_used
        self.spool.put(new)
        self.kept.append(new)
        waiting = set(self.spool.oldest(1000))
        gone = [one for one in self.kept if one not in waiting]
        if _cost(len(_content(new))) > self.limit:  # it can never fit, and takes no other with it
            assert gone == [new]
            self.kept.remove(new)
            return
        # what went was worth less than, or as much as and older than, all that stayed
        worth = {one: (one.priority is not None, one.priority or 0.0, one.captured_at) for one in self.kept}
        assert not gone or max(worth[one] for one in gone) < min(
            (worth[one] for one in waiting), default=worth[new] + (1,)
        )
        assert gone or self.spool.bytes_used > before
        # and no more went than had to
        last = max(gone, key=worth.__getitem__, default=None)
        assert last is None or self.spool.bytes_used + _cost(len(_content(last))) > self.limit
        self.kept = [one for one in self.kept if one in waiting]

    @rule(which=st.integers(0, 20))
    def acknowledge(self, which: int) -> None:
        if self.kept:
            done = self.kept.pop(which % len(self.kept))
            self.spool.done(done)

    @rule()
    def restart(self) -> None:
        self.spool.close()
        self.spool = Spool(Path(self.folder.name) / "spool", self.limit)

    @invariant()
    def holds_what_was_kept_in_order_and_within_bounds(self) -> None:
        assert self.spool.oldest(1000) == self.kept
        assert self.spool.bytes_used <= self.limit
        files = [path.stat() for path in (Path(self.folder.name) / "spool").glob("*.spool")]
        assert self.spool.bytes_used >= sum(max(found.st_blocks * 512, found.st_size) for found in files)
        assert (self.spool.bytes_used == 0) == (not self.kept)
        for camera in "abc":
            assert self.spool.holds(camera) == any(one.camera_id == camera for one in self.kept)

    def teardown(self) -> None:
        if hasattr(self, "spool"):
            self.spool.close()
            self.folder.cleanup()


TestSpooling = Spooling.TestCase
TestSpooling.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
