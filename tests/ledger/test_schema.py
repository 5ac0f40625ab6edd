"""The migrations make what the tables say, partitions are made once, and neither waits for or holds up anybody."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import SecretStr
from sqlalchemy import Engine, text

from dangerous_driving.errors import ConfigError, LedgerBusyError
from dangerous_driving.ledger import schema
from dangerous_driving.ledger.database import open_engine, transaction
from dangerous_driving.ledger.embedded import EmbeddedPostgres
from dangerous_driving.ledger.tables import PARTITIONED, Base
from dangerous_driving.settings import DatabaseSettings

pytestmark = pytest.mark.integration


def is_partition(name: str | None) -> bool:
    return bool(name) and "_p20" in str(name)


def test_migrations_and_tables_describe_the_same_schema(ledger: Engine) -> None:
    with ledger.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "include_name": lambda name, kind, _: not (kind == "table" and is_partition(name)),
            },
        )
        assert compare_metadata(context, Base.metadata) == []


def test_migrating_again_changes_nothing(ledger: Engine) -> None:
    assert schema.migrate(ledger) == (schema.head(), schema.head())


def test_an_empty_database_is_refused_with_the_remedy(postgres_server: EmbeddedPostgres) -> None:
    url = postgres_server.create_database("never_migrated")
    engine = open_engine(DatabaseSettings(url=SecretStr(url)))
    try:
        with pytest.raises(ConfigError, match="dangerous-driving db migrate"):
            schema.require_current(engine)
    finally:
        engine.dispose()
        postgres_server.drop_database("never_migrated")


def test_calls_from_before_their_rows_had_a_time_stay_where_they_are_and_are_no_new_ones(
    postgres_server: EmbeddedPostgres,
) -> None:
    url = postgres_server.create_database("calls_before_0014")
    engine = open_engine(DatabaseSettings(url=SecretStr(url)))
    at = datetime(2026, 1, 1, tzinfo=UTC)
    try:
        config = schema._config()
        with transaction(engine) as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "0013")
        schema.make_partitions(engine, [at.date()])
        with transaction(engine) as connection:
            connection.execute(text(CALL), {"id": "old", "at": at})
            pages = text("SELECT pg_relation_filenode('llm_call_p20260101')")
            before = connection.scalar(pages)
        schema.migrate(engine)
        with transaction(engine) as connection:
            connection.execute(text(CALL), {"id": "new", "at": at})
            found = connection.execute(text("SELECT call_id, recorded_at = now() FROM llm_call ORDER BY call_id"))
            assert [tuple(row) for row in found] == [("new", True), ("old", None)]
            assert connection.scalar(pages) == before
    finally:
        engine.dispose()
        postgres_server.drop_database("calls_before_0014")


CALL = """
INSERT INTO llm_call (captured_at, call_id, task_id, camera_id, call_number, run, lane, worker, key_hash, model, prompt_version,
    status, started_at)
