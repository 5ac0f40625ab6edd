"""News of keys from other processes, by PostgreSQL's NOTIFY: a key that one of them lost is not used by another."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psycopg
import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from dangerous_driving.assessment.key_pool.statements import CHANNEL

log = structlog.get_logger(__name__)

#: s that the listener waits at most before it looks whether it shall end.
LISTEN_SECONDS = 0.5
#: s until a lost connection is made again.
RETRY_SECONDS = 2.0


class Notices:
    """Listens in a thread of its own once started; without it news come with the next exchange.

    Args:
        engine: on a ledger's database.
        on_notice: told the key's hash, in the listener's thread.
    """

    def __init__(self, engine: Engine, on_notice: Callable[[str], None]) -> None:
        self._engine = engine
        self._on_notice = on_notice
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to listen, once."""
        if self._thread is None and not self._stop.is_set():
            self._thread = threading.Thread(target=self._run, name="key-notices", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._listen()
            except (SQLAlchemyError, psycopg.Error) as error:
                log.warning("key_notices_lost", reason=type(error).__name__)
                self._stop.wait(RETRY_SECONDS)

    def _listen(self) -> None:
        # a connection of its own, not one of the pool's
        address = self._engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(address, autocommit=True, connect_timeout=5) as connection:
            connection.execute(f"LISTEN {CHANNEL}")
            while not self._stop.is_set():
                for notice in connection.notifies(timeout=LISTEN_SECONDS):
                    self._on_notice(notice.payload)
