"""The switch between lanes: which lane a camera's groups take, changed while everything runs.

It stands in the ledger's table ``switch`` and, so that it works without the ledger, in a file on the node; of two entries for a
camera the newer one counts. Services look every few seconds.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import structlog

from dangerous_driving.contracts import Lane
from dangerous_driving.errors import ConfigError, LedgerError

log = structlog.get_logger(__name__)

#: Stands for all cameras that have no entry of their own.
ALL = "*"
LANES = (Lane.REALTIME, Lane.WINDOW, Lane.INLINE)


@dataclass(frozen=True)
class Entry:
    """A camera's lane, and since when. ``lane`` None: the entry was taken back, the camera follows all others."""

    lane: Lane | None
    changed_at: datetime


@dataclass(frozen=True)
class Positions:
    """The switch as it stands."""

    entries: Mapping[str, Entry] = field(default_factory=dict)

    def lane_of(self, camera_id: str) -> Lane:
        """The lane of a camera's groups."""
        for name in (camera_id, ALL):
            entry = self.entries.get(name)
            if entry is not None and entry.lane is not None:
                return entry.lane
        return Lane.REALTIME

    def and_(self, other: Positions) -> Positions:
        """Both, where the newer entry counts."""
        merged = dict(self.entries)
        for name, entry in other.entries.items():
            if name not in merged or entry.changed_at > merged[name].changed_at:
                merged[name] = entry
        return Positions(merged)


def read_file(file: Path) -> Positions:
    """The entries of the file; none when there is no file.

    Raises:
        ConfigError: it is malformed.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return Positions(
            {
                str(name): Entry(
                    None if entry["lane"] is None else Lane(entry["lane"]),
                    datetime.fromisoformat(entry["changedAt"]).astimezone(UTC),
                )
                for name, entry in values.items()
            }
        )
    except FileNotFoundError:
        return Positions()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            "assessment.switch_file", f"{file} cannot be read ({error})", "remove it, and set the switch anew"
        ) from error


def write_file(file: Path, positions: Positions) -> None:
    """Write the entries, whole or not at all. Raises ConfigError when that cannot be done."""
    values = {
        name: {"lane": None if entry.lane is None else entry.lane.value, "changedAt": entry.changed_at.isoformat()}
        for name, entry in positions.entries.items()
    }
    beside = file.with_name(f".{file.name}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(values, indent=1), encoding="utf-8")
        beside.replace(file)
    except OSError as error:
        raise ConfigError(
            "assessment.switch_file", f"{file} cannot be written ({error.strerror})", "name a writable file"
        ) from error


class LaneSwitch:
    """The switch as this process has last seen it.

    Args:
        file: of this node.
        table: reads the ledger's table; raises LedgerError when that is away.
    """

    def __init__(self, file: Path, table: Callable[[], Positions]) -> None:
        self._file, self._table = file, table
        self._of_table = Positions()
        self._positions = Positions()

    def lane_of(self, camera_id: str) -> Lane:
        """The lane of a camera's groups."""
        return self._positions.lane_of(camera_id)

    def look(self) -> None:
        """Look now. What cannot be read leaves things as they were."""
        try:
            self._of_table = self._table()
        except LedgerError as error:
            log.warning("switch_table_not_read", reason=str(error))
        try:
            positions = self._of_table.and_(read_file(self._file))
        except ConfigError as error:
            log.warning("switch_file_not_read", reason=str(error))
            return
        if positions != self._positions:
            lanes = {name: entry.lane.value if entry.lane else None for name, entry in positions.entries.items()}
            log.info("switched", lanes=lanes)
        self._positions = positions

    def follow(self, interval: float, stop: threading.Event) -> None:
        """Look every `interval` seconds until `stop`."""
        while True:
            self.look()
            if stop.wait(interval):
                return
