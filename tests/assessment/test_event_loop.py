"""The event loop of `assess` waits for nobody, so that it hears all answers at once."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from dangerous_driving.assessment import question
from dangerous_driving.assessment.answer import level_in_stream
from dangerous_driving.assessment.assessor import LONG_ANSWER, Outcome
from dangerous_driving.assessment.llm import LlmClient, Reply
from dangerous_driving.assessment.question import LEVEL_WITHIN, Question
from dangerous_driving.assessment.scheduler import Scheduler
from dangerous_driving.contracts import Lane, Stage
from tests.assessment.test_assessor import claim
from tests.assessment.test_lanes import STATES, offer, run_scheduler

if TYPE_CHECKING:
    from tests.assessment.conftest import Batches, Bench

pytestmark = pytest.mark.integration


async def test_a_producer_that_waits_for_its_brokers_keeps_no_answer_waiting(bench: Bench, now: datetime) -> None:
    brokers_are_back = threading.Event()
    send = bench.sent.send

    def waits(*args: Any, **more: Any) -> Any:
        assert brokers_are_back.wait(30)
        return send(*args, **more)

    bench.sent.send = waits  # type: ignore[method-assign]
    bench.record(now, groups=3)
    async with bench.assessor() as assessor:
        held = claim(bench, assessor)
        outcomes = await asyncio.gather(*(assessor.assess(item, Lane.REALTIME) for item in held))
        assert outcomes == [Outcome.ASSESSED] * 3
        assert bench.sent.results == []
        brokers_are_back.set()
    # none is lost, and each level comes before its answer
    stages = [(result.task_id, result.stage) for result in bench.sent.results]
    assert len(stages) == len(set(stages)) == 6
    for item in held:
        assert [stage for task, stage in stages if task == item.task.task_id] == [Stage.PROVISIONAL, Stage.FINAL]
    assert bench.rows("SELECT count(*) FROM risk_assessment WHERE published_at IS NULL") == [(0,)]


def rambling(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that says so, a few letters at a time."""

    async def complete(self: LlmClient, messages: Any, secret: Any, on_text: Any, *, on_sent: Any, **_: Any) -> Reply:
        on_sent()
        for end in range(4, len(text) + 4, 4):
            waiting: Awaitable[None] | None = on_text(text[:end])
            if waiting is not None:
                await waiting
        return Reply(text, 1, 1, 0.1, 0.2, "m")

    monkeypatch.setattr(LlmClient, "complete", complete)


async def test_of_an_answer_without_end_only_the_beginning_is_read_while_it_streams(
    bench: Bench, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counted(text: str) -> Any:
        read.append(len(text))
        return level_in_stream(text)

    monkeypatch.setattr(question, "level_in_stream", counted)
    rambling("{ no end " * 3000, monkeypatch)
    bench.record(now)
    async with bench.assessor() as assessor:
        [held] = claim(bench, assessor)
        assert await assessor.assess(held, Lane.REALTIME) is Outcome.FAILED
    assert max(read) <= LEVEL_WITHIN
    assert len(read) <= LEVEL_WITHIN / 4 + 1


async def test_a_long_answer_is_read_beside_the_loop_and_counts_all_the_same(
    bench: Bench, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    read = Question.read

    def noted(self: Question, text: str) -> Any:
        threads.append(threading.current_thread().name)
        return read(self, text)

    monkeypatch.setattr(Question, "read", noted)
    rambling(" " * LONG_ANSWER + '{"riskLevel": "low", "confidence": 0.7, "riskTypes": []}', monkeypatch)
    bench.record(now)
    async with bench.assessor() as assessor:
        [held] = claim(bench, assessor)
        assert await assessor.assess(held, Lane.REALTIME) is Outcome.ASSESSED
    assert bench.rows("SELECT risk_level FROM risk_assessment") == [("low",)]
    assert threads
    assert threading.main_thread().name not in threads


async def test_threads_give_way_to_the_loop_while_a_scheduler_runs(
    bench: Bench, batches: Batches, now: datetime
) -> None:
    usual, seen = sys.getswitchinterval(), []
    batches.on_commit = lambda: seen.append(sys.getswitchinterval())
    offer(batches, bench.record(now))
    await run_scheduler(bench, batches, STATES, [("assessed", 1)])
    assert seen == [pytest.approx(Scheduler.SWITCH_SECONDS)]
    assert sys.getswitchinterval() == usual
