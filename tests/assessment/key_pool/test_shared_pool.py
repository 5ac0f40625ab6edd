"""What many processes share over PostgreSQL: the windows, the budgets, lost keys, and a database that hangs or is away."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine, text

from dangerous_driving.assessment.key_pool import (
    Budget,
    Key,
    KeyPool,
    Policy,
    PostgresStorage,
    key_usage,
)
from dangerous_driving.assessment.key_pool.health import Grant, Request
from dangerous_driving.assessment.key_pool.shared import SharedWindows
from dangerous_driving.errors import (
    BudgetSpentError,
    KeyRejectedError,
    LedgerError,
)
from dangerous_driving.settings import DatabaseSettings
from tests.assessment.key_pool.test_pool import POLICY, QPS, RPM, assert_within_limits, names


def storage(engine: Engine, count: int = 1, policy: Policy = POLICY) -> PostgresStorage:
    return PostgresStorage(engine, [Key(name, QPS, RPM) for name in names(count)], policy)


PROCESS = """
import asyncio, json, sys
from pydantic import SecretStr
from dangerous_driving.assessment.key_pool import Key, KeyPool, Policy, PostgresStorage, key_hash
from dangerous_driving.ledger.database import open_engine
from dangerous_driving.settings import DatabaseSettings

async def main(url, keys, qps, rpm, calls, policy):
    hashes = {key_hash(f"sk-{n}"): SecretStr(f"sk-{n}") for n in range(keys)}
    engine = open_engine(DatabaseSettings(url=SecretStr(url)))
    storage = PostgresStorage(engine, [Key(name, qps, rpm) for name in hashes], Policy(**policy))
    pool = KeyPool(hashes, storage)
    print("ready", flush=True)
    sys.stdin.readline()
    reservations = await asyncio.gather(*(pool.reserve("realtime", timeout=60) for _ in range(calls)))
    print(json.dumps([(r.key_hash, r.grant.reserved_at) for r in reservations]), flush=True)
    await pool.close()
    engine.dispose()

