"""Every resource of the Dagster definitions, once. Each reads the settings when a run opens it and is closed with the run.

Values come from the same settings as everywhere (``DD_CONFIG`` and ``DD_…``), so that a run in another process or on
another machine needs nothing but the environment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import dagster as dg
import structlog
from pydantic import PrivateAttr
from sqlalchemy import Engine
from typing_extensions import override

from dangerous_driving.assessment.assessor import Assessor
from dangerous_driving.assessment.backfill_run import BackfillPlan, backfill_plan, backfill_windows, settings_of
from dangerous_driving.assessment.champion import current_version
from dangerous_driving.assessment.contact_sheet import contact_sheet, riskiest
from dangerous_driving.assessment.key_pool import KeyPool
from dangerous_driving.assessment.keys import open_pool
from dangerous_driving.assessment.opening import open_assessor
from dangerous_driving.assessment.window_run import WindowReport, assess_windows, by_living_workers
from dangerous_driving.assessment.windows import Window
from dangerous_driving.contracts import Message
from dangerous_driving.errors import BrokerError
from dangerous_driving.evaluation.collection import Collected
from dangerous_driving.evaluation.promotion import Ruling, nightly_rulings
from dangerous_driving.evaluation.run import Evaluated, evaluate_prompt, refresh_set, require_set
from dangerous_driving.ledger.backfills import Estimate, estimate
from dangerous_driving.ledger.database import open_engine
from dangerous_driving.ledger.evaluation_cases import SetVersion, newest_set
from dangerous_driving.ledger.schema import require_current
from dangerous_driving.messaging import Producer, Topic
from dangerous_driving.messaging.seam import Receipt, Sender
from dangerous_driving.objects import PrunableStore, open_store
from dangerous_driving.settings import Settings, load

log = structlog.get_logger(__name__)


class DatabaseResource(dg.ConfigurableResource["DatabaseResource"]):
    """The ledger."""

    _engine: Engine = PrivateAttr()

    @override
    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Open the engine.

        Raises:
            ConfigError: the schema is not at this package's version.
            LedgerError: the database does not answer.
        """
        self._engine = open_engine(load().database, application="dangerous-driving dagster")
        require_current(self._engine)

    @override
    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Close the connections."""
        self._engine.dispose()

    @property
    def engine(self) -> Engine:
        """An engine, opened."""
        return self._engine


class ObjectStoreResource(dg.ConfigurableResource["ObjectStoreResource"]):
    """Where pictures lie."""

    _store: PrunableStore = PrivateAttr()

    @override
    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Open the store."""
        self._store = open_store(load().objects)

    @property
    def store(self) -> PrunableStore:
        """The store, opened."""
        return self._store


class _AbsentBroker(Sender):
    """Stands for the producer while no broker answers: results stay unpublished in the ledger, and are sent later."""

    def __init__(self, reason: BrokerError) -> None:
        self._reason = reason

    @override
    def send(self, topic: Topic, message: Message, key: str) -> Receipt:
        """Refuse.

        Raises:
            BrokerError: always.
        """
        raise BrokerError(f"cannot send to topic {topic}: {self._reason}")


class KafkaResource(dg.ConfigurableResource["KafkaResource"]):
    """The message log, to send live results to. A run goes on without it: the ledger knows what was not sent."""

    _producer: Producer | None = PrivateAttr(default=None)
    _sender: Sender = PrivateAttr()

    @override
    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Open a producer, if a broker answers."""
        try:
            self._producer = Producer(load().kafka, f"dagster-{context.run.run_id if context.run else 'test'}")
        except BrokerError as error:
            log.warning("no_broker", reason=str(error), consequence="answers are kept, and sent by the assess service")
            self._sender = _AbsentBroker(error)
        else:
            self._sender = self._producer

    @override
    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Send what is left and close."""
        if self._producer is not None:
            self._producer.close()

    @property
    def sender(self) -> Sender:
        """Sends results; refuses with BrokerError when there is no broker."""
        return self._sender


class KeyPoolResource(dg.ConfigurableResource["KeyPoolResource"]):
    """The API keys, shared with all other processes through the ledger."""

    @asynccontextmanager
    async def opened(self, engine: Engine) -> AsyncIterator[KeyPool]:
        """The pool, within one event loop; `engine` is of the ledger.

        Raises:
            ConfigError: no key is set.
        """
        pool = open_pool(load().keys, engine)
        try:
            yield pool
        finally:
            await pool.close()


