"""One task, one answer: what becomes of a task whatever the endpoint, the store or the broker do."""

from __future__ import annotations

import asyncio
import base64
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from sqlalchemy import Engine

from dangerous_driving.assessment.assessor import Assessor, Outcome
from dangerous_driving.assessment.prompt import Prompt
from dangerous_driving.contracts import Lane, RiskLevel, Stage
from dangerous_driving.errors import ObjectStoreError
from dangerous_driving.ledger import assessments, claims
from dangerous_driving.ledger.claims import Claim
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.settings import LlmSettings
from dangerous_driving.tasks.derivation import tasks_from_detection

if TYPE_CHECKING:
    from tests.assessment.conftest import Bench

pytestmark = pytest.mark.integration


def claim(bench: Bench, assessor: Assessor, limit: int = 100) -> list[Claim]:
    long_ago = datetime.fromisoformat("2000-01-01T00:00:00+00:00")
    return claims.claim_pending_realtime(bench.engine, assessor.worker, captured_after=long_ago, limit=limit)


def store_away(key: str) -> bytes:
    raise ObjectStoreError("the store does not answer")


async def assess_all(bench: Bench) -> list[Outcome]:
    async with bench.assessor() as assessor:
        held = claim(bench, assessor)
        return list(await asyncio.gather(*(assessor.assess(item, Lane.REALTIME) for item in held)))


async def test_an_answer_is_kept_with_its_call_and_published_level_first(bench: Bench, now: datetime) -> None:
    frame = bench.record(now)
    assert await assess_all(bench) == [Outcome.ASSESSED]

    [(state, calls)] = bench.rows("SELECT state, calls FROM assessment_task")
    assert (state, calls) == ("assessed", 1)
    [answer] = bench.rows(
        "SELECT risk_level, key_hash, call_id, model, prompt_version, input_tokens, output_tokens, cost, latency,"
        " is_current, published_at IS NOT NULL FROM risk_assessment"
    )
    level, key_hash, call_id, model, prompt, tokens_in, tokens_out, cost, latency, current, published = answer
    assert key_hash in bench.key_hashes
    assert (model, prompt, current, published) == ("simulated-vl", "v2", True, True)
    assert tokens_in > 0
    assert tokens_out > 0
    assert cost == pytest.approx((tokens_in + 2 * tokens_out) / 1e6)
    [(status, first, finished)] = bench.rows(
        "SELECT status, first_token_at >= started_at, finished_at >= first_token_at FROM llm_call"
    )
    assert (status, first, finished) == ("ok", True, True)
    assert call_id.endswith("_call1")
    assert latency > 0

    provisional, final = bench.sent.results
    assert (provisional.stage, final.stage) == (Stage.PROVISIONAL, Stage.FINAL)
    assert final.max_risk_level.value == level
    assert final.results[0].group_bbox == frame.traffic_groups[0].bbox
    assert provisional.captured_at == final.captured_at == frame.timestamp
    assert final.metadata.api_key == key_hash


async def test_a_task_whose_key_is_revoked_is_answered_on_another(bench: Bench, now: datetime) -> None:
    for key in bench.key_hashes[:2]:
        bench.fault("revoke", key=key)
    bench.record(now, groups=6)
    assert await assess_all(bench) == [Outcome.ASSESSED] * 6
    statuses = dict(bench.rows("SELECT status, count(*) FROM llm_call GROUP BY 1"))
    assert statuses["ok"] == 6
    assert 1 <= statuses["key_rejected"] <= 12
    assert {key for (key,) in bench.rows("SELECT key_hash FROM llm_call WHERE status = 'ok'")} == {bench.key_hashes[2]}
    disabled = bench.rows("SELECT key_hash FROM api_key WHERE state = 'disabled'")
    assert {key for (key,) in disabled} <= set(bench.key_hashes[:2])


async def test_an_endpoint_that_is_down_fails_the_task_with_the_cause_after_all_retries(
    bench: Bench, now: datetime
) -> None:
    bench.fault("break")
    bench.record(now)
    assert await assess_all(bench) == [Outcome.FAILED]
    [(state, code, attempts)] = bench.rows("SELECT state, failure_code, attempts FROM assessment_task")
    assert (state, code, attempts) == ("failed", "unavailable", 1)
    keys = bench.rows("SELECT key_hash FROM llm_call WHERE status = 'unavailable'")
    assert len(keys) == len(set(keys)) == 3  # never again on the key that failed
    [result] = bench.sent.results
    assert result.error is not None
    assert result.error.code == "unavailable"
    assert result.max_risk_level is RiskLevel.NONE
    assert not result.results