asyncio.run(main(**json.loads(sys.argv[1])))
"""


@pytest.mark.integration
@pytest.mark.usefixtures("ledger")
def test_processes_on_one_database_never_exceed_the_limits_together(database: DatabaseSettings) -> None:
    arguments = {
        "url": database.url.get_secret_value(),
        "keys": 2,
        "qps": QPS,
        "rpm": RPM,
        "calls": RPM * 2 + 2,
        "policy": {"window_margin": POLICY.window_margin, "second": POLICY.second, "minute": POLICY.minute},
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, json.dumps(arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ,
        )
        for _ in range(2)
    ]  # fmt: skip
    reservations: list[tuple[str, float]] = []
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        outputs = [process.communicate("go\n", timeout=60)[0] for process in start_together(processes)]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for output in outputs:
        reservations += [(name, at) for name, at in json.loads(output)]
    assert len(reservations) == 2 * (RPM * 2 + 2)
    assert_within_limits(reservations)
    first, last = min(at for _, at in reservations), max(at for _, at in reservations)
    # 64 requests on 2 keys of 15 "a minute": the last four cannot come before two "minutes", and need not come much later
    assert 2 * POLICY.minute <= last - first


def start_together(processes: list[subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return processes


@pytest.mark.integration
async def test_a_restarted_process_knows_what_was_used_and_disabled(ledger: Engine) -> None:
    before = storage(ledger, 2, replace(POLICY, minute=60.0, second=60.0))
    granted = (await before.exchange((), [Request("realtime")] * 10)).grants
    (kept,) = {grant.key_hash for grant in granted if grant} - {names(2)[0]}
    await before.set_enabled(names(2)[0], enabled=False, reason="test")
    await before.close()
    after = storage(ledger, 2, replace(POLICY, minute=60.0, second=60.0))
    assert (await after.exchange((), [Request("realtime")])).grants == (None,)
    assert [(item.key_hash, item.status, item.used_minute) for item in after.snapshot()] == [
        (names(2)[0], "disabled", 5),
        (kept, "available", 5),
    ]
    assert {item.key_hash: item.used_minute for item in key_usage(ledger, POLICY)}.keys() == set(names(2))
    await after.close()


@pytest.mark.integration
async def test_a_database_clock_that_was_set_back_blocks_nobody_for_longer_than_a_window(ledger: Engine) -> None:
    first = storage(ledger)
    await first.exchange((), [Request("realtime")] * 3)
    with ledger.begin() as connection:  # as if the clock had been an hour ahead until now
        connection.execute(text("UPDATE key_reservation SET reserved_at = reserved_at + interval '1 hour'"))
    second = storage(ledger)
    exchange = await second.exchange((), [Request("realtime")] * QPS)
    assert [grant is not None for grant in exchange.grants] == [True, True, False, False, False]
    assert max(exchange.waits) <= POLICY.minute + POLICY.window_margin
    for item in (first, second):
        await item.close()


@pytest.mark.integration
async def test_old_reservations_are_removed(ledger: Engine) -> None:
    pool_storage = storage(ledger)
    await pool_storage.exchange((), [Request("realtime")])
    with ledger.begin() as connection:
        connection.execute(text("UPDATE key_reservation SET reserved_at = reserved_at - interval '1 hour'"))
    other = storage(ledger)
    await other.exchange((), [Request("realtime")])
    with ledger.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM key_reservation")) == 1
    for item in (pool_storage, other):
        await item.close()


async def test_a_database_that_does_not_answer_is_a_ledger_error() -> None:
    engine = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none", connect_args={"connect_timeout": 1})
    unreachable = storage(engine)
    with pytest.raises(LedgerError, match=r"database\.url"):
        await unreachable.exchange((), [Request("realtime")])
    await unreachable.close()
    engine.dispose()


@pytest.mark.integration
async def test_while_the_database_hangs_each_process_goes_on_with_its_share(
    ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dangerous_driving.assessment.key_pool.shared.LOCK_TIMEOUT_MS", 200)
    policy = replace(POLICY, second=30.0, minute=60.0, members=2)
    pool_storage = storage(ledger, policy=policy)
    (first,) = (await pool_storage.exchange((), [Request("realtime")])).grants
    assert isinstance(first, Grant)
    with ledger.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(7261002)"))
        alone = await pool_storage.exchange((), [Request("realtime")] * 4)
        # half of 5, and one of them was given before
        assert [grant is not None for grant in alone.grants] == [True, False, False, False]
        assert max(alone.waits) > 20
    monkeypatch.setattr("dangerous_driving.assessment.key_pool.shared.RETRY_SECONDS", 0.0)
    pool_storage._windows.away_until = 0.0
    (after,) = (await pool_storage.exchange((), [Request("realtime")])).grants
    assert isinstance(after, Grant)
    with ledger.connect() as connection:  # what was used meanwhile is told
        taken = connection.scalar(text("SELECT count(*) FROM key_reservation WHERE NOT given_back"))
    assert taken == 3
    await pool_storage.close()


@pytest.mark.integration
async def test_the_database_is_not_asked_for_each_call(ledger: Engine) -> None:
    policy = Policy(window_margin=0.25, lease=0.5)
    leased = PostgresStorage(ledger, [Key(name, 1000, 60_000) for name in names(2)], policy)
    pool = KeyPool({name: SecretStr(f"sk-{number}") for number, name in enumerate(names(2))}, leased)
    async with asyncio.timeout(60):
        for _ in range(100):
            await asyncio.gather(*(pool.reserve("realtime") for _ in range(3)))
            await asyncio.sleep(0.005)
    assert leased.exchanges < 200
    await pool.close()
    with ledger.connect() as connection:
        rows = connection.execute(text("SELECT given_back, count(*) FROM key_reservation GROUP BY 1")).all()
    counted = {row[0]: row[1] for row in rows}
    assert counted[False] - counted.get(True, 0) == 300  # what was taken ahead and not used went back


@pytest.mark.integration
async def test_a_key_that_one_process_lost_is_not_used_by_another(ledger: Engine) -> None:
    policy = Policy(window_margin=0.25, lease=1.0)
    first, second = (PostgresStorage(ledger, [Key(name, 100, 600) for name in names(2)], policy) for _ in range(2))
    pools = [KeyPool({name: SecretStr(name) for name in names(2)}, item) for item in (first, second)]
    for _ in range(20):  # so that both hold slots ahead on both keys
        for pool in pools:
            await pool.reserve("realtime")
    await asyncio.sleep(1.0)  # the listeners are there
    lost = await pools[0].reserve("realtime")
    await pools[0].report(lost, KeyRejectedError("no", http_status=401))
    async with asyncio.timeout(60):
        while not second._news.is_set() and all(item.status != "disabled" for item in pools[1].snapshot()):
            await asyncio.sleep(0.01)
    others = [await pools[1].reserve("realtime") for _ in range(30)]
    assert lost.key_hash not in {item.key_hash for item in others}
    for pool in pools:
        await pool.close()


@pytest.mark.integration
async def test_a_budget_is_shared_by_all_processes(ledger: Engine) -> None:
    policy = replace(POLICY, budgets={"window": Budget(calls=3)})
    pools = []
    for _ in range(2):
        shared = PostgresStorage(ledger, [Key(name, QPS, RPM) for name in names(1)], policy)
        pools.append(KeyPool({names(1)[0]: SecretStr("sk-0")}, shared, policy=policy))
    for _ in range(3):
        await pools[0].reserve("window")
    async with asyncio.timeout(60):
        while pools[1].spent("window").calls < 3:
            await pools[1].report(await pools[1].reserve("realtime"))  # any exchange brings the news
            await asyncio.sleep(0.2)
    with pytest.raises(BudgetSpentError):
        await pools[1].reserve("window")
    for pool in pools:
        await pool.close()


@pytest.mark.integration
async def test_a_new_process_does_not_exceed_a_budget_that_others_have_spent(ledger: Engine) -> None:
    policy = replace(POLICY, budgets={"realtime": Budget(calls=3)})

    def opened() -> KeyPool:
        shared = PostgresStorage(ledger, [Key(names(1)[0], 100, 6000)], policy)
        return KeyPool({names(1)[0]: SecretStr("sk-0")}, shared, policy=policy)

    before = opened()
    await before.reserve("realtime")
    await before.reserve("realtime")
    await before.close()
    after = opened()
    asked = await asyncio.gather(*(after.reserve("realtime", timeout=20) for _ in range(6)), return_exceptions=True)
    assert [type(item) for item in asked[1:]] == [BudgetSpentError] * 5
    assert after.spent("realtime").calls == 3
    await after.close()
    with ledger.connect() as connection:
        assert connection.scalar(text("SELECT calls FROM lane_spending WHERE lane = 'realtime'")) == 3


@pytest.mark.integration
async def test_keys_that_change_during_an_exchange_make_nobody_forget_what_was_used(
    ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = replace(POLICY, minute=60.0, lease=0.0)
    other, own = storage(ledger, 3, policy), storage(ledger, 2, policy)
    for count in (3, 2):
        await other.exchange((), [Request("realtime")] * count)
    reached, go_on = threading.Event(), threading.Event()
    write = SharedWindows._log

    def slow(windows: SharedWindows, *arguments: Any, **more: Any) -> None:
        reached.set()
        assert go_on.wait(20)
        write(windows, *arguments, **more)

    monkeypatch.setattr(SharedWindows, "_log", slow)
    running = asyncio.create_task(own.exchange((), [Request("realtime")]))
    await asyncio.to_thread(reached.wait, 20)
    own.apply([Key(name, QPS, RPM) for name in names(3)])  # the windows are read, the exchange is not over
    go_on.set()
    await running
    await own.exchange((), [Request("realtime")])
    assert [item.key_hash for item in own.snapshot()] == names(3)
    assert sum(item.used_minute for item in own.snapshot()) == 3 + 2 + 1 + 1
    for item in (other, own):
        await item.close()
