"""The pool's behaviour, the same on both storages. Windows are scaled down: a "minute" of one second."""

import ast
import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from dangerous_driving.assessment.key_pool import (
    Budget,
    Key,
    KeyPool,
    KeyUsage,
    MemoryStorage,
    Policy,
    PostgresStorage,
    Reservation,
    Storage,
    key_hash,
)
from dangerous_driving.assessment.key_pool.health import Report, Request
from dangerous_driving.assessment.key_pool.storage import Exchange
from dangerous_driving.errors import (
    BudgetSpentError,
    KeyRejectedError,
    LedgerError,
    LlmUnavailableError,
    NoKeyError,
    RateLimitedError,
)

POLICY = Policy(window_margin=0.01, second=0.2, minute=1.0, cooling_initial=0.05, probe_timeout=5.0, burst=1.0)
QPS, RPM = 5, 15

OpenPool = Callable[..., KeyPool]


def names(count: int) -> list[str]:
    return [key_hash(f"sk-{number}") for number in range(count)]


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.integration)])
async def open_pool(request: pytest.FixtureRequest) -> AsyncIterator[OpenPool]:
    pools: list[KeyPool] = []

    def make(
        count: int = 1,
        policy: Policy = POLICY,
        qps: int = QPS,
        rpm: int = RPM,
        wrap: Callable[[Storage], Storage] = lambda storage: storage,
    ) -> KeyPool:
        keys = [Key(name, qps, rpm) for name in names(count)]
        storage: Storage
        if request.param == "memory":
            storage = MemoryStorage(keys, policy)
        else:
            storage = PostgresStorage(request.getfixturevalue("ledger"), keys, policy)
        pool = KeyPool({name: SecretStr(f"sk-{number}") for number, name in enumerate(names(count))}, wrap(storage))
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        await pool.close()


def exceeded(times: Sequence[float], limit: int, length: float) -> list[tuple[float, float]]:
    ordered = sorted(times)
    return [(a, b) for a, b in zip(ordered, ordered[limit:], strict=False) if b - a < length - 1e-6]


def assert_within_limits(reservations: Collection[tuple[str, float]], policy: Policy = POLICY) -> None:
    for name in {name for name, _ in reservations}:
        times = [at for key, at in reservations if key == name]
        assert not exceeded(times, QPS, policy.second)
        assert not exceeded(times, RPM, policy.minute)


def grants(reservations: Collection[Reservation]) -> list[tuple[str, float]]:
    return [(item.key_hash, item.grant.reserved_at) for item in reservations]


async def reserve_many(pool: KeyPool, count: int, lane: str = "realtime") -> list[Reservation]:
    return list(await asyncio.gather(*(pool.reserve(lane, timeout=60) for _ in range(count))))


async def test_a_backlog_is_served_within_the_limits(open_pool: OpenPool) -> None:
    pool = open_pool(count=3)
    reservations = await reserve_many(pool, 3 * RPM * 2 + 3)
    assert_within_limits(grants(reservations))
    assert max(Counter(name for name, _ in grants(reservations)).values()) == 2 * RPM + 1


async def test_calls_on_one_key_run_concurrently(open_pool: OpenPool) -> None:
    reservations = await reserve_many(open_pool(), QPS)  # none of them has been reported
    assert {item.secret.get_secret_value() for item in reservations} == {"sk-0"}


async def test_realtime_comes_first_whoever_waited_longer(open_pool: OpenPool) -> None:
    pool = open_pool()
    await reserve_many(pool, QPS)
    order: list[str] = []

    async def wait_for(lane: str) -> None:
        await pool.reserve(lane)
        order.append(lane)

    waits = [asyncio.create_task(wait_for(lane)) for lane in ("window", "evaluation", "realtime", "realtime")]
    await asyncio.wait(waits)
    assert sorted(order[:2]) == ["realtime", "realtime"]
    assert sorted(order[2:]) == ["evaluation", "window"]


async def test_excluded_keys_are_not_used(open_pool: OpenPool) -> None:
    pool = open_pool(count=2)
    first, second = names(2)
    assert {(await pool.reserve("realtime", exclude={first})).key_hash for _ in range(3)} == {second}
    with pytest.raises(NoKeyError, match="tried already"):
        await pool.reserve("realtime", exclude={first, second})


