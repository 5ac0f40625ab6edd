"""Connections to PostgreSQL: one engine per process, explicit time-outs, driver errors mapped to LedgerError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from dangerous_driving.errors import LedgerBusyError, LedgerError, StatementRefusedError, UnfitLedgerError
from dangerous_driving.settings import DatabaseSettings

#: How long either end waits for one that has gone without a word (a cable, a power cut): some 45 s instead of two hours, in
#: which this end would hang and the other would hold its locks. PostgreSQL and libpq pass over them on a Unix socket.
CLIENT_KEEPALIVES = {
    "keepalives_idle": 15,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 45_000,
}
SERVER_KEEPALIVES = (
    "-c tcp_keepalives_idle=15 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3 -c tcp_user_timeout=45000"
)


def engine_url(settings: DatabaseSettings) -> URL:
    """The URL with psycopg 3 as its driver, whatever driver the setting names."""
    return make_url(settings.url.get_secret_value()).set(drivername="postgresql+psycopg")


def open_engine(settings: DatabaseSettings, *, application: str = "dangerous-driving") -> Engine:
    """An engine that connects at its first use; sessions run in UTC.

    A session that says nothing for twice ``database.statement_timeout`` in the middle of a transaction is ended by the
    server: the process is frozen or lost, and others wait for its locks.
    """
    limit = int(settings.statement_timeout * 1000)
    return create_engine(
        engine_url(settings),
        pool_size=settings.pool_size,
        max_overflow=0,
        pool_timeout=settings.statement_timeout,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": settings.connect_timeout,
            "application_name": application,
            "options": f"-c timezone=UTC -c statement_timeout={limit}"
            f" -c idle_in_transaction_session_timeout={2 * limit} {SERVER_KEEPALIVES}",
            **CLIENT_KEEPALIVES,
        },
    )


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction: committed at the end of the block, rolled back on an error.

    Raises:
        LedgerBusyError: others held a lock for too long, or the transaction gave way in a deadlock.
        LedgerError: the database refused or did not answer.
    """
    try:
        with engine.begin() as connection:
            yield connection
    except (OperationalError, InterfaceError) as error:
        raise _unfinished(error) from error
    except PoolTimeoutError as error:
        raise LedgerError(
            "no connection came free in time; raise database.pool_size, or look for slow queries"
        ) from error
    except ProgrammingError as error:
        raise UnfitLedgerError(
            f"the database does not fit this release ({_first_line(error)}); run 'dangerous-driving db migrate', and check"
            " what the role of database.url may do"
        ) from error
    except (DataError, IntegrityError) as error:
        raise StatementRefusedError(f"the database refused a statement ({_first_line(error)})") from error
    except DBAPIError as error:
        raise LedgerError(f"the database refused a statement ({_first_line(error)})") from error


def _unfinished(error: DBAPIError) -> LedgerError:
    """What SQLSTATE says: the driver has one class for a database that is away and for one that is busy."""
    said = _first_line(error)
    match getattr(error.orig, "sqlstate", None):
        case "57014":  # query_canceled
            return LedgerError(
                f"the database gave up a statement ({said}); look for slow queries, or raise database.statement_timeout"
            )
        case "55P03":  # lock_not_available
            return LedgerBusyError(
                f"a lock did not come free in time ({said}); look for long transactions in pg_stat_activity"
            )
        case "40P01":  # deadlock_detected
            return LedgerBusyError(
                f"of two transactions that waited for each other the database ended this one ({said}); try again"
            )
    return LedgerError(f"the database did not answer ({said}); check database.url")


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
