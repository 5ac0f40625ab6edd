"""Fixtures of the whole suite."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from pydantic import SecretStr
from sqlalchemy import Engine

from dangerous_driving.errors import DangerousDrivingError
from dangerous_driving.ledger.database import open_engine
from dangerous_driving.ledger.embedded import EmbeddedPostgres
from dangerous_driving.ledger.schema import migrate
from dangerous_driving.settings import DatabaseSettings
from infra.kafka.cluster import ClusterError, KafkaCluster

# a small, busy machine is no reason for a property to fail
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real weights, pictures and clips that lies beside the checkout of a developer."""
    if not (SHARED / "samples").is_dir():
        pytest.skip("no ../shared beside this checkout: real weights, pictures and clips are not part of the project")
    return SHARED


def missing_component(what: str) -> None:
    """A component that a test needs cannot start: a failure in CI, a skip that says what is missing elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} (in CI a component that cannot start is a failure)")
    pytest.skip(what)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A real PostgreSQL for the whole session, with a migrated template database."""
    try:
        server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres") / "data")
    except DangerousDrivingError as error:
        missing_component(f"no PostgreSQL: {error}")
        raise
    with server:
        engine = open_engine(DatabaseSettings(url=SecretStr(server.create_database("template_ledger"))))
        migrate(engine)
        engine.dispose()
        yield server


@pytest.fixture
def database(postgres_server: EmbeddedPostgres) -> Iterator[DatabaseSettings]:
    """An empty, migrated ledger of its own."""
    name = f"ledger_{uuid.uuid4().hex[:12]}"
    yield DatabaseSettings(url=SecretStr(postgres_server.create_database(name, template="template_ledger")))
    postgres_server.drop_database(name)


@pytest.fixture
def ledger(database: DatabaseSettings) -> Iterator[Engine]:
    """An engine on an empty, migrated ledger."""
    engine = open_engine(database, application="tests")
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def kafka_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """Three real Apache Kafka brokers for the whole session. A test that takes one down brings it back."""
    with KafkaCluster(tmp_path_factory.mktemp("kafka")) as cluster:
        try:
            cluster.start()
        except ClusterError as error:
            missing_component(f"no Apache Kafka: {error}")
        yield cluster
