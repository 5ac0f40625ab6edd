"""What a database that is busy says differs from one that is away, and all of it may be tried again."""

from __future__ import annotations

import threading

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, text

from dangerous_driving.errors import LedgerBusyError, LedgerError
from dangerous_driving.ledger.database import open_engine, transaction
from dangerous_driving.settings import DatabaseSettings

pytestmark = pytest.mark.integration


@pytest.fixture
def cameras(ledger: Engine) -> Engine:
    """A ledger with two rows to lock."""
    with transaction(ledger) as connection:
        connection.execute(text("INSERT INTO camera (id) VALUES ('one'), ('two')"))
    return ledger


def run(ledger: Engine, *statements: str) -> None:
    with transaction(ledger) as connection:
        for statement in statements:
            connection.execute(text(statement))


def test_a_database_that_is_away_is_told_by_its_address() -> None:
    engine = open_engine(DatabaseSettings(url=SecretStr("postgresql://postgres@127.0.0.1:9/nowhere")))
    with pytest.raises(LedgerError, match=r"did not answer.*check database.url") as caught, transaction(engine):
        pass
    assert caught.value.retriable


def test_a_statement_that_took_too_long_is_told_as_one(ledger: Engine) -> None:
    with pytest.raises(LedgerError, match=r"statement timeout.*database.statement_timeout") as caught:
        run(ledger, "SET LOCAL statement_timeout = 50", "SELECT pg_sleep(5)")
    assert caught.value.retriable
    assert "database.url" not in str(caught.value)


def test_a_lock_that_others_hold_is_told_as_one(cameras: Engine) -> None:
    with transaction(cameras) as holder:
        holder.execute(text("UPDATE camera SET name = 'x' WHERE id = 'one'"))
        with pytest.raises(LedgerBusyError, match=r"lock did not come free.*pg_stat_activity") as caught:
            run(cameras, "SET LOCAL lock_timeout = 50", "UPDATE camera SET name = 'y' WHERE id = 'one'")
    assert caught.value.retriable
    assert "database.url" not in str(caught.value)


def test_who_falls_silent_in_the_middle_of_a_transaction_keeps_its_locks_for_a_while_only(
    cameras: Engine, database: DatabaseSettings
) -> None:
    frozen = open_engine(database.model_copy(update={"statement_timeout": 0.5}))

    def fall_silent() -> None:
        with transaction(frozen) as connection:
            connection.execute(text("UPDATE camera SET name = 'x' WHERE id = 'one'"))
            run(cameras, "UPDATE camera SET name = 'y' WHERE id = 'one'")
            connection.execute(text("SELECT 1"))

    with pytest.raises(LedgerError) as caught:
        fall_silent()
    assert caught.value.retriable
    with transaction(cameras) as connection:
        assert connection.scalar(text("SELECT name FROM camera WHERE id = 'one'")) == "y"
    frozen.dispose()


def test_a_deadlock_is_told_as_one(cameras: Engine) -> None:
    both = threading.Barrier(2)
    errors: list[LedgerError] = []

    def update(first: str, second: str) -> None:
        try:
            with transaction(cameras) as connection:
                connection.execute(text("UPDATE camera SET name = 'x' WHERE id = :id"), {"id": first})
                both.wait(10)
                connection.execute(text("UPDATE camera SET name = 'x' WHERE id = :id"), {"id": second})
        except LedgerError as error:
            errors.append(error)

    threads = [threading.Thread(target=update, args=names) for names in (("one", "two"), ("two", "one"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    [error] = errors  # the other one went on
    assert isinstance(error, LedgerBusyError)
    assert error.retriable
    assert "deadlock" in str(error)
    assert "database.url" not in str(error)
