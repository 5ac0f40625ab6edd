"""Detection results that the object store has and the ledger lacks, written to the ledger.

The embedded broker forgets when it stops, and a broker may lose what nobody has read within its retention: the
detection result beside each frame in the object store is the copy that lasts. What is imported goes to the window lane.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import structlog
from sqlalchemy import Engine

from dangerous_driving.contracts import DetectionResult, Lane
from dangerous_driving.errors import ContractError
from dangerous_driving.ledger.frames import known_frames, record_detections
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.objects import ObjectStore
from dangerous_driving.tasks.derivation import require_captured_by, tasks_from_detection

log = structlog.get_logger(__name__)

BATCH = 100
REASON = "reimported from the object store"


@dataclass(frozen=True)
class Reimported:
    """What an import found: detection results in the store, those it wrote, and those it could not read."""

    found: int
    written: int
    unreadable: tuple[str, ...] = ()


def stored_detections(
    store: ObjectStore, *, cameras: Iterable[str] = (), since: datetime | None = None
) -> Iterator[str]:
    """Keys of the detection results in the store, of all cameras or of these, captured since that day."""
    prefixes = [f"frames/{camera_id}/" for camera_id in cameras] or ["frames/"]
    first_day = since.astimezone(UTC).date() if since else date.min
    for prefix in prefixes:
        for key in store.list(prefix):
            if key.endswith(".json") and _day(key) >= first_day:
                yield key


def reimport(
    engine: Engine,
    store: ObjectStore,
    *,
    window_length: int,
    cameras: Iterable[str] = (),
    since: datetime | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Reimported:
    """Write what the ledger lacks; runs again and again without harm.

    Args:
        engine: of the ledger.
        store: where the detection results lie.
        window_length: s.
        cameras: only these; all when empty.
        since: only from this day on.
        on_progress: called with how many stored results were looked at so far.
    """
    partitions, now = Partitions(), datetime.now(UTC)
    known: set[str] = set()
    known_of: tuple[str, date] | None = None  # keys come sorted: one camera's day after another
    found = written = 0
    unreadable: list[str] = []
    batch: list[DetectionResult] = []

    def write() -> int:
        tasks = [task for result in batch for task in tasks_from_detection(result)]
        new = record_detections(
            engine, partitions, batch, tasks, window_length=window_length, lane=Lane.WINDOW, reason=REASON
        )
        batch.clear()
        return new

    for key in stored_detections(store, cameras=cameras, since=since):
        found += 1
        on_progress(found)
        if known_of != (key.split("/")[1], _day(key)):
            known_of = (key.split("/")[1], _day(key))
            known = known_frames(engine, *known_of)
        if key.rsplit("/", 1)[1].removesuffix(".json") in known:
            continue
        try:
            result = DetectionResult.from_json(store.get(key))
            require_captured_by(result, now)
            batch.append(result)
        except ContractError as error:
            log.warning("detection_result_unreadable", key=key, reason=str(error))
            unreadable.append(key)
        if len(batch) >= BATCH:
            written += write()
    written += write()
    return Reimported(found, written, tuple(unreadable))


def _day(key: str) -> date:
    # frames/{cameraId}/{yyyy}/{mm}/{dd}/{hh}/{messageId}.json
    parts = key.split("/")
    try:
        return date(int(parts[2]), int(parts[3]), int(parts[4]))
    except (IndexError, ValueError):
        return date.min + timedelta(days=1)