class AssessorResource(dg.ConfigurableResource["AssessorResource"]):
    """Assesses whole windows with the functions that the realtime lane uses too."""

    database: DatabaseResource
    object_store: ObjectStoreResource
    kafka: KafkaResource
    key_pool: KeyPoolResource

    def assess(self, windows: Sequence[Window], *, run_id: str) -> list[WindowReport]:
        """Assess every group of the windows that has no answer; see `assess_windows`."""
        settings = load()

        async def work(assessor: Assessor, left: Sequence[Window]) -> list[WindowReport]:
            return await assess_windows(
                assessor, left, run_id=run_id, settings=settings.assessment, on_report=_log_report
            )

        return asyncio.run(self._with_assessor(settings, "window-run", windows, work))

    def plan(
        self, *, run: str, prompt_version: str | None, model: str | None, make_current: bool, cost_limit: float | None
    ) -> BackfillPlan:
        """Check what a person asked for; see `backfill_plan`."""
        settings = load()
        return backfill_plan(
            settings,
            run=run,
            prompt_version=prompt_version or current_version(settings.llm, self.database.engine),
            model=model,
            make_current=make_current,
            cost_limit=cost_limit,
        )

    def backfill(self, windows: Sequence[Window], plan: BackfillPlan) -> list[WindowReport]:
        """Assess the windows again, beside what is there; see `backfill_windows`."""
        settings = settings_of(load(), plan)

        async def work(assessor: Assessor, left: Sequence[Window]) -> list[WindowReport]:
            return await backfill_windows(assessor, left, plan, settings=settings.assessment, on_report=_log_report)

        return asyncio.run(self._with_assessor(settings, "backfill", windows, work, follows_promotions=False))

    def estimate(self, windows: Sequence[Window], plan: BackfillPlan) -> Estimate:
        """What the backfill would take; see `ledger.backfills.estimate`."""
        return estimate(
            self.database.engine,
            plan.run,
            windows,
            prompt_version=plan.prompt_version,
            model=plan.model,
            max_attempts=load().assessment.max_attempts,
        )

    def riskiest(self, report: WindowReport) -> bytes | None:
        """The contact sheet of a window, as JPEG; None where there is nothing to show."""
        limit = load().windows.contact_sheet
        if not limit or not any(count for level, count in report.levels.items() if level != "none"):
            return None
        crops = riskiest(self.database.engine, report.window, run=report.run, limit=limit)
        return contact_sheet(crops, self.object_store.store)

    async def _with_assessor(
        self,
        settings: Settings,
        service: str,
        windows: Sequence[Window],
        work: Callable[[Assessor, Sequence[Window]], Awaitable[list[WindowReport]]],
        *,
        follows_promotions: bool = True,
    ) -> list[WindowReport]:
        async with self.key_pool.opened(self.database.engine) as pool:

            def opened() -> AbstractAsyncContextManager[Assessor]:
                return open_assessor(
                    settings,
                    service=service,
                    engine=self.database.engine,
                    store=self.object_store.store,
                    pool=pool,
                    producer=self.kafka.sender,
                    follows_promotions=follows_promotions,
                )

            return await by_living_workers(opened, windows, work)


class EvaluatorResource(dg.ConfigurableResource["EvaluatorResource"]):
    """Evaluates prompts with the keys of the evaluation lane, and rules on challengers."""

    database: DatabaseResource
    object_store: ObjectStoreResource
    key_pool: KeyPoolResource

    def refresh(self) -> tuple[Collected, SetVersion]:
        """Take in new verdicts and freeze the set; see `evaluation.run.refresh_set`."""
        return refresh_set(self.database.engine, self.object_store.store, load())

    def is_empty(self) -> bool:
        """Whether there is no case to ask about."""
        newest = newest_set(self.database.engine)
        return newest is None or not newest.cases

    def versions(self) -> list[str]:
        """The prompt in use, then the challengers."""
        settings = load()
        in_use = current_version(settings.llm, self.database.engine)
        return list(dict.fromkeys((in_use, *settings.evaluation.challengers)))

    def evaluate(self, prompt_version: str, model: str) -> Evaluated:
        """Ask a prompt and model about the newest set; see `evaluation.run.evaluate_prompt`."""
        settings, engine = load(), self.database.engine
        newest = require_set(engine)

        async def work() -> Evaluated:
            async with self.key_pool.opened(engine) as pool:
                return await evaluate_prompt(
                    settings,
                    prompt_version=prompt_version,
                    model=model,
                    set_version=newest.version,
                    engine=engine,
                    store=self.object_store.store,
                    pool=pool,
                )

        return asyncio.run(work())

    def rulings(self, *, skipped: Collection[str] = ()) -> list[Ruling]:
        """Rule on the configured challengers, but for those that could not be evaluated."""
        settings = load()
        challengers = tuple(name for name in settings.evaluation.challengers if name not in skipped)
        evaluation = settings.evaluation.model_copy(update={"challengers": challengers})
        return nightly_rulings(
            settings.model_copy(update={"evaluation": evaluation}), self.database.engine, self.object_store.store
        )


def _log_report(report: WindowReport) -> None:
    """The run's progress, window by window."""
    log.info(
        "window_ended",
        camera_id=report.window.camera_id,
        window=f"{report.window.start:%Y-%m-%d %H:%M}",
        groups=report.groups,
        assessed=report.assessed,
        problem=report.problem,
    )


def window_resources() -> dict[str, object]:
    """The resources by the names under which assets, checks and sensors ask for them."""
    database, object_store, kafka = DatabaseResource(), ObjectStoreResource(), KafkaResource()
    key_pool = KeyPoolResource()
    return {
        "database": database,
        "object_store": object_store,
        "kafka": kafka,
        "key_pool": key_pool,
        "evaluator": EvaluatorResource(database=database, object_store=object_store, key_pool=key_pool),
        "assessor": AssessorResource(database=database, object_store=object_store, kafka=kafka, key_pool=key_pool),
    }
