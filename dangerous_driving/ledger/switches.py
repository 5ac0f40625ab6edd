"""The switch between lanes, in the ledger's table. An entry that was taken back keeps its row, so that the newer one counts."""

from __future__ import annotations

from sqlalchemy import Engine, select
from sqlalchemy.dialects.postgresql import insert

from dangerous_driving.assessment.switch import Entry, Positions
from dangerous_driving.contracts import Lane
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.tables import Switch


def read_switch(engine: Engine) -> Positions:
    """The table's entries. Raises LedgerError when the database is away."""
    with transaction(engine) as connection:
        rows = connection.execute(select(Switch.camera_id, Switch.lane, Switch.changed_at)).all()
    return Positions({camera_id: Entry(None if lane is None else Lane(lane), at) for camera_id, lane, at in rows})


def write_switch(engine: Engine, positions: Positions) -> None:
    """Write entries, where the table has no newer ones. Raises LedgerError when the database is away."""
    rows = [
        {"camera_id": name, "lane": None if entry.lane is None else entry.lane.value, "changed_at": entry.changed_at}
        for name, entry in positions.entries.items()
    ]
    if not rows:
        return
    statement = insert(Switch).values(rows)
    with transaction(engine) as connection:
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["camera_id"],
                set_={"lane": statement.excluded.lane, "changed_at": statement.excluded.changed_at},
                where=Switch.changed_at < statement.excluded.changed_at,
            )
        )
