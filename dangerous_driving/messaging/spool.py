"""A bounded spool on disk: what a camera site could not send waits here, in order of capture, over any restart.

Own code: persist-queue (a queue in SQLite or in chunk files, pickled by default) and diskcache (a cache in SQLite and
files, pickled too) were looked at; neither drops by priority first and age second, bounds the bytes on the disk
strictly, or keeps one damaged entry from being everybody's.

**Durability.** One file per frame: a head in JSON, the result, the pictures, a checksum over all. It is written beside
its place, flushed to the disk, renamed, and the folder is flushed: when ``put`` returns, the frame survives a kill and a
loss of power; at any instant before, there is the whole frame or none. Removals are not flushed: a frame that comes
back after a loss of power is sent once more under the same ids, which every receiver takes for the same frame. For the
same reason a file is removed only when the frame was acknowledged.

**Bound.** ``max_bytes`` is what all files take on the disk: whole blocks, and what the folder needs for each. Room is
made before a frame is written. First goes what was set aside as damaged, then the frame of the lowest priority (those
without groups first, then by the highest priority of their groups), among equals the oldest. A new frame that is worth
less than all that wait is not kept itself.

**Memory.** A small record per frame; 100,000 are read from the folder's listing in about a second, since a file's name
says all that order and dropping need.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import json
import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from dangerous_driving.contracts import CAMERA_ID_PATTERN
from dangerous_driving.errors import ConfigError, SpoolError
from dangerous_driving.observability.metrics import (
    SPOOL_BYTES,
    SPOOL_DROPPED,
    SPOOL_ENTRIES,
    SPOOL_OLDEST_AGE,
    SPOOLED,
)
from dangerous_driving.own_folder import own_folder

log = structlog.get_logger(__name__)

MAGIC = b"DDSPOOL1"
SUFFIX, DRAFT, BAD = ".spool", ".draft", ".bad"

#: Priorities are kept in the file name in so many steps, the lowest first in the alphabet.
STEPS = 9999

#: Bytes; files take whole blocks (ext4, xfs and tmpfs: 4 KiB), and an inode and a name of about so much besides.
BLOCK, NAME_BYTES = 4096, 512

#: Damaged files that are kept for a person to look at, the newest.
BAD_KEPT = 20

#: s between two log lines about dropped frames, which may be many a second.
DROP_LOG_INTERVAL = 10.0

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class SpooledObject:
    """A picture or result that is still to be stored."""

    key: str
    content_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class SpooledFrame:
    """What is left to do for one frame: store its objects (none, if only the broker was away), publish its result.

    ``priority``: 0 to 1, the highest of its groups; ``None`` for a frame without groups, which is dropped first.
    """

    camera_id: str
    captured_at: datetime
    priority: float | None
    result: bytes
    objects: tuple[SpooledObject, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class SpooledName:
    """Names a frame that waits; they sort in the order of capture. It is the file's name, too."""

    milliseconds: int
    camera_id: str
    rank: int  # 0: no groups; else 1 + priority in steps

    @classmethod
    def of(cls, frame: SpooledFrame) -> SpooledName:
        """The name of this frame, the same whenever it is asked for."""
        rank = 0 if frame.priority is None else 1 + round(min(1.0, max(0.0, frame.priority)) * STEPS)
        return cls((frame.captured_at - EPOCH) // MILLISECOND, frame.camera_id, rank)

    @classmethod
    def read(cls, file_name: str) -> SpooledName | None:
        """The name that a file has, or None if it is no spooled frame."""
        parts = file_name.removesuffix(SUFFIX).split(".")
        if len(parts) != 3 or not (parts[0] + parts[2]).isdecimal() or not CAMERA_ID_PATTERN.fullmatch(parts[1]):  # noqa: PLR2004
            return None
        return cls(int(parts[0]), parts[1], int(parts[2]))

    def __str__(self) -> str:
        return f"{self.milliseconds:015d}.{self.camera_id}.{self.rank:05d}{SUFFIX}"


class Spool:
    """Frames on disk, for one process; its methods may be called from several threads.

    Args:
        folder: made when it is missing.
        max_bytes: of all files, as they lie on the disk.

    Raises:
        ConfigError: the folder cannot be written, or another process uses it.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._lock = threading.Lock()
        self._costs: dict[SpooledName, int] = {}
        self._of_camera: dict[str, list[SpooledName]] = {}  # sorted
        self._by_worth: list[tuple[int, SpooledName]] = []  # a heap; may hold names that are gone
        self._bad: deque[tuple[Path, int]] = deque()  # oldest first
        self._bytes = 0  # room that is being written included
        self._drafts = itertools.count()
        self._dropped, self._drop_logged = 0, -DROP_LOG_INTERVAL
        self._closed = False
        self._owned = own_folder(folder, "spool.folder")
        try:
            with self._lock:
                self._look()
                self._make_room(0, None)
                self._tell()
        except OSError as error:
            self._owned.close()
            raise ConfigError(
                "spool.folder", f"{folder} cannot be read or written ({error.strerror})", "name another"
            ) from error
        SPOOL_OLDEST_AGE.set_function(self._oldest_age)

    def __len__(self) -> int:
        return len(self._costs)

    @property
    def bytes_used(self) -> int:
        """Bytes that the spool takes on the disk, what is being written included."""
        return self._bytes

    def holds(self, camera_id: str) -> bool:
        """Whether frames of the camera wait."""
        return camera_id in self._of_camera

    def put(self, frame: SpooledFrame) -> None:
        """Keep a frame. Frames that are worth less may go for it; if it is worth the least, it is dropped itself.

        A frame that waits already is replaced.

        Raises:
            SpoolError: the disk is full or cannot be written; the frame is not kept.
        """
        if self._write(frame):
            SPOOLED.labels(camera_id=frame.camera_id).inc()

    def stored(self, frame: SpooledFrame) -> None:
        """The frame's objects are in the store now: only its result stays here.

        Raises:
            SpoolError: see `put`; the frame stays as it was.
        """
        self._write(SpooledFrame(frame.camera_id, frame.captured_at, frame.priority, frame.result))

    def heads(self) -> list[SpooledName]:
        """The oldest frame of each camera, the oldest first."""
        with self._lock:
            return sorted(names[0] for names in self._of_camera.values())

    def oldest(self, count: int) -> list[SpooledFrame]:
        """At most so many frames, in the order of capture over all cameras."""
        with self._lock:
            names = list(itertools.islice(heapq.merge(*self._of_camera.values()), count))
        return [frame for name in names if (frame := self.read(name)) is not None]

    def read(self, name: SpooledName) -> SpooledFrame | None:
        """The frame; None if it is gone, or was damaged: then it is set aside and counted."""
        path = self._folder / str(name)
        try:
            return _read(path.read_bytes())
        except FileNotFoundError:
            with self._lock:
                if name in self._costs and not path.exists():  # somebody else has removed it
                    self._let_go(name)
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._set_aside(name, "damaged", str(error))
            return None

    def done(self, frame: SpooledFrame) -> None:
        """The frame was stored and acknowledged."""
        name = SpooledName.of(frame)
        with self._lock:
            if name in self._costs:
                self._let_go(name)
                self._remove(self._folder / str(name))
                self._tell()

    def give_up(self, frame: SpooledFrame, problem: str) -> None:
        """The frame can never be sent: it is set aside and counted."""
        self._set_aside(SpooledName.of(frame), "refused", problem)

    def close(self) -> None:
        """Let another process have the folder. What waits stays there."""
        with self._lock:
            self._closed = True
            self._owned.close()
        SPOOL_OLDEST_AGE.set_function(lambda: 0.0)

    # writing

    def _write(self, frame: SpooledFrame) -> bool:
        """Returns whether it was kept."""
        name, content = SpooledName.of(frame), _content(frame)
        cost = _cost(len(content))
        path = self._folder / str(name)
        draft = self._folder / f"{name}.{next(self._drafts)}{DRAFT}"
        with self._lock:
            if self._closed:
                raise SpoolError(f"the spool in {self._folder} is closed: the service ends")
            if not self._make_room(cost, name):
                self._tell()
                return False
            self._bytes += cost
        try:
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            with self._lock:
                draft.replace(path)
                if name in self._costs:
                    self._let_go(name)
                self._take_in(name, cost)
            self._flush_folder()
        except OSError as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise SpoolError(
                f"{self._folder} cannot be written ({error.strerror}): free space, or name another folder"
            ) from error
        finally:
            with self._lock:
                self._bytes -= cost  # what was taken in has been counted
                self._tell()
        return True

    def _flush_folder(self) -> None:
        handle = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    # all below with the lock held

    def _look(self) -> None:
        bad: list[tuple[float, Path, int]] = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.name.endswith(DRAFT):
                    path.unlink()  # of a process that was killed while it wrote
                elif entry.name.endswith(BAD):
                    found = entry.stat()
                    bad.append((found.st_mtime, path, _cost(found.st_size)))
                elif entry.name.endswith(SUFFIX):
                    name = SpooledName.read(entry.name)
                    if name is not None:
                        self._take_in(name, _cost(entry.stat().st_size))
        for _, path, cost in sorted(bad):
            self._bad.append((path, cost))
            self._bytes += cost

    def _take_in(self, name: SpooledName, cost: int) -> None:
        self._costs[name] = cost
        self._bytes += cost
        bisect.insort(self._of_camera.setdefault(name.camera_id, []), name)
        heapq.heappush(self._by_worth, (name.rank, name))

    def _let_go(self, name: SpooledName) -> None:
        self._bytes -= self._costs.pop(name)
        names = self._of_camera[name.camera_id]
        del names[bisect.bisect_left(names, name)]
        if not names:
            del self._of_camera[name.camera_id]
        if len(self._by_worth) > 2 * len(self._costs) + 1000:  # mostly names that are gone
            self._by_worth = [(kept.rank, kept) for kept in self._costs]
            heapq.heapify(self._by_worth)

    def _make_room(self, cost: int, new: SpooledName | None) -> bool:
        """Drop what is worth less than the new one until it fits; returns whether it does."""
        if new is not None and cost > self._max_bytes:
            self._count_drop(new)
            return False
        freed = 0 if new is None else self._costs.get(new, 0)
        while self._bytes - freed + cost > self._max_bytes:
            if self._bad:
                self._forget_oldest_bad()
                continue
            while self._by_worth and self._by_worth[0][1] not in self._costs:
                heapq.heappop(self._by_worth)
            if not self._by_worth or (new is not None and self._by_worth[0] >= (new.rank, new)):
                if new is not None:
                    self._count_drop(new)
                return False
            _, name = heapq.heappop(self._by_worth)
            self._let_go(name)
            self._remove(self._folder / str(name))
            self._count_drop(name)
        return True

    def _count_drop(self, name: SpooledName) -> None:
        SPOOL_DROPPED.labels(camera_id=name.camera_id, reason="full").inc()
        self._dropped += 1
        if time.monotonic() - self._drop_logged >= DROP_LOG_INTERVAL:
            log.warning("spooled_frames_dropped", count=self._dropped, last=str(name), why="spool.max_bytes is reached")
            self._dropped, self._drop_logged = 0, time.monotonic()

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            # the next start will find it and send it once more, under the same ids
            log.error("spooled_file_not_removed", file=str(path), reason=error.strerror)  # noqa: TRY400

    def _forget_oldest_bad(self) -> None:
        path, cost = self._bad.popleft()
        self._bytes -= cost
        self._remove(path)

    def _set_aside(self, name: SpooledName, reason: str, problem: str) -> None:
        path = self._folder / str(name)
        aside = path.with_suffix(BAD)
        with self._lock:
            if name not in self._costs:
                return
            cost = self._costs[name]
            self._let_go(name)
            SPOOL_DROPPED.labels(camera_id=name.camera_id, reason=reason).inc()
            try:
                path.replace(aside)
            except OSError as error:
                problem = f"{problem}; it cannot be set aside ({error.strerror})"
            else:
                self._bad.append((aside, cost))
                self._bytes += cost
                if len(self._bad) > BAD_KEPT:
                    self._forget_oldest_bad()
            self._tell()
        log.error("spooled_frame_set_aside", camera_id=name.camera_id, file=aside.name, why=reason, reason=problem)

    def _tell(self) -> None:
        SPOOL_BYTES.set(self._bytes)
        SPOOL_ENTRIES.set(len(self._costs))

    def _oldest_age(self) -> float:
        with self._lock:
            oldest = min((names[0].milliseconds for names in self._of_camera.values()), default=None)
        return 0.0 if oldest is None else max(0.0, time.time() - oldest / 1000)


def _cost(size: int) -> int:
    return -(-size // BLOCK) * BLOCK + NAME_BYTES


def _content(frame: SpooledFrame) -> bytes:
    head = json.dumps(
        {
            "camera": frame.camera_id,
            "captured_at": frame.captured_at.isoformat(),
            "priority": frame.priority,
            "result": len(frame.result),
            "objects": [[item.key, item.content_type, len(item.data)] for item in frame.objects],
        }
    ).encode()
    body = b"".join([len(head).to_bytes(4, "big"), head, frame.result, *(item.data for item in frame.objects)])
    return MAGIC + zlib.crc32(body).to_bytes(4, "big") + body


def _read(content: bytes) -> SpooledFrame:
    start = len(MAGIC) + 4
    body = content[start:]
    if not content.startswith(MAGIC):
        raise ValueError("it is no spooled frame of this version")
    if zlib.crc32(body) != int.from_bytes(content[len(MAGIC) : start], "big"):
        raise ValueError("its checksum is wrong")
    length = int.from_bytes(body[:4], "big")
    head = json.loads(body[4 : 4 + length])
    pieces = _cut(body, 4 + length, [head["result"], *(size for _, _, size in head["objects"])])
    result = next(pieces)
    objects = tuple(
        SpooledObject(key, content_type, data)
        for (key, content_type, _), data in zip(head["objects"], pieces, strict=True)
    )
    return SpooledFrame(head["camera"], datetime.fromisoformat(head["captured_at"]), head["priority"], result, objects)


def _cut(body: bytes, start: int, sizes: list[int]) -> Iterator[bytes]:
    for size in sizes:
        yield body[start : start + size]
        start += size
