"""The schema's versions (Alembic) and the daily partitions."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, text

from dangerous_driving.errors import ConfigError
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.tables import PARTITIONED

#: One lock for all schema work, so that services that start together do not make the same partition twice.
SCHEMA_LOCK = 7_261_001


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
        make_partitions(connection, [today + timedelta(days=offset) for offset in (-1, 0, 1)])
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


def make_partitions(connection: Connection, days: Iterable[date]) -> None:
    """Make each partitioned table's partition of these UTC days where it is missing."""
    missing = [
        (table, day)
        for day in sorted(set(days))
        for table in PARTITIONED
        if connection.scalar(text("SELECT to_regclass(:name)"), {"name": partition_name(table, day)}) is None
    ]
    if not missing:
        return
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": SCHEMA_LOCK})
    for table, day in missing:
        connection.execute(
            text(
                f"CREATE TABLE IF NOT EXISTS {partition_name(table, day)} PARTITION OF {table} "
                f"FOR VALUES FROM ('{day.isoformat()} 00:00:00+00') TO ('{(day + timedelta(days=1)).isoformat()} 00:00:00+00')"
            )
        )


class Partitions:
    """Remembers which days have partitions, so that writers ask the catalogue once a day."""

    def __init__(self) -> None:
        self._made: set[date] = set()

    def ensure(self, engine: Engine, times: Iterable[datetime]) -> None:
        """Make the partitions that rows captured at these times need, in a transaction of its own."""
        days = {time.astimezone(UTC).date() for time in times} - self._made
        if days:
            with transaction(engine) as connection:
                make_partitions(connection, days)
            self._made |= days
