"""The realtime lane: tasks from the topic are claimed in the ledger, wait for a key most urgent first, and are assessed.

Acknowledgement: offsets are committed once the tasks are claimed or left pending in the ledger, not when they are answered.
From then on the ledger has them, so a slow call pins no offset and a killed scheduler loses nothing.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import structlog

from dangerous_driving.assessment.admission import ClaimQueue, admit
from dangerous_driving.assessment.assessor import Assessor
from dangerous_driving.assessment.switch import LaneSwitch
from dangerous_driving.contracts import AssessmentTask, Lane
from dangerous_driving.errors import BrokerError, LedgerError, NoKeyError
from dangerous_driving.ledger.claims import Claim, claim_pending_realtime, claim_tasks, held_by, release
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.messaging import Received
from dangerous_driving.messaging.refusal import without_refused
from dangerous_driving.messaging.seam import Receiver
from dangerous_driving.observability.metrics import IN_FLIGHT, QUEUE_DEPTH, TASKS_DEFERRED
from dangerous_driving.observability.stages import Stage, tasks_reached
from dangerous_driving.settings import AssessmentSettings

log = structlog.get_logger(__name__)

TOO_LATE = "deferred: too late for an alert"
NO_ROOM = "deferred: the realtime queue was full"
SWITCHED = "deferred: its camera is switched to another lane"


class Scheduler:
    """Runs the realtime lane in one process until it is stopped."""

    POLL_SECONDS = 0.2
    RETRY_SECONDS = 1.0
    PICK_UP_SECONDS = 1.0
    KEY_WAIT_SECONDS = 1.0
    FORGOTTEN_SECONDS = 5.0  # younger claims may be on their way into the queue
    SHUTDOWN_SECONDS = 10.0  # calls under way may take this long after the stop
    #: s after which a thread that computes lets another one run. The event loop gives the interpreter away with each system call
    #: and waits so long to get it back: at Python's 5 ms a few calls beside a busy thread make a pause of 50 ms.
    SWITCH_SECONDS = 0.0005

    def __init__(
        self,
        assessor: Assessor,
        consumer: Receiver,
        settings: AssessmentSettings,
        *,
        window_length: int,
        switch: LaneSwitch | None = None,
    ) -> None:
        self._assessor = assessor
        self._engine = assessor.engine
        self._consumer = consumer
        self._settings = settings
        self._window_length = window_length
        self._switch = switch
        self._partitions = Partitions()
        self._queue = ClaimQueue()
        self._wake = asyncio.Event()
        self._running: dict[asyncio.Task[object], list[Claim]] = {}

    async def run(self, stop: threading.Event) -> None:
        """Work until `stop`; then calls under way get some seconds, and what is left goes back to the ledger.

        Raises:
            WorkerGivenUpError: the heartbeat stood still; the process must start as a new worker.
        """
        loop = asyncio.get_running_loop()
        # what was loaded until now lives as long as the process: a collection that looks at all of it takes 0.1 s
        gc.collect()
        gc.freeze()
        usual = sys.getswitchinterval()
        sys.setswitchinterval(self.SWITCH_SECONDS)
        polling = asyncio.create_task(asyncio.to_thread(self._poll, stop, loop), name="poll")
        parts = [
            asyncio.create_task(self._dispatch(), name="dispatch"),
            asyncio.create_task(self._pick_up(), name="pick up"),
        ]
        awaited = [polling, *parts] + ([self._assessor.beating] if self._assessor.beating else [])
        try:
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.set()
            for part in parts:
                part.cancel()
            ended = await asyncio.gather(polling, *parts, return_exceptions=True)
            await self._hand_back_all()
            sys.setswitchinterval(usual)
        for outcome in ended:
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome
        self._assessor.require_alive()

    def _elsewhere(self, camera_id: str) -> bool:
        """Whether the camera's groups are not for this lane."""
        return self._switch is not None and self._switch.lane_of(camera_id) is not Lane.REALTIME

    # the topic: a thread of its own, since the client blocks

    def _poll(self, stop: threading.Event, loop: asyncio.AbstractEventLoop) -> None:
        while not stop.is_set():
            try:
                received = self._consumer.poll(self.POLL_SECONDS, self._settings.batch_size)
                if received and self._taken(list(received), stop, loop):
                    self._consumer.commit()
            except BrokerError as error:
                # a commit that the brokers did not take: those tasks may come again, and are claimed once
                log.warning("tasks_come_again", reason=str(error))
                stop.wait(self.RETRY_SECONDS)

    def _taken(
        self, in_hand: list[Received[AssessmentTask]], stop: threading.Event, loop: asyncio.AbstractEventLoop
    ) -> bool:
        """Claim, defer or set aside each task of a batch; False where `stop` came first: then it comes again."""

        def claim(part: Sequence[Received[AssessmentTask]]) -> bool:
            claims = self._claim([item.message for item in part], stop)
            if claims:
                loop.call_soon_threadsafe(self._enqueue, claims)
            return claims is not None

        while True:
            try:
                # a task that the ledger refuses goes to dead-letter alone
                return all(
                    without_refused(in_hand, claim, lambda item, error: self._consumer.set_aside(item, str(error)))
                )
            except BrokerError as error:
                # its dead letter is not there: a commit would cover what nobody has
                log.warning("batch_waits", reason=str(error))
                if stop.wait(self.RETRY_SECONDS):
                    return False

    def _claim(self, tasks: Sequence[AssessmentTask], stop: threading.Event) -> list[Claim] | None:
        switched = [task for task in tasks if self._elsewhere(task.camera_id)]
        tasks = [task for task in tasks if not self._elsewhere(task.camera_id)]
        while True:
            admission = admit(
                tasks,
                now=datetime.now(UTC),
                deadline=self._settings.realtime_deadline,
                room=self._settings.queue_size - len(self._queue),
            )
            try:
                claims = self._claimed(admission.admitted, admission.too_late, TOO_LATE)
                for left, reason in ((admission.no_room, NO_ROOM), (switched, SWITCHED)):
                    if left:
                        self._claimed((), left, reason)
            except LedgerError as error:
                if not error.retriable:
                    raise
                # the batch stays in hand and uncommitted: it is neither lost nor taken twice
                log.warning("claim_waits", reason=str(error))
                if stop.wait(self.RETRY_SECONDS):
                    return None
            else:
                tasks_reached(Stage.CLAIMED, [claim.task for claim in claims])
                TASKS_DEFERRED.labels("too_late").inc(len(admission.too_late))
                TASKS_DEFERRED.labels("no_room").inc(len(admission.no_room))
                TASKS_DEFERRED.labels("switched").inc(len(switched))
                return claims

    def _claimed(
        self, admitted: Sequence[AssessmentTask], deferred: Sequence[AssessmentTask], reason: str
    ) -> list[Claim]:
        return claim_tasks(
            self._engine,
            self._partitions,
            self._assessor.worker,
            admitted,
            deferred,
            deferred_reason=reason,
            window_length=self._window_length,
        )

    def _enqueue(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            self._queue.push(claim)
        QUEUE_DEPTH.set(len(self._queue))
        if claims:
            self._wake.set()

    # keys and calls: the event loop

    async def _dispatch(self) -> None:
        slots = asyncio.Semaphore(self._settings.max_in_flight)
        while True:
            while not len(self._queue):
                self._wake.clear()
                await self._wake.wait()
            await slots.acquire()
            await self._defer_late()
            if not len(self._queue):
                slots.release()
                continue
            try:
                # first the key, then the task: whatever became most urgent while we waited is taken
                held = await self._assessor.reserve(Lane.REALTIME, timeout=self.KEY_WAIT_SECONDS)
            except (NoKeyError, LedgerError) as error:
                slots.release()
                log.warning("no_key", reason=str(error))
                await asyncio.sleep(self.KEY_WAIT_SECONDS)
                continue
            if not len(self._queue):  # the last ones became too late while we waited
                slots.release()
                await self._assessor.give_back(held)
                continue
            claims = self._queue.pop_call(self._assessor.groups_per_call, after=self._settings.coalesce_after)
            QUEUE_DEPTH.set(len(self._queue))
            task = asyncio.create_task(self._assessor.assess_together(claims, Lane.REALTIME, held=held))
            self._running[task] = claims
            IN_FLIGHT.set(len(self._running))
            task.add_done_callback(lambda done: self._done(done, slots))

    def _done(self, task: asyncio.Task[object], slots: asyncio.Semaphore) -> None:
        slots.release()
        self._running.pop(task, None)
        IN_FLIGHT.set(len(self._running))

    async def _defer_late(self) -> None:
        oldest = datetime.now(UTC) - timedelta(seconds=self._settings.realtime_deadline)
        late = self._queue.take_captured_before(oldest)
        if late:
            TASKS_DEFERRED.labels("too_late").inc(len(late))
            await self._release(late, Lane.WINDOW, TOO_LATE)

    async def _defer_switched(self) -> None:
        switched = self._queue.take_of(self._elsewhere)
        if switched:
            TASKS_DEFERRED.labels("switched").inc(len(switched))
            await self._release(switched, Lane.WINDOW, SWITCHED)

    async def _pick_up(self) -> None:
        # what a sweep handed back to this lane, what never came over the topic, and answers not yet on it
        while True:
            try:
                room = self._settings.queue_size - len(self._queue)
                if room > 0:
                    fresh = datetime.now(UTC) - timedelta(seconds=self._settings.realtime_deadline)
                    claims = await asyncio.to_thread(
                        claim_pending_realtime,
                        self._engine,
                        self._assessor.worker,
                        captured_after=fresh,
                        limit=min(room, self._settings.batch_size),
                    )
                    tasks_reached(Stage.CLAIMED, [claim.task for claim in claims])
                    self._enqueue(claims)
                await self._defer_switched()
                await self._recover_forgotten()
                await self._defer_late()
                await asyncio.to_thread(self._assessor.publisher.republish)
            except LedgerError as error:
                log.warning("pick_up_waits", reason=str(error))
            await asyncio.sleep(self.PICK_UP_SECONDS)

    async def _recover_forgotten(self) -> None:
        # a statement whose outcome was lost with the connection leaves claims that this process does not know of, or no
        # longer; without this they would wait for its end
        held = await asyncio.to_thread(held_by, self._engine, self._assessor.worker, older_than=self.FORGOTTEN_SECONDS)
        known = self._queue.tokens | {claim.token for claims in self._running.values() for claim in claims}
        self._enqueue([claim for claim in held if claim.token not in known])

    async def _release(self, claims: Sequence[Claim], lane: Lane, reason: str) -> None:
        try:
            await asyncio.to_thread(release, self._engine, claims, lane=lane, reason=reason)
        except LedgerError as error:
            # they are still this worker's, and found again as forgotten ones
            log.warning("claims_not_released", claims=len(claims), reason=str(error))

    async def _hand_back_all(self) -> None:
        await self._release(self._queue.drain(), Lane.REALTIME, "handed back: the scheduler stopped")
        if self._running:
            log.info("finishing", calls=len(self._running))
            await asyncio.wait(self._running, timeout=self.SHUTDOWN_SECONDS)
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
