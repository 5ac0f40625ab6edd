"""The simulated LLM: an OpenAI-compatible HTTP server for development, tests, the demo and benchmarks.

``POST /v1/chat/completions`` (streamed and not), ``GET /v1/models``, ``GET /healthz``; for whoever runs it,
``GET /admin/state`` (counters by key, so that it can prove a key pool wrong) and ``POST /admin/faults``. It says everywhere
that it is simulated: in its model's name, in a header of every response and in every description.
"""

from __future__ import annotations

import asyncio
import json
import queue
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import ceil
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict

from dangerous_driving.assessment.keys import Key
from dangerous_driving.errors import ConfigError
from dangerous_driving.simulation.llm_answers import answer_to, garbage, groups_in, texts_in
from dangerous_driving.simulation.llm_endpoint import Action, Plan, Refusal, SimulatedEndpoint

log = structlog.get_logger(__name__)

MODEL = "simulated-vl"
HEADERS = [("x-simulated", "true")]

#: Characters of one part of a stream: small at first, so that the level arrives as from a model; then larger, to spare CPU.
SMALL_PART, SMALL_PARTS, LARGE_PART = 6, 6, 40
CHARACTERS_PER_TOKEN = 4
IMAGE_TOKENS = 1000  # a usual charge for a picture
GRACE = 1  # s that answers under way may take when the server stops


class FaultOrder(BaseModel):
    """What ``POST /admin/faults`` takes; without a key it is for the whole endpoint."""

    model_config = ConfigDict(extra="forbid")

    action: Action
    key: str | None = None  # its hash
    amount: float = 1.0


def create_app(endpoint: SimulatedEndpoint) -> FastAPI:
    """The HTTP side of an endpoint."""
    app = FastAPI(title="Simulated LLM", docs_url=None, redoc_url=None)

    @app.get("/healthz")
    def healthz() -> dict[str, object]:
        return {"status": "ok", "simulated": True}

    @app.get("/admin/state")
    async def state() -> dict[str, Any]:
        return endpoint.state()

    @app.post("/admin/faults")
    async def faults(order: FaultOrder) -> dict[str, Any]:
        amount = 401.0 if order.action is Action.REVOKE and order.amount == 1.0 else order.amount
        try:
            known = endpoint.change(order.key, order.action, amount)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        if not known:
            raise HTTPException(404, f"there is no key {order.key}")
        return endpoint.state()

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        if endpoint.rejects(_secret_of(request)):
            return _error(Refusal(401, "invalid_api_key", "Incorrect API key provided."))
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "simulation"}
        return JSONResponse({"object": "list", "data": [model]})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        verdict = endpoint.admit(_secret_of(request))
        return _error(verdict) if isinstance(verdict, Refusal) else await _answered(request, verdict, endpoint.seed)

    return app


async def _answered(request: Request, plan: Plan, seed: int) -> Response:
    try:
        body = json.loads(await request.body())
        messages, model = list(body["messages"]), body["model"]
        limit = int(body.get("max_tokens") or body.get("max_completion_tokens") or 10_000)
        with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return _error(Refusal(400, "invalid_request", f"The request is not understood: {error!r}"))
    if model != MODEL:
        return _error(Refusal(404, "model_not_found", f"The only model here is {MODEL}."))
    plan = plan.about(max(len(groups_in(messages) or ()), 1))
    text = garbage(plan.chance) if plan.garbage else answer_to(messages, seed=seed, omit=plan.omit, chance=plan.chance)
    answer = _Answer(plan, _prompt_tokens(messages), text, limit)
    if body.get("stream"):
        return StreamingResponse(answer.stream(with_usage=with_usage), media_type="text/event-stream")
    return await answer.whole()


def _prompt_tokens(messages: Sequence[Any]) -> int:
    pictures = sum(
        isinstance(part, dict) and "image_url" in part
        for message in messages
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        for part in message["content"]
    )
    return pictures * IMAGE_TOKENS + sum(len(text) for text in texts_in(messages)) // CHARACTERS_PER_TOKEN