async def test_no_key_in_time_says_how_the_keys_stand_and_loses_no_slot(open_pool: OpenPool) -> None:
    pool = open_pool(policy=replace(POLICY, minute=60.0), qps=RPM)
    await reserve_many(pool, RPM)
    with pytest.raises(NoKeyError) as caught:
        await pool.reserve("realtime", timeout=0.05)
    assert f"{names(1)[0]} in_use ({RPM} of {RPM} a minute used)" in str(caught.value)
    assert "keys.file" in str(caught.value)
    assert pool.waiting == 0


async def test_a_rejected_key_is_never_used_again_until_a_person_enables_it(open_pool: OpenPool) -> None:
    pool = open_pool(count=2)
    reservation = await pool.reserve("realtime")
    await pool.report(reservation, KeyRejectedError("no", http_status=401))
    others = await reserve_many(pool, 2 * QPS)
    assert reservation.key_hash not in {item.key_hash for item in others}
    await pool.report(others[0], KeyRejectedError("no", http_status=403))
    with pytest.raises(NoKeyError, match="disabled: rejected by the endpoint"):  # at once, though no time-out is given
        await pool.reserve("realtime")
    await pool.enable(reservation.key_hash)
    assert (await pool.reserve("realtime")).key_hash == reservation.key_hash


async def test_a_person_can_disable_a_key_while_others_wait(open_pool: OpenPool) -> None:
    pool = open_pool(count=2)
    first, second = names(2)
    await pool.disable(first, "taken out for a test")
    assert {item.key_hash for item in await reserve_many(pool, QPS)} == {second}
    assert [(item.status, item.reason) for item in pool.snapshot() if item.key_hash == first] == [
        ("disabled", "taken out for a test")
    ]
    with pytest.raises(NoKeyError, match="has no key"):
        await pool.enable("key_hash_unknown")


async def test_a_429_rests_the_key_for_as_long_as_the_endpoint_says(open_pool: OpenPool) -> None:
    pool = open_pool()
    first = await pool.reserve("realtime")
    await pool.report(first, RateLimitedError("429", http_status=429, retry_after=0.4))
    second = await pool.reserve("realtime")
    assert second.grant.reserved_at >= first.grant.reserved_at + 0.4


async def test_failures_in_a_row_are_followed_by_one_probe(open_pool: OpenPool) -> None:
    pool = open_pool(qps=50, rpm=100)
    reservations = await reserve_many(pool, POLICY.breaker_failures)
    for item in reservations:
        await pool.report(item, LlmUnavailableError("503", http_status=503))
    probe, *others = [asyncio.create_task(pool.reserve("window")) for _ in range(3)]
    assert (await probe).probe
    await pool.report(await probe, "ok")
    assert [(await other).probe for other in others] == [False, False]


async def test_what_is_not_sent_or_given_up_is_not_lost(open_pool: OpenPool) -> None:
    pool = open_pool(policy=replace(POLICY, minute=600.0), qps=RPM, rpm=RPM)
    reservations = await reserve_many(pool, RPM)
    for item in reservations[:5]:
        await pool.report(item, "unsent")
    waits = [asyncio.create_task(pool.reserve("realtime")) for _ in range(5)]
    await asyncio.sleep(0)
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    # the five slots are there again, and no sixth
    await asyncio.wait_for(reserve_many(pool, 5), timeout=10)
    with pytest.raises(NoKeyError):
        await pool.reserve("realtime", timeout=0.2)


async def test_the_snapshot_shows_each_key(open_pool: OpenPool) -> None:
    pool = open_pool(count=2, policy=replace(POLICY, minute=60.0))
    done, _open = [await pool.reserve("realtime", exclude={name}) for name in names(2)]
    await pool.report(done)
    by_name = {item.key_hash: item for item in pool.snapshot()}
    assert list(by_name) == names(2)
    assert [(item.used_minute, item.rpm_limit, item.in_flight, item.status) for item in by_name.values()] == [
        (1, RPM, 1, "in_use"),
        (1, RPM, 0, "available"),
    ]


