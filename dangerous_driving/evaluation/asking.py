"""Asks a prompt and model about the cases of a set, from the key pool's evaluation lane.

Every request is a row of ``llm_call`` before it leaves, every answer or cause of failure a row of ``evaluation_result``.
A run that is killed, or that the day's budget stops, goes on where it was when it is started again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import Engine

from dangerous_driving.assessment.answer import parse_answer
from dangerous_driving.assessment.context import CameraContexts
from dangerous_driving.assessment.key_pool import KeyPool, Reservation
from dangerous_driving.assessment.llm import LlmClient, Reply
from dangerous_driving.assessment.opening import close_endpoints, open_endpoints
from dangerous_driving.assessment.prompt import Prompt, load_prompt
from dangerous_driving.assessment.records import call_outcome, cost_of
from dangerous_driving.assessment.worker import living, register
from dangerous_driving.contracts import Lane
from dangerous_driving.errors import (
    AnswerError,
    ConfigError,
    KeyRejectedError,
    LlmError,
    LlmRequestError,
    NoKeyError,
    ObjectNotFoundError,
    PictureError,
)
from dangerous_driving.evaluation.answers import ENDPOINT_FAULTS, Answer
from dangerous_driving.evaluation.cases import Case, SetCase
from dangerous_driving.ledger import evaluation_runs as ledger
from dangerous_driving.ledger.assessments import CallOutcome, finish_call
from dangerous_driving.ledger.database import open_engine
from dangerous_driving.ledger.evaluation_runs import RunKey
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.objects import ObjectStore
from dangerous_driving.settings import Settings

log = structlog.get_logger(__name__)

#: Told how many answers there are, and how many are wanted.
OnProgress = Callable[[int, int], None]
#: Answers between two tellings in the log.
TELL_EVERY = 100
#: s; pauses before cases are asked again that the endpoint failed do not grow beyond it.
LONGEST_PAUSE = 120.0
#: Failures in a row after which it is the endpoint and not the prompt, and the run waits for a better time.
GIVEN_UP_AFTER = 50


@dataclass(frozen=True)
class AskingReport:
    """What a run did. ``stopped``: why it ended before every case was settled, None if all are."""

    key: RunKey
    wanted: int
    settled: int
    asked: int
    stopped: str | None = None


def run_key(prompt: Prompt, model: str, set_version: int, at: datetime) -> RunKey:
    """The run of this prompt and model over this set on this day (UTC)."""
    name = f"evaluation:{prompt.version}:{model}:set{set_version}:{at:%Y%m%d}"
    return RunKey(name, prompt.version, prompt.digest, model, set_version)


def asks_of(cases: Sequence[SetCase], *, stability_share: float) -> list[tuple[Case, int]]:
    """Which case is asked how often: all once, and a share of them, chosen by their ids, once more."""
    twice = [item.case for item in cases if _draw(item.case.case_id) < stability_share]
    return [*((item.case, 0) for item in cases), *((case, 1) for case in twice)]


def _draw(case_id: str) -> float:
    return int.from_bytes(hashlib.sha256(f"again:{case_id}".encode()).digest()[:8]) / 2**64


async def evaluate(
    settings: Settings,
    cases: Sequence[SetCase],
    *,
    prompt_version: str,
    model: str,
    set_version: int,
    engine: Engine,
    store: ObjectStore,
    pool: KeyPool,
    at: datetime | None = None,
    on_progress: OnProgress = lambda done, wanted: None,
) -> AskingReport:
    """Ask about every case that is not settled.

    Args:
        settings: the whole tree.
        cases: of the set.
        prompt_version: to be evaluated.
        model: on the configured endpoint.
        set_version: of the set.
        engine: of the ledger.
        store: where the cases' pictures lie.
        pool: of API keys; the caller closes it.
        at: the run's day; default: today.
        on_progress: told after each answer.

    Raises:
        ConfigError: the prompt is unknown, unusable, or was changed since it was evaluated.
    """
    # one model and no other: an answer of a fallback would be counted for a model that was never asked
    llm = settings.llm.model_copy(update={"model": model, "prompt_version": prompt_version, "fallbacks": ()})
    settings = settings.model_copy(update={"llm": llm})
    prompt = load_prompt(prompt_version, folder=llm.prompt_folder, longest_side=llm.image_longest_side)
    now = at or datetime.now(UTC)
    key = run_key(prompt, model, set_version, now)
    reuse_since = now - timedelta(days=settings.evaluation.reuse_days)
    await asyncio.to_thread(ledger.open_run, engine, key, reuse_since=reuse_since)
    wanted = asks_of(cases, stability_share=settings.evaluation.stability_share)
    worker = await asyncio.to_thread(register, engine, service="evaluation", node=settings.node)
    own = open_engine(settings.database.model_copy(update={"pool_size": 1}), application="heartbeat evaluation")
    endpoints = open_endpoints(settings, pool, engine)
    try:
        await endpoints[0].client.warm_up()
        async with living(own, worker, settings.assessment) as beating:
            desk = _Desk(settings, key, prompt, engine, store, pool, endpoints[0].client, worker, beating)
            return await desk.ask_all(wanted, on_progress)
    finally:
        await close_endpoints(endpoints, pool)
        own.dispose()


class _Desk:
    """Asks for one run."""

    def __init__(
        self,
        settings: Settings,
        key: RunKey,
        prompt: Prompt,
        engine: Engine,
        store: ObjectStore,
        pool: KeyPool,
        client: LlmClient,
        worker: int,
        beating: asyncio.Task[None],
    ) -> None:
        self._settings = settings
        self._key = key
        self._prompt = prompt
        self._engine = engine
        self._store = store
        self._pool = pool
        self._client = client
        self._worker = worker
        self._beating = beating
        self._partitions = Partitions()
        self._contexts = CameraContexts(settings.camera, engine)
        self._slots = asyncio.Semaphore(settings.evaluation.max_in_flight)
        self._stopped: str | None = None
        self._refused: ConfigError | None = None
        self._faults: Counter[tuple[str, int]] = Counter()  # how often the endpoint failed a case and ask
        self._in_vain = 0  # requests without an answer since the last one with
        self._asked = 0
        self._answered = 0

    async def ask_all(self, wanted: Sequence[tuple[Case, int]], on_progress: OnProgress) -> AskingReport:
        """Ask until every ask is settled, or nothing more can be asked now."""
        attempts, faults = self._settings.evaluation.max_attempts, 0
        while True:
            settled = await asyncio.to_thread(ledger.settled, self._engine, self._key.run, max_attempts=attempts)
            settled |= {asked for asked, count in self._faults.items() if count >= attempts}
            left = [(case, ask) for case, ask in wanted if (case.case_id, ask) not in settled]
            done = len(wanted) - len(left)
            on_progress(done, len(wanted))
            if not left or self._stopped:
                return AskingReport(self._key, len(wanted), done, self._asked, self._stopped if left else None)
            if self._faults.total() > faults:
                await asyncio.sleep(self._pause())
            faults = self._faults.total()
            progress = _Progress(done, len(wanted), on_progress)
            try:
                async with asyncio.TaskGroup() as group:
                    for case, ask in left:
                        await self._slots.acquire()
                        if self._stopped or self._refused:
                            self._slots.release()
                            break
                        group.create_task(self._ask(case, ask, progress))
            except BaseExceptionGroup as errors:
                raise _first(errors) from errors
            if self._refused:
                raise self._refused
            if self._beating.done():
                self._beating.result()

    def _pause(self) -> float:
        """How long (s) until what the endpoint failed is asked again: longer after each time, since it may need to recover."""
        return min(self._settings.evaluation.retry_pause * 2.0 ** (max(self._faults.values()) - 1), LONGEST_PAUSE)

    async def _ask(self, case: Case, ask: int, progress: _Progress) -> None:
        try:
            context = await self._contexts.of(case.task.camera_id)
            try:
                messages = await asyncio.to_thread(
                    lambda: self._prompt.messages(case.task, self._store.get(case.picture_key), context)
                )
            except (ObjectNotFoundError, PictureError) as error:
                failed = Answer(None, failure_code="no_picture", failure_message=str(error))
                await asyncio.to_thread(ledger.keep, self._engine, self._key.run, case.case_id, ask, failed)
                return
            try:
                reservation = await self._pool.reserve(Lane.EVALUATION)
            except NoKeyError as error:  # no key at all, or the lane's budget of the day is spent
                self._stopped = f"{error}; start it again later, it goes on where it is"
                return
            if await self._call(case, ask, messages, reservation):
                progress.one_more()
        finally:
            self._slots.release()

    async def _call(self, case: Case, ask: int, messages: list[dict[str, Any]], reservation: Reservation) -> bool:
        """One request, its end kept; False where its key was at fault, which says nothing of the prompt: it is asked again."""
        llm = self._settings.llm
        try:
            row = await asyncio.to_thread(
                ledger.start_call,
                self._engine,
                self._partitions,
                self._key,
                case_id=case.case_id,
                ask=ask,
                camera_id=case.task.camera_id,
                worker=self._worker,
                key_hash=reservation.key_hash,
                now=datetime.now(UTC),
            )
        except BaseException:
            await self._pool.report(reservation, "unsent")
            raise
        self._asked += 1
        started = datetime.now(UTC)
        try:
            reply = await self._client.complete(
                messages,
                reservation.secret,
                on_sent=lambda: self._pool.sent(reservation),
                response_format=self._prompt.response_format(llm.response_format),
            )
        except LlmError as error:
            await self._pool.report(reservation, error)
            outcome = CallOutcome(error.code, http_status=error.http_status, error=str(error))
            answer = self._failed(error)
            if error.code in ENDPOINT_FAULTS:
                self._faults[case.case_id, ask] += 1
            if answer is None:
                await self._end(row, outcome)
                return False
            await self._keep(case, ask, answer, row, outcome)
            return True
        except BaseException:
            await self._pool.report(reservation, "cancelled")
            await asyncio.shield(self._end(row, CallOutcome("cancelled", error="the evaluation stops")))
            raise
        await self._pool.report(reservation, cost=cost_of(llm, reply), limits=reply.limits)
        self._answered += 1
        self._in_vain = 0
        answer, outcome = self._read(case, reply, started)
        await self._keep(case, ask, answer, row, outcome)
        return True

    def _read(self, case: Case, reply: Reply, started: datetime) -> tuple[Answer, CallOutcome]:
        llm = self._settings.llm
        measured = Answer(
            None,
            raw_answer=reply.text,
            first_token_latency=reply.first_token_latency,
            latency=reply.latency,
            input_tokens=reply.input_tokens,
            output_tokens=reply.output_tokens,
            cost=cost_of(llm, reply),
        )
        try:
            answer = parse_answer(reply.text, {item.object_id for item in case.task.detected_objects})
        except AnswerError as error:
            return (
                replace(measured, failure_code="unparsable", failure_message=str(error)),
                call_outcome(llm, "unparsable", reply, started, error=str(error)),
            )
        found = replace(
            measured,
            risk_level=answer.risk_level,
            confidence=answer.confidence,
            risk_types=tuple(answer.risk_types),
            description=answer.description,
        )
        return found, call_outcome(llm, "ok", reply, started)

    async def _keep(
        self, case: Case, ask: int, answer: Answer, row: tuple[datetime, str], outcome: CallOutcome
    ) -> None:
        """Answer and call in one transaction, also when the run is broken off just then: it was paid for."""
        work = asyncio.to_thread(
            ledger.keep, self._engine, self._key.run, case.case_id, ask, answer, call=(*row, outcome)
        )
        writing = asyncio.ensure_future(work)
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])
            raise

    def _failed(self, error: LlmError) -> Answer | None:
        if isinstance(error, KeyRejectedError):
            return None
        if isinstance(error, LlmRequestError) and not self._answered:
            # a model that is not known there: no need to ask for every case
            self._refused = ConfigError(
                f"evaluation of {self._key.prompt_version} with {self._key.model}",
                f"the endpoint refuses the request ({error})",
                "check the model and the prompt",
            )
            return None
        self._in_vain += 1
        if error.retriable and self._in_vain >= GIVEN_UP_AFTER:
            self._stopped = f"the endpoint does not answer ({error}); start it again later, it goes on where it is"
        return Answer(None, failure_code=error.code, failure_message=str(error))

    async def _end(self, row: tuple[datetime, str], outcome: CallOutcome) -> None:
        await asyncio.to_thread(finish_call, self._engine, *row, outcome)


def _first(errors: BaseExceptionGroup) -> BaseException:
    """The first error of a group that is none itself."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Progress:
    """Counts answers, for whoever watches and for the log."""

    def __init__(self, done: int, wanted: int, on_progress: OnProgress) -> None:
        self._done, self._wanted, self._on_progress = done, wanted, on_progress

    def one_more(self) -> None:
        self._done += 1
        self._on_progress(self._done, self._wanted)
        if self._done % TELL_EVERY == 0:
            log.info("evaluation_progress", done=self._done, wanted=self._wanted)
