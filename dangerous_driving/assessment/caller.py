"""One question's way to an endpoint: a key, the call's row before it leaves, the level as it streams, a hedged second call."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import structlog
from sqlalchemy import Engine
from structlog.contextvars import bind_contextvars

from dangerous_driving.assessment.endpoints import Endpoint, Held, Latencies, usable
from dangerous_driving.assessment.llm import Reply
from dangerous_driving.assessment.patient_ledger import PatientLedger
from dangerous_driving.assessment.publisher import ResultPublisher
from dangerous_driving.assessment.question import Question
from dangerous_driving.assessment.records import call_outcome, cost_of
from dangerous_driving.assessment.results import provisional_result
from dangerous_driving.contracts import LIVE_RUN, AssessmentMetadata, Lane, RiskLevel
from dangerous_driving.errors import BudgetSpentError, KeyRejectedError, LedgerError, LlmError, NoKeyError
from dangerous_driving.ledger import assessments
from dangerous_driving.ledger.assessments import CallOutcome
from dangerous_driving.ledger.claims import Claim
from dangerous_driving.observability.metrics import CALLS_HEDGED, CALLS_SHARED
from dangerous_driving.observability.stages import Stage, task_reached
from dangerous_driving.settings import LlmSettings

log = structlog.get_logger(__name__)

#: Why a call was cut off: another one for the same question has overtaken it, or nobody waits for either any more.
LOSER, STOPPED = "a hedged call was faster", "the worker stopped"
#: s that a hedged call may wait for a key; longer means that quota is not spare.
HEDGE_WAIT_SECONDS = 0.05
#: Where a value of an answer may end: only then a look at what has streamed can find another group's level.
_BOUNDARY = re.compile(r"[,}\]\n\"'，]")


@dataclass(frozen=True)
class Attempt:
    """One request in progress."""

    question: Question
    lane: Lane
    held: Held
    call_id: str
    number: int  # 0 for the first


@dataclass(frozen=True)
class Answered:
    """A whole answer. ``started``: when its request left."""

    attempt: Attempt
    reply: Reply
    started: datetime


@dataclass(frozen=True)
class Unanswered:
    """There is none: the last error, or no key at all; ``retries`` that were made before."""

    error: LlmError | NoKeyError
    retries: int


@dataclass
class _Announced:
    """The groups whose level was told, by whichever call of their question knew it first."""

    groups: set[int] = field(default_factory=set)


class Caller:
    """Asks questions.

    Args:
        llm: retries, hedging, structured output.
        endpoints: whom to ask, in this order; each with its keys.
        ledger: where each call is a row.
        publisher: where streamed levels go.
        node: this machine.
    """

    def __init__(
        self,
        *,
        llm: LlmSettings,
        endpoints: Sequence[Endpoint],
        ledger: PatientLedger,
        publisher: ResultPublisher,
        node: str,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self.publisher = publisher
        self._llm = llm
        self._ledger = ledger
        self._node = node

    async def reserve(self, lane: Lane, *, tried: Collection[str] = (), timeout: float | None = None) -> Held:  # noqa: ASYNC109  # it becomes an error that says why
        """A key of the first endpoint that is in order; of the next one where all its keys are out of use.

        Raises:
            NoKeyError: see `KeyPool.reserve`.
            LedgerError: the pool's storage is away.
        """
        error: NoKeyError | None = None
        for endpoint in usable(self.endpoints, time.monotonic()):
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

    async def ask(self, question: Question, lane: Lane, held: Held | None) -> Answered | Unanswered:
        """Ask until there is a whole answer or no further attempt helps.

        Args:
            question: whose claims this worker holds.
            lane: whose share of the quota pays.
            held: a key reserved already; else one is waited for.

        Raises:
            StaleClaimError: a task was handed to another worker; nothing is under way.
        """
        tried: set[str] = set()
        failure: LlmError | None = None
        for number in range(1 + self._llm.max_retries):
            if held is None:
                try:
                    held = await self._reserve_patiently(lane, tried)
                except NoKeyError as error:
                    # after a failure no other key is left to try
                    return Unanswered(failure or error, number - 1 if failure else 0)
            attempt = Attempt(question, lane, held, await self._start_call(question, lane, held), number)
            try:
                return await self._answer(attempt, tried)
            except LlmError as error:
                held, failure = None, error
                last = number == self._llm.max_retries
                if last or not (error.retriable or isinstance(error, KeyRejectedError)):
                    return Unanswered(error, number)
        raise AssertionError("the last attempt returns")

    async def finish(self, attempt: Attempt, outcome: CallOutcome) -> None:
        """Complete the row of a call whose answer is not kept with it."""
        await self._ledger.do(assessments.finish_call, _lead(attempt).task.timestamp, attempt.call_id, outcome)

    def metadata(self, lane: Lane, retries: int, prompt_version: str) -> AssessmentMetadata:
        """Of a result that is no answer."""
        return AssessmentMetadata(
            llm_model=self._llm.model,
            retry_count=retries,
            processing_node=self._node,
            lane=lane,
            run=LIVE_RUN,
            prompt_version=prompt_version,
        )

    async def _reserve_patiently(self, lane: Lane, tried: set[str]) -> Held:
        while True:
            try:
                return await self.reserve(lane, tried=tried)
            except LedgerError as error:
                log.warning("key_pool_is_away", reason=str(error))
                await asyncio.sleep(self._ledger.RETRY_SECONDS)

    async def _start_call(self, question: Question, lane: Lane, held: Held) -> str:
        started: list[str] = []  # also known when this is cancelled just as the row is written
        first, *others = question.claims

        def start(engine: Engine) -> None:
            started.append(
                assessments.start_call(
                    engine,
                    first,
                    run=LIVE_RUN,
                    lane=lane.value,
                    key_hash=held.reservation.key_hash,
                    model=held.endpoint.llm.model,
                    prompt_version=question.prompt.version,
                    shared_with=others,
                )
            )

        try:
            await self._ledger.do(start)
        except BaseException:
            await self.give_back(held)  # nothing was sent: the slot is free again
            if started:
                outcome = CallOutcome("cancelled", error="the worker stopped before the request was sent")
                await self._close_call(first, started[0], outcome)
            raise
        if others:
            CALLS_SHARED.labels(lane.value).inc(len(others))
        return started[0]

    async def _answer(self, attempt: Attempt, tried: set[str]) -> Answered:
        """The first whole answer: of this attempt or, when it exceeds the running P95 and quota is spare, of a second.

        Args:
            attempt: its row is written.
            tried: takes the keys that were asked in vain.

        Raises:
            LlmError: both failed, the first one's error.
        """
        if attempt.number == 0:
            for claim in attempt.question.claims:
                task_reached(Stage.CALLED, claim.task, attempt.lane)
        announced = _Announced()
        running = {asyncio.create_task(self._send(attempt, announced)): attempt}
        failure: LlmError | None = None
        cut_off = STOPPED
        patience = self._latencies(attempt).p95 if self._may_hedge(attempt) else None
        try:
            while running:
                done, _ = await asyncio.wait(running, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    patience = None
                    second = await self._hedge(attempt)
                    if second is not None:
                        running[asyncio.create_task(self._send(second, announced))] = second
                for task in done:
                    ended = running.pop(task)
                    try:
                        reply, started = task.result()
                    except LlmError as error:
                        tried.add(ended.held.reservation.key_hash)
                        failure = failure or error
                        patience = None
                    else:
                        cut_off = LOSER
                        return Answered(ended, reply, started)
        finally:
            await self._cut_off(running, cut_off)
        raise failure or AssertionError("there was an attempt")

    async def _cut_off(self, running: Mapping[asyncio.Task[tuple[Reply, datetime]], Attempt], why: str) -> None:
        for task in running:
            task.cancel(why)
        if running:
            await asyncio.wait(running)
        for task, attempt in running.items():
            # one that came to a whole answer in the same moment is paid for, and not used
            if not task.cancelled() and task.exception() is None:
                reply, started = task.result()
                outcome = call_outcome(attempt.held.endpoint.llm, "cancelled", reply, started, error=why)
                await self._close_call(_lead(attempt), attempt.call_id, outcome)

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
        return replace(attempt, held=held, call_id=await self._start_call(attempt.question, attempt.lane, held))

    async def _send(self, attempt: Attempt, announced: _Announced) -> tuple[Reply, datetime]:
        question, endpoint, reservation = attempt.question, attempt.held.endpoint, attempt.held.reservation
        started, looked_at = datetime.now(UTC), 0
        # for the log lines of this call alone: it is a task of the event loop of its own
        bind_contextvars(call_id=attempt.call_id, request_id=_lead(attempt).task.request_id, lane=attempt.lane.value)

        async def on_text(text: str) -> None:
            nonlocal looked_at
            if looked_at >= question.level_within or len(announced.groups) == len(question.claims):
                return
            if question.shared and not _BOUNDARY.search(text, looked_at):
                return
            looked_at = len(text)
            for index, level in question.levels(text).items():
                if index not in announced.groups:
                    announced.groups.add(index)
                    self._announce(attempt, index, level, started)

        def on_sent() -> None:
            endpoint.pool.sent(reservation)
            endpoint.breaker.sending(time.monotonic(), timeout=endpoint.llm.timeout)

        try:
            reply = await endpoint.client.complete(
                question.messages,
                reservation.secret,
                on_text,
                on_sent=on_sent,
                response_format=question.prompt.response_format(self._llm.response_format),
                answers=len(question.claims),
            )
        except LlmError as error:
            endpoint.breaker.ended(error, time.monotonic())
            await endpoint.pool.report(reservation, error)
            await self.finish(attempt, CallOutcome(error.code, http_status=error.http_status, error=str(error)))
            raise
        except asyncio.CancelledError as error:
            await endpoint.pool.report(reservation, "cancelled")
            why = LOSER if LOSER in error.args else STOPPED
            await self._close_call(_lead(attempt), attempt.call_id, CallOutcome("cancelled", error=why))
            raise
        except Exception as error:
            # a defect of ours: the request has left, and its row must not look as if it were under way
            await endpoint.pool.report(reservation, "cancelled")
            await self._close_call(_lead(attempt), attempt.call_id, CallOutcome("error", error=repr(error)))
            raise
        endpoint.breaker.ended(None, time.monotonic())
        self._latencies(attempt).add(reply.latency)
        await endpoint.pool.report(reservation, cost=cost_of(endpoint.llm, reply), limits=reply.limits)
        return reply, started

    def _latencies(self, attempt: Attempt) -> Latencies:
        return attempt.held.endpoint.latencies_of(len(attempt.question.claims))

    def _announce(self, attempt: Attempt, group_index: int, level: RiskLevel, started: datetime) -> None:
        now = datetime.now(UTC)
        [task] = [claim.task for claim in attempt.question.claims if claim.task.group_index == group_index]
        task_reached(Stage.LEVEL, task, attempt.lane, since=started)
        metadata = self.metadata(attempt.lane, attempt.number, attempt.question.prompt.version).model_copy(
            update={
                "api_key": attempt.held.reservation.key_hash,
                "llm_model": attempt.held.endpoint.llm.model,
                "llm_latency": (now - started).total_seconds(),
            }
        )
        self.publisher.provisional(provisional_result(task, level, metadata, at=now))

    async def _close_call(self, claim: Claim, call_id: str, outcome: CallOutcome) -> None:
        await self._ledger.do_once(assessments.finish_call, claim.task.timestamp, call_id, outcome)


def _lead(attempt: Attempt) -> Claim:
    return attempt.question.claims[0]
