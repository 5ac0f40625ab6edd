"""The migrations make what the tables say, and partitions are made once."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import SecretStr
from sqlalchemy import Engine, text

from dangerous_driving.errors import ConfigError
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
            schema.make_partitions(connection, [at.date()])
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