async def test_the_only_key_is_not_tried_again_after_its_failure(bench: Bench, now: datetime) -> None:
    bench.fault("break")
    only = bench.settings.keys.model_copy(update={"secrets": bench.settings.keys.secrets[:1]})
    bench.settings = bench.settings.model_copy(update={"keys": only})
    bench.record(now)
    assert await assess_all(bench) == [Outcome.FAILED]
    assert bench.rows("SELECT failure_code, calls FROM assessment_task") == [("unavailable", 1)]


async def test_what_cannot_be_parsed_is_failed_with_the_raw_text_and_never_none(bench: Bench, now: datetime) -> None:
    bench.fault("garbage")
    bench.record(now, groups=4)
    outcomes = await assess_all(bench)
    assert Outcome.FAILED in outcomes
    failed = bench.rows("SELECT failure_code, failure_raw FROM assessment_task WHERE state = 'failed'")
    assert len(failed) == outcomes.count(Outcome.FAILED)
    assert all(code == "unparsable" and raw is not None for code, raw in failed)
    unparsable = bench.rows("SELECT input_tokens FROM llm_call WHERE status = 'unparsable'")
    assert len(unparsable) == len(failed)
    assert all(tokens > 0 for (tokens,) in unparsable)  # it was paid for all the same


async def test_a_missing_picture_fails_its_task_alone_and_costs_no_call(bench: Bench, now: datetime) -> None:
    frame = bench.record(now, groups=2)
    url = frame.traffic_groups[0].group_image_url
    assert url is not None
    (bench.store._folder / bench.store.key(url)).unlink()
    assert sorted(await assess_all(bench)) == [Outcome.ASSESSED, Outcome.FAILED]
    assert bench.rows("SELECT failure_code, calls FROM assessment_task WHERE state = 'failed'") == [
        ("image_missing", 0)
    ]


@pytest.mark.parametrize(
    ("url", "code"),
    [("folder://another-bucket/a.jpg", "image_address"), ("folder://traffic/broken.jpg", "image_unreadable")],
)
async def test_a_picture_that_is_none_is_the_cause_of_the_failure(
    bench: Bench, now: datetime, url: str, code: str
) -> None:
    bench.record(now)
    bench.store.put("broken.jpg", b"not a picture", "image/jpeg")
    bench.rows(f"UPDATE assessment_task SET group_image_url = '{url}' RETURNING 1")
    assert await assess_all(bench) == [Outcome.FAILED]
    assert bench.rows("SELECT failure_code, calls FROM assessment_task") == [(code, 0)]


async def given_inside_the_message(bench: Bench, at: datetime, image: bytes) -> Outcome:
    """A task of the topic whose picture came with it; neither the ledger nor the store has that one."""
    (task,) = tasks_from_detection(bench.record(at))
    given = task.model_copy(update={"group_image_url": None, "group_image_base64": base64.b64encode(image).decode()})
    async with bench.assessor() as assessor:
        [held] = claims.claim_tasks(
            bench.engine, Partitions(), assessor.worker, [given], [], deferred_reason="", window_length=60
        )
        return await assessor.assess(held, Lane.REALTIME)