VALUES (:at, :id, 'task', 'north', 1, 'live', 'window', 1, 'key', 'simulated-vl', 'v2', 'started', :at)
"""


def test_rows_of_any_day_find_a_partition(ledger: Engine) -> None:
    long_ago = datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC)
    partitions = schema.Partitions()
    partitions.ensure(ledger, [long_ago])
    partitions.ensure(ledger, [long_ago])
    schema.Partitions().ensure(ledger, [long_ago])
    with transaction(ledger) as connection:
        for table in PARTITIONED:
            assert connection.scalar(text("SELECT to_regclass(:name)"), {"name": f"{table}_p20240229"})


DAY = date(2024, 3, 1)
NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def hasty(database: DatabaseSettings) -> Iterator[Engine]:
    """An engine whose statements may take a second."""
    engine = open_engine(database.model_copy(update={"statement_timeout": 1.0}))
    yield engine
    engine.dispose()


@pytest.mark.parametrize("table", PARTITIONED)
def test_a_partition_is_as_if_it_had_been_made_as_one(ledger: Engine, table: str) -> None:
    schema.make_partitions(ledger, [DAY])
    with transaction(ledger) as connection:
        connection.execute(
            text(
                f"CREATE TABLE {table}_p20240302 PARTITION OF {table} FOR VALUES FROM ('2024-03-02') TO ('2024-03-03')"
            )
        )

    def described(day: str) -> dict[str, list[tuple[Any, ...]]]:
        with transaction(ledger) as connection:
            return {
                what: [
                    tuple(str(value).replace(f"_p{day}", "_pDAY") for value in row)
                    for row in connection.execute(text(query), {"name": f"{table}_p{day}"})
                ]
                for what, query in CATALOGUE.items()
            }

    made = described("20240301")
    assert made == described("20240302")
    assert made["columns"]
    assert made["indices"]


#: All but what says nothing of a leaf: whether its key would be inherited.
CATALOGUE = {
    "columns": """
        SELECT attnum, attname, format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated, attstorage,
               attcompression, attislocal, attinhcount, pg_get_expr(adbin, adrelid)
        FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE attrelid = to_regclass(:name) AND attnum > 0 ORDER BY attnum
    """,
    "constraints": """
        SELECT conname, contype, pg_get_constraintdef(oid), conislocal, coninhcount, connoinherit AND contype <> 'p', conparentid <> 0
        FROM pg_constraint WHERE conrelid = to_regclass(:name) ORDER BY conname
    """,
    "indices": """
        SELECT i.relname, pg_get_indexdef(i.oid), parent.relname, x.indisprimary, x.indisunique, x.indisvalid, i.reloptions
        FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
        LEFT JOIN pg_inherits h ON h.inhrelid = i.oid LEFT JOIN pg_class parent ON parent.oid = h.inhparent
        WHERE x.indrelid = to_regclass(:name) ORDER BY i.relname
    """,
    "table": """
        SELECT relkind, relpersistence, relispartition, reloptions, reltablespace, relreplident
        FROM pg_class WHERE oid = to_regclass(:name)
    """,
}


def test_a_long_reader_and_a_writer_hold_up_no_partition(ledger: Engine, hasty: Engine) -> None:
    with transaction(ledger) as busy:
        for table in PARTITIONED:
            busy.execute(text(f"SELECT count(*) FROM {table}"))
        busy.execute(text("UPDATE assessment_task SET calls = calls"))
        schema.Partitions().ensure(hasty, [NOON])
    with transaction(ledger) as connection:
        assert connection.scalar(text("SELECT to_regclass('llm_call_p20240301')"))


def test_other_schema_work_is_waited_for_and_nobody_stands_behind_those_who_wait(ledger: Engine, hasty: Engine) -> None:
    with ThreadPoolExecutor(1) as pool:
        with transaction(ledger) as busy:
            busy.execute(text("LOCK TABLE frame IN SHARE UPDATE EXCLUSIVE MODE"))
            making = pool.submit(schema.make_partitions, hasty, [DAY])
            assert not wait([making], 1.2).done  # longer than a statement of it may take
            with transaction(hasty) as writer:
                writer.execute(text("UPDATE frame SET node = node"))
        making.result(schema.PATIENCE)
    with transaction(ledger) as connection:
        assert connection.scalar(text("SELECT to_regclass('llm_call_p20240301')"))


def test_a_partition_that_cannot_be_made_is_named(
    ledger: Engine, hasty: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "PATIENCE", 0.1)
    with transaction(ledger) as busy:
        busy.execute(text("LOCK TABLE risk_assessment IN SHARE UPDATE EXCLUSIVE MODE"))
        with pytest.raises(LedgerBusyError, match=r"risk_assessment_p20240301.*pg_stat_activity"):
            schema.Partitions().ensure(hasty, [NOON])
    with transaction(ledger) as connection:  # each table has a transaction of its own
        assert connection.scalar(text("SELECT to_regclass('frame_p20240301')"))


def test_tomorrows_partitions_are_made_ahead_of_time(ledger: Engine) -> None:
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    names = [schema.partition_name(table, tomorrow) for table in PARTITIONED]
    with transaction(ledger) as connection:
        connection.execute(text(f"DROP TABLE {', '.join(names)}"))
    stop = threading.Event()
    keeping = threading.Thread(target=schema.keep_ahead, args=(ledger, stop))
    keeping.start()
    until = time.monotonic() + 30
    while time.monotonic() < until and not all(exists(ledger, name) for name in names):
        time.sleep(0.05)
    stop.set()
    keeping.join(5)
    assert not keeping.is_alive()
    assert all(exists(ledger, name) for name in names)


def exists(ledger: Engine, name: str) -> bool:
    with transaction(ledger) as connection:
        return connection.scalar(text("SELECT to_regclass(:name)"), {"name": name}) is not None


def test_a_migration_may_take_longer_than_a_statement_of_a_service(
    ledger: Engine, hasty: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upgrade(config: Any, _revision: str) -> None:
        config.attributes["connection"].execute(text("SELECT pg_sleep(1.2)"))

    monkeypatch.setattr(command, "upgrade", upgrade)
    with ThreadPoolExecutor(1) as pool:
        with transaction(ledger) as other:  # another service's migration
            other.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": schema.SCHEMA_LOCK})
            migrating = pool.submit(schema.migrate, hasty)
            assert not wait([migrating], 1.2).done
        assert migrating.result(30) == (schema.head(), schema.head())