async def test_secrets_are_not_shown(open_pool: OpenPool) -> None:
    pool = open_pool()
    reservation = await pool.reserve("realtime")
    assert "sk-0" not in f"{reservation!r} {reservation} {pool.snapshot()!r} {vars(pool)!r}"
    assert reservation.secret.get_secret_value() == "sk-0"


async def test_closing_ends_the_waits(open_pool: OpenPool) -> None:
    pool = open_pool(policy=replace(POLICY, minute=600.0), qps=RPM)
    await reserve_many(pool, RPM)
    wait = asyncio.create_task(pool.reserve("realtime"))
    await asyncio.sleep(0)
    assert pool.waiting == 1
    await pool.close()
    with pytest.raises(NoKeyError, match="closed"):
        await wait
    with pytest.raises(NoKeyError, match="closed"):
        await pool.reserve("realtime")


class Watched:
    """A storage that counts its exchanges and fails when told to."""

    def __init__(self, inner: Storage) -> None:
        self._inner = inner
        self.pause, self.patience = inner.pause, inner.patience
        self.sizes: list[int] = []
        self.away = False
        self.broken = False

    async def exchange(self, reports: Sequence[Report], requests: Sequence[Request]) -> Exchange:
        self.sizes.append(len(requests))
        if self.away:
            raise LedgerError("away")
        if self.broken:
            raise RuntimeError("a defect")
        return await self._inner.exchange(reports, requests)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


async def test_all_who_wait_are_served_by_one_exchange_and_waiting_costs_none(open_pool: OpenPool) -> None:
    watched: list[Watched] = []

    def watch(storage: Storage) -> Storage:
        watched.append(Watched(storage))
        return watched[0]

    pool = open_pool(count=2, wrap=watch)
    await reserve_many(pool, 2 * QPS)
    assert watched[0].sizes == [2 * QPS]
    await reserve_many(pool, 2 * QPS)  # these have to wait for the short window
    assert len(watched[0].sizes) <= 6


async def test_a_storage_that_is_away_is_the_callers_business_and_outcomes_are_kept(open_pool: OpenPool) -> None:
    watched: list[Watched] = []

    def watch(storage: Storage) -> Storage:
        watched.append(Watched(storage))
        return watched[0]

    pool = open_pool(count=2, wrap=watch)
    reservation = await pool.reserve("realtime")
    watched[0].away = True
    await pool.report(reservation, KeyRejectedError("no", http_status=401))
    with pytest.raises(LedgerError):
        await pool.reserve("realtime")
    watched[0].away = False
    assert reservation.key_hash not in {item.key_hash for item in await reserve_many(pool, QPS)}


async def test_a_defect_in_the_storage_leaves_nobody_waiting(open_pool: OpenPool) -> None:
    watched: list[Watched] = []

    def watch(storage: Storage) -> Storage:
        watched.append(Watched(storage))
        return watched[0]

    pool = open_pool(wrap=watch)
    watched_storage = watched[0]
    watched_storage.broken = True
    with pytest.raises(RuntimeError, match="a defect"):
        await pool.reserve("realtime")
    watched_storage.broken = False
    await pool.reserve("realtime")


class Notes:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.lanes: list[str] = []
        self.ends: list[tuple[str, str]] = []
        self.shown: list[Sequence[KeyUsage]] = []

    def waited(self, lane: str, seconds: float) -> None:
        assert seconds >= 0
        self.lanes.append(lane)

    def ended(self, key_hash: str, status: str) -> None:
        self.ends.append((key_hash, status))

    def stands(self, usages: Sequence[KeyUsage]) -> None:
        self.shown.append(usages)


async def test_an_observer_is_told() -> None:
    notes = Notes()
    (name,) = names(1)
    pool = KeyPool({name: SecretStr("sk-0")}, MemoryStorage([Key(name, QPS, RPM)], POLICY), observer=notes)
    await pool.report(await pool.reserve("window"))
    await pool.report(await pool.reserve("realtime"), RateLimitedError("429", http_status=429))
    assert notes.lanes == ["window", "realtime"]
    assert notes.ends == [(name, "ok"), (name, "rate_limited")]
    assert notes.shown[0][0].key_hash == name
    await pool.close()


