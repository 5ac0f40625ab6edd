"""One task, one answer: reserve a key, write the call, ask, parse, keep. Both lanes use this and nothing else."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

import structlog
from sqlalchemy import Engine

from dangerous_driving.assessment.answer import level_in_stream, parse_answer
from dangerous_driving.assessment.context import CameraContexts
from dangerous_driving.assessment.duplicates import RecentAnswers, Scene, scene_of
from dangerous_driving.assessment.endpoints import Endpoint, Held, usable
from dangerous_driving.assessment.key_pool import KeyPool
from dangerous_driving.assessment.llm import Reply
from dangerous_driving.assessment.prompt import Prompt
from dangerous_driving.assessment.publisher import ResultPublisher
from dangerous_driving.assessment.records import (
    Provenance,
    assessment_record,
    call_outcome,
    cost_of,
    reused_record,
)
from dangerous_driving.assessment.results import PICTURE_FAILURES, failed_result, provisional_result
from dangerous_driving.contracts import (
    LIVE_RUN,
    AssessmentFailure,
    AssessmentMetadata,
    AssessmentTask,
    Lane,
    RiskLevel,
)
from dangerous_driving.errors import (
    AnswerError,
    BudgetSpentError,
    KeyRejectedError,
    LedgerError,
    LlmError,
    NoKeyError,
    ObjectNotFoundError,
    StaleClaimError,
)
from dangerous_driving.ledger import assessments
from dangerous_driving.ledger.assessments import AssessmentRecord, CallOutcome
from dangerous_driving.ledger.claims import Claim, release
from dangerous_driving.objects import ObjectStore
from dangerous_driving.observability.metrics import ANSWERS_REUSED, CALLS_HEDGED, TASKS_ASSESSED, TASKS_FAILED
from dangerous_driving.settings import AssessmentSettings, LlmSettings

log = structlog.get_logger(__name__)

ValueT = TypeVar("ValueT")


#: What a call is told that another one for the same task has overtaken.
LOSER = "a hedged call was faster"
#: s that a hedged call may wait for a key; longer means that quota is not spare.
HEDGE_WAIT_SECONDS = 0.05


@dataclass
class _Once:
    """Whether the level of a task was announced, by whichever of its calls knew it first."""

    done: bool = False


class Outcome(StrEnum):
    """What became of a task."""

    ASSESSED = "assessed"
    FAILED = "failed"
    HANDED_BACK = "handed_back"  # pending again
    STALE = "stale"  # another worker has it


@dataclass(frozen=True)
class Attempt:
    """One request in progress."""

    claim: Claim
    lane: Lane
    held: Held
    call_id: str
    number: int  # 0 for the first


class Assessor:
    """Assesses claimed tasks.

    Args:
        llm: retries, pictures, structured output.
        endpoints: whom to ask, in this order; each with its keys.
        prompt: the prompt version in use.
        contexts: what is known of each camera's place.
        settings: when answers are reused.
        engine: of the ledger.
        store: where the pictures lie.
        publisher: where live results go.
        worker: this process' id in the ledger.
        node: this machine.
        beating: the worker's heartbeat; it ends only by an error.
    """

    RETRY_SECONDS = 1.0  # until the ledger is asked again while it is away

    def __init__(
        self,
        *,
        llm: LlmSettings,
        endpoints: Sequence[Endpoint],
        prompt: Prompt,
        contexts: CameraContexts,
        settings: AssessmentSettings,
        engine: Engine,
        store: ObjectStore,
        publisher: ResultPublisher,
        worker: int,
        node: str,
        beating: asyncio.Task[None] | None = None,
    ) -> None:
        self.engine = engine
        self.publisher = publisher
        self.worker = worker
        self.beating = beating
        self._llm = llm
        self._endpoints = tuple(endpoints)
        self._contexts = contexts
        self._reuses = settings.reuse_duplicates
        self._recent = RecentAnswers(settings)
        self.prompt = prompt
        self._store = store
        self._node = node

    @property
    def pool(self) -> KeyPool:
        """The keys of the endpoint that is asked first."""
        return self._endpoints[0].pool

    async def reserve(self, lane: Lane, *, tried: Collection[str] = (), timeout: float | None = None) -> Held:  # noqa: ASYNC109  # it becomes an error that says why
        """A key of the first endpoint that is in order; of the next one where all its keys are out of use.

        Raises:
            NoKeyError: see `KeyPool.reserve`.
            LedgerError: the pool's storage is away.
        """
        error: NoKeyError | None = None
        for endpoint in usable(self._endpoints, time.monotonic()):
            try:
                return Held(endpoint, await endpoint.pool.reserve(lane, exclude=tried, timeout=timeout))
            except BudgetSpentError:
                raise
            except NoKeyError as found:
                error = error or found
        raise error or NoKeyError("there is no endpoint")

    async def give_back(self, held: Held | None) -> None:
        """The request on this key is not sent after all."""
        if held is not None:
            await held.endpoint.pool.report(held.reservation, "unsent")

    def require_alive(self) -> None:
        """Raise what ended the heartbeat, if it has ended: the claims are gone then."""
        if self.beating is not None and self.beating.done():
            self.beating.result()

    async def assess(self, claim: Claim, lane: Lane, *, held: Held | None = None) -> Outcome:
        """Bring one task to its end: assessed, failed with a cause, or pending again when there is no key.

        Args:
            claim: held by this worker.
            lane: whose share of the quota pays.
            held: a key reserved already; else one is waited for.
        """
        task = claim.task
        with structlog.contextvars.bound_contextvars(task_id=task.task_id, camera_id=task.camera_id):
            try:
                # a copy of its own: the prompt of a task under way stays, whatever is promoted meanwhile
                return await copy.copy(self)._assess(claim, lane, held)  # noqa: SLF001
            except StaleClaimError as error:
                log.warning("claim_is_stale", reason=str(error))
                return Outcome.STALE
            except asyncio.CancelledError:
                await self._once(release, [claim], lane=lane, reason="handed back: the worker stops")
                raise
            except Exception as error:  # a defect on one task ends this task, visibly, not the lane
                log.exception("assessment_broke")
                return await self._fail(claim, lane, "internal", f"{type(error).__name__}: {error}")

    async def _assess(self, claim: Claim, lane: Lane, held: Held | None) -> Outcome:
        try:
            messages, scene = await self._messages(claim.task)
        except asyncio.CancelledError:
            await self.give_back(held)
            raise
        except tuple(PICTURE_FAILURES) as error:
            await self.give_back(held)
            code = next(code for kind, code in PICTURE_FAILURES.items() if isinstance(error, kind))
            return await self._fail(claim, lane, code, str(error))

        like = None if scene is None else self._recent.like(scene)
        if like is not None:
            await self.give_back(held)
            return await self._reuse(claim, lane, like)
        tried: set[str] = set()
        failure: LlmError | None = None
        for number in range(1 + self._llm.max_retries):
            if held is None:
                try:
                    held = await self._reserve(lane, tried)
                except NoKeyError as error:
                    if failure is not None:  # no other key is left to try
                        return await self._fail(claim, lane, failure.code, str(failure), retries=number - 1)
                    return await self._hand_back(claim, Lane.WINDOW, f"no key: {error}")
            call_id = await self._start_call(claim, lane, held)
            attempt = Attempt(claim, lane, held, call_id, number)
            try:
                return await self._conclude(*await self._answer(attempt, messages, tried), scene)
            except LlmError as error:
                held, failure = None, error
                last = number == self._llm.max_retries
                if last or not (error.retriable or isinstance(error, KeyRejectedError)):
                    return await self._fail(claim, lane, error.code, str(error), retries=number)
        raise AssertionError("the last attempt returns")

    async def _reserve(self, lane: Lane, tried: set[str]) -> Held:
        while True:
            try:
                return await self.reserve(lane, tried=tried)
            except LedgerError as error:
                log.warning("key_pool_is_away", reason=str(error))
                await asyncio.sleep(self.RETRY_SECONDS)

    async def _start_call(self, claim: Claim, lane: Lane, held: Held) -> str:
        started: list[str] = []  # also known when this is cancelled just as the row is written

        def start(engine: Engine) -> None:
            started.append(
                assessments.start_call(
                    engine,
                    claim,
                    run=LIVE_RUN,
                    lane=lane.value,
                    key_hash=held.reservation.key_hash,
                    model=held.endpoint.llm.model,
                    prompt_version=self.prompt.version,
                )
            )

        try:
            await self._ledger(start)
        except BaseException:
            await self.give_back(held)  # nothing was sent: the slot is free again
            if started:
                outcome = CallOutcome("cancelled", error="the worker stopped before the request was sent")
                await self._close_call(claim.task, started[0], outcome)
            raise
        return started[0]

    async def _messages(self, task: AssessmentTask) -> tuple[list[dict[str, Any]], Scene | None]:
        """The request, and what duplicates are known by where the camera reuses answers."""
        context = await self._contexts.of(task.camera_id)
        if task.group_image_base64:
            return self.prompt.messages(task, f"data:image/jpeg;base64,{task.group_image_base64}", context), None
        if not task.group_image_url:
            raise ObjectNotFoundError("(the task names no picture)")
        if self._llm.images == "url":
            return self.prompt.messages(task, task.group_image_url, context), None
        key = self._store.key(task.group_image_url)
        reuses = self._reuses if context.reuse_duplicates is None else context.reuse_duplicates

        def render() -> tuple[list[dict[str, Any]], Scene | None]:
            picture = self._store.get(key)
            return self.prompt.messages(task, picture, context), scene_of(task, picture) if reuses else None

        return await asyncio.to_thread(render)

    async def _reuse(self, claim: Claim, lane: Lane, like: AssessmentRecord) -> Outcome:
        """Answer with what was answered to a near-identical group moments ago; its object ids are of another frame."""
        record = reused_record(like, claim.task, lane, self._node)
        await self._ledger(assessments.complete, claim, record, None)
        self.publisher.final(record)
        ANSWERS_REUSED.inc()
        TASKS_ASSESSED.labels(lane.value, record.risk_level).inc()
        return Outcome.ASSESSED

    async def _answer(
        self, attempt: Attempt, messages: list[dict[str, Any]], tried: set[str]
    ) -> tuple[Attempt, Reply, datetime]:
        """The first whole answer: of this attempt or, when it exceeds the running P95 and quota is spare, of a second.

        Args:
            attempt: its row is written.
            messages: of the request.
            tried: takes the keys that were asked in vain.

        Raises:
            LlmError: both failed, the first one's error.
        """
        announced = _Once()
        running = {asyncio.create_task(self._ask(attempt, messages, announced)): attempt}
        failure: LlmError | None = None
        patience = attempt.held.endpoint.latencies.p95 if self._may_hedge(attempt) else None
        try:
            while running:
                done, _ = await asyncio.wait(running, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    patience = None
                    second = await self._hedge(attempt)
                    if second is not None:
                        running[asyncio.create_task(self._ask(second, messages, announced))] = second
                for task in done:
                    ended = running.pop(task)
                    try:
                        return (ended, *task.result())
                    except LlmError as error:
                        tried.add(ended.held.reservation.key_hash)
                        failure = failure or error
                        patience = None
        finally:
            for task in running:
                task.cancel(LOSER if any(not item.done() for item in running) else None)
            if running:
                await asyncio.wait(running)
        raise failure or AssertionError("there was an attempt")

    def _may_hedge(self, attempt: Attempt) -> bool:
        return self._llm.hedge and attempt.lane in {Lane.REALTIME, Lane.INLINE}

    async def _hedge(self, attempt: Attempt) -> Attempt | None:
        endpoint = attempt.held.endpoint
        if endpoint.pool.waiting:
            return None  # quota is not spare
        try:
            reservation = await endpoint.pool.reserve(
                attempt.lane, exclude={attempt.held.reservation.key_hash}, timeout=HEDGE_WAIT_SECONDS
            )
        except (NoKeyError, LedgerError):
            return None
        held = Held(endpoint, reservation)
        CALLS_HEDGED.inc()
        return replace(attempt, held=held, call_id=await self._start_call(attempt.claim, attempt.lane, held))

    async def _ask(self, attempt: Attempt, messages: list[dict[str, Any]], announced: _Once) -> tuple[Reply, datetime]:
        claim, endpoint, reservation = attempt.claim, attempt.held.endpoint, attempt.held.reservation
        started = datetime.now(UTC)

        async def on_text(text: str) -> None:
            if not announced.done and (level := level_in_stream(text)) is not None:
                announced.done = True
                self._announce(attempt, level, started)

        def on_sent() -> None:
            endpoint.pool.sent(reservation)
            endpoint.breaker.sending(time.monotonic(), timeout=endpoint.llm.timeout)

        try:
            reply = await endpoint.client.complete(
                messages,
                reservation.secret,
                on_text,
                on_sent=on_sent,
                response_format=self.prompt.response_format(self._llm.response_format),
            )
        except LlmError as error:
            endpoint.breaker.ended(error, time.monotonic())
            await endpoint.pool.report(reservation, error)
            await self._finish(attempt, CallOutcome(error.code, http_status=error.http_status, error=str(error)))
            raise
        except asyncio.CancelledError as error:
            await endpoint.pool.report(reservation, "cancelled")
            why = "a hedged call was faster" if LOSER in error.args else "the worker stopped"
            await self._close_call(claim.task, attempt.call_id, CallOutcome("cancelled", error=why))
            raise
        except Exception as error:
            # a defect of ours: the request has left, and its row must not look as if it were under way
            await endpoint.pool.report(reservation, "cancelled")
            await self._close_call(claim.task, attempt.call_id, CallOutcome("error", error=repr(error)))
            raise
        endpoint.breaker.ended(None, time.monotonic())
        endpoint.latencies.add(reply.latency)
        await endpoint.pool.report(reservation, cost=cost_of(endpoint.llm, reply), limits=reply.limits)
        return reply, started

    async def _conclude(self, attempt: Attempt, reply: Reply, started: datetime, scene: Scene | None) -> Outcome:
        claim, llm = attempt.claim, attempt.held.endpoint.llm
        try:
            answer = parse_answer(reply.text, {item.object_id for item in claim.task.detected_objects})
        except AnswerError as error:
            await self._finish(attempt, call_outcome(llm, "unparsable", reply, started, error=str(error)))
            return await self._fail(
                claim, attempt.lane, "unparsable", str(error), raw=error.raw, retries=attempt.number
            )
        record = assessment_record(
            claim.task,
            answer,
            reply,
            Provenance(
                lane=attempt.lane,
                prompt_version=self.prompt.version,
                key_hash=attempt.held.reservation.key_hash,
                call_id=attempt.call_id,
                retry_count=attempt.number,
                node=self._node,
            ),
            llm,
        )
        await self._ledger(assessments.complete, claim, record, call_outcome(llm, "ok", reply, started))
        self.publisher.final(record)
        if scene is not None:
            self._recent.add(scene, record)
        TASKS_ASSESSED.labels(attempt.lane.value, answer.risk_level.value).inc()
        return Outcome.ASSESSED

    def _announce(self, attempt: Attempt, level: RiskLevel, started: datetime) -> None:
        now = datetime.now(UTC)
        metadata = self._metadata(attempt.lane, attempt.number).model_copy(
            update={
                "api_key": attempt.held.reservation.key_hash,
                "llm_model": attempt.held.endpoint.llm.model,
                "llm_latency": (now - started).total_seconds(),
            }
        )
        # it goes into the producer's buffer and does not wait
        self.publisher.provisional(provisional_result(attempt.claim.task, level, metadata, at=now))

    async def _finish(self, attempt: Attempt, outcome: CallOutcome) -> None:
        await self._ledger(assessments.finish_call, attempt.claim.task.timestamp, attempt.call_id, outcome)

    async def _fail(
        self, claim: Claim, lane: Lane, code: str, message: str, *, raw: str | None = None, retries: int = 0
    ) -> Outcome:
        if not await self._ledger(assessments.fail, claim, code=code, message=message, raw=raw):
            return Outcome.STALE
        log.warning("task_failed", code=code, reason=message, lane=lane.value)
        TASKS_FAILED.labels(lane.value, code).inc()
        result = failed_result(
            claim.task,
            AssessmentFailure(code=code, message=message),
            self._metadata(lane, retries),
            at=datetime.now(UTC),
        )
        await asyncio.to_thread(self.publisher.failed, result)
        return Outcome.FAILED

    async def _hand_back(self, claim: Claim, lane: Lane, reason: str) -> Outcome:
        await self._ledger(release, [claim], lane=lane, reason=reason)
        return Outcome.HANDED_BACK

    async def _ledger(self, work: Callable[..., ValueT], *args: Any, **kwargs: Any) -> ValueT:
        # an answer that was paid for must not be lost to a database that is away for a moment; when it stays away,
        # the heartbeat stops too, and the claim goes to another worker
        while True:
            writing = asyncio.ensure_future(asyncio.to_thread(work, self.engine, *args, **kwargs))
            try:
                return await asyncio.shield(writing)
            except asyncio.CancelledError:
                # the thread goes on anyway: what follows must find its statement done, not under way
                await asyncio.wait([writing])
                raise
            except LedgerError as error:
                if not error.retriable:
                    raise
                log.warning("ledger_is_away", reason=str(error))
                await asyncio.sleep(self.RETRY_SECONDS)

    async def _close_call(self, task: AssessmentTask, call_id: str, outcome: CallOutcome) -> None:
        await self._once(assessments.finish_call, task.timestamp, call_id, outcome)

    async def _once(self, work: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        # on the way out there is no time to wait for a database that is away: the next sweep does the rest
        try:
            await asyncio.shield(asyncio.to_thread(work, self.engine, *args, **kwargs))
        except LedgerError as error:
            log.warning("left_to_the_sweep", reason=str(error))

    def _metadata(self, lane: Lane, retries: int) -> AssessmentMetadata:
        return AssessmentMetadata(
            llm_model=self._llm.model,
            retry_count=retries,
            processing_node=self._node,
            lane=lane,
            run=LIVE_RUN,
            prompt_version=self.prompt.version,
        )
