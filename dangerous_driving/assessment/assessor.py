"""Tasks to their end: assessed, failed with a cause, or pending again. Both lanes use this and nothing else.

A task has a call of its own, or shares one with other groups of its frame (:mod:`~dangerous_driving.assessment.sharing`). Each
has its own row, state and result either way; what a shared answer leaves out is asked for in a call of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

import structlog

from dangerous_driving.assessment.answer import ParsedAnswer
from dangerous_driving.assessment.caller import Answered, Attempt, Caller, Unanswered
from dangerous_driving.assessment.champion import Prompts
from dangerous_driving.assessment.context import CameraContexts
from dangerous_driving.assessment.duplicates import RecentAnswers, Scene, scene_of
from dangerous_driving.assessment.endpoints import Held
from dangerous_driving.assessment.key_pool import KeyPool
from dangerous_driving.assessment.llm import Reply
from dangerous_driving.assessment.patient_ledger import PatientLedger
from dangerous_driving.assessment.picture import task_picture
from dangerous_driving.assessment.publisher import ResultPublisher
from dangerous_driving.assessment.question import Question, question_about
from dangerous_driving.assessment.records import Provenance, assessment_record, call_outcome, reused_record
from dangerous_driving.assessment.results import PICTURE_FAILURES, failed_result
from dangerous_driving.assessment.sharing import by_frame, shares
from dangerous_driving.assessment.worker import WorkerGivenUpError
from dangerous_driving.contracts import AssessmentFailure, AssessmentTask, Lane
from dangerous_driving.errors import (
    AnswerError,
    DangerousDrivingError,
    LlmError,
    LlmRequestError,
    ObjectStoreError,
    StaleClaimError,
)
from dangerous_driving.ledger import assessments
from dangerous_driving.ledger.assessments import AssessmentRecord
from dangerous_driving.ledger.claims import Claim, release
from dangerous_driving.objects import ObjectStore, reachable_url
from dangerous_driving.observability.metrics import ANSWERS_REUSED, TASKS_ASSESSED, TASKS_DEFERRED, TASKS_FAILED
from dangerous_driving.observability.stages import Stage, task_reached
from dangerous_driving.settings import AssessmentSettings, CameraContext, LlmSettings

log = structlog.get_logger(__name__)

#: What keeps a picture away: for good, or for as long as the store is away.
NO_PICTURE: tuple[type[DangerousDrivingError], ...] = (*PICTURE_FAILURES, ObjectStoreError)
#: Shared calls in a row that an endpoint may refuse as such (not all take several pictures) until no more are made.
REFUSALS = 3
#: Characters of an answer from which on it is read in a thread: reading takes some 20 ms for the longest that is kept.
LONG_ANSWER = 4000


class Outcome(StrEnum):
    """What became of a task."""

    ASSESSED = "assessed"
    FAILED = "failed"
    HANDED_BACK = "handed_back"  # pending again
    STALE = "stale"  # another worker has it


@dataclass(frozen=True)
class _Group:
    """A claimed group as it is shown to the model. ``scene``: what duplicates are known by, where they are looked for."""

    claim: Claim
    picture: str  # URL, also data:
    scene: Scene | None


class Assessor:
    """Assesses claimed tasks.

    Args:
        llm: how pictures go into requests.
        caller: asks the endpoints.
        prompts: the version in use; another one that is set is for what begins from then on.
        contexts: what is known of each camera's place.
        settings: when answers are reused, how many groups share a call.
        ledger: of this worker.
        store: where the pictures lie.
        worker: this process' id in the ledger.
        node: this machine.
        beating: the worker's heartbeat; it ends only by an error.
    """

    def __init__(
        self,
        *,
        llm: LlmSettings,
        caller: Caller,
        prompts: Prompts,
        contexts: CameraContexts,
        settings: AssessmentSettings,
        ledger: PatientLedger,
        store: ObjectStore,
        worker: int,
        node: str,
        beating: asyncio.Task[None] | None = None,
    ) -> None:
        self.engine = ledger.engine
        self.worker = worker
        self.beating = beating
        self._images = llm.images
        self._caller = caller
        self._contexts = contexts
        self._reuses = settings.reuse_duplicates
        self._recent = RecentAnswers(settings)
        self.prompts = prompts
        self._groups_per_call = settings.coalesce_groups
        self._refused = 0
        self._ledger = ledger
        self._store = store
        self._node = node

    @property
    def publisher(self) -> ResultPublisher:
        """Where results go."""
        return self._caller.publisher

    @publisher.setter
    def publisher(self, publisher: ResultPublisher) -> None:
        self._caller.publisher = publisher

    @property
    def pool(self) -> KeyPool:
        """The keys of the endpoint that is asked first."""
        return self._caller.endpoints[0].pool

    @property
    def groups_per_call(self) -> int:
        """How many groups of a frame may share a call now; 1: none do."""
        return 1 if self.prompts.frame is None or self._refused >= REFUSALS else self._groups_per_call

    async def reserve(self, lane: Lane, *, tried: Collection[str] = (), timeout: float | None = None) -> Held:  # noqa: ASYNC109  # it becomes an error that says why
        """A key for a call to come; see :meth:`Caller.reserve`."""
        return await self._caller.reserve(lane, tried=tried, timeout=timeout)

    async def give_back(self, held: Held | None) -> None:
        """The request on this key is not sent after all."""
        await self._caller.give_back(held)

    def require_alive(self) -> None:
        """Raise what ended the heartbeat, if it has ended: the claims are gone then."""
        if self.beating is not None and self.beating.done():
            self.beating.result()

    @property
    def given_up(self) -> bool:
        """Whether others took this worker for dead: what it held is theirs, and a new worker must go on."""
        beating = self.beating
        return (
            beating is not None
            and beating.done()
            and not beating.cancelled()
            and isinstance(beating.exception(), WorkerGivenUpError)
        )

    def by_call(self, claims: Sequence[Claim]) -> list[list[Claim]]:
        """The claims in parts that :meth:`assess_together` may be given."""
        return by_frame(claims, self.groups_per_call)

    async def assess(self, claim: Claim, lane: Lane, *, held: Held | None = None) -> Outcome:
        """Bring one task to its end: assessed, failed with a cause, or pending again when there is no key or no store.

        Args:
            claim: held by this worker.
            lane: whose share of the quota pays.
            held: a key reserved already; else one is waited for.
        """
        [outcome] = await self.assess_together([claim], lane, held=held)
        return outcome

    async def assess_together(self, claims: Sequence[Claim], lane: Lane, *, held: Held | None = None) -> list[Outcome]:
        """Bring groups of one frame to their ends, with one call for all of them; returns what became of each.

        Args:
            claims: at most :attr:`groups_per_call`, the riskiest first.
            lane: whose share of the quota pays.
            held: a key reserved already; else one is waited for.
        """
        first = claims[0].task
        done: dict[str, Outcome] = {}
        with structlog.contextvars.bound_contextvars(task_id=first.task_id, camera_id=first.camera_id):
            try:
                await self._assess(claims, lane, held, done)
            except StaleClaimError as error:
                log.warning("claim_is_stale", reason=str(error))
                if len(claims) == 1:
                    done[first.task_id] = Outcome.STALE
                else:  # one of them; the others go on
                    await self._each_alone(_left(claims, done), lane, done)
            except asyncio.CancelledError:
                left = _left(claims, done)
                await self._ledger.do_once(release, left, lane=lane, reason="handed back: the worker stops")
                raise
            except Exception as error:  # a defect on one task ends this task, visibly, not the lane
                log.exception("assessment_broke")
                for claim in _left(claims, done):
                    done[claim.task.task_id] = await self._fail(
                        claim, lane, "internal", f"{type(error).__name__}: {error}"
                    )
        return [done[claim.task.task_id] for claim in claims]

    async def _assess(self, claims: Sequence[Claim], lane: Lane, held: Held | None, done: dict[str, Outcome]) -> None:
        groups = []
        try:
            context = await self._contexts.of(claims[0].task.camera_id)
            for group in await asyncio.gather(*(self._seen(claim, context) for claim in claims)):
                if isinstance(group, _Group):
                    groups.append(group)
                else:
                    claim, error = group
                    done[claim.task.task_id] = await self._without_picture(claim, lane, error)
            groups = [group for group in groups if not await self._reused(group, lane, done)]
        except BaseException:
            await self.give_back(held)
            raise
        if not groups:
            await self.give_back(held)
            return
        prompt = self.prompts.group if len(groups) == 1 else self.prompts.frame
        if prompt is None:  # another version was promoted meanwhile
            await self.give_back(held)
            await self._each_alone([group.claim for group in groups], lane, done)
            return
        question = question_about([(group.claim, group.picture) for group in groups], prompt, context)
        found = await self._caller.ask(question, lane, held)
        if isinstance(found, Unanswered):
            await self._conclude_without(found, question, lane, done)
        else:
            await self._conclude(found, {group.claim.task.task_id: group.scene for group in groups}, done)

    async def _seen(self, claim: Claim, context: CameraContext) -> _Group | tuple[Claim, DangerousDrivingError]:
        """The group with its picture, or why that cannot be had."""
        task = claim.task
        try:
            if self._images == "url" and task.group_image_url and not task.group_image_base64:
                address = await asyncio.to_thread(reachable_url, self._store, task.group_image_url)
                return _Group(claim, address, None)
            reuses = self._reuses if context.reuse_duplicates is None else context.reuse_duplicates
            return await asyncio.to_thread(self._looked_at, claim, reuses)
        except NO_PICTURE as error:
            return claim, error

    async def _without_picture(self, claim: Claim, lane: Lane, error: DangerousDrivingError) -> Outcome:
        code = next((code for kind, code in PICTURE_FAILURES.items() if isinstance(error, kind)), None)
        if code is not None:
            return await self._fail(claim, lane, code, str(error))
        # the store is away, which says nothing of the task: it keeps its attempts for when the store is back
        log.warning("task_waits_for_its_picture", reason=str(error), lane=lane.value)
        if lane is Lane.REALTIME:
            TASKS_DEFERRED.labels("no_store").inc()
        return await self._hand_back(claim, f"no picture: {error}")

    def _looked_at(self, claim: Claim, reuses: bool) -> _Group:
        picture = task_picture(claim.task, self._store)
        scene = scene_of(claim.task, picture) if reuses else None
        return _Group(claim, self.prompts.group.picture_url(picture), scene)

    async def _reused(self, group: _Group, lane: Lane, done: dict[str, Outcome]) -> bool:
        """Whether it was answered with what was answered to a near-identical group moments ago."""
        like = None if group.scene is None else self._recent.like(group.scene)
        if like is None:
            return False
        record = reused_record(like, group.claim.task, lane, self._node)
        await self._ledger.do(assessments.complete, group.claim, record, None)
        self._publish(record)
        ANSWERS_REUSED.inc()
        done[record.task_id] = Outcome.ASSESSED
        return True

    async def _conclude_without(
        self, unanswered: Unanswered, question: Question, lane: Lane, done: dict[str, Outcome]
    ) -> None:
        error = unanswered.error
        if isinstance(error, LlmRequestError) and question.shared:
            # an endpoint may take one picture and not several
            self._refused += 1
            log.warning("shared_call_refused", reason=str(error), groups=len(question.claims), in_a_row=self._refused)
            await self._each_alone(question.claims, lane, done)
            return
        for claim in question.claims:
            if isinstance(error, LlmError):
                outcome = await self._fail(claim, lane, error.code, str(error), retries=unanswered.retries)
            else:
                outcome = await self._hand_back(claim, f"no key: {error}")
            done[claim.task.task_id] = outcome

    async def _conclude(self, answered: Answered, scenes: dict[str, Scene | None], done: dict[str, Outcome]) -> None:
        attempt, reply = answered.attempt, answered.reply
        question, lane, llm = attempt.question, attempt.lane, attempt.held.endpoint.llm
        try:
            answers = await self._read(question, reply.text)
        except AnswerError as error:
            outcome = call_outcome(llm, "unparsable", reply, answered.started, error=str(error))
            await self._caller.finish(attempt, outcome)
            if question.shared:
                await self._each_alone(question.claims, lane, done)
                return
            [claim] = question.claims
            done[claim.task.task_id] = await self._fail(
                claim, lane, "unparsable", str(error), raw=error.raw, retries=attempt.number
            )
            return
        missing = [claim for claim in question.claims if claim.task.group_index not in answers]
        told = f"no answer for group {', '.join(str(claim.task.group_index) for claim in missing)}" if missing else None
        outcome = call_outcome(llm, "ok", reply, answered.started, error=told)
        parts = shares(reply, len(answers))
        records = [
            (claim, self._record(claim.task, answers[claim.task.group_index], part, attempt))
            for claim, part in zip(
                (claim for claim in question.claims if claim.task.group_index in answers), parts, strict=True
            )
        ]
        if question.shared:
            self._refused = 0
            kept = await self._ledger.do(assessments.complete_shared, records, outcome)
        else:
            [(claim, record)] = records
            await self._ledger.do(assessments.complete, claim, record, outcome)
            kept = [record]
        for claim, record in records:
            if record in kept:
                task_reached(Stage.ASSESSED, claim.task, lane, since=answered.started)
                self._publish(record)
                scene = scenes[record.task_id]
                if scene is not None:
                    self._recent.add(scene, record)
                done[record.task_id] = Outcome.ASSESSED
            else:
                log.warning("claim_is_stale", stale=record.task_id)
                done[record.task_id] = Outcome.STALE
        if missing:
            log.warning("groups_missing_in_answer", groups=[claim.task.group_index for claim in missing])
            await self._each_alone(missing, lane, done)

    async def _each_alone(self, claims: Sequence[Claim], lane: Lane, done: dict[str, Outcome]) -> None:
        """What could not be done together, each in a call of its own."""
        outcomes = await asyncio.gather(*(self.assess(claim, lane) for claim in claims))
        done |= {claim.task.task_id: outcome for claim, outcome in zip(claims, outcomes, strict=True)}

    async def _read(self, question: Question, text: str) -> dict[int, ParsedAnswer]:
        if len(text) > LONG_ANSWER:
            return await asyncio.to_thread(question.read, text)
        return question.read(text)

    def _record(self, task: AssessmentTask, answer: ParsedAnswer, reply: Reply, attempt: Attempt) -> AssessmentRecord:
        provenance = Provenance(
            lane=attempt.lane,
            prompt_version=attempt.question.prompt.version,
            key_hash=attempt.held.reservation.key_hash,
            call_id=attempt.call_id,
            retry_count=attempt.number,
            node=self._node,
        )
        return assessment_record(task, answer, reply, provenance, attempt.held.endpoint.llm)

    def _publish(self, record: AssessmentRecord) -> None:
        self.publisher.final(record)
        TASKS_ASSESSED.labels(record.lane, record.risk_level).inc()

    async def _hand_back(self, claim: Claim, reason: str) -> Outcome:
        """To the window lane, whose runs come again until the window is complete."""
        await self._ledger.do(release, [claim], lane=Lane.WINDOW, reason=reason)
        return Outcome.HANDED_BACK

    async def _fail(
        self, claim: Claim, lane: Lane, code: str, message: str, *, raw: str | None = None, retries: int = 0
    ) -> Outcome:
        if not await self._ledger.do(assessments.fail, claim, code=code, message=message, raw=raw):
            return Outcome.STALE
        log.warning("task_failed", code=code, reason=message, lane=lane.value)
        TASKS_FAILED.labels(lane.value, code).inc()
        result = failed_result(
            claim.task,
            AssessmentFailure(code=code, message=message),
            self._caller.metadata(lane, retries, self.prompts.group.version),
            at=datetime.now(UTC),
        )
        self.publisher.failed(result)
        return Outcome.FAILED


def _left(claims: Sequence[Claim], done: dict[str, Outcome]) -> list[Claim]:
    return [claim for claim in claims if claim.task.task_id not in done]
