"""Several groups of a frame in one call: one row, one slot of the quota; and each group its own answer, state and result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from dangerous_driving.assessment.assessor import Assessor, Outcome
from dangerous_driving.assessment.endpoints import FEWEST_LATENCIES
from dangerous_driving.assessment.llm import LlmClient, Reply
from dangerous_driving.assessment.window_run import assess_window
from dangerous_driving.assessment.windows import window_of
from dangerous_driving.contracts import Lane, Stage
from dangerous_driving.errors import LlmRequestError, StaleClaimError
from dangerous_driving.ledger import assessments, claims, invariants
from dangerous_driving.ledger.calls import CallFilter, list_calls
from dangerous_driving.settings.assessment import BudgetSettings
from tests.assessment.conftest import LENGTH
from tests.assessment.test_assessor import claim
from tests.assessment.test_lanes import offer, run_scheduler

if TYPE_CHECKING:
    from tests.assessment.conftest import Batches, Bench

pytestmark = pytest.mark.integration

CALLS = "SELECT status, cardinality(shared_with), count(*) FROM llm_call GROUP BY 1, 2 ORDER BY 1, 2"
STATES = "SELECT state, count(*) FROM assessment_task GROUP BY 1 ORDER BY 1"


@pytest.fixture
def sharing(bench: Bench) -> Bench:
    """A lane in which up to four groups share a call, the riskiest with the highest index."""
    assessment = bench.settings.assessment.model_copy(update={"coalesce_groups": 4, "coalesce_after": 0.0})
    bench.settings = bench.settings.model_copy(update={"assessment": assessment})
    return bench


def rank(bench: Bench) -> None:
    bench.rows("UPDATE assessment_task SET priority = group_index / 10.0 RETURNING 1")


async def assess_together(bench: Bench, lane: Lane = Lane.REALTIME) -> list[Outcome]:
    rank(bench)
    async with bench.assessor() as assessor:
        parts = assessor.by_call(claim(bench, assessor))
        found = await asyncio.gather(*(assessor.assess_together(part, lane) for part in parts))
        return [outcome for part in found for outcome in part]


def require_sound(bench: Bench) -> None:
    """What `verify` says of rows (the tests' frames have no files beside them)."""
    found = invariants.verify(
        bench.engine, bench.store, since=datetime.now(UTC) - timedelta(days=1), until=datetime.now(UTC),
        window_length=LENGTH, key_hashes=[],
    )  # fmt: skip
    assert [item for item in found.violations if item.rule != "every object exists"] == []


async def test_one_call_answers_all_groups_of_a_frame_each_as_it_would_be_answered_alone(
    sharing: Bench, now: datetime
) -> None:
    frame = sharing.record(now, groups=3)
    assert await assess_together(sharing) == [Outcome.ASSESSED] * 3
    ids = [f"{frame.message_id}_group{index}" for index in (3, 2, 1)]  # the riskiest first

    [(call_id, task_id, shared_with, status, prompt)] = sharing.rows(
        "SELECT call_id, task_id, shared_with, status, prompt_version FROM llm_call"
    )
    assert (call_id, task_id, shared_with, status, prompt) == (f"{ids[0]}_call1", ids[0], ids[1:], "ok", "v2-frame")
    assert sharing.rows("SELECT task_id, state, calls FROM assessment_task ORDER BY group_index DESC") == [
        (ids[0], "assessed", 1), (ids[1], "assessed", 0), (ids[2], "assessed", 0),
    ]  # fmt: skip
    assert sharing.rows("SELECT DISTINCT call_id, prompt_version FROM risk_assessment") == [(call_id, "v2-frame")]
    # every token and all money is somebody's
    assert sharing.rows(
        "SELECT sum(input_tokens), sum(output_tokens), round(sum(cost)::numeric, 12) FROM risk_assessment"
    ) == (sharing.rows("SELECT input_tokens, output_tokens, round(cost::numeric, 12) FROM llm_call"))
    sent = [(result.stage, result.task_id) for result in sharing.sent.results]
    assert sorted(sent) == sorted((stage, task) for stage in (Stage.PROVISIONAL, Stage.FINAL) for task in ids)
    assert [task for stage, task in sent if stage is Stage.PROVISIONAL] == ids
    for task in ids:
        early, late = (result for result in sharing.sent.results if result.task_id == task)
        assert (early.stage, late.stage) == (Stage.PROVISIONAL, Stage.FINAL)
        assert early.results[0].group_index == late.results[0].group_index
    for task in ids:
        [found] = list_calls(sharing.engine, CallFilter(now - timedelta(hours=1), task_id=task), limit=9)
        assert found.call_id == call_id
    require_sound(sharing)

    together = dict(sharing.rows("SELECT group_index, risk_level || description FROM risk_assessment"))
    sharing.rows("DELETE FROM risk_assessment RETURNING 1")
    sharing.rows("UPDATE assessment_task SET state = 'pending', reason = 'again' RETURNING 1")
    async with sharing.assessor() as assessor:
        for held in claim(sharing, assessor):
            await assessor.assess(held, Lane.REALTIME)
    assert dict(sharing.rows("SELECT group_index, risk_level || description FROM risk_assessment")) == together


async def test_groups_that_an_answer_leaves_out_get_calls_of_their_own(sharing: Bench, now: datetime) -> None:
    sharing.fault("omit", amount=0.5)
    for second in range(4):
        sharing.record(now - timedelta(seconds=second), groups=4)
    assert await assess_together(sharing) == [Outcome.ASSESSED] * 16
    missing = sharing.rows(
        "SELECT error FROM llm_call WHERE status = 'ok' AND shared_with <> '{}' AND error IS NOT NULL"
    )
    assert missing, "nothing was left out"
    assert all("no answer for group" in error for (error,) in missing)
    [(alone,)] = sharing.rows("SELECT count(*) FROM llm_call WHERE shared_with = '{}'")
    [(by_frame,)] = sharing.rows("SELECT count(*) FROM risk_assessment WHERE prompt_version = 'v2-frame'")
    assert alone + by_frame == 16
    assert 0 < alone < 16
    require_sound(sharing)


async def test_an_answer_to_none_of_them_is_a_paid_row_and_each_is_asked_about_alone(
    sharing: Bench, now: datetime
) -> None:
    sharing.fault("omit")
    sharing.record(now, groups=3)
    assert await assess_together(sharing) == [Outcome.ASSESSED] * 3
    assert sharing.rows(CALLS) == [("ok", 0, 3), ("unparsable", 2, 1)]
    [(tokens,)] = sharing.rows("SELECT input_tokens FROM llm_call WHERE status = 'unparsable'")
    assert tokens > 0
    require_sound(sharing)


async def test_a_shared_call_is_tried_again_on_other_keys_and_its_failure_is_that_of_each(
    sharing: Bench, now: datetime
) -> None:
    sharing.fault("break")
    sharing.record(now, groups=3)
    assert await assess_together(sharing) == [Outcome.FAILED] * 3
    assert sharing.rows(CALLS) == [("unavailable", 2, 3)]
    assert sharing.rows("SELECT count(DISTINCT key_hash) FROM llm_call") == [(3,)]
    assert sharing.rows("SELECT DISTINCT failure_code, attempts FROM assessment_task") == [("unavailable", 1)]
    assert [result.error is not None for result in sharing.sent.results] == [True] * 3


async def test_with_a_revoked_key_the_groups_are_answered_together_on_another(sharing: Bench, now: datetime) -> None:
    for key in sharing.key_hashes[:2]:
        sharing.fault("revoke", key=key)
    sharing.record(now, groups=3)
    assert await assess_together(sharing) == [Outcome.ASSESSED] * 3
    assert sharing.rows("SELECT key_hash, cardinality(shared_with) FROM llm_call WHERE status = 'ok'") == [
        (sharing.key_hashes[2], 2)
    ]


async def test_without_a_usable_key_all_wait_for_the_window_lane(sharing: Bench, now: datetime) -> None:
    budgets = {"realtime": BudgetSettings(calls=0)}
    sharing.settings = sharing.settings.model_copy(
        update={"keys": sharing.settings.keys.model_copy(update={"budgets": budgets})}
    )
    sharing.record(now, groups=3)
    assert await assess_together(sharing) == [Outcome.HANDED_BACK] * 3
    assert sharing.rows("SELECT state, lane, count(*) FROM assessment_task GROUP BY 1, 2") == [("pending", "window", 3)]


async def test_a_shared_call_is_one_of_the_budget(sharing: Bench, now: datetime) -> None:
    budgets = {"realtime": BudgetSettings(calls=1)}
    sharing.settings = sharing.settings.model_copy(
        update={"keys": sharing.settings.keys.model_copy(update={"budgets": budgets})}
    )
    sharing.record(now, groups=4)
    assert await assess_together(sharing) == [Outcome.ASSESSED] * 4


async def test_an_endpoint_that_refuses_several_pictures_is_not_asked_so_for_long(
    sharing: Bench, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = LlmClient.complete

    async def one_picture(self: LlmClient, *asked: Any, answers: int = 1, **more: Any) -> Reply:
        if answers > 1:
            raise LlmRequestError("the endpoint refuses the request (at most 1 image)", http_status=400)
        return await complete(self, *asked, answers=answers, **more)

    monkeypatch.setattr(LlmClient, "complete", one_picture)
    for second in range(5):
        sharing.record(now - timedelta(seconds=second), groups=2)
    async with sharing.assessor() as assessor:
        while held := claim(sharing, assessor, limit=2):
            for part in assessor.by_call(held):
                assert await assessor.assess_together(part, Lane.REALTIME) == [Outcome.ASSESSED] * len(part)
        assert assessor.groups_per_call == 1
    assert sharing.rows(CALLS) == [("bad_request", 1, 3), ("ok", 0, 10)]


async def steal(bench: Bench, group: int) -> None:
    """Another worker gets one of the tasks, as after a heartbeat that stood still."""
    other = await asyncio.to_thread(claims.start_worker, bench.engine, service="test", node="test", pid=1)
    bench.rows(
        f"UPDATE assessment_task SET claim_worker = {other}, claim_token = nextval('claim_token_seq')"
        f" WHERE group_index = {group} RETURNING 1"
    )


async def while_under_way(
    bench: Bench, assessor: Assessor, do: Callable[[], Coroutine[Any, Any, None]]
) -> list[Outcome]:
    rank(bench)
    [part] = assessor.by_call(claim(bench, assessor))
    running = asyncio.create_task(assessor.assess_together(part, Lane.REALTIME))
    while not bench.rows("SELECT 1 FROM llm_call WHERE status = 'started'"):
        await asyncio.sleep(0.01)
    await do()
    return await running


async def test_a_task_that_another_worker_got_meanwhile_keeps_the_answer_of_none(sharing: Bench, now: datetime) -> None:
    sharing.fault("slow", amount=10)
    sharing.record(now, groups=3)
    async with sharing.assessor() as assessor:
        outcomes = await while_under_way(sharing, assessor, lambda: steal(sharing, 2))
    assert outcomes == [Outcome.ASSESSED, Outcome.STALE, Outcome.ASSESSED]
    assert sharing.rows("SELECT group_index FROM risk_assessment ORDER BY 1") == [(1,), (3,)]
    finals = [result.results[0].group_index for result in sharing.sent.results if result.stage is Stage.FINAL]
    assert sorted(finals) == [1, 3]
    assert sharing.rows(CALLS) == [("ok", 2, 1)]


async def test_a_task_that_is_gone_before_the_call_does_not_keep_the_others_from_theirs(
    sharing: Bench, now: datetime
) -> None:
    sharing.record(now, groups=3)
    rank(sharing)
    async with sharing.assessor() as assessor:
        [part] = assessor.by_call(claim(sharing, assessor))
        await steal(sharing, 2)
        assert await assessor.assess_together(part, Lane.REALTIME) == [
            Outcome.ASSESSED, Outcome.STALE, Outcome.ASSESSED,
        ]  # fmt: skip
        # no key's slot is left taken by the call that was not made
        assert sum(item.in_flight for item in assessor.pool.snapshot()) == 0
    assert sharing.rows(CALLS) == [("ok", 0, 2)]


async def test_a_cancelled_call_hands_all_its_groups_back(sharing: Bench, now: datetime) -> None:
    sharing.fault("hang")
    sharing.record(now, groups=3)
    async with sharing.assessor() as assessor:
        [part] = assessor.by_call(claim(sharing, assessor))
        running = asyncio.create_task(assessor.assess_together(part, Lane.REALTIME))
        while not sharing.rows("SELECT 1 FROM llm_call WHERE status = 'started'"):
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert sharing.rows(CALLS) == [("cancelled", 2, 1)]
    assert sharing.rows(STATES) == [("pending", 3)]


async def test_a_missing_picture_fails_its_group_alone(sharing: Bench, now: datetime) -> None:
    frame = sharing.record(now, groups=3)
    url = frame.traffic_groups[1].group_image_url
    assert url is not None
    (sharing.store._folder / sharing.store.key(url)).unlink()
    assert sorted(await assess_together(sharing)) == [Outcome.ASSESSED, Outcome.ASSESSED, Outcome.FAILED]
    assert sharing.rows(CALLS) == [("ok", 1, 1)]
    assert sharing.rows("SELECT failure_code, group_index FROM assessment_task WHERE state = 'failed'") == [
        ("image_missing", 2)
    ]


async def test_a_duplicate_takes_its_answer_and_the_others_share(sharing: Bench, now: datetime) -> None:
    assessment = sharing.settings.assessment.model_copy(update={"reuse_duplicates": True, "reuse_overlap": 0.01})
    sharing.settings = sharing.settings.model_copy(update={"assessment": assessment})
    frames = [sharing.record(now - timedelta(seconds=age), groups=3) for age in (2, 1)]
    pixels = np.random.default_rng(1).integers(0, 255, (90, 120, 3), np.uint8)
    roads = [sharing.store.put(f"{n}.png", cv2.imencode(".png", np.roll(pixels, 40 * n, 1))[1].tobytes(), "image/png")
             for n in range(1, 4)]  # fmt: skip
    box, objects = sharing.rows("SELECT group_bbox::text, detected_objects::text FROM assessment_task LIMIT 1")[0]
    sharing.rows(
        f"UPDATE assessment_task SET group_image_url = (ARRAY{roads})[group_index], group_bbox = '{box}',"
        f" detected_objects = '{objects}' RETURNING 1"
    )
    # two of the second frame's groups show something new
    others = [sharing.store.put(f"new{n}.png", cv2.imencode(".png", np.flip(pixels, n))[1].tobytes(), "image/png")
              for n in (0, 1)]  # fmt: skip
    sharing.rows(
        f"UPDATE assessment_task SET group_image_url = (ARRAY{others})[group_index] WHERE group_index < 3"
        f" AND message_id = '{frames[1].message_id}' RETURNING 1"
    )
    rank(sharing)
    async with sharing.assessor() as assessor:
        held = claim(sharing, assessor)
        for frame in frames:
            part = [item for item in held if item.task.request_id == frame.message_id]
            assert await assessor.assess_together(part, Lane.REALTIME) == [Outcome.ASSESSED] * 3
    assert sharing.rows("SELECT cardinality(shared_with) FROM llm_call ORDER BY captured_at") == [(2,), (1,)]
    assert sharing.rows("SELECT group_index, reused_from FROM risk_assessment WHERE reused_from IS NOT NULL") == [
        (3, f"{frames[0].message_id}_group3")
    ]
    require_sound(sharing)


async def test_a_slow_shared_call_is_hedged_by_the_pace_of_calls_of_its_size(sharing: Bench, now: datetime) -> None:
    slow, *others = sharing.key_hashes
    sharing.record(now, groups=3)
    async with sharing.assessor() as assessor:
        endpoint = assessor._caller.endpoints[0]
        for _ in range(FEWEST_LATENCIES):
            endpoint.latencies.add(0.01)  # of one group: no measure here
            endpoint.latencies_of(3).add(0.5)
        sharing.fault("hang", key=slow)
        [part] = assessor.by_call(claim(sharing, assessor))
        held = await assessor.reserve(Lane.REALTIME, tried=others)
        started = asyncio.get_running_loop().time()
        assert await assessor.assess_together(part, Lane.REALTIME, held=held) == [Outcome.ASSESSED] * 3
        assert asyncio.get_running_loop().time() - started >= 0.5
    assert sharing.rows("SELECT status, cardinality(shared_with) FROM llm_call ORDER BY call_number") == [
        ("cancelled", 2), ("ok", 2),
    ]  # fmt: skip
    stages = [(result.task_id, result.stage) for result in sharing.sent.results]
    assert len(stages) == len(set(stages)) == 6


async def test_two_whole_answers_in_the_same_moment_leave_no_call_open(
    bench: Bench, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, both = LlmClient.complete, asyncio.Event()
    answered = 0

    async def in_step(self: LlmClient, *args: Any, **more: Any) -> Reply:
        nonlocal answered
        reply = await complete(self, *args, **more)
        answered += 1
        if answered == 2:
            both.set()
        await both.wait()
        return reply

    monkeypatch.setattr(LlmClient, "complete", in_step)
    bench.record(now)
    async with bench.assessor() as assessor:
        for _ in range(FEWEST_LATENCIES):
            assessor._caller.endpoints[0].latencies.add(0.01)
        [held] = claim(bench, assessor)
        assert await assessor.assess(held, Lane.REALTIME) is Outcome.ASSESSED
    assert dict(bench.rows("SELECT status, count(*) FROM llm_call GROUP BY 1")) == {"ok": 1, "cancelled": 1}


async def test_while_keys_are_short_the_realtime_lane_asks_once_per_frame(
    sharing: Bench, batches: Batches, now: datetime
) -> None:
    assessment = sharing.settings.assessment.model_copy(update={"coalesce_after": 0.05})
    sharing.settings = sharing.settings.model_copy(update={"assessment": assessment})
    frames = [sharing.record(now - timedelta(seconds=second), groups=4) for second in range(3)]
    limited = sharing.settings.keys.model_copy(update={"qps_limit": 2, "secrets": sharing.settings.keys.secrets[:1]})
    sharing.settings = sharing.settings.model_copy(update={"keys": limited})
    offer(batches, *frames)
    await run_scheduler(sharing, batches, STATES, [("assessed", 12)])
    [(calls,)] = sharing.rows("SELECT count(*) FROM llm_call WHERE status = 'ok'")
    assert calls <= 6  # the first of all does not wait, the others go frame by frame
    require_sound(sharing)


async def test_while_keys_are_at_hand_each_group_has_a_call_of_its_own(
    sharing: Bench, batches: Batches, now: datetime
) -> None:
    assessment = sharing.settings.assessment.model_copy(update={"coalesce_after": 20.0})
    sharing.settings = sharing.settings.model_copy(update={"assessment": assessment})
    offer(batches, sharing.record(now, groups=4))
    await run_scheduler(sharing, batches, STATES, [("assessed", 4)])
    assert sharing.rows(CALLS) == [("ok", 0, 4)]


async def test_a_window_run_asks_once_per_frame(sharing: Bench) -> None:
    window = window_of("sim-1", datetime.now(UTC) - timedelta(hours=1), LENGTH)
    sharing.record(window.start, groups=3)
    sharing.record(window.start + timedelta(seconds=10), groups=1)
    async with sharing.assessor() as assessor:
        report = await assess_window(assessor, window, run_id="run-1", settings=sharing.settings.assessment)
    assert (report.assessed, report.calls, report.complete) == (4, 2, True)
    assert sharing.rows(CALLS) == [("ok", 0, 1), ("ok", 2, 1)]


async def test_by_default_no_call_is_shared(bench: Bench, now: datetime) -> None:
    bench.record(now, groups=3)
    assert await assess_together(bench) == [Outcome.ASSESSED] * 3
    assert bench.rows(CALLS) == [("ok", 0, 3)]
    assert {version for (version,) in bench.rows("SELECT prompt_version FROM risk_assessment")} == {"v2"}


async def test_a_call_names_no_task_that_is_not_there(sharing: Bench, now: datetime) -> None:
    sharing.record(now, groups=3)
    await assess_together(sharing)
    for broken, named in (
        ("UPDATE llm_call SET shared_with = shared_with || 'nobody'::text RETURNING 1", "nobody"),
        ("UPDATE llm_call SET shared_with = '{}' RETURNING 1", "does not name it"),
    ):
        sharing.rows(broken)
        with pytest.raises(AssertionError, match=named):
            require_sound(sharing)


def test_a_shared_call_needs_all_its_claims(sharing: Bench, now: datetime) -> None:
    sharing.record(now, groups=2)
    worker = claims.start_worker(sharing.engine, service="test", node="test", pid=1)
    first, second = claims.claim_pending_realtime(
        sharing.engine, worker, captured_after=now - timedelta(minutes=1), limit=2
    )
    claims.release(sharing.engine, [second], lane=Lane.WINDOW, reason="away")
    with pytest.raises(StaleClaimError, match="shares a call"):
        assessments.start_call(
            sharing.engine, first, run="live", lane="realtime", key_hash="k", model="m", prompt_version="v2-frame",
            shared_with=[second],
        )  # fmt: skip
    assert sharing.rows("SELECT count(*) FROM llm_call") == [(0,)]
    assert sharing.rows("SELECT sum(calls) FROM assessment_task") == [(0,)]
