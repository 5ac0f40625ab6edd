"""The schema's versions (Alembic) and the daily partitions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, text

from dangerous_driving.errors import ConfigError, LedgerBusyError, LedgerError
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.tables import PARTITIONED

log = structlog.get_logger(__name__)

#: One lock for all schema work, so that services that start together do not make the same partition twice.
SCHEMA_LOCK = 7_261_001

#: s that schema work waits for a lock: whoever wants the table meanwhile stands behind it in the queue, the live lanes too.
LOCK_WAIT = 0.5
#: s until it tries again; those behind it go first.
LOCK_PAUSE = 1.0
#: s after which making a partition is given up; the caller tries again, as after any failure of the ledger.
PATIENCE = 10.0

#: s between two looks at which partitions the coming day lacks, and after a look that failed.
LOOK_AHEAD = 3600.0
LOOK_AGAIN = 60.0


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def head() -> str:
    """The newest version this package knows."""
    newest = ScriptDirectory.from_config(_config()).get_current_head()
    assert newest is not None  # the package ships migrations  # noqa: S101
    return newest


def current(engine: Engine) -> str | None:
    """The version the database is at; None for an empty one."""
    with transaction(engine) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def migrate(engine: Engine) -> tuple[str | None, str]:
    """Bring the database to the newest version and make the partitions around today.

    Returns:
        The version before and after.
    """
    config = _config()
    with transaction(engine) as connection:
        # another migration may be under way, and an index on a grown table takes longer than any service's statement may
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": SCHEMA_LOCK})
        before = MigrationContext.configure(connection).get_current_revision()
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise ConfigError(
                "database.url",
                f"the schema is at version {before}, which this program does not know",
                "use a newer program",
            ) from error
    today = datetime.now(UTC).date()
    make_partitions(engine, [today + timedelta(days=offset) for offset in (-1, 0, 1)])
    return before, head()


def require_current(engine: Engine) -> None:
    """Refuse to work on another version of the schema.

    Raises:
        ConfigError: with the remedy, ``dangerous-driving db migrate``.
    """
    found, wanted = current(engine), head()
    if found != wanted:
        raise ConfigError(
            "database.url",
            f"the schema is at {found or 'no version'}, wanted is {wanted}",
            "run: dangerous-driving db migrate",
        )


def partition_name(table: str, day: date) -> str:
    """``frame_p20251020``."""
    return f"{table}_p{day:%Y%m%d}"


def with_brief_locks(engine: Engine, work: Callable[[Connection], object], *, what: str, patience: float) -> None:
    """Do schema work in a transaction that never waits long for a lock, and again after a pause if one was taken.

    Args:
        engine: of the ledger.
        work: one table's: a transaction that holds the locks of several can wait for a writer that waits for it.
        what: is done, for the error.
        patience: s.

    Raises:
        LedgerBusyError: the locks were taken each time.
    """
    until = time.monotonic() + patience
    while True:
        try:
            with transaction(engine) as connection:
                connection.execute(text(f"SET LOCAL lock_timeout = {int(LOCK_WAIT * 1000)}"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": SCHEMA_LOCK})
                work(connection)
        except LedgerBusyError as error:
            if time.monotonic() > until:
                raise LedgerBusyError(f"{what} was tried for {patience:g} s: {error}") from error
        else:
            return
        time.sleep(LOCK_PAUSE)


def make_partitions(engine: Engine, days: Iterable[date]) -> None:
    """Make each partitioned table's partition of these UTC days where it is missing, one transaction each.

    Raises:
        LedgerBusyError: other schema work held a table for too long; what was made stays.
    """
    for table, day in _missing(engine, days):
        with_brief_locks(
            engine,
            partial(_make_partition, table=table, day=day),
            what=f"making {partition_name(table, day)}",
            patience=PATIENCE,
        )


def _missing(engine: Engine, days: Iterable[date]) -> list[tuple[str, date]]:
    with transaction(engine) as connection:
        return [
            (table, day)
            for day in sorted(set(days))
            for table in PARTITIONED
            if not _exists(connection, partition_name(table, day))
        ]


def _exists(connection: Connection, name: str) -> bool:
    return connection.scalar(text("SELECT to_regclass(:name)"), {"name": name}) is not None


def _make_partition(connection: Connection, *, table: str, day: date) -> None:
    name = partition_name(table, day)
    if _exists(connection, name):
        return  # somebody else had the lock before
    # PARTITION OF would take the whole table from its readers and writers; to attach one does not
    connection.execute(text(f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL)"))
    connection.execute(
        text(
            f"ALTER TABLE {table} ATTACH PARTITION {name} "
            f"FOR VALUES FROM ('{day.isoformat()} 00:00:00+00') TO ('{(day + timedelta(days=1)).isoformat()} 00:00:00+00')"
        )
    )


def keep_ahead(engine: Engine, stop: threading.Event) -> None:
    """Make the partitions of tomorrow long before midnight, so that no batch of rows waits for them; until `stop`."""
    while not stop.is_set():
        today = datetime.now(UTC).date()
        try:
            make_partitions(engine, [today, today + timedelta(days=1)])
        except LedgerError as error:
            # whoever has a row of that day makes them then
            log.warning("partitions_not_made", reason=str(error))
            stop.wait(LOOK_AGAIN)
        else:
            stop.wait(LOOK_AHEAD)


class Partitions:
    """Remembers which days have partitions, so that writers ask the catalogue once a day."""

    def __init__(self) -> None:
        self._made: set[date] = set()

    def ensure(self, engine: Engine, times: Iterable[datetime]) -> None:
        """Make the partitions that rows captured at these times need, in transactions of their own."""
        days = {time.astimezone(UTC).date() for time in times} - self._made
        if days:
            make_partitions(engine, days)
            self._made |= days
