"""The inline lane's keys: its own share while the ledger is away, shared with the others once it is back."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import event

from dangerous_driving.assessment.inline import InlineLane
from dangerous_driving.assessment.inline_folder import InlineFolder
from dangerous_driving.assessment.switch import ALL, Entry, LaneSwitch, Positions
from dangerous_driving.contracts import Lane
from dangerous_driving.errors import ConfigError
from dangerous_driving.ledger.database import open_engine
from dangerous_driving.settings import Settings
from dangerous_driving.settings.assessment import BudgetSettings
from tests.assessment.test_lanes import until
from tests.assessment.test_llm import endpoint
from tests.assessment.test_switch import NOW, wait_for

if TYPE_CHECKING:
    from tests.assessment.conftest import Bench

pytestmark = pytest.mark.integration


@pytest.fixture
def switch(tmp_path: Path) -> LaneSwitch:
    switch = LaneSwitch(tmp_path / "switch.json", lambda: Positions({ALL: Entry(Lane.INLINE, NOW)}))
    switch.look()
    return switch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "inline"


def inline(bench: Bench, folder: Path, **keys: object) -> Settings:
    return bench.settings.model_copy(
        update={
            "assessment": bench.settings.assessment.model_copy(update={"inline_folder": folder}),
            "keys": bench.settings.keys.model_copy(update={"processes": 2, **keys}),
        }
    )


def test_keys_that_were_opened_without_the_ledger_are_shared_once_it_is_back(
    bench: Bench, switch: LaneSwitch, folder: Path
) -> None:
    engine, away = open_engine(bench.settings.database, application="inline"), threading.Event()

    @event.listens_for(engine, "do_connect")
    def refuse(*_: object) -> None:
        if away.is_set():
            raise psycopg.OperationalError("nobody answers")

    away.set()
    with InlineLane(inline(bench, folder), engine, bench.store, bench.sent, switch) as lane:
        lane.offer(bench.record(datetime.now(UTC)))
        wait_for(lambda: any(call.record for call in InlineFolder(folder).ended()))
        bench.fault("hang")
        lane.offer(bench.record(datetime.now(UTC)))
        wait_for(lambda: len(InlineFolder(folder)) == 2)
        before = lane._endpoints[0].pool
        away.clear()
        wait_for(lambda: lane._endpoints[0].pool is not before)
        assert not before._closed  # a call on one of its keys is under way
        bench.fault("restore")
        wait_for(lambda: before._closed)
        assert bench.rows("SELECT count(*) FROM key_reservation") == [(0,)]
        lane.offer(bench.record(datetime.now(UTC)))
        wait_for(lambda: bench.rows("SELECT count(*) FROM risk_assessment WHERE lane = 'inline'") == [(3,)])
        assert bench.rows("SELECT count(*) FROM key_reservation WHERE lane = 'inline' AND NOT given_back") != [(0,)]
    engine.dispose()


def test_what_a_call_costs_counts_for_the_budget_of_the_lane(bench: Bench, switch: LaneSwitch, folder: Path) -> None:
    settings = inline(bench, folder, budgets={"inline": BudgetSettings(cost=1e-9)})
    frames = [bench.record(datetime.now(UTC) - timedelta(seconds=seconds)) for seconds in (0.2, 0.1)]
    with InlineLane(settings, bench.engine, bench.store, bench.sent, switch) as lane:
        lane.offer(frames[0])
        wait_for(lambda: bench.rows("SELECT count(*) FROM risk_assessment WHERE lane = 'inline'") == [(1,)])
        lane.offer(frames[1])
        wait_for(lambda: not lane._running)
    [(calls, cost)] = bench.rows("SELECT calls, cost FROM lane_spending WHERE lane = 'inline'")
    assert (calls, cost) == (1, pytest.approx(bench.rows("SELECT cost FROM risk_assessment")[0][0]))


def test_a_second_process_is_kept_out_of_the_folder(
    bench: Bench, switch: LaneSwitch, folder: Path, tmp_path: Path
) -> None:
    lanes = [InlineLane(inline(bench, folder), bench.engine, bench.store, bench.sent, switch) for _ in range(3)]
    with lanes[0]:
        bench.fault("hang")
        lanes[0].offer(bench.record(datetime.now(UTC)))
        wait_for(lambda: len(InlineFolder(folder)) == 1)
        with pytest.raises(ConfigError, match=r"assessment\.inline_folder.*another process"), lanes[1]:
            pass
        assert bench.rows("SELECT count(*) FROM llm_call WHERE status = 'lost'") == [(0,)]
        bench.fault("restore")
        wait_for(lambda: bench.rows("SELECT count(*) FROM risk_assessment WHERE lane = 'inline'") == [(1,)])
    with lanes[2]:
        pass
    (tmp_path / "file").write_text("")
    beneath = InlineLane(inline(bench, tmp_path / "file"), bench.engine, bench.store, bench.sent, switch)
    with pytest.raises(ConfigError, match=r"assessment\.inline_folder.*cannot be written"), beneath:
        pass


async def test_a_call_whose_error_cannot_be_stored_is_handed_in_all_the_same(
    bench: Bench, switch: LaneSwitch, folder: Path
) -> None:
    body = b'data: {"error": {"message": "no \\u0000 and \\ud83d", "type": "server_error"}}\n\n'
    async with endpoint(body) as address:
        llm = bench.settings.llm.model_copy(update={"base_url": address, "max_retries": 0})
        settings = inline(bench, folder).model_copy(update={"llm": llm})
        lane = InlineLane(settings, bench.engine, bench.store, bench.sent, switch)
        await asyncio.to_thread(lane.__enter__)
        try:
            lane.offer(bench.record(datetime.now(UTC)))
            await until(bench, "SELECT lane, status FROM llm_call", [("inline", "unavailable")])
        finally:
            await asyncio.to_thread(lane.__exit__, None, None, None)
    assert len(InlineFolder(folder)) == 0