async def test_a_picture_inside_the_message_is_scaled_down_like_one_of_the_store(
    bench: Bench, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    url_of = Prompt.picture_url

    def noted(prompt: Prompt, image: bytes | str) -> str:
        asked.append(url_of(prompt, image))
        return asked[-1]

    monkeypatch.setattr(Prompt, "picture_url", noted)
    done, large = cv2.imencode(".jpg", np.zeros((2160, 3840, 3), np.uint8))
    assert done
    assert await given_inside_the_message(bench, now, bytes(large)) is Outcome.ASSESSED
    [url] = set(asked)
    sent = cv2.imdecode(np.frombuffer(base64.b64decode(url.partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)
    assert sent is not None
    assert max(sent.shape) <= LlmSettings().image_longest_side


async def test_what_is_no_picture_inside_the_message_is_the_cause_of_the_failure(bench: Bench, now: datetime) -> None:
    assert await given_inside_the_message(bench, now, b"not a picture") is Outcome.FAILED
    assert bench.rows("SELECT failure_code, calls FROM assessment_task") == [("image_unreadable", 0)]


async def test_while_the_store_is_away_tasks_wait_for_the_window_lane_with_all_their_attempts(
    bench: Bench, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.record(now, groups=2)
    monkeypatch.setattr(bench.store, "get", store_away)
    assert await assess_all(bench) == [Outcome.HANDED_BACK] * 2
    left = bench.rows("SELECT state, lane, attempts, failure_code, reason FROM assessment_task")
    assert left == [("pending", "window", 0, None, "no picture: the store does not answer")] * 2
    assert bench.rows("SELECT count(*) FROM llm_call") == [(0,)]
    assert bench.sent.results == []


async def test_without_a_usable_key_tasks_wait_for_the_window_lane(bench: Bench, now: datetime) -> None:
    for key in bench.key_hashes:
        bench.fault("revoke", key=key)
    bench.record(now, groups=5)
    await assess_all(bench)
    # those that met all three keys before these were disabled have failed
    assert set(bench.rows("SELECT DISTINCT state FROM assessment_task")) <= {("pending",), ("failed",)}
    assert bench.rows("SELECT count(*) FROM api_key WHERE state = 'disabled'") == [(3,)]
    calls = bench.rows("SELECT count(*) FROM llm_call")

    later = bench.record(now + timedelta(seconds=1), groups=2)
    await assess_all(bench)
    left = f"SELECT state, lane FROM assessment_task WHERE message_id = '{later.message_id}'"
    assert bench.rows(left) == [("pending", "window")] * 2
    assert bench.rows("SELECT count(*) FROM llm_call") == calls


async def test_a_cancelled_task_is_handed_back_and_its_call_marked(bench: Bench, now: datetime) -> None:
    bench.fault("hang")
    bench.record(now)
    async with bench.assessor() as assessor:
        [held] = claim(bench, assessor)
        running = asyncio.create_task(assessor.assess(held, Lane.REALTIME))
        while not bench.rows("SELECT 1 FROM llm_call WHERE status = 'started'"):
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert bench.rows("SELECT status FROM llm_call") == [("cancelled",)]
    [(state, reason)] = bench.rows("SELECT state, reason FROM assessment_task")
    assert state == "pending"
    assert "stops" in reason


async def test_a_call_that_was_written_but_never_sent_is_not_left_open(
    bench: Bench, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = assessments.start_call

    def slow(engine: Engine, held: Claim, **details: Any) -> str:
        call_id = write(engine, held, **details)
        time.sleep(0.5)  # the row is there, the caller does not know it yet
        return call_id

    monkeypatch.setattr(assessments, "start_call", slow)
    bench.record(now)
    async with bench.assessor() as assessor:
        [held] = claim(bench, assessor)
        running = asyncio.create_task(assessor.assess(held, Lane.REALTIME))
        while not bench.rows("SELECT 1 FROM llm_call"):
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert bench.rows("SELECT status FROM llm_call") == [("cancelled",)]
    assert bench.rows("SELECT state FROM assessment_task") == [("pending",)]


async def test_an_answer_that_the_broker_did_not_take_is_published_later(bench: Bench, now: datetime) -> None:
    bench.record(now)
    bench.sent.away = True
    assert await assess_all(bench) == [Outcome.ASSESSED]
    assert bench.rows("SELECT published_at FROM risk_assessment") == [(None,)]
    bench.sent.away = False
    async with bench.assessor() as assessor:
        assessor.publisher.REPUBLISH_AFTER = 0.0
        assert assessor.publisher.republish() == 1
    assert bench.rows("SELECT published_at IS NOT NULL FROM risk_assessment") == [(True,)]
    [result] = bench.sent.results
    assert result.stage is Stage.FINAL


async def test_a_worker_that_was_given_up_learns_it(bench: Bench, now: datetime) -> None:
    bench.record(now)
    async with bench.assessor() as assessor:
        claim(bench, assessor)
        claims.stop_worker(bench.engine, assessor.worker)
        assert assessor.beating is not None
        await asyncio.wait([assessor.beating], timeout=10)
        with pytest.raises(Exception, match="given up"):
            assessor.require_alive()


async def test_a_living_worker_hands_on_what_a_dead_one_held(bench: Bench, now: datetime) -> None:
    bench.record(now - timedelta(seconds=1))
    dead = claims.start_worker(bench.engine, service="test", node="test", pid=1)
    claims.claim_pending_realtime(bench.engine, dead, captured_after=now - timedelta(minutes=1), limit=1)
    async with bench.assessor():
        while bench.rows("SELECT 1 FROM assessment_task WHERE state = 'claimed'"):
            await asyncio.sleep(0.05)
    [(state, reason)] = bench.rows("SELECT state, reason FROM assessment_task")
    assert state == "pending"
    assert "gone" in reason
