"""A bounded spool on disk: what a camera site could not send waits here, in order of capture, over any restart.

Own code, since the libraries looked at (persist-queue, diskcache) keep a queue or a cache, but do not drop by priority
first and age second when full, and put a database under a directory of pictures.

One file per frame, written beside its place, flushed to the disk and then renamed: a kill at any instant leaves either
the whole frame or none. A file is removed only when the frame was acknowledged, so that a kill between the two sends it
once more, under the same ids, which every receiver treats as the same frame.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import structlog

from dangerous_driving.contracts import CAMERA_ID_PATTERN
from dangerous_driving.errors import ConfigError, SpoolError
from dangerous_driving.observability.metrics import SPOOL_BYTES, SPOOL_DROPPED, SPOOL_ENTRIES, SPOOLED

log = structlog.get_logger(__name__)

MAGIC = b"DDSPOOL1"
SUFFIX, DRAFT, BAD = ".spool", ".draft", ".bad"

#: Priorities are kept in the file name in so many steps, the lowest first in the alphabet.
STEPS = 9999

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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
class _Name:
    """A file's name, which tells all that order and dropping need."""

    milliseconds: int
    camera_id: str
    rank: int  # 0: no groups; else 1 + priority in steps

    @classmethod
    def of(cls, frame: SpooledFrame) -> _Name:
        rank = 0 if frame.priority is None else 1 + round(min(1.0, max(0.0, frame.priority)) * STEPS)
        return cls((frame.captured_at - EPOCH) // timedelta(milliseconds=1), frame.camera_id, rank)

    @classmethod
    def read(cls, file_name: str) -> _Name | None:
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
        max_bytes: of all frames; when there are more, the oldest of the lowest priority goes first.

    Raises:
        ConfigError: the folder cannot be written, or another process uses it.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._lock = threading.Lock()
        self._sizes: dict[_Name, int] = {}
        self._by_worth: list[tuple[int, _Name]] = []
        self._of_camera: Counter[str] = Counter()
        self._bytes = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._owned: IO[str] = (folder / "lock").open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                "spool.folder", f"{folder} cannot be written ({error.strerror})", "name another"
            ) from error
        try:
            fcntl.flock(self._owned, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._owned.close()
            raise ConfigError("spool.folder", f"another process uses {folder}", "give each its own") from error
        with self._lock:
            for name, size in self._found():
                self._take_in(name, size)
            self._make_room()
            self._tell()

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def bytes_used(self) -> int:
        """Bytes of all frames."""
        return self._bytes

    def holds(self, camera_id: str) -> bool:
        """Whether frames of the camera wait: then newer ones have to wait behind them."""
        return self._of_camera[camera_id] > 0

    def put(self, frame: SpooledFrame) -> None:
        """Keep a frame. Older frames of lower priority may go for it, or it for them.

        Raises:
            SpoolError: the disk is full or cannot be written; the frame is not kept.
        """
        name, content = _Name.of(frame), _content(frame)
        path = self._folder / str(name)
        draft = path.with_suffix(DRAFT)
        try:
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            with self._lock:
                draft.replace(path)
                if name in self._sizes:
                    self._let_go(name)
                self._take_in(name, len(content))
                SPOOLED.labels(camera_id=frame.camera_id).inc()
                self._make_room()
                self._tell()
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise SpoolError(
                f"{self._folder} cannot be written ({error.strerror}): free space, or name another folder"
            ) from error

    def oldest(self, count: int) -> list[SpooledFrame]:
        """The frames to send first, at most so many, in the order of capture. A damaged file is set aside and counted."""
        with self._lock:
            names = heapq.nsmallest(count, self._sizes)
        frames = []
        for name in names:
            path = self._folder / str(name)
            try:
                frames.append(_read(path.read_bytes()))
            except FileNotFoundError:
                continue  # dropped for another in the meantime
            except (ValueError, KeyError, TypeError) as error:
                self._set_aside(name, path, str(error))
        return frames

    def done(self, frame: SpooledFrame) -> None:
        """The frame was stored and acknowledged."""
        name = _Name.of(frame)
        with self._lock:
            if name in self._sizes:
                self._let_go(name)
                (self._folder / str(name)).unlink(missing_ok=True)
                self._tell()

    def give_up(self, frame: SpooledFrame, problem: str) -> None:
        """The frame can never be sent: it is set aside and counted."""
        name = _Name.of(frame)
        self._set_aside(name, self._folder / str(name), problem)

    def close(self) -> None:
        """Let another process have the folder. What waits stays there."""
        self._owned.close()

    def _found(self) -> Iterator[tuple[_Name, int]]:
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith(DRAFT):
                    Path(entry.path).unlink()  # of a process that was killed while it wrote
                elif entry.name.endswith(SUFFIX):
                    name = _Name.read(entry.name)
                    if name is not None:
                        yield name, entry.stat().st_size

    def _take_in(self, name: _Name, size: int) -> None:
        self._sizes[name] = size
        self._bytes += size
        self._of_camera[name.camera_id] += 1
        heapq.heappush(self._by_worth, (name.rank, name))

    def _let_go(self, name: _Name) -> None:
        self._bytes -= self._sizes.pop(name)
        self._of_camera[name.camera_id] -= 1
        if len(self._by_worth) > 2 * len(self._sizes) + 1000:  # names that are gone already
            self._by_worth = [(kept.rank, kept) for kept in self._sizes]
            heapq.heapify(self._by_worth)

    def _make_room(self) -> None:
        while self._bytes > self._max_bytes and self._sizes:
            _, name = heapq.heappop(self._by_worth)
            if name not in self._sizes:
                continue
            self._let_go(name)
            (self._folder / str(name)).unlink(missing_ok=True)
            SPOOL_DROPPED.labels(camera_id=name.camera_id, reason="full").inc()
            log.warning("spooled_frame_dropped", camera_id=name.camera_id, file=str(name), why="the spool is full")

    def _set_aside(self, name: _Name, path: Path, problem: str) -> None:
        with self._lock:
            if name in self._sizes:
                self._let_go(name)
            path.replace(path.with_suffix(BAD))
            SPOOL_DROPPED.labels(camera_id=name.camera_id, reason="damaged").inc()
            self._tell()
        log.error("spooled_frame_damaged", camera_id=name.camera_id, file=path.with_suffix(BAD).name, reason=problem)

    def _tell(self) -> None:
        SPOOL_BYTES.set(self._bytes)
        SPOOL_ENTRIES.set(len(self._sizes))


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
    place = 4 + length
    result = body[place : place + head["result"]]
    place += head["result"]
    objects = []
    for key, content_type, size in head["objects"]:
        objects.append(SpooledObject(key, content_type, body[place : place + size]))
        place += size
    return SpooledFrame(
        head["camera"], datetime.fromisoformat(head["captured_at"]), head["priority"], result, tuple(objects)
    )
