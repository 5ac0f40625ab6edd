"""One calling process of the key pool's benchmark: the pool, and what it is compared with (LiteLLM: `litellm_caller`).

python -m benchmarks.callers KIND --url http://…/v1 --keys 10 --seconds 60 --mode backlog
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from functools import partial
from typing import Any

import openai
from pydantic import SecretStr

from benchmarks.endpoint import secrets_of
from benchmarks.measure import MESSAGES, Count, arrivals, backlog, percentile
from dangerous_driving.assessment.key_pool import Key, KeyPool, MemoryStorage, Policy, PostgresStorage, key_hash
from dangerous_driving.assessment.llm import LlmClient
from dangerous_driving.errors import KeyRejectedError, LlmError
from dangerous_driving.ledger.database import open_engine
from dangerous_driving.settings import DatabaseSettings, KeysSettings, LlmSettings

MODEL = "simulated-vl"
RETRIES = 2


class Own:
    """The key pool with the platform's client: retries never on the key that failed."""

    def __init__(self, given: argparse.Namespace) -> None:
        secrets = {key_hash(secret): SecretStr(secret) for secret in secrets_of(given.keys)}
        settings = KeysSettings()
        policy = Policy(window_margin=settings.window_margin, lease=settings.lease, minute=given.minute)
        keys = [Key(name, 10, given.rpm) for name in secrets]
        self.engine = None
        if given.database:
            self.engine = open_engine(DatabaseSettings(url=SecretStr(given.database)), application="benchmark")
            self.storage: Any = PostgresStorage(self.engine, keys, policy)
        else:
            self.storage = MemoryStorage(keys, policy)
        self.pool = KeyPool(secrets, self.storage, policy=policy)
        self.client = LlmClient(LlmSettings(base_url=given.url, model=MODEL))
        self.lane = given.lane
        self.waits: list[float] = []

    async def call(self) -> str:
        tried: set[str] = set()
        failure: LlmError | None = None
        for _ in range(1 + RETRIES):
            asked = time.monotonic()
            reservation = await self.pool.reserve(self.lane, exclude=tried)
            self.waits.append(time.monotonic() - asked)
            try:
                reply = await self.client.complete(
                    MESSAGES, reservation.secret, on_sent=partial(self.pool.sent, reservation)
                )
            except LlmError as error:
                await self.pool.report(reservation, error)
                tried.add(reservation.key_hash)
                failure = error
                if not (error.retriable or isinstance(error, KeyRejectedError)):
                    break
            except asyncio.CancelledError:
                await self.pool.report(reservation, "cancelled")
                raise
            else:
                await self.pool.report(reservation)
                return reply.text
        assert failure is not None
        raise failure

    async def close(self) -> None:
        await self.pool.close()
        await self.client.close()
        if self.engine is not None:
            self.engine.dispose()


class Gcra:
    """An ideal limiter: each key's next instant in one process' memory, evenly spaced, no database, no faults known."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.secrets = [SecretStr(secret) for secret in secrets_of(given.keys)]
        self.interval = given.minute / given.rpm
        self.next = dict.fromkeys(range(given.keys), 0.0)
        self.client = LlmClient(LlmSettings(base_url=given.url, model=MODEL))

    async def call(self) -> str:
        index = min(self.next, key=lambda item: self.next[item])
        at = max(self.next[index], time.monotonic())
        self.next[index] = at + self.interval
        await asyncio.sleep(at - time.monotonic())
        return (await self.client.complete(MESSAGES, self.secrets[index])).text

    async def close(self) -> None:
        await self.client.close()


class RoundRobin:
    """One `openai` client per key in rotation, each with its built-in retries; 50 calls at a time."""

    def __init__(self, given: argparse.Namespace) -> None:
        clients = [
            openai.AsyncOpenAI(base_url=given.url, api_key=secret, timeout=30.0) for secret in secrets_of(given.keys)
        ]
        self.turn = itertools.cycle(clients)
        self.slots = asyncio.Semaphore(given.in_flight)

    async def call(self) -> str:
        async with self.slots:
            stream = await next(self.turn).chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)  # type: ignore[arg-type]
            return await read(stream)

    async def close(self) -> None:
        return None


class Exclusive(RoundRobin):
    """The old plan's pool: a key is held for the length of its call, and a task that finds none is dropped."""

    def __init__(self, given: argparse.Namespace) -> None:
        super().__init__(given)
        self.free = [
            openai.AsyncOpenAI(base_url=given.url, api_key=secret, timeout=30.0, max_retries=0)
            for secret in secrets_of(given.keys)
        ]

    async def call(self) -> str:
        if not self.free:
            await asyncio.sleep(0.1)
            raise LookupError("no key is free")
        client = self.free.pop(0)
        try:
            return await read(await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))  # type: ignore[arg-type]
        finally:
            self.free.append(client)


class Single(RoundRobin):
    """The old loop: one key, one call after the other."""

    def __init__(self, given: argparse.Namespace) -> None:
        super().__init__(given)
        self.slots = asyncio.Semaphore(1)
        self.turn = itertools.cycle([next(self.turn)])


async def read(stream: Any) -> str:
    text = ""
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            text += chunk.choices[0].delta.content
    return text


KINDS: dict[str, Any] = {"own": Own, "gcra": Gcra, "round-robin": RoundRobin, "exclusive": Exclusive, "single": Single}


async def run(given: argparse.Namespace) -> None:
    caller, count = KINDS[given.kind](given), Count()
    await asyncio.sleep(max(given.start_at - time.time(), 0))
    if given.mode == "backlog":
        await backlog(count, caller.call, workers=given.workers, seconds=given.seconds)
    else:
        await arrivals(count, caller.call, rate=given.rate, seconds=given.seconds)
    more: dict[str, object] = {}
    if isinstance(caller, Own):
        more = {"wait_p95": percentile(caller.waits, 0.95), "exchanges": getattr(caller.storage, "exchanges", 0)}
    await caller.close()
    count.tell(**more)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("--url", required=True)
    parser.add_argument("--keys", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--mode", choices=["backlog", "load"], default="backlog")
    parser.add_argument("--rate", type=float, default=40.0)
    parser.add_argument("--start-at", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=150)
    parser.add_argument("--in-flight", type=int, default=50)
    parser.add_argument("--lane", default="realtime")
    parser.add_argument("--minute", type=float, default=60.0)
    parser.add_argument("--rpm", type=int, default=300)
    parser.add_argument("--database", default="")
    return parser


if __name__ == "__main__":
    asyncio.run(run(arguments().parse_args()))
