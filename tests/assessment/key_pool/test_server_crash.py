"""A crash of the database server, which empties unlogged tables: the processes go on seeing what the others use."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from pydantic import SecretStr

from dangerous_driving.assessment.key_pool import Key, Policy, PostgresStorage
from dangerous_driving.assessment.key_pool.health import Request
from dangerous_driving.ledger.database import open_engine
from dangerous_driving.ledger.embedded import EmbeddedPostgres
from dangerous_driving.ledger.schema import migrate
from dangerous_driving.settings import DatabaseSettings

pytestmark = pytest.mark.integration

POLICY = Policy(minute=600.0, lease=0.0)


async def stop_at_once(server: EmbeddedPostgres, folder: Path) -> None:
    """What ``pg_ctl stop -m immediate`` does: no checkpoint, so the next start recovers."""
    os.kill(int((folder / "postmaster.pid").read_text().splitlines()[0]), signal.SIGQUIT)
    async with asyncio.timeout(60):
        while server.running:
            await asyncio.sleep(0.05)
    server.close()  # the wheel forgets it


async def take(storage: PostgresStorage, count: int) -> None:
    for _ in range(count):
        (grant,) = (await storage.exchange((), [Request("realtime")])).grants
        assert grant is not None
        await asyncio.sleep(0.2)  # not more at once than the key's second allows


async def test_after_a_crash_each_process_still_sees_what_the_others_use(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    server = EmbeddedPostgres(folder)
    engine = open_engine(DatabaseSettings(url=SecretStr(server.create_database("ledger"))))
    migrate(engine)
    first, second = (PostgresStorage(engine, [Key("key", 10, 1000)], POLICY) for _ in range(2))
    await take(second, 3)
    await take(first, 3)
    assert [item.used_minute for item in first.snapshot()] == [6]

    await stop_at_once(server, folder)
    with EmbeddedPostgres(folder):
        await take(second, 2)
        await take(first, 1)
        # what was used before the crash is not forgotten, and what comes after it is seen
        assert [item.used_minute for item in first.snapshot()] == [9]
        for storage in (first, second):
            await storage.close()
        engine.dispose()
