"""An act goes to its end, whoever goes away meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from dangerous_driving.errors import LedgerError
from dangerous_driving.ledger import audit
from dangerous_driving.realtime.access import Caller, Role
from dangerous_driving.realtime.acts import Actor, Acts

ACTOR = Actor(Caller(Role.OPERATOR, "Ada"), "10.0.0.1")


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the audit says, in its order."""
    said: list[str] = []

    def begin(_engine: Any, act: audit.Act) -> int:
        said.append(act.act)
        return 1

    monkeypatch.setattr(audit, "begin", begin)
    monkeypatch.setattr(audit, "finish", lambda _engine, _entry, outcome: said.append(outcome))
    return said


def acts() -> Acts:
    nobody = cast("Any", None)
    return Acts(nobody, nobody, nobody)


async def test_a_client_that_goes_away_does_not_stop_what_it_asked_for(entries: list[str]) -> None:
    begun, may_end, told = asyncio.Event(), asyncio.Event(), []

    async def work() -> str:
        begun.set()
        await may_end.wait()
        told.append("everybody")
        return "kept"

    client = asyncio.create_task(acts().carry_out(ACTOR, "acknowledge", "alert-1", {}, work))
    await begun.wait()
    client.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client
    may_end.set()
    async with asyncio.timeout(10):
        while len(entries) < 2:
            await asyncio.sleep(0.01)
    assert told == ["everybody"]
    assert entries == ["acknowledge", "done"]


async def test_a_failure_reaches_who_waits_and_the_audit(entries: list[str]) -> None:
    async def work() -> str:
        raise LedgerError("away")

    with pytest.raises(LedgerError, match="away"):
        await acts().carry_out(ACTOR, "reject", "alert-1", {}, work)
    assert entries == ["reject", "failed"]
