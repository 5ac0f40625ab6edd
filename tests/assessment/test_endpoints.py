"""Hedged calls, and a chain of endpoints with a breaker each."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from dangerous_driving.assessment.assessor import Assessor, Outcome
from dangerous_driving.assessment.endpoints import FEWEST_LATENCIES, Breaker, Endpoint, Latencies, usable
from dangerous_driving.assessment.key_pool import key_hash
from dangerous_driving.assessment.keys import Key
from dangerous_driving.assessment.llm import LlmClient
from dangerous_driving.contracts import Lane
from dangerous_driving.errors import (
    KeyRejectedError,
    LlmError,
    LlmRequestError,
    LlmTimeoutError,
    LlmUnavailableError,
    RateLimitedError,
)
from dangerous_driving.settings import FallbackSettings
from dangerous_driving.simulation.llm import serving
from tests.assessment.test_assessor import assess_all, claim

if TYPE_CHECKING:
    from tests.assessment.conftest import Bench

BROKEN = LlmUnavailableError("503", http_status=503)


def opened(failures: int = 3) -> Breaker:
    breaker = Breaker(failures_to_open=failures)
    for _ in range(failures):
        assert breaker.allows(10.0)
        breaker.ended(BROKEN, 10.0)
    return breaker


def test_a_breaker_opens_after_failures_in_a_row_and_lets_one_probe_through() -> None:
    breaker = opened()
    assert not breaker.allows(11.9)
    assert breaker.allows(12.0)
    breaker.sending(12.0, timeout=30.0)
    assert not breaker.allows(12.1)  # until the probe has told
    breaker.ended(LlmTimeoutError("slow"), 15.0)
    assert not breaker.allows(18.9)  # twice the rest
    assert breaker.allows(19.0)
    breaker.ended(None, 19.5)
    assert breaker.allows(19.5)
    assert breaker.failures == 0


def test_a_probe_that_is_never_heard_of_is_given_up() -> None:
    breaker = opened()
    breaker.sending(12.0, timeout=5.0)
    assert breaker.allows(17.0)


@pytest.mark.parametrize(
    "error", [LlmRequestError("400", http_status=400), RateLimitedError("429"), KeyRejectedError("401"), None]
)
def test_what_shows_a_working_endpoint_counts_as_no_failure(error: LlmError | None) -> None:
    breaker = Breaker(failures_to_open=2)
    breaker.ended(BROKEN, 1.0)
    breaker.ended(error, 2.0)
    breaker.ended(BROKEN, 3.0)
    assert breaker.allows(3.0)


def test_the_running_p95_needs_some_answers_and_forgets_old_ones() -> None:
    latencies = Latencies()
    for _ in range(FEWEST_LATENCIES - 1):
        latencies.add(1.0)
    assert latencies.p95 is None
    for _ in range(300):
        latencies.add(2.0)
    assert latencies.p95 == 2.0


@pytest.mark.integration
async def test_a_slow_call_is_hedged_on_another_key_and_the_loser_is_cancelled(bench: Bench, now: datetime) -> None:
    slow, *others = bench.key_hashes
    bench.record(now, groups=1)
    async with bench.assessor() as assessor:
        endpoint = assessor._caller.endpoints[0]
        for _ in range(FEWEST_LATENCIES):
            endpoint.latencies.add(0.3)
        bench.fault("hang", key=slow)
        [held] = claim(bench, assessor)
        reservation = await assessor.reserve(Lane.REALTIME, tried=others)
        assert await assessor.assess(held, Lane.REALTIME, held=reservation) is Outcome.ASSESSED
    calls = bench.rows("SELECT key_hash, status, error FROM llm_call ORDER BY call_number")
    assert calls[0] == (slow, "cancelled", "a hedged call was faster")
    assert calls[1][0] in others
    assert calls[1][1] == "ok"
    assert bench.rows("SELECT key_hash FROM risk_assessment") == [(calls[1][0],)]
    assert [result.stage.value for result in bench.sent.results] == ["provisional", "final"]


@pytest.mark.integration
async def test_calls_that_a_stopping_worker_cuts_off_say_so(
    bench: Bench, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way = 0

    async def hang(*_: object, **__: object) -> None:
        nonlocal under_way
        under_way += 1
        await asyncio.Event().wait()

    monkeypatch.setattr(LlmClient, "complete", hang)
    bench.record(now, groups=1)
    async with bench.assessor() as assessor:
        for _ in range(FEWEST_LATENCIES):
            assessor._caller.endpoints[0].latencies.add(0.01)
        [held] = claim(bench, assessor)
        running = asyncio.create_task(assessor.assess(held, Lane.REALTIME))
        async with asyncio.timeout(60):
            while under_way < 2:
                await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert bench.rows("SELECT status, error FROM llm_call") == [("cancelled", "the worker stopped")] * 2


@pytest.mark.integration
async def test_the_window_lane_does_not_hedge(bench: Bench, now: datetime) -> None:
    bench.fault("slow", amount=20)
    bench.record(now, groups=1)
    async with bench.assessor() as assessor:
        for _ in range(FEWEST_LATENCIES):
            assessor._caller.endpoints[0].latencies.add(0.01)
        [held] = claim(bench, assessor)
        assert await assessor.assess(held, Lane.WINDOW) is Outcome.ASSESSED
    assert bench.rows("SELECT count(*) FROM llm_call") == [(1,)]


@pytest.mark.integration
async def test_while_an_endpoint_is_out_of_order_the_next_one_is_asked_and_then_the_first_again(
    bench: Bench, now: datetime
) -> None:
    secret = SecretStr("sk-of-the-fallback")
    with serving(keys=[Key(secret, 50, 1000)], speed=20) as address:
        fallback = FallbackSettings(base_url=address, secrets=(secret,))
        llm = bench.settings.llm.model_copy(update={"fallbacks": (fallback,), "breaker_failures": 2, "max_retries": 2})
        bench.settings = bench.settings.model_copy(update={"llm": llm})
        bench.fault("break")
        bench.record(now, groups=1)
        async with bench.assessor() as assessor:
            [held] = claim(bench, assessor)
            # the third attempt, after two failures, goes to the fallback
            assert await assessor.assess(held, Lane.REALTIME) is Outcome.ASSESSED
            assert bench.rows("SELECT status, key_hash = :k FROM llm_call ORDER BY call_number".replace(
                ":k", f"'{key_hash(secret.get_secret_value())}'"
            )) == [("unavailable", False), ("unavailable", False), ("ok", True)]  # fmt: skip
            bench.fault("restore")
            await until_asked(assessor)
    assert bench.rows("SELECT state FROM assessment_task") == [("assessed",)]


async def until_asked(assessor: Assessor) -> None:
    """Until the first endpoint may be asked again."""
    first: Endpoint = assessor._caller.endpoints[0]
    async with asyncio.timeout(60):
        while usable(assessor._caller.endpoints, asyncio.get_running_loop().time())[0] is not first:
            await asyncio.sleep(0.05)


@pytest.mark.integration
async def test_without_a_fallback_an_endpoint_out_of_order_is_tried_all_the_same(bench: Bench, now: datetime) -> None:
    bench.settings = bench.settings.model_copy(
        update={"llm": bench.settings.llm.model_copy(update={"breaker_failures": 1})}
    )
    bench.fault("break")
    bench.record(now)
    assert await assess_all(bench) == [Outcome.FAILED]
