"""One task, one answer: reserve a key, write the call, ask, parse, keep. Both lanes use this and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

import structlog
from sqlalchemy import Engine

from dangerous_driving.assessment.answer import ParsedAnswer, level_in_stream, parse_answer
from dangerous_driving.assessment.key_pool import KeyPool, Reservation
from dangerous_driving.assessment.llm import LlmClient, Reply
from dangerous_driving.assessment.prompt import Prompt
from dangerous_driving.assessment.publisher import ResultPublisher
from dangerous_driving.assessment.results import failed_result, provisional_result
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
    ContractError,
    DangerousDrivingError,
    KeyRejectedError,
    LedgerError,
    LlmError,
    NoKeyError,
    ObjectNotFoundError,
    ObjectStoreError,
    PictureError,
    StaleClaimError,
)
from dangerous_driving.ledger import assessments
from dangerous_driving.ledger.assessments import AssessmentRecord, CallOutcome
from dangerous_driving.ledger.claims import Claim, release
from dangerous_driving.objects import ObjectStore
from dangerous_driving.observability.metrics import TASKS_ASSESSED, TASKS_FAILED
from dangerous_driving.settings import LlmSettings

log = structlog.get_logger(__name__)

ValueT = TypeVar("ValueT")


#: Why a task's picture cannot be had, most special first, and the cause that its failure gets.
PICTURE_FAILURES: dict[type[DangerousDrivingError], str] = {
    ObjectNotFoundError: "image_missing",
    ObjectStoreError: "object_store",
    ContractError: "image_address",  # not one of this store
    PictureError: "image_unreadable",
}


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
    reservation: Reservation
    call_id: str
    number: int  # 0 for the first


class Assessor:
    """Assesses claimed tasks.

    Args:
        llm: model, prices, retries.
        client: of the endpoint.
        prompt: the prompt version in use.
        pool: gives a key for each request.
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
        client: LlmClient,
        prompt: Prompt,
        pool: KeyPool,
        engine: Engine,
        store: ObjectStore,
        publisher: ResultPublisher,
        worker: int,
        node: str,
        beating: asyncio.Task[None] | None = None,
    ) -> None:
        self.engine = engine
        self.pool = pool
        self.publisher = publisher
        self.worker = worker
        self.beating = beating
        self._llm = llm
        self._client = client
        self._prompt = prompt
        self._store = store
        self._node = node

    def require_alive(self) -> None:
        """Raise what ended the heartbeat, if it has ended: the claims are gone then."""
        if self.beating is not None and self.beating.done():
            self.beating.result()

    async def assess(self, claim: Claim, lane: Lane, *, reservation: Reservation | None = None) -> Outcome:
        """Bring one task to its end: assessed, failed with a cause, or pending again when there is no key.

        Args:
            claim: held by this worker.
            lane: whose share of the quota pays.
            reservation: a key reserved already; else one is waited for.
        """
        task = claim.task
        with structlog.contextvars.bound_contextvars(task_id=task.task_id, camera_id=task.camera_id):
            try:
                return await self._assess(claim, lane, reservation)
            except StaleClaimError as error:
                log.warning("claim_is_stale", reason=str(error))
                return Outcome.STALE
            except asyncio.CancelledError:
                await self._once(release, [claim], lane=lane, reason="handed back: the worker stops")
                raise
            except Exception as error:  # a defect on one task ends this task, visibly, not the lane
                log.exception("assessment_broke")
                return await self._fail(claim, lane, "internal", f"{type(error).__name__}: {error}")

    async def _assess(self, claim: Claim, lane: Lane, reservation: Reservation | None) -> Outcome:
        try:
            messages = await self._messages(claim.task)
        except asyncio.CancelledError:
            await self._give_back(reservation)
            raise
        except tuple(PICTURE_FAILURES) as error:
            await self._give_back(reservation)
            code = next(code for kind, code in PICTURE_FAILURES.items() if isinstance(error, kind))
            return await self._fail(claim, lane, code, str(error))

        tried: set[str] = set()
        failure: LlmError | None = None
        for number in range(1 + self._llm.max_retries):
            if reservation is None:
                try:
                    reservation = await self._reserve(lane, tried)
                except NoKeyError as error:
                    if failure is not None:  # no other key is left to try
                        return await self._fail(claim, lane, failure.code, str(failure), retries=number - 1)
                    return await self._hand_back(claim, Lane.WINDOW, f"no key: {error}")
            call_id = await self._start_call(claim, lane, reservation)
            try:
                return await self._ask(Attempt(claim, lane, reservation, call_id, number), messages)
            except LlmError as error:
                tried.add(reservation.key_hash)
                reservation, failure = None, error
                last = number == self._llm.max_retries
                if last or not (error.retriable or isinstance(error, KeyRejectedError)):
                    return await self._fail(claim, lane, error.code, str(error), retries=number)
        raise AssertionError("the last attempt returns")

    async def _reserve(self, lane: Lane, tried: set[str]) -> Reservation:
        while True:
            try:
                return await self.pool.reserve(lane, exclude=tried)
            except LedgerError as error:
                log.warning("key_pool_is_away", reason=str(error))
                await asyncio.sleep(self.RETRY_SECONDS)

    async def _start_call(self, claim: Claim, lane: Lane, reservation: Reservation) -> str:
        started: list[str] = []  # also known when this is cancelled just as the row is written

        def start(engine: Engine) -> None:
            started.append(
                assessments.start_call(
                    engine,
                    claim,
                    run=LIVE_RUN,
                    lane=lane.value,
                    key_hash=reservation.key_hash,
                    model=self._llm.model,
                    prompt_version=self._prompt.version,
                )
            )

        try:
            await self._ledger(start)
        except BaseException:
            await self._give_back(reservation)  # nothing was sent: the slot is free again
            if started:
                outcome = CallOutcome("cancelled", error="the worker stopped before the request was sent")
                await self._close_call(claim.task, started[0], outcome)
            raise
        return started[0]

    async def _give_back(self, reservation: Reservation | None) -> None:
        if reservation is not None:
            await self.pool.report(reservation, "unsent")

    async def _messages(self, task: AssessmentTask) -> list[dict[str, Any]]:
        if task.group_image_base64:
            return self._prompt.messages(task, f"data:image/jpeg;base64,{task.group_image_base64}")
        if not task.group_image_url:
            raise ObjectNotFoundError("(the task names no picture)")
        if self._llm.images == "url":
            return self._prompt.messages(task, task.group_image_url)
        key = self._store.key(task.group_image_url)
        picture = await asyncio.to_thread(self._store.get, key)
        return await asyncio.to_thread(self._prompt.messages, task, picture)

    async def _ask(self, attempt: Attempt, messages: list[dict[str, Any]]) -> Outcome:
        claim, reservation = attempt.claim, attempt.reservation
        started = datetime.now(UTC)
        announced = False

        async def on_text(text: str) -> None:
            nonlocal announced
            if not announced and (level := level_in_stream(text)) is not None:
                announced = True
                await self._announce(attempt, level, started)

        try:
            reply = await self._client.complete(messages, reservation.secret, on_text)
        except LlmError as error:
            await self.pool.report(reservation, error)
            await self._finish(attempt, CallOutcome(error.code, http_status=error.http_status, error=str(error)))
            raise
        except asyncio.CancelledError:
            await self.pool.report(reservation, "cancelled")
            await self._close_call(claim.task, attempt.call_id, CallOutcome("cancelled", error="the worker stopped"))
            raise
        except Exception as error:
            # a defect of ours: the request has left, and its row must not look as if it were under way
            await self.pool.report(reservation, "cancelled")
            await self._close_call(claim.task, attempt.call_id, CallOutcome("error", error=repr(error)))
            raise
        await self.pool.report(reservation)
        try:
            answer = parse_answer(reply.text, {item.object_id for item in claim.task.detected_objects})
        except AnswerError as error:
            await self._finish(attempt, self._outcome("unparsable", reply, started, error=str(error)))
            return await self._fail(
                claim, attempt.lane, "unparsable", str(error), raw=error.raw, retries=attempt.number
            )
        record = self._record(attempt, answer, reply)
        await self._ledger(assessments.complete, claim, record, self._outcome("ok", reply, started))
        self.publisher.final(record)
        TASKS_ASSESSED.labels(attempt.lane.value, answer.risk_level.value).inc()
        return Outcome.ASSESSED

    async def _announce(self, attempt: Attempt, level: RiskLevel, started: datetime) -> None:
        now = datetime.now(UTC)
        metadata = self._metadata(attempt.lane, attempt.number).model_copy(
            update={"api_key": attempt.reservation.key_hash, "llm_latency": (now - started).total_seconds()}
        )
        result = provisional_result(attempt.claim.task, level, metadata, at=now)
        await asyncio.to_thread(self.publisher.provisional, result)

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
            prompt_version=self._prompt.version,
        )

    def _outcome(self, status: str, reply: Reply, started: datetime, *, error: str | None = None) -> CallOutcome:
        first = reply.first_token_latency
        return CallOutcome(
            status,
            http_status=200,
            first_token_at=None if first is None else started + timedelta(seconds=first),
            input_tokens=reply.input_tokens,
            output_tokens=reply.output_tokens,
            cost=self._cost(reply),
            error=error,
        )

    def _cost(self, reply: Reply) -> float:
        spent = reply.input_tokens * self._llm.price_input + reply.output_tokens * self._llm.price_output
        return spent / 1_000_000  # prices are per million tokens

    def _record(self, attempt: Attempt, answer: ParsedAnswer, reply: Reply) -> AssessmentRecord:
        task = attempt.claim.task
        return AssessmentRecord(
            captured_at=task.timestamp,
            task_id=task.task_id,
            run=LIVE_RUN,
            message_id=task.request_id,
            camera_id=task.camera_id,
            group_index=task.group_index,
            group_bbox=list(task.group_metadata.bbox),
            risk_level=answer.risk_level.value,
            confidence=answer.confidence,
            risk_types=list(answer.risk_types),
            description=answer.description,
            trigger_object_ids=list(answer.trigger_object_ids),
            danger_object_count=answer.danger_object_count,
            lane=attempt.lane.value,
            prompt_version=self._prompt.version,
            model=reply.model,
            key_hash=attempt.reservation.key_hash,
            call_id=attempt.call_id,
            retry_count=attempt.number,
            first_token_latency=reply.first_token_latency,
            latency=reply.latency,
            input_tokens=reply.input_tokens,
            output_tokens=reply.output_tokens,
            cost=self._cost(reply),
            reused_from=None,
            raw_answer=reply.text,
            node=self._node,
            assessed_at=datetime.now(UTC),
        )
