"""Opens an assessor with all that it holds: a worker in the ledger, the endpoint's client, the results' way out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from sqlalchemy import Engine

from dangerous_driving.assessment.assessor import Assessor
from dangerous_driving.assessment.caller import Caller
from dangerous_driving.assessment.champion import Prompts, current_prompts, follow_promotions
from dangerous_driving.assessment.context import CameraContexts
from dangerous_driving.assessment.endpoints import Breaker, Endpoint
from dangerous_driving.assessment.key_pool import KeyPool
from dangerous_driving.assessment.keys import follow_file, open_pool
from dangerous_driving.assessment.llm import LlmClient
from dangerous_driving.assessment.patient_ledger import PatientLedger
from dangerous_driving.assessment.publisher import ResultPublisher
from dangerous_driving.assessment.worker import living, register
from dangerous_driving.ledger.database import open_engine
from dangerous_driving.messaging.seam import Sender
from dangerous_driving.objects import ObjectStore
from dangerous_driving.settings import Settings

#: Database and store calls at a time; asyncio's default (cores + 4) would make calls wait for each other on small machines.
THREADS = 24


@asynccontextmanager
async def open_assessor(
    settings: Settings,
    *,
    service: str,
    engine: Engine,
    store: ObjectStore,
    pool: KeyPool,
    producer: Sender,
    follows_promotions: bool = True,
) -> AsyncIterator[Assessor]:
    """An assessor of a new worker, alive within the block.

    Args:
        settings: the whole tree.
        service: what the worker is called in the ledger (``assess``, ``window-run``).
        engine: of the ledger.
        store: where the pictures lie.
        pool: of API keys; the caller closes it.
        producer: for live results; the caller closes it.
        follows_promotions: take the prompt that is promoted, now and later; else it is ``llm.prompt_version``.

    Raises:
        ConfigError: the prompt version is unknown, or has none for several groups where groups are to share calls.
        LedgerError: which prompt is promoted cannot be read.
    """
    if follows_promotions:
        prompts = await asyncio.to_thread(current_prompts, settings, engine)
    else:
        prompts = Prompts.of(settings, settings.llm.prompt_version)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="assess"))
    worker = await asyncio.to_thread(register, engine, service=service, node=settings.node)
    contexts = CameraContexts(settings.camera, engine)
    # the heart beats over a connection of its own, however busy the others are
    own = open_engine(settings.database.model_copy(update={"pool_size": 1}), application=f"heartbeat {service}")
    publisher = ResultPublisher(engine, producer, delivery_timeout=settings.kafka.delivery_timeout)
    endpoints = open_endpoints(settings, pool, engine)
    promotions: asyncio.Task[None] | None = None
    following = asyncio.create_task(follow_file(settings.keys, pool), name="key-file")
    try:
        for endpoint in endpoints:
            await endpoint.client.warm_up()
        async with living(own, worker, settings.assessment) as beating:
            ledger = PatientLedger(engine)
            assessor = Assessor(
                llm=settings.llm,
                caller=Caller(
                    llm=settings.llm, endpoints=endpoints, ledger=ledger, publisher=publisher, node=settings.node
                ),
                prompts=prompts,
                contexts=contexts,
                settings=settings.assessment,
                ledger=ledger,
                store=store,
                worker=worker,
                node=settings.node,
                beating=beating,
            )
            if follows_promotions:
                promotions = asyncio.create_task(follow_promotions(assessor, settings, engine), name="promotions")
            yield assessor
    finally:
        following.cancel()
        if promotions is not None:
            promotions.cancel()
        await asyncio.to_thread(publisher.close)
        await close_endpoints(endpoints, pool)
        own.dispose()


def open_endpoints(settings: Settings, pool: KeyPool, engine: Engine | None) -> list[Endpoint]:
    """The configured endpoint and its fallbacks, in order.

    Args:
        settings: the whole tree.
        pool: of the keys in ``keys``.
        engine: where the fallbacks' own keys share their quota; None: this process has them for itself.
    """
    llm = settings.llm
    endpoints = [Endpoint(llm, LlmClient(llm), pool, Breaker(llm.breaker_failures))]
    for fallback in llm.fallbacks:
        given = fallback.model_dump(exclude={"secrets"}, exclude_none=True)
        own = llm.model_copy(update=given)
        keys = pool
        if fallback.secrets:
            keys = open_pool(settings.keys.model_copy(update={"secrets": fallback.secrets, "file": None}), engine)
        endpoints.append(Endpoint(own, LlmClient(own), keys, Breaker(llm.breaker_failures)))
    return endpoints


async def close_endpoints(endpoints: Sequence[Endpoint], pool: KeyPool) -> None:
    """Close the clients, and the pools that are not the caller's."""
    for endpoint in endpoints:
        await endpoint.client.close()
        if endpoint.pool is not pool:
            await endpoint.pool.close()
