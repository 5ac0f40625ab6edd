"""Keys' windows and health in PostgreSQL, shared exactly by all processes that use the keys.

Tables ``api_key`` (one row per key), ``key_reservation`` (a log: one row per slot taken or given back), ``key_pool_member`` (the
processes), ``lane_spending`` (budgets). One exchange is one short transaction under an advisory lock, timed by the
database's clock. Row locks would do as well, but they write to the log and make each commit wait for the disk; the lock and the
unlogged ``key_reservation`` do not.

A process takes slots ahead (a `lease`), for as many requests as it expects within half a second, so that the database
is not asked for each call. It remembers the windows and reads only the rows it has not seen. What another process learns of a key
comes by NOTIFY at once. When the database is away, a process that has known it goes on with its share of each limit.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from dangerous_driving.assessment.key_pool.core import Account, KeyUsage, ahead, decide, settle, usage
from dangerous_driving.assessment.key_pool.health import (
    Grant,
    Health,
    Key,
    KeyState,
    Policy,
    Report,
    Request,
    Spent,
)
from dangerous_driving.assessment.key_pool.leases import Lease
from dangerous_driving.assessment.key_pool.memory import Ledger, apply_keys, changes_something, set_by_person, today
from dangerous_driving.assessment.key_pool.notices import Notices
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

log = structlog.get_logger(__name__)

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
#: s of delay from which a request's slot is moved to when it left.
LATE_SECONDS = 0.05
#: s; slots further ahead than any lease tell that the database's clock was set back.
CLOCK_SECONDS = 5.0

_MICROSECOND = 1_000_000


@dataclass
class _Told:
    """What goes to the database with the next exchange."""

    taken: list[Grant] = field(default_factory=list)
    given_back: list[Grant] = field(default_factory=list)
    spent: dict[str, Spent] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.taken or self.given_back or self.spent)


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
        self.exchanges = 0  # with the database
        self._engine = engine
        self._policy = policy
        self._accounts = {key.key_hash: Account(key) for key in keys}
        self._own = {key_hash: Account(account.key) for key_hash, account in self._accounts.items()}
        self._member = secrets.randbits(62)
        self._members = max(policy.members, 1)
        self._seen = 0  # id of the newest row of the log that is known
        self._pruned_at = 0.0
        self._registered = False
        self._known = False  # whether the database was ever reached
        self._away_until = 0.0
        self._ahead = 0.0  # s that the database's clock is ahead of this process' own, at least
        self._guard = threading.RLock()  # the accounts change in the exchange's thread and are shown in the loop's
        # of its own: asyncio's shared threads may all be busy with slow reads
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="key-pool")
        self._lease = Lease(policy)
        self._told = _Told()
        self._none_before = {True: 0.0, False: 0.0}  # until then the database has no more slots, by urgency
        self._news = threading.Event()
        self._notices = Notices(engine, self._on_notice)
        self._flushing: asyncio.Task[None] | None = None
        self._ledger = Ledger()

    async def exchange(self, reports: Sequence[Report], requests: Sequence[Request]) -> Exchange:
        """See :class:`Storage`."""
        now = self._now()
        grants: list[Grant | None] = [None] * len(requests)
        if not self._news.is_set():
            grants = [self._from_hand(request, now) for request in requests]
        left = [request for request, grant in zip(requests, grants, strict=True) if grant is None]
        waits = self._lease.waits(left, now)
        # a slot in hand that lies ahead is waited for only where the database is known to have none before it
        asking = [request for request in left if request.exclude or self._none_before[request.urgent] <= now]
        if not (reports or asking or self._news.is_set()):
            later = [
                min(wait, self._none_before[request.urgent] - now) if wait == inf else wait
                for request, wait in zip(left, waits, strict=True)
            ]
            return _merged(grants, [None] * len(left), later)
        found = await self._ask(reports, left)
        for request, grant in zip(left, found.grants, strict=True):
            if grant is not None:
                self._lease.used(urgent=request.urgent, now=now)
        return _merged(grants, found.grants, found.waits)

    async def set_enabled(self, key_hash: str, *, enabled: bool, reason: str) -> None:
        """See :class:`Storage`."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._set_enabled, key_hash, enabled, reason)
        self._drop(key_hash)

    def apply(self, keys: Sequence[Key]) -> None:
        """See :class:`Storage`."""
        with self._guard:
            apply_keys(self._accounts, keys)
            apply_keys(self._own, keys)
            self._registered = False
            self._seen = 0  # the windows of keys that came in
            for account in self._accounts.values():
                account.times.clear()
                account.paced.clear()
                account.rushed.clear()

    def sent(self, grant: Grant, late: float) -> None:
        """See :class:`Storage`."""
        if late > LATE_SECONDS:
            moved = replace(grant, reserved_at=grant.reserved_at + late)
            with self._guard:
                for accounts in (self._accounts, self._own):
                    if (account := accounts.get(grant.key_hash)) is not None:
                        account.remove(grant.lane, grant.reserved_at)
                        account.add(grant.lane, moved.reserved_at)
            self._told.given_back.append(grant)
            self._told.taken.append(moved)
            self._flush_soon()

    def spend(self, lane: str, *, calls: int = 0, cost: float = 0.0) -> None:
        """See :class:`Storage`."""
        if lane in self._policy.budgets:
            self._ledger.spend(lane, calls, cost)
            before = self._told.spent.get(lane, Spent())
            self._told.spent[lane] = Spent(before.calls + calls, before.cost + cost)
            self._flush_soon()

    def spent(self, lane: str) -> Spent:
        """See :class:`Storage`."""
        return self._ledger.spent(lane)

    def worth_noting(self, report: Report) -> bool:
        """See :class:`Storage`."""
        return changes_something(self._accounts.get(report.grant.key_hash), report)

    def snapshot(self) -> tuple[KeyUsage, ...]:
        """See :class:`Storage`."""
        with self._guard:
            now = self._now()
            return tuple(usage(account, now=now, policy=self._policy) for account in self._accounts.values())

    async def close(self) -> None:
        """See :class:`Storage`."""
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.wait([self._flushing])
        self._give_back(self._lease.drop())
        if self._told and self._known:
            try:
                await self._ask((), ())
            except LedgerError as error:
                log.warning("lease_not_given_back", reason=str(error))
        await asyncio.to_thread(self._thread.shutdown)
        await asyncio.to_thread(self._notices.close)

    # the hand: in the event loop

    def _now(self) -> float:
        return time.monotonic() + self._ahead

    def _from_hand(self, request: Request, now: float) -> Grant | None:
        self._give_back(self._lease.give_back(now))
        slot = self._lease.take(request, now)
        if slot is not None:
            self._lease.used(urgent=request.urgent, now=now)
            if now - slot.reserved_at > 0:
                self._flush_soon()
        return slot

    def _drop(self, key_hash: str) -> None:
        self._give_back(self._lease.drop(key_hash))

    def _give_back(self, slots: Sequence[Grant]) -> None:
        if not slots:
            return
        with self._guard:
            for slot in slots:
                for accounts in (self._accounts, self._own):
                    if (account := accounts.get(slot.key_hash)) is not None:
                        account.remove(slot.lane, slot.reserved_at)
        self._told.given_back += slots
        self._flush_soon()

    def _flush_soon(self) -> None:
        """Tell the database within the length of a lease, also when nobody asks for a key meanwhile."""
        if self._flushing is None or self._flushing.done():
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return  # closing
            self._flushing = loop.create_task(self._flush(), name="key-pool-lease")

    async def _flush(self) -> None:
        while self._told or len(self._lease):
            await asyncio.sleep(max(self._policy.lease, self.pause))
            self._give_back(self._lease.give_back(self._now()))
            if self._told:
                try:
                    await self._ask((), ())
                except LedgerError as error:
                    log.warning("key_pool_is_away", reason=str(error))

    def _on_notice(self, _key_hash: str) -> None:
        # in the listener's thread: the next exchange looks at the database before it uses the hand
        self._news.set()

    # the database: in the exchange's thread

    async def _ask(self, reports: Sequence[Report], requests: Sequence[Request]) -> Exchange:
        told, self._told = self._told, _Told()
        for report in reports:  # a slot of a key that is out of use would be used in vain
            if report.outcome not in {"ok", "cancelled", "unsent"}:
                told.given_back += self._dropped(report.grant.key_hash)
        self._news.clear()
        lease = {True: 0, False: 0}
        if requests:
            lease = {urgent: self._lease.expected(urgent=urgent, now=self._now()) for urgent in lease}
        loop = asyncio.get_running_loop()
        try:
            work = loop.run_in_executor(self._thread, self._exchange, reports, requests, told, lease)
            found, slots, none_before = await asyncio.shield(work)
        except LedgerError:
            # what was to be told stays to be told
            self._told.taken[:0], self._told.given_back[:0] = told.taken, told.given_back
            for lane, spent in told.spent.items():
                before = self._told.spent.get(lane, Spent())
                self._told.spent[lane] = Spent(before.calls + spent.calls, before.cost + spent.cost)
            if not self._known:
                raise
            return self._alone(reports, requests)
        self._lease.put(slots)
        if slots:
            self._flush_soon()
        self._none_before = none_before
        for key_hash, account in self._accounts.items():
            if account.health.state is not KeyState.AVAILABLE:
                self._drop(key_hash)
        return found

    def _dropped(self, key_hash: str) -> list[Grant]:
        slots = self._lease.drop(key_hash)
        with self._guard:
            for slot in slots:
                for accounts in (self._accounts, self._own):
                    if (account := accounts.get(slot.key_hash)) is not None:
                        account.remove(slot.lane, slot.reserved_at)
        return slots

    def _exchange(
        self, reports: Sequence[Report], requests: Sequence[Request], told: _Told, lease: dict[bool, int]
    ) -> tuple[Exchange, list[Grant], dict[bool, float]]:
        if time.monotonic() < self._away_until:
            raise LedgerError("the key pool's database is away; check database.url")
        try:
            return self._exchanged(reports, requests, told, lease)
        except LedgerError:
            self._away_until = time.monotonic() + (RETRY_SECONDS if self._known else 0.0)
            raise

    def _exchanged(
        self, reports: Sequence[Report], requests: Sequence[Request], told: _Told, lease: dict[bool, int]
    ) -> tuple[Exchange, list[Grant], dict[bool, float]]:
        policy = self._policy
        with _transaction(self._engine) as connection:
            now_us = self._refresh(connection)
            now = now_us / _MICROSECOND
            with self._guard:
                self._ahead = now - time.monotonic()
                before = {key_hash: account.health for key_hash, account in self._accounts.items()}
                for report in reports:
                    account = self._accounts.get(report.grant.key_hash)
                    if account is not None:
                        settle(account, report, now=now, policy=policy)
                decision = decide(self._accounts, requests, now=now, policy=policy)
                slots, none_before = self._slots(requests, decision.grants, lease, now)
                changed = [
                    account
                    for key_hash, account in self._accounts.items()
                    if account.health != before.get(key_hash, account.health)
                ]
            unsent = [report.grant for report in reports if report.outcome == "unsent"]
            granted = [grant for grant in decision.grants if grant is not None]
            self._write(connection, changed)
            self._log(connection, taken=told.taken + granted + slots, given_back=told.given_back + unsent)
            self._spend(connection, told.spent)
            self._keep_house(connection, now_us)
        self._known = True
        self.exchanges += 1
        self._notices.start()
        with self._guard:
            for grant in (*granted, *slots):
                if (own := self._own.get(grant.key_hash)) is not None:
                    own.prune(now, policy)
                    own.add(grant.lane, grant.reserved_at)
        found = Exchange(decision.grants, tuple(max(at - now, 0.0) for at in decision.free_at))
        return found, slots, none_before

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
                self._accounts,
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

    def _alone(self, reports: Sequence[Report], requests: Sequence[Request]) -> Exchange:
        """Without the database: this process' share of each limit, within what it knows of all."""
        now, policy = self._now(), self._policy
        grants: list[Grant | None] = []
        waits: list[float] = []
        with self._guard:
            for report in reports:
                if (account := self._accounts.get(report.grant.key_hash)) is not None:
                    settle(account, report, now=now, policy=policy)
                    if report.outcome == "unsent":
                        self._told.given_back.append(report.grant)
            shares = {key_hash: self._share_at(account, now) for key_hash, account in self._own.items()}
            for request in requests:
                usable = {key_hash: account for key_hash, account in self._accounts.items() if shares[key_hash] <= now}
                decision = decide(usable, [request], now=now, policy=policy)
                (grant,) = decision.grants
                if grant is not None:
                    own = self._own[grant.key_hash]
                    own.add(grant.lane, grant.reserved_at)
                    shares[grant.key_hash] = self._share_at(own, now)
                    self._told.taken.append(grant)
                    self._flush_soon()
                grants.append(grant)
                at = min(
                    (
                        max(shares[key_hash], account.free_at(now, urgent=request.urgent, policy=policy))
                        for key_hash, account in self._accounts.items()
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
        with self._guard:
            keys = [account.key for account in self._accounts.values()]
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
        news = connection.execute(READ_NEW, {"keys": hashes, "seen": self._seen, "since": since}).all()
        with self._guard:
            for row in rows:
                if (account := self._accounts.get(row.key_hash)) is not None:
                    account.key = Key(row.key_hash, row.qps_limit, row.rpm_limit, row.label)
                    account.health = _health(row)
            newest = 0.0
            for number, key_hash, lane, at_us, given_back in news:
                self._seen = max(self._seen, number)
                at = at_us / _MICROSECOND
                newest = max(newest, at)
                if (account := self._accounts.get(key_hash)) is not None:
                    if given_back:
                        account.remove(lane, at)
                    else:
                        account.add(lane, at)
            newest = max((account.times[-1] for account in self._accounts.values() if account.times), default=newest)
            if newest > now + self._policy.lease + CLOCK_SECONDS:
                self._set_back(connection, now_us)
        return now_us

    def _set_back(self, connection: Connection, now_us: int) -> None:
        """The database's clock was set back: what lies in its future happened just now, for all that can be known."""
        connection.execute(SET_BACK, {"now": now_us})
        now = now_us / _MICROSECOND
        for accounts in (self._accounts, self._own):
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

    def _spend(self, connection: Connection, spent: dict[str, Spent]) -> None:
        for lane, more in spent.items():
            connection.execute(SPEND, {"lane": lane, "calls": more.calls, "cost": more.cost})
        if self._policy.budgets:
            for lane, calls, cost in connection.execute(READ_SPENT, {"day": today()}):
                known = self._ledger.spent(lane)
                self._ledger.spend(lane, calls - known.calls, cost - known.cost)

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

    def _set_enabled(self, key_hash: str, enabled: bool, reason: str) -> None:
        with _transaction(self._engine) as connection:
            now = self._refresh(connection) / _MICROSECOND
            account = self._accounts[key_hash]
            with self._guard:
                account.health = set_by_person(enabled=enabled, reason=reason, now=now)
            self._write(connection, [account])


def _merged(grants: Sequence[Grant | None], found: Sequence[Grant | None], waits: Sequence[float]) -> Exchange:
    """One answer of what came out of the hand, and of what was asked for the others."""
    rest = iter(zip(found, waits, strict=True))
    pairs = [(grant, 0.0) if grant is not None else next(rest) for grant in grants]
    return Exchange(tuple(grant for grant, _ in pairs), tuple(max(wait, 0.0) for _, wait in pairs))


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
