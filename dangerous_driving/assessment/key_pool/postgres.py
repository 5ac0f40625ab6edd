"""Keys' windows and health in PostgreSQL, shared exactly by all processes that use the keys.

Tables ``api_key`` (one row per key) and ``key_reservation`` (one row per allowed request). One exchange is one short
transaction under an advisory lock, timed by the database's clock. Row locks would do as well, but they write to the log
and make each commit wait for the disk; the lock and the unlogged ``key_reservation`` do not.

Each process remembers the windows and reads only the rows it has not seen, so an exchange costs the same however much
of a minute is used.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from dangerous_driving.assessment.key_pool.core import (
    Account,
    Grant,
    Health,
    Key,
    KeyState,
    KeyUsage,
    Policy,
    Report,
    Request,
    after,
    decide,
    usage,
)
from dangerous_driving.assessment.key_pool.memory import changes_something, set_by_person
from dangerous_driving.assessment.key_pool.storage import Exchange
from dangerous_driving.errors import LedgerError

#: Of all pools on one database. One lock for all keys: an exchange takes a millisecond or two.
LOCK = 7_261_002
#: Waiting longer for it means that another process hangs within its transaction.
LOCK_TIMEOUT_MS = 5_000
#: s between two removals of rows that no longer count.
PRUNE_SECONDS = 10.0

_MICROSECOND = 1_000_000

_LOCK = text("SELECT set_config('lock_timeout', :timeout, true), pg_advisory_xact_lock(:lock)")
# a statement of its own: it must see what was committed while the lock was waited for
_READ_KEYS = text(
    "SELECT key_hash, label, qps_limit, rpm_limit, state, state_reason, failures, coolings, "
    "(extract(epoch FROM cooling_until) * 1000000)::bigint, (extract(epoch FROM probing_until) * 1000000)::bigint, "
    "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint FROM api_key WHERE key_hash = ANY(:keys)"
)
_READ_NEW = text(
    "SELECT key_hash, lane, (extract(epoch FROM reserved_at) * 1000000)::bigint FROM key_reservation "
    "WHERE key_hash = ANY(:keys) AND reserved_at > to_timestamp(:since / 1000000.0) ORDER BY reserved_at"
)
_REGISTER = text(
    "INSERT INTO api_key (key_hash, label, qps_limit, rpm_limit) VALUES (:key, :label, :qps, :rpm) "
    "ON CONFLICT (key_hash) DO UPDATE SET label = excluded.label, qps_limit = excluded.qps_limit, "
    "rpm_limit = excluded.rpm_limit, updated_at = now()"
)
_WRITE_HEALTH = text(
    "UPDATE api_key SET state = :state, state_reason = :reason, failures = :failures, coolings = :coolings, "
    "cooling_until = to_timestamp(:cooling / 1000000.0), probing_until = to_timestamp(:probing / 1000000.0), "
    "updated_at = now() WHERE key_hash = :key"
)
_RESERVE = text(
    "INSERT INTO key_reservation (key_hash, lane, reserved_at) "
    "SELECT unnest(CAST(:keys AS text[])), unnest(CAST(:lanes AS text[])), to_timestamp(:at / 1000000.0)"
)
_TAKE_BACK = text(
    "DELETE FROM key_reservation WHERE id = (SELECT id FROM key_reservation "
    "WHERE key_hash = :key AND lane = :lane AND reserved_at = to_timestamp(:at / 1000000.0) LIMIT 1)"
)
_PRUNE = text("DELETE FROM key_reservation WHERE reserved_at < to_timestamp(:before / 1000000.0)")
_SET_BACK = text(
    "UPDATE key_reservation SET reserved_at = to_timestamp(:now / 1000000.0) "
    "WHERE reserved_at > to_timestamp(:now / 1000000.0)"
)


class PostgresStorage:
    """Storage of many processes on one database.

    Args:
        engine: on a ledger's database.
        keys: with their limits; the limits that were written last hold for all processes.
        policy: the pool's settings, the same in all processes.
        pause: s between two exchanges of this process at least.
    """

    patience = 1.0

    def __init__(self, engine: Engine, keys: Iterable[Key], policy: Policy, *, pause: float = 0.01) -> None:
        self.pause = pause
        self._engine = engine
        self._policy = policy
        self._accounts = {key.key_hash: Account(key) for key in keys}
        self._seen = 0  # µs: no reservation up to here is unknown
        self._pruned_at = 0.0
        self._registered = False
        self._ahead = 0.0  # s that the database's clock is ahead of this process' own
        self._guard = threading.Lock()  # the accounts change in the exchange's thread and are shown in the loop's
        # of its own: asyncio's shared threads may all be busy with slow reads
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="key-pool")

    async def exchange(self, reports: Sequence[Report], requests: Sequence[Request]) -> Exchange:
        """See :class:`Storage`."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._exchange, reports, requests)

    async def set_enabled(self, key_hash: str, *, enabled: bool, reason: str) -> None:
        """See :class:`Storage`."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._set_enabled, key_hash, enabled, reason)

    def worth_noting(self, report: Report) -> bool:
        """See :class:`Storage`."""
        return changes_something(self._accounts[report.grant.key_hash], report)

    def snapshot(self) -> tuple[KeyUsage, ...]:
        """See :class:`Storage`."""
        with self._guard:
            now = time.monotonic() + self._ahead
            return tuple(usage(account, now=now, policy=self._policy) for account in self._accounts.values())

    async def close(self) -> None:
        """See :class:`Storage`."""
        await asyncio.to_thread(self._thread.shutdown)

    def _exchange(self, reports: Sequence[Report], requests: Sequence[Request]) -> Exchange:
        with _transaction(self._engine) as connection:
            now_us = self._refresh(connection)
            now = now_us / _MICROSECOND
            with self._guard:
                before = {key_hash: account.health for key_hash, account in self._accounts.items()}
                for report in reports:
                    account = self._accounts[report.grant.key_hash]
                    account.health = after(account.health, report, now=now, policy=self._policy)
                decision = decide(self._accounts, requests, now=now, policy=self._policy)
                changed = [
                    account for key_hash, account in self._accounts.items() if account.health != before[key_hash]
                ]
            unsent = [report.grant for report in reports if report.outcome == "unsent"]
            self._write(connection, unsent, changed)
            granted = [grant for grant in decision.grants if grant is not None]
            if granted:
                values = {"keys": [g.key_hash for g in granted], "lanes": [g.lane for g in granted], "at": now_us}
                connection.execute(_RESERVE, values)
            self._prune(connection, now_us)
        # on an error the requests counted above stay counted, and the unsent too: the commit may or may not have arrived
        with self._guard:
            for grant in unsent:
                self._accounts[grant.key_hash].remove(grant.reserved_at)
            self._ahead = now - time.monotonic()
        self._seen = max(self._seen, now_us)
        return Exchange(decision.grants, tuple(max(at - now, 0.0) for at in decision.free_at))

    def _refresh(self, connection: Connection) -> int:
        """Take the lock and learn what others did; returns the time in µs, later than every known reservation."""
        connection.execute(_LOCK, {"timeout": str(LOCK_TIMEOUT_MS), "lock": LOCK})
        rows = connection.execute(_READ_KEYS, {"keys": list(self._accounts)}).all()
        if not self._registered or len(rows) < len(self._accounts):
            self._register(connection)
            rows = connection.execute(_READ_KEYS, {"keys": list(self._accounts)}).all()
        now_us: int = max(row[-1] for row in rows)
        if self._seen >= now_us:
            self._set_back(connection, now_us)
        since = self._seen or now_us - _us(self._policy.horizon)
        news = connection.execute(_READ_NEW, {"keys": list(self._accounts), "since": since}).all()
        with self._guard:
            for row in rows:
                account = self._accounts[row.key_hash]
                account.key = Key(row.key_hash, row.qps_limit, row.rpm_limit, row.label)
                account.health = _health(row)
            for key_hash, lane, at_us in news:
                self._accounts[key_hash].add(lane, at_us / _MICROSECOND)
                self._seen = max(self._seen, at_us)
        if self._seen >= now_us:  # another process met a clock that was set back
            now_us = self._seen + 1
        return now_us

    def _register(self, connection: Connection) -> None:
        for key_hash in sorted(self._accounts):
            key = self._accounts[key_hash].key
            connection.execute(
                _REGISTER, {"key": key_hash, "label": key.label, "qps": key.qps_limit, "rpm": key.rpm_limit}
            )
        self._registered = True

    def _set_back(self, connection: Connection, now_us: int) -> None:
        """The database's clock was set back: what lies in its future happened just now, for all that can be known."""
        connection.execute(_SET_BACK, {"now": now_us})
        with self._guard:
            for account in self._accounts.values():
                account.times.clear()
                account.paced_at = float("-inf")
        self._seen = 0

    def _write(self, connection: Connection, unsent: Iterable[Grant], changed: Iterable[Account]) -> None:
        for grant in unsent:
            values = {"key": grant.key_hash, "lane": grant.lane, "at": _us(grant.reserved_at)}
            connection.execute(_TAKE_BACK, values)
        for account in changed:
            health = account.health
            values = {
                "key": account.key.key_hash,
                "state": health.state.value,
                "reason": health.reason,
                "failures": health.failures,
                "coolings": health.coolings,
                "cooling": _us(health.cooling_until),
                "probing": _us(health.probing_until),
            }
            connection.execute(_WRITE_HEALTH, values)

    def _prune(self, connection: Connection, now_us: int) -> None:
        now = now_us / _MICROSECOND
        if now - self._pruned_at > PRUNE_SECONDS:
            # twice the horizon: a process with a longer margin may look further back
            connection.execute(_PRUNE, {"before": now_us - 2 * _us(self._policy.horizon)})
            self._pruned_at = now

    def _set_enabled(self, key_hash: str, enabled: bool, reason: str) -> None:
        with _transaction(self._engine) as connection:
            now = self._refresh(connection) / _MICROSECOND
            account = self._accounts[key_hash]
            with self._guard:
                account.health = set_by_person(enabled=enabled, reason=reason, now=now)
            self._write(connection, (), [account])