class _Answer:
    """One answer on its way."""

    def __init__(self, plan: Plan, prompt_tokens: int, text: str, max_tokens: int) -> None:
        self._plan = plan
        self._text = text[: max_tokens * CHARACTERS_PER_TOKEN]
        self._reason = "stop" if self._text == text else "length"
        tokens = ceil(len(self._text) / CHARACTERS_PER_TOKEN)
        self._usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": prompt_tokens + tokens,
        }
        self._head = {"id": f"chatcmpl-simulated-{plan.account.requests}", "created": int(time.time()), "model": MODEL}

    async def whole(self) -> Response:
        """Not streamed."""
        await asyncio.sleep(self._plan.whole)
        message = {"role": "assistant", "content": self._text}
        choice = {"index": 0, "message": message, "finish_reason": self._reason}
        self._count()
        return JSONResponse(
            {**self._head, "object": "chat.completion", "choices": [choice], "usage": self._usage},
        )

    async def stream(self, *, with_usage: bool) -> AsyncIterator[bytes]:
        """As server-sent events; the time of a part grows with the text before it."""
        plan, loop = self._plan, asyncio.get_running_loop()
        started = loop.time()
        try:
            if plan.hang:
                plan.account.hung += 1
                await asyncio.Event().wait()
            sent = 0
            for part in _parts(self._text):
                due = plan.first_token + (plan.whole - plan.first_token) * sent / len(self._text)
                await asyncio.sleep(max(started + due - loop.time(), 0))
                sent += len(part)
                if plan.cut and sent > len(self._text) / 2:
                    plan.account.cut += 1
                    return
                yield self._chunk({"content": part})
            await asyncio.sleep(max(started + plan.whole - loop.time(), 0))
            yield self._chunk({}, self._reason)
            if with_usage:
                yield _event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage})
            self._count()
            yield b"data: [DONE]\n\n"
        except asyncio.CancelledError:
            plan.account.left += 1
            raise

    def _count(self) -> None:
        if self._plan.garbage:
            self._plan.account.garbage += 1
        else:
            self._plan.account.answered += 1

    def _chunk(self, delta: dict[str, str], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return _event({**self._head, "object": "chat.completion.chunk", "choices": [choice]})


class _Server(uvicorn.Server):
    """uvicorn that ends with an event and leaves the signals to the process' own frame."""

    def __init__(self, config: uvicorn.Config, stop: threading.Event) -> None:
        super().__init__(config)
        self._stop = stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        return self._stop.is_set() or await super().on_tick(counter)


def serve(
    host: str,
    port: int,
    *,
    stop: threading.Event,
    keys: Sequence[Key] = (),
    seed: int = 0,
    speed: float = 1.0,
    second: float = 1.0,
    minute: float = 60.0,
    on_ready: Callable[[int], None] | None = None,
) -> None:
    """Run the server until `stop` is set.

    Args:
        host: address to listen on.
        port: 0: any free one.
        stop: ends it within a second or two; answers under way are broken off.
        keys: those that are accepted, with their limits; none: every key is, with 10 requests a second and 300 a minute.
        seed: same seed, same answers and latencies.
        speed: divides the latencies.
        second: s; length of the limits' short window.
        minute: s; length of the limits' long window.
        on_ready: told of the port once connections are taken.

    Raises:
        ConfigError: the port cannot be used.
    """
    listener = _listen(host, port)
    port = listener.getsockname()[1]
    endpoint = SimulatedEndpoint(keys, clock=time.monotonic, seed=seed, speed=speed, second=second, minute=minute)
    config = uvicorn.Config(
        create_app(endpoint),
        log_config=None,
        access_log=False,
        lifespan="off",
        headers=HEADERS,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE,
    )
    log.info("simulated_llm", url=f"http://{host}:{port}/v1", model=MODEL, keys=len(keys) or "any")
    if on_ready is not None:
        on_ready(port)
    try:
        _Server(config, stop).run(sockets=[listener])
    finally:
        listener.close()


@contextmanager
def serving(**options: Any) -> Iterator[str]:
    """The server in a thread, for tests and benchmarks; gives its base URL.

    Args:
        options: of :func:`serve`, but for host, port and stop.
    """
    stop, ready = threading.Event(), queue.SimpleQueue[int]()
    with ThreadPoolExecutor(1, thread_name_prefix="simulated-llm") as threads:
        future = threads.submit(serve, "127.0.0.1", 0, stop=stop, on_ready=ready.put, **options)
        future.add_done_callback(lambda _: ready.put(0))  # it ended before it was ready
        try:
            port = ready.get(timeout=30)
            if port == 0:
                future.result()
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            stop.set()
        future.result()


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket: whoever connects from now on waits until the server has come up."""
    try:
        return socket.create_server((host, port), backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError("--port", f"{host}:{port} cannot be used ({reason})", "use another port, or 0") from error


def _parts(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        size = SMALL_PART if at < SMALL_PART * SMALL_PARTS else LARGE_PART
        yield text[at : at + size]
        at += size


def _secret_of(request: Request) -> str:
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    return secret.strip() if scheme.casefold() == "bearer" else ""


def _error(refusal: Refusal) -> JSONResponse:
    headers = {}
    if refusal.retry_after is not None:
        headers = {
            "retry-after": str(ceil(refusal.retry_after)),
            "retry-after-ms": str(ceil(refusal.retry_after * 1000)),
        }
    body = {"error": {"message": f"[simulated] {refusal.message}", "type": refusal.code, "code": refusal.code}}
    return JSONResponse(body, status_code=refusal.status, headers=headers)


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()