def test_the_library_imports_nothing_of_the_platform_but_its_errors() -> None:
    spec = find_spec("dangerous_driving.assessment.key_pool")
    assert spec is not None
    assert spec.origin is not None
    own = "dangerous_driving.assessment.key_pool"
    for file in Path(spec.origin).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                if module.startswith("dangerous_driving"):
                    assert module == "dangerous_driving.errors" or module.startswith(own), f"{file.name}: {module}"


async def test_lanes_below_realtime_take_turns_by_weight_and_leave_none_unused() -> None:
    policy = replace(POLICY, lane_weights={"window": 3.0, "evaluation": 1.0}, realtime_reserve=0.0)
    (name,) = names(1)
    pool = KeyPool({name: SecretStr("sk-0")}, MemoryStorage([Key(name, 100, 6000)], policy), policy=policy)
    order: list[str] = []

    async def take(lane: str) -> None:
        await pool.reserve(lane)
        order.append(lane)

    tasks = [asyncio.create_task(take("evaluation")) for _ in range(8)]
    tasks += [asyncio.create_task(take("window")) for _ in range(24)]
    await asyncio.wait_for(asyncio.gather(*tasks), 30)
    assert order[:16].count("window") in {11, 12, 13}  # the long-waiting evaluation does not come first
    assert sorted(order) == ["evaluation"] * 8 + ["window"] * 24
    alone = [asyncio.create_task(take("evaluation")) for _ in range(4)]
    await asyncio.wait_for(asyncio.gather(*alone), 30)
    await pool.close()


async def test_a_budget_stops_new_calls_of_its_lane_alone_until_the_next_day(open_pool: OpenPool) -> None:
    day = [date(2026, 1, 1)]
    policy = replace(POLICY, budgets={"window": Budget(calls=2), "evaluation": Budget(cost=1.0)})
    (name,) = names(1)
    memory = MemoryStorage([Key(name, QPS, RPM)], policy, day=lambda: day[0])
    pool = KeyPool({name: SecretStr("sk-0")}, memory, policy=policy)
    await pool.report(await pool.reserve("window"), "unsent")  # costs nothing
    for _ in range(2):
        await pool.report(await pool.reserve("window"))
    with pytest.raises(BudgetSpentError, match=r"keys\.budgets\.window"):
        await pool.reserve("window")
    await pool.reserve("realtime")
    dear = await pool.reserve("evaluation")
    await pool.report(dear, cost=1.5)
    with pytest.raises(BudgetSpentError):
        await pool.reserve("evaluation")
    assert pool.spent("evaluation").cost == 1.5
    day[0] = date(2026, 1, 2)
    await pool.reserve("window")
    await pool.close()


async def test_a_budget_that_runs_out_refuses_those_who_wait_already() -> None:
    policy = replace(POLICY, budgets={"window": Budget(calls=2)}, realtime_reserve=0.0)
    (name,) = names(1)
    pool = KeyPool({name: SecretStr("sk-0")}, MemoryStorage([Key(name, 100, 6000)], policy), policy=policy)
    asked = [asyncio.create_task(pool.reserve("window")) for _ in range(10)]
    other = asyncio.create_task(pool.reserve("evaluation"))
    ended = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 30)
    assert Counter(type(item) for item in ended) == {Reservation: 2, BudgetSpentError: 8}
    assert (await asyncio.wait_for(other, 30)).lane == "evaluation"
    assert pool.spent("window").calls == 2
    await asyncio.sleep(0.05)  # the slots of those that were refused are free again
    assert [item.used_minute for item in pool.snapshot()] == [3]
    await pool.close()


async def test_keys_come_and_go_while_the_pool_runs(open_pool: OpenPool) -> None:
    pool = open_pool(count=1)
    first, second = names(2)
    await reserve_many(pool, QPS)
    pool.apply([Key(first, QPS, RPM), Key(second, QPS, RPM)], {second: SecretStr("sk-1")})
    assert (await asyncio.wait_for(pool.reserve("realtime", exclude={first}), 10)).key_hash == second
    pool.apply([Key(second, QPS, RPM)], {})
    assert {item.key_hash for item in await reserve_many(pool, 3)} == {second}
    assert [item.key_hash for item in pool.snapshot()] == [second]