def key_usage(engine: Engine, policy: Policy) -> tuple[KeyUsage, ...]:
    """All keys in the database as they stand now, for those who have no pool (a status table, `keys list`).

    Raises:
        LedgerError: the database is away.
    """
    with _transaction(engine) as connection:
        hashes = list(connection.scalars(text("SELECT key_hash FROM api_key ORDER BY created_at, key_hash")))
        rows = {row.key_hash: row for row in connection.execute(_READ_KEYS, {"keys": hashes})}
        if not rows:
            return ()
        now_us = max(row[-1] for row in rows.values())
        since = now_us - _us(policy.horizon)
        reservations = connection.execute(_READ_NEW, {"keys": hashes, "since": since}).all()
    accounts = {
        key_hash: Account(Key(key_hash, row.qps_limit, row.rpm_limit, row.label), _health(row))
        for key_hash, row in rows.items()
    }
    for key_hash, lane, at_us in reservations:
        accounts[key_hash].add(lane, at_us / _MICROSECOND)
    return tuple(usage(accounts[key_hash], now=now_us / _MICROSECOND, policy=policy) for key_hash in hashes)


@contextmanager
def _transaction(engine: Engine) -> Iterator[Connection]:
    try:
        with engine.begin() as connection:
            yield connection
    except SQLAlchemyError as error:
        first_line = next(iter(str(getattr(error, "orig", None) or error).strip().splitlines()), type(error).__name__)
        refused = isinstance(error, DBAPIError) and not isinstance(error, OperationalError | InterfaceError)
        what = "refused a statement" if refused else "did not answer"
        raise LedgerError(f"the key pool's database {what} ({first_line}); check database.url") from error


def _health(row: Any) -> Health:
    return Health(
        state=KeyState(row.state),
        reason=row.state_reason,
        cooling_until=(row[8] or 0) / _MICROSECOND,
        failures=row.failures,
        coolings=row.coolings,
        probing_until=(row[9] or 0) / _MICROSECOND,
    )


def _us(seconds: float) -> int:
    return round(seconds * _MICROSECOND)
