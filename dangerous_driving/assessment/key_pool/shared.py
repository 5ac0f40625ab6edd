"""The keys' windows and health as the database has them: one short transaction per exchange, under an advisory lock.

One lock for all keys: row locks would do as well, but they write to the log and make each commit wait for the disk; the lock and the
unlogged ``key_reservation`` do not. That table is a log (a row per slot taken or given back), read from where it was read
before, so an exchange costs the same however much of a minute is used. A crash of the server empties it, but its ids go
on: they are logged, each 32nd of them. All is timed by the database's clock.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from dangerous_driving.assessment.key_pool.core import Account, KeyUsage, ahead, decide, settle, usage
from dangerous_driving.assessment.key_pool.health import Grant, Health, Key, KeyState, Policy, Report, Request, Spent
from dangerous_driving.assessment.key_pool.memory import apply_keys, set_by_person, today
from dangerous_driving.assessment.key_pool.statements import (
    COUNT_MEMBERS,
    LOCK_KEYS,
    MEMBER,
    NOTIFY,
    PRUNE,
    PRUNE_MEMBERS,
    READ_KEYS,
    READ_NEW,
    READ_SPENT,
    REGISTER,
    RESERVE,
    SET_BACK,
    SPEND,
    WRITE_HEALTH,
)
from dangerous_driving.assessment.key_pool.storage import Exchange
from dangerous_driving.errors import LedgerError

#: Of all pools on one database. One lock for all keys: an exchange takes a millisecond or two.
LOCK = 7_261_002
#: Waiting longer for it means that another process hangs within its transaction.
LOCK_TIMEOUT_MS = 5_000
#: s between two removals of rows that no longer count, and two signs of life of a member.
PRUNE_SECONDS = 10.0
#: s that a member counts after its last sign of life.
MEMBER_SECONDS = 60
#: s until a database that was away is asked again.
RETRY_SECONDS = 1.0
#: s; slots further ahead than any lease tell that the database's clock was set back.
CLOCK_SECONDS = 5.0

_MICROSECOND = 1_000_000


@dataclass
class Told:
    """What goes to the database with the next exchange."""

    taken: list[Grant] = field(default_factory=list)
    given_back: list[Grant] = field(default_factory=list)
    spent: dict[str, Spent] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.taken or self.given_back or self.spent)

    def put_back(self, earlier: Told) -> None:
        """What could not be told stays to be told."""
        self.taken[:0], self.given_back[:0] = earlier.taken, earlier.given_back
        for lane, spent in earlier.spent.items():
            self.spend(lane, spent.calls, spent.cost)

    def spend(self, lane: str, calls: int, cost: float) -> None:
        """Add to what a lane has spent."""
        self.spent[lane] = self.spent.get(lane, Spent()) + Spent(calls, cost)


@dataclass(frozen=True)
class Found:
    """An exchange's answer, the slots taken ahead, and until when there are none beyond them, by urgency.

    ``spent``: today, by lane, with what this exchange told.
    """

    exchange: Exchange
    slots: list[Grant]
    none_before: dict[bool, float]
    spent: dict[str, Spent]


class SharedWindows:
    """What one process knows of the windows that all share, and its way to the database. Blocking: for one thread.

    Args:
        engine: on a ledger's database.
        keys: with their limits; the limits that were written last hold for all processes.
        policy: the pool's settings, the same in all processes.
    """

    def __init__(self, engine: Engine, keys: Iterable[Key], policy: Policy) -> None:
        self.exchanges = 0
        self.known = False  # whether the database was ever reached
        self.guard = threading.RLock()  # the accounts change in the exchange's thread and are shown in the loop's
        self.accounts = {key.key_hash: Account(key) for key in keys}
        self.away_until = 0.0
        self._engine = engine
        self._policy = policy
        self._own = {key_hash: Account(account.key) for key_hash, account in self.accounts.items()}
        self._member = secrets.randbits(62)
        self._members = max(policy.members, 1)
        self._wanted: tuple[Key, ...] | None = None  # keys to have from the next exchange on
        self._unread: set[str] = set()  # keys that came in, whose windows are not read yet
        self._seen = 0  # id of the newest row of the log that is known
        self._pruned_at = 0.0
        self._registered = False
        self._ahead = 0.0  # s that the database's clock is ahead of this process' own, at least

    def now(self) -> float:
        """The database's time, by this process' clock."""
        return time.monotonic() + self._ahead

    def apply(self, keys: Sequence[Key]) -> None:
        """Have these keys from the next exchange on: one that is under way has read the windows of those it has."""
        with self.guard:
            self._wanted = tuple(keys)

    @property
    def usable(self) -> set[str]:
        """The keys that are in order, as of the last exchange."""
        with self.guard:
            accounts = self.accounts.items()
            return {key_hash for key_hash, account in accounts if account.health.state is KeyState.AVAILABLE}

    @property
    def unsettled(self) -> bool:
        """Whether there are keys to take up."""
        with self.guard:
            return self._wanted is not None

    def _take_up(self) -> tuple[list[Key], frozenset[str]]:
        """The keys that there are, with those that came in, and of which of them the windows must be read."""
        with self.guard:
            if self._wanted is not None:
                self._unread |= {key.key_hash for key in self._wanted} - self.accounts.keys()
                for accounts in (self.accounts, self._own):
                    apply_keys(accounts, self._wanted)
                self._unread &= self.accounts.keys()
                self._wanted, self._registered = None, False
            return [account.key for account in self.accounts.values()], frozenset(self._unread)

    def usage(self) -> tuple[KeyUsage, ...]:
        """Each key as of the last exchange."""
        with self.guard:
            now = self.now()
            return tuple(usage(account, now=now, policy=self._policy) for account in self.accounts.values())

    def count(self, grant: Grant) -> None:
        """Count a slot in this process' view."""
        for account in self._both(grant):
            account.add(grant.lane, grant.reserved_at)

    def uncount(self, grant: Grant) -> None:
        """Take a slot out of this process' view."""
        for account in self._both(grant):
            account.remove(grant.lane, grant.reserved_at)

    def _both(self, grant: Grant) -> list[Account]:
        with self.guard:
            return [accounts[grant.key_hash] for accounts in (self.accounts, self._own) if grant.key_hash in accounts]

    def exchange(
        self, reports: Sequence[Report], requests: Sequence[Request], told: Told, lease: dict[bool, int]
    ) -> Found:
        """One exchange with the database.

        Args:
            reports: outcomes that change something.
            requests: that wait.
            told: slots used and given back since the last one.
            lease: requests that are expected within a lease, by urgency.

        Raises:
            LedgerError: the database is away; nothing was noted and nothing given.
        """
        if time.monotonic() < self.away_until:
            raise LedgerError("the key pool's database is away; check database.url")
        try:
            return self._exchanged(reports, requests, told, lease)
        except LedgerError:
            self.away_until = time.monotonic() + (RETRY_SECONDS if self.known else 0.0)
            raise

    def _exchanged(
        self, reports: Sequence[Report], requests: Sequence[Request], told: Told, lease: dict[bool, int]
    ) -> Found:
        policy = self._policy
        with _transaction(self._engine) as connection:
            now_us = self._refresh(connection)
            now = now_us / _MICROSECOND
            spent = self._spend(connection, told.spent)
            with self.guard:
                self._ahead = now - time.monotonic()
                before = {key_hash: account.health for key_hash, account in self.accounts.items()}
                for report in reports:
                    account = self.accounts.get(report.grant.key_hash)
                    if account is not None:
                        settle(account, report, now=now, policy=policy)
                decision = decide(self.accounts, requests, now=now, policy=policy)
                slots, none_before = self._slots(requests, decision.grants, lease, now)
                changed = [
                    account
                    for key_hash, account in self.accounts.items()
                    if account.health != before.get(key_hash, account.health)
                ]
            unsent = [report.grant for report in reports if report.outcome == "unsent"]
            granted = [grant for grant in decision.grants if grant is not None]
            self._write(connection, changed)
            self._log(connection, taken=told.taken + granted + slots, given_back=told.given_back + unsent)
            self._keep_house(connection, now_us)
        self.known = True
        self.exchanges += 1
        with self.guard:
            for grant in (*granted, *slots):
                if (own := self._own.get(grant.key_hash)) is not None:
                    own.prune(now, policy)
                    own.add(grant.lane, grant.reserved_at)
        found = Exchange(decision.grants, tuple(max(at - now, 0.0) for at in decision.free_at))
        return Found(found, slots, none_before, spent)

    def _slots(
        self, requests: Sequence[Request], grants: Sequence[Grant | None], lease: dict[bool, int], now: float
    ) -> tuple[list[Grant], dict[bool, float]]:
        """The slots to take ahead, and until when there are none beyond them."""
        policy = self._policy
        slots: list[Grant] = []
        none_before = {True: 0.0, False: 0.0}
        if policy.lease <= 0:
            return slots, none_before
        for urgent in (True, False):
            waiting = [
                request
                for request, grant in zip(requests, grants, strict=True)
                if grant is None and request.urgent is urgent
            ]
            if not (waiting or lease[urgent]):
                continue
            lane = waiting[0].lane if waiting else ("realtime" if urgent else "window")
            until = now + policy.lease
            found = ahead(
                self.accounts,
                lane,
                waiting=len(waiting),
                expected=lease[urgent],
                now=now,
                until=until,
                policy=policy,
            )
            slots += found
            if len(found) < max(len(waiting), lease[urgent]):
                none_before[urgent] = until - policy.validity
        return slots, none_before

    def alone(self, reports: Sequence[Report], requests: Sequence[Request], told: Told) -> Exchange:
        """Without the database: this process' share of each limit, within what it knows of all.

        Args:
            reports: outcomes.
            requests: that wait.
            told: takes what the database must be told when it is back.
        """
        now, policy = self.now(), self._policy
        grants: list[Grant | None] = []
        waits: list[float] = []
        self._take_up()
        with self.guard:
            for report in reports:
                if (account := self.accounts.get(report.grant.key_hash)) is not None:
                    settle(account, report, now=now, policy=policy)
                    if report.outcome == "unsent":
                        told.given_back.append(report.grant)
            shares = {key_hash: self._share_at(account, now) for key_hash, account in self._own.items()}
            for request in requests:
                usable = {key_hash: account for key_hash, account in self.accounts.items() if shares[key_hash] <= now}
                decision = decide(usable, [request], now=now, policy=policy)
                (grant,) = decision.grants
                if grant is not None:
                    own = self._own[grant.key_hash]
                    own.add(grant.lane, grant.reserved_at)
                    shares[grant.key_hash] = self._share_at(own, now)
                    told.taken.append(grant)
                grants.append(grant)
                at = min(
                    (
                        max(shares[key_hash], account.free_at(now, urgent=request.urgent, policy=policy))
                        for key_hash, account in self.accounts.items()
                        if key_hash not in request.exclude
                    ),
                    default=inf,
                )
                waits.append(max(at - now, 0.0))
        return Exchange(tuple(grants), tuple(waits))

    def _share_at(self, own: Account, now: float) -> float:
        own.prune(now, self._policy)
        own.qps = max(own.key.qps_limit // self._members, 1)
        own.rpm = max(own.key.rpm_limit // self._members, 1)
        return own.free_at(now, urgent=True, policy=self._policy)

    def _refresh(self, connection: Connection) -> int:
        """Take the lock and learn what others did; returns the time in µs."""
        connection.execute(LOCK_KEYS, {"timeout": str(LOCK_TIMEOUT_MS), "lock": LOCK})
        keys, unread = self._take_up()
        hashes = [key.key_hash for key in keys]
        rows = connection.execute(READ_KEYS, {"keys": hashes}).all()
        if not self._registered or len(rows) < len(hashes):
            for key in sorted(keys, key=lambda key: key.key_hash):
                values = {"key": key.key_hash, "label": key.label, "qps": key.qps_limit, "rpm": key.rpm_limit}
                connection.execute(REGISTER, values)
            self._registered = True
            rows = connection.execute(READ_KEYS, {"keys": hashes}).all()
        now_us: int = max((row[-1] for row in rows), default=_us(time.time()))
        now = now_us / _MICROSECOND
        since = now_us - _us(self._policy.horizon)
        known = [key_hash for key_hash in hashes if key_hash not in unread]
        news = list(connection.execute(READ_NEW, {"keys": known, "seen": self._seen, "since": since}))
        if unread:
            news += connection.execute(READ_NEW, {"keys": list(unread), "seen": 0, "since": since})
        with self.guard:
            self._unread -= unread
            for row in rows:
                if (account := self.accounts.get(row.key_hash)) is not None:
                    account.key = Key(row.key_hash, row.qps_limit, row.rpm_limit, row.label)
                    account.health = _health(row)
            newest = 0.0
            for number, key_hash, lane, at_us, given_back in news:
                self._seen = max(self._seen, number)
                at = at_us / _MICROSECOND
                newest = max(newest, at)
                if (account := self.accounts.get(key_hash)) is not None:
                    if given_back:
                        account.remove(lane, at)
                    else:
                        account.add(lane, at)
            newest = max((account.times[-1] for account in self.accounts.values() if account.times), default=newest)
            if newest > now + self._policy.lease + CLOCK_SECONDS:
                self._set_back(connection, now_us)
        return now_us

    def _set_back(self, connection: Connection, now_us: int) -> None:
        """The database's clock was set back: what lies in its future happened just now, for all that can be known."""
        connection.execute(SET_BACK, {"now": now_us})
        now = now_us / _MICROSECOND
        for accounts in (self.accounts, self._own):
            for account in accounts.values():
                account.times = [min(at, now) for at in account.times]
                account.paced = [min(at, now) for at in account.paced]
                account.rushed = [min(at, now) for at in account.rushed]

    def _write(self, connection: Connection, changed: Iterable[Account]) -> None:
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
                "learned_qps": health.learned_qps,
                "learned_rpm": health.learned_rpm,
                "learned": None if health.learned_at is None else _us(health.learned_at),
            }
            connection.execute(WRITE_HEALTH, values)
            connection.execute(NOTIFY, {"key": account.key.key_hash})

    def _log(self, connection: Connection, *, taken: Sequence[Grant], given_back: Sequence[Grant]) -> None:
        entries = [(grant, False) for grant in taken] + [(grant, True) for grant in given_back]
        if entries:
            values = {
                "keys": [grant.key_hash for grant, _ in entries],
                "lanes": [grant.lane for grant, _ in entries],
                "times": [_us(grant.reserved_at) for grant, _ in entries],
                "back": [back for _, back in entries],
            }
            # its own rows are known: under the lock nobody else wrote between
            self._seen = max(self._seen, *connection.scalars(RESERVE, values))

    def _spend(self, connection: Connection, told: dict[str, Spent]) -> dict[str, Spent]:
        for lane, more in told.items():
            connection.execute(SPEND, {"lane": lane, "calls": more.calls, "cost": more.cost})
        if not self._policy.budgets:
            return {}
        rows = connection.execute(READ_SPENT, {"day": today()})
        return {lane: Spent(calls, cost) for lane, calls, cost in rows}

    def _keep_house(self, connection: Connection, now_us: int) -> None:
        now = now_us / _MICROSECOND
        if now - self._pruned_at > PRUNE_SECONDS:
            # twice the horizon: a process with a longer margin may look further back
            connection.execute(PRUNE, {"before": now_us - 2 * _us(self._policy.horizon)})
            connection.execute(MEMBER, {"member": self._member})
            connection.execute(PRUNE_MEMBERS, {"age": MEMBER_SECONDS})
            members = connection.scalar(COUNT_MEMBERS)
            self._members = max(self._policy.members, members or 1)
            self._pruned_at = now

    def set_enabled(self, key_hash: str, enabled: bool, reason: str) -> None:  # what it is set to
        """A person disables a key, or enables it with a clean slate."""
        with _transaction(self._engine) as connection:
            now = self._refresh(connection) / _MICROSECOND
            account = self.accounts[key_hash]
            with self.guard:
                account.health = set_by_person(enabled=enabled, reason=reason, now=now)
            self._write(connection, [account])


def key_usage(engine: Engine, policy: Policy) -> tuple[KeyUsage, ...]:
    """All keys in the database as they stand now, for those who have no pool (a status table, `keys list`).

    Raises:
        LedgerError: the database is away.
    """
    with _transaction(engine) as connection:
        hashes = list(connection.scalars(text("SELECT key_hash FROM api_key ORDER BY created_at, key_hash")))
        rows = {row.key_hash: row for row in connection.execute(READ_KEYS, {"keys": hashes})}
        if not rows:
            return ()
        now_us = max(row[-1] for row in rows.values())
        since = now_us - _us(policy.horizon)
        log_rows = connection.execute(READ_NEW, {"keys": hashes, "since": since, "seen": 0}).all()
    accounts = {
        key_hash: Account(Key(key_hash, row.qps_limit, row.rpm_limit, row.label), _health(row))
        for key_hash, row in rows.items()
    }
    for _, key_hash, lane, at_us, given_back in log_rows:
        account = accounts[key_hash]
        (account.remove if given_back else account.add)(lane, at_us / _MICROSECOND)
    return tuple(usage(accounts[key_hash], now=now_us / _MICROSECOND, policy=policy) for key_hash in hashes)


def set_key_enabled(engine: Engine, key: Key, *, enabled: bool, reason: str) -> None:
    """A person disables a key, or enables it with a clean slate; all processes learn of it at once.

    Raises:
        LedgerError: the database is away.
    """
    SharedWindows(engine, [key], Policy()).set_enabled(key.key_hash, enabled, reason)


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
        cooling_until=(row.cooling or 0) / _MICROSECOND,
        failures=row.failures,
        coolings=row.coolings,
        probing_until=(row.probing or 0) / _MICROSECOND,
        learned_qps=row.learned_qps,
        learned_rpm=row.learned_rpm,
        learned_at=None if row.learned is None else row.learned / _MICROSECOND,
    )


def _us(seconds: float) -> int:
    return round(seconds * _MICROSECOND)
