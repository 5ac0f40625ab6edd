"""The inline lane: the process that detects asks the LLM itself, with neither Kafka nor PostgreSQL.

For cameras that are switched to it. Each request is a file before it leaves, its answer is in that file before anything else
happens; a thread hands the files in to the ledger, and the answers to the topic, as soon as these are there. A task that another
lane has answered meanwhile keeps that answer; the call is a row all the same. What the lane has no time for is left to the others.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

import structlog
from sqlalchemy import Engine

from dangerous_driving.assessment.answer import level_in_stream, parse_answer
from dangerous_driving.assessment.context import CameraContexts
from dangerous_driving.assessment.endpoints import Endpoint, usable
from dangerous_driving.assessment.inline_folder import InlineCall, InlineFolder
from dangerous_driving.assessment.key_pool import Reservation
from dangerous_driving.assessment.keys import open_pool
from dangerous_driving.assessment.llm import Reply
from dangerous_driving.assessment.opening import close_endpoints, open_endpoints
from dangerous_driving.assessment.picture import task_picture
from dangerous_driving.assessment.prompt import Prompt, load_prompt
from dangerous_driving.assessment.records import Provenance, assessment_record, call_outcome, cost_of
from dangerous_driving.assessment.results import DANGEROUS, final_result, provisional_result
from dangerous_driving.assessment.switch import LaneSwitch
from dangerous_driving.contracts import (
    LIVE_RUN,
    AssessmentMetadata,
    AssessmentTask,
    DetectionResult,
    Lane,
    RiskAssessmentResult,
)
from dangerous_driving.errors import (
    AnswerError,
    BrokerError,
    DangerousDrivingError,
    KeyRejectedError,
    LedgerError,
    LlmError,
)
from dangerous_driving.ledger.assessments import CallOutcome
from dangerous_driving.ledger.claims import heartbeat, start_worker
from dangerous_driving.ledger.inline import hand_in
from dangerous_driving.ledger.schema import Partitions, require_current
from dangerous_driving.messaging import Topic
from dangerous_driving.messaging.seam import Sender
from dangerous_driving.objects import ObjectStore
from dangerous_driving.observability.metrics import TASKS_ASSESSED, TASKS_DEFERRED, TASKS_FAILED
from dangerous_driving.settings import Settings
from dangerous_driving.tasks.derivation import tasks_from_detection

log = structlog.get_logger(__name__)

#: s between two attempts to hand in.
HAND_IN_SECONDS = 1.0
#: s that calls under way may take when the process stops.
STOP_SECONDS = 10.0


class InlineLane:
    """Assesses what it is offered of cameras switched to it, in a thread and event loop of its own.

    Args:
        settings: the whole tree.
        engine: of the ledger, which need not answer.
        store: where the pictures lie that are not in what it is offered.
        producer: for results, whose brokers need not answer.
        switch: which cameras are inline.

    Raises:
        ConfigError: the prompt cannot be read. At once, and not when somebody switches a camera here in need.
    """

    def __init__(
        self, settings: Settings, engine: Engine, store: ObjectStore, producer: Sender, switch: LaneSwitch
    ) -> None:
        self._settings, self._engine, self._store, self._producer, self._switch = (
            settings, engine, store, producer, switch,
        )  # fmt: skip
        self._prompt: Prompt = load_prompt(
            settings.llm.prompt_version,
            folder=settings.llm.prompt_folder,
            longest_side=settings.llm.image_longest_side,
        )
        self._folder = InlineFolder(settings.assessment.inline_folder)
        self._stop = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._said_ended = False
        self._started = threading.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._alone = False  # whether the keys are used without the others, since the ledger was away
        self._handed_in = threading.Event()  # the ledger has answered since
        self._closing: set[asyncio.Task[None]] = set()
        self._partitions = Partitions()
        self._worker: int | None = None
        self._threads = [
            threading.Thread(target=self._run, name="inline"),
            threading.Thread(target=self._hand_in_all, name="inline-hand-in"),
        ]

    def __enter__(self) -> Self:
        """Begin. What an earlier process left in the folder is handed in too.

        Raises:
            ConfigError: the folder cannot be written, or another process uses it.
        """
        self._folder.own()
        for thread in self._threads:
            thread.start()
        self._started.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give calls under way some seconds, then end."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._folder.release()

    def takes(self, camera_id: str) -> bool:
        """Whether the camera is inline now."""
        return self._switch.lane_of(camera_id) is Lane.INLINE

    def offer(self, result: DetectionResult) -> None:
        """Take a frame's groups, if its camera is inline; callable from any thread, returns at once, raises nothing.

        Whoever offers has to go on when this lane's thread has ended: what it would have taken is left to the others.
        """
        if not self.takes(result.camera_id) or self._loop is None or self._stop.is_set():
            return
        oldest = datetime.now(UTC) - timedelta(seconds=self._settings.assessment.realtime_deadline)
        if result.timestamp < oldest:
            return  # it waited too long for its turn: the other lanes have it
        for task in tasks_from_detection(result):
            try:
                self._loop.call_soon_threadsafe(self._take, task)
            except RuntimeError as error:  # the loop is closed
                TASKS_DEFERRED.labels("inline_ended").inc()
                if not self._said_ended and not self._stop.is_set():
                    self._said_ended = True
                    log.error("inline_lane_ended", reason=str(error))  # noqa: TRY400  # the trace says no more

    # calls: an event loop of its own

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._started.set()
        self._contexts = CameraContexts(self._settings.camera, None)
        self._endpoints: list[Endpoint] = []
        self._opening = asyncio.Lock()
        try:
            while not self._stop.is_set():  # a thread sets it
                await asyncio.sleep(0.1)
                if self._alone and self._handed_in.is_set():
                    await self._join_the_others()
        finally:
            if self._running:
                _, late = await asyncio.wait(self._running, timeout=STOP_SECONDS)
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)
            await asyncio.gather(*self._closing)
            await _close(self._endpoints)

    def _take(self, task: AssessmentTask) -> None:
        if len(self._running) >= self._settings.assessment.max_in_flight:
            TASKS_DEFERRED.labels("inline_full").inc()  # the frame's result is on its way to the other lanes
            return
        running = asyncio.create_task(self._assess(task))
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    async def _open(self) -> list[Endpoint]:
        """At the first task: the keys are not touched while no camera is inline."""
        async with self._opening:
            if not self._endpoints:
                keys, engine = self._settings.keys, None
                try:
                    await asyncio.to_thread(require_current, self._engine)
                    engine = self._engine
                except LedgerError as error:
                    share = {"qps_limit": max(keys.qps_limit // keys.processes, 1),
                             "rpm_limit": max(keys.rpm_limit // keys.processes, 1)}  # fmt: skip
                    keys = keys.model_copy(update=share)
                    log.warning("inline_without_ledger", reason=str(error), **share)
                self._endpoints = open_endpoints(self._settings, open_pool(keys, engine), engine)
                self._alone = engine is None
        return self._endpoints

    async def _join_the_others(self) -> None:
        """The ledger is back: from now on the quota is shared through it. Calls under way end on the keys they have."""
        self._handed_in.clear()  # where it is away again, the next answer that is handed in brings another attempt
        try:
            await asyncio.to_thread(require_current, self._engine)
            pool = open_pool(self._settings.keys, self._engine)
        except DangerousDrivingError as error:
            log.warning("inline_without_ledger", reason=str(error))
            return
        before, under_way = self._endpoints, set(self._running)
        self._endpoints, self._alone = open_endpoints(self._settings, pool, self._engine), False
        log.info("inline_with_ledger", calls_under_way=len(under_way))
        closing = asyncio.create_task(_close(before, after=under_way))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _assess(self, task: AssessmentTask) -> None:
        with structlog.contextvars.bound_contextvars(task_id=task.task_id, camera_id=task.camera_id, lane="inline"):
            try:
                await self._answer(task)
            except DangerousDrivingError as error:
                code = error.code if isinstance(error, LlmError) else type(error).__name__
                TASKS_FAILED.labels(Lane.INLINE.value, code).inc()
                log.warning("task_left_to_the_window_lane", reason=str(error))

    async def _answer(self, task: AssessmentTask) -> None:
        endpoints = await self._open()
        picture = await asyncio.to_thread(task_picture, task, self._store)
        context = await self._contexts.of(task.camera_id)
        messages = await asyncio.to_thread(self._prompt.messages, task, picture, context)
        tried: set[str] = set()
        for number in range(1 + self._settings.llm.max_retries):
            endpoint = usable(endpoints, time.monotonic())[0]
            reservation = await endpoint.pool.reserve(
                Lane.INLINE, exclude=tried, timeout=self._settings.assessment.realtime_deadline
            )
            call = self._folder.begin(
                task, key_hash=reservation.key_hash, model=endpoint.llm.model, prompt_version=self._prompt.version
            )
            try:
                reply = await self._ask(endpoint, reservation, messages, task)
            except LlmError as error:
                endpoint.breaker.ended(error, time.monotonic())
                await endpoint.pool.report(reservation, error)
                self._folder.end(call, CallOutcome(error.code, http_status=error.http_status, error=str(error)))
                tried.add(reservation.key_hash)
                if number == self._settings.llm.max_retries or not (
                    error.retriable or isinstance(error, KeyRejectedError)
                ):
                    raise
            except asyncio.CancelledError:
                await endpoint.pool.report(reservation, "cancelled")
                self._folder.end(call, CallOutcome("cancelled", error="the process stopped"))
                raise
            else:
                endpoint.breaker.ended(None, time.monotonic())
                await endpoint.pool.report(reservation, cost=cost_of(endpoint.llm, reply), limits=reply.limits)
                self._conclude(call, endpoint, reply, number)
                return

    async def _ask(
        self, endpoint: Endpoint, reservation: Reservation, messages: list[dict[str, object]], task: AssessmentTask
    ) -> Reply:
        announced = False

        def on_text(text: str) -> None:
            nonlocal announced
            if not announced and (level := level_in_stream(text)) is not None:
                announced = True
                metadata = AssessmentMetadata(
                    llm_model=endpoint.llm.model, processing_node=self._settings.node, lane=Lane.INLINE,
                    run=LIVE_RUN, prompt_version=self._prompt.version, api_key=reservation.key_hash,
                )  # fmt: skip
                self._send(provisional_result(task, level, metadata, at=datetime.now(UTC)))
                if level in DANGEROUS:
                    log.warning("dangerous_scene", risk_level=level.value)  # also where nobody else can tell

        return await endpoint.client.complete(
            messages, reservation.secret, on_text, on_sent=lambda: endpoint.pool.sent(reservation)
        )

    def _conclude(self, call: InlineCall, endpoint: Endpoint, reply: Reply, number: int) -> None:
        task = call.task
        try:
            answer = parse_answer(reply.text, {item.object_id for item in task.detected_objects})
        except AnswerError as error:
            self._folder.end(call, call_outcome(endpoint.llm, "unparsable", reply, call.started_at, error=str(error)))
            raise
        provenance = Provenance(
            lane=Lane.INLINE, prompt_version=self._prompt.version, key_hash=call.key_hash, call_id="",
            retry_count=number, node=self._settings.node,
        )  # fmt: skip
        record = assessment_record(task, answer, reply, provenance, endpoint.llm)
        self._folder.end(call, call_outcome(endpoint.llm, "ok", reply, call.started_at), record)
        self._send(final_result(record))
        TASKS_ASSESSED.labels(Lane.INLINE.value, answer.risk_level.value).inc()
        log.info("assessed_inline", risk_level=answer.risk_level.value, description=answer.description)

    def _send(self, result: RiskAssessmentResult) -> None:
        try:
            self._producer.send(Topic.RISK_ASSESSMENT_RESULTS, result, key=result.camera_id)
        except BrokerError as error:
            log.warning("result_not_sent", stage=result.stage.value, reason=str(error))

    # the folder: a thread of its own

    def _hand_in_all(self) -> None:
        while True:
            ended = self._stop.is_set() and not self._threads[0].is_alive()
            try:
                self._hand_in()
            except LedgerError as error:
                log.debug("inline_answers_wait", waiting=len(self._folder), reason=str(error))
            if ended:
                return
            self._stop.wait(HAND_IN_SECONDS) if not self._stop.is_set() else self._threads[0].join()

    def _hand_in(self) -> None:
        for call in self._folder.ended():
            worker = self._living_worker()
            handed = hand_in(
                self._engine, self._partitions, call, worker=worker, window_length=self._settings.windows.length
            )
            if handed:
                log.info("inline_answer_handed_in", task_id=call.task.task_id)
            self._folder.remove(call)
            self._handed_in.set()

    def _living_worker(self) -> int:
        if self._worker is None or not heartbeat(self._engine, self._worker):
            self._worker = start_worker(self._engine, service="inline", node=self._settings.node, pid=0)
        return self._worker


async def _close(endpoints: Sequence[Endpoint], after: Collection[asyncio.Task[None]] = ()) -> None:
    """Close endpoints with their pools, once these tasks have ended."""
    if after:
        await asyncio.wait(after)
    if endpoints:
        pool = endpoints[0].pool
        await close_endpoints(endpoints, pool)
        await pool.close()
