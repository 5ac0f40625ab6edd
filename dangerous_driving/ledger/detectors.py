"""The detectors that live, and what they know: each reports at every look, and is given up when it has not for a while."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from dangerous_driving.camera.membership import Attendance
from dangerous_driving.camera.sharing import Detector, owner_of
from dangerous_driving.errors import LedgerError
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.tables import Detector as Row


class LedgerRegister:
    """One detector's place in the table. All times are the database's: the clocks of machines differ.

    Args:
        engine: the ledger.
        name: the detector's.
        node: its machine.
        lease: s without a report after which the others take its cameras over.
    """

    def __init__(self, engine: Engine, name: str, node: str, *, lease: float) -> None:
        self._engine, self._name, self._node = engine, name, node
        self._lease = timedelta(seconds=lease)
        self._started_at: datetime | None = None  # by which this process knows the row for its own

    def report(self, cameras: Collection[str]) -> Attendance:
        """Write the row, and read those of all detectors that live.

        Raises:
            LedgerError: the database is away.
        """
        values = {
            "node": self._node,
            "started_at": self._started_at or func.now(),
            "seen_at": func.now(),
            "live_until": func.now() + self._lease,
            "cameras": sorted(cameras),
        }
        before = select(Row.started_at, Row.live_until > func.now()).where(Row.name == self._name).with_for_update()
        write = insert(Row).values(name=self._name, **values)
        with transaction(self._engine) as connection:
            found = connection.execute(before).one_or_none()
            started_at = connection.execute(
                write.on_conflict_do_update(index_elements=["name"], set_=values).returning(Row.started_at)
            ).scalar_one()
            detectors = live_detectors(connection)
        namesake = found is not None and self._started_at is not None and found[0] != self._started_at
        self._started_at = started_at
        return Attendance(detectors, lapsed=found is None or not found[1], namesake=namesake)

    def leave(self) -> None:
        """Delete the row, unless another process has taken the name.

        Raises:
            LedgerError: the database is away.
        """
        with transaction(self._engine) as connection:
            connection.execute(delete(Row).where(Row.name == self._name, Row.started_at == self._started_at))


def live_detectors(connection: Connection) -> tuple[Detector, ...]:
    """Those that have reported lately, by name."""
    rows = connection.execute(
        select(Row.name, Row.node, Row.cameras).where(Row.live_until > func.now()).order_by(Row.name)
    )
    return tuple(Detector(name, node, frozenset(cameras)) for name, node, cameras in rows)


def speaks_for(connection: Connection, name: str, camera_id: str) -> bool:
    """Whether what this detector says of the camera counts: not while it knows that camera, and another one reads it.

    Asked where it is written down, since a detector learns at its next look only that another one has taken over. One
    that knows the camera no more says that it was removed; who else still knows it will say how it is.

    Raises:
        LedgerError: the others have given this detector up, and it has not reported since.
    """
    detectors = live_detectors(connection)
    mine = next((detector for detector in detectors if detector.name == name), None)
    if mine is None:
        raise LedgerError(f"the detector {name} has not reported for a while; it may speak after its next look")
    return camera_id not in mine.cameras or owner_of(camera_id, detectors) is mine
