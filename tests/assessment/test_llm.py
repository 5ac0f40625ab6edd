"""The LLM client over real HTTP: against the simulated endpoint, and against endpoints that misbehave."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from dangerous_driving.assessment.answer import level_in_stream, parse_answer
from dangerous_driving.assessment.keys import Key
from dangerous_driving.assessment.llm import MAX_ANSWER, LlmClient, Reply
from dangerous_driving.contracts import RiskLevel
from dangerous_driving.errors import (
    KeyRejectedError,
    LlmError,
    LlmRequestError,
    LlmTimeoutError,
    LlmUnavailableError,
    RateLimitedError,
)
from dangerous_driving.settings import LlmSettings
from dangerous_driving.simulation.llm import MODEL, serving

SECRET = SecretStr("sk-secret-0")
OBJECTS = [
    {"objectId": 1, "class": "car", "bbox": [100, 100, 300, 220]},
    {"objectId": 2, "class": "person", "bbox": [210, 110, 250, 222]},
]
MESSAGES = [{"role": "user", "content": [{"type": "text", "text": json.dumps({"objects": OBJECTS})}]}]


@asynccontextmanager
async def client_of(base_url: str, **settings: Any) -> AsyncIterator[LlmClient]:
    client = LlmClient(LlmSettings(base_url=base_url, model=MODEL, **settings))
    try:
        yield client
    finally:
        await client.close()


# -- the simulated endpoint


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(keys=[Key(SECRET, 20, 1000), Key(SecretStr("sk-slow"), 1, 1000)], speed=20.0) as base_url:
        yield base_url


@pytest.fixture
def order(url: str) -> Iterator[Callable[..., None]]:
    def give(**faults: object) -> None:
        httpx.post(url.removesuffix("/v1") + "/admin/faults", json=faults, timeout=20).raise_for_status()

    yield give
    give(action="restore")


def state_of(url: str) -> Any:
    return httpx.get(url.removesuffix("/v1") + "/admin/state", timeout=20).json()


async def test_an_answer_is_streamed_and_its_level_known_before_its_end(url: str) -> None:
    heard: list[str] = []
    async with client_of(url) as client:
        reply = await client.complete(MESSAGES, SECRET, heard.append)
    assert heard[-1] == reply.text
    assert all(later.startswith(earlier) for earlier, later in pairwise(heard))
    known = next(text for text in heard if level_in_stream(text) is not None)
    assert len(known) < len(reply.text) / 2
    assert level_in_stream(known) is parse_answer(reply.text, {1, 2}).risk_level is RiskLevel.HIGH
    assert reply.model == MODEL
    assert reply.input_tokens > 0 < reply.output_tokens
    assert reply.first_token_latency is not None
    assert 0 < reply.first_token_latency < reply.latency


async def test_an_awaitable_listener_is_awaited(url: str) -> None:
    heard: list[str] = []

    async def listen(text: str) -> None:
        await asyncio.sleep(0)
        heard.append(text)

    async with client_of(url) as client:
        reply = await client.complete(MESSAGES, SECRET, listen)
    assert heard[-1] == reply.text


async def test_an_error_of_the_listener_is_not_taken_for_one_of_the_endpoint(url: str) -> None:
    def refuse(_: str) -> None:
        raise ValueError("the listener's own")

    async with client_of(url) as client:
        with pytest.raises(ValueError, match="the listener's own"):
            await client.complete(MESSAGES, SECRET, refuse)


async def test_calls_run_concurrently_over_one_client(url: str) -> None:
    async with client_of(url) as client:
        replies = await asyncio.gather(*(client.complete(MESSAGES, SECRET) for _ in range(10)))
    assert len({reply.text for reply in replies}) == 1  # same geometry, same answer


@pytest.mark.parametrize("status", [401, 403])
async def test_a_revoked_key_is_rejected(url: str, order: Callable[..., None], status: int) -> None:
    order(action="revoke", amount=status)
    async with client_of(url) as client:
        with pytest.raises(KeyRejectedError) as caught:
            await client.complete(MESSAGES, SECRET)
    assert caught.value.http_status == status


async def test_too_many_requests_say_when_to_come_back(url: str) -> None:
    async with client_of(url) as client:
        calls = [client.complete(MESSAGES, SecretStr("sk-slow")) for _ in range(3)]
        results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [result for result in results if isinstance(result, RateLimitedError)]
    assert len(refused) == 2
    for error in refused:
        assert error.http_status == 429
        assert error.retry_after is not None
        assert 0 < error.retry_after <= 1.0


async def test_a_broken_endpoint_is_unavailable_and_not_asked_twice(url: str, order: Callable[..., None]) -> None:
    order(action="break", amount=1.0)
    before = state_of(url)["requests"]
    async with client_of(url) as client:
        with pytest.raises(LlmUnavailableError) as caught:
            await client.complete(MESSAGES, SECRET)
    assert caught.value.http_status == 503
    assert state_of(url)["requests"] == before + 1


async def test_an_endpoint_that_hangs_after_the_headers_is_timed_out(url: str, order: Callable[..., None]) -> None:
    order(action="hang", amount=1.0)
    async with client_of(url, timeout=0.5) as client:
        with pytest.raises(LlmTimeoutError, match=r"llm\.timeout"):
            await client.complete(MESSAGES, SECRET)


async def test_the_whole_answer_is_timed_not_its_parts(url: str, order: Callable[..., None]) -> None:
    order(action="slow", amount=200.0)  # some 12 s in all, less than 1 s between parts
    async with client_of(url, timeout=1.0) as client:
        with pytest.raises(LlmTimeoutError):
            await client.complete(MESSAGES, SECRET)


async def test_an_answer_that_breaks_off_is_no_answer(url: str, order: Callable[..., None]) -> None:
    order(action="cut", amount=1.0)
    async with client_of(url) as client:
        with pytest.raises(LlmUnavailableError, match="broke off"):
            await client.complete(MESSAGES, SECRET)


async def test_an_answer_cut_by_max_tokens_is_handed_out(url: str) -> None:
    async with client_of(url, max_tokens=8) as client:
        reply = await client.complete(MESSAGES, SECRET)
    assert len(reply.text) == 32
    assert parse_answer(reply.text, {1, 2}).risk_level is RiskLevel.HIGH


async def test_cancelling_a_call_ends_its_request(url: str, order: Callable[..., None]) -> None:
    order(action="hang", amount=1.0)
    state = url.removesuffix("/v1") + "/admin/state"
    async with client_of(url) as client, httpx.AsyncClient(timeout=20) as admin:

        async def count(name: str) -> int:
            return sum(key[name] for key in (await admin.get(state)).json()["keys"])

        hung, left = await count("hung"), await count("left")
        call = asyncio.create_task(client.complete(MESSAGES, SECRET))
        while await count("hung") == hung:
            pass
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        while await count("left") == left:
            pass


async def test_probing_costs_no_quota(url: str) -> None:
    before = state_of(url)["requests"]
    async with client_of(url) as client:
        await client.probe(SECRET)
        with pytest.raises(KeyRejectedError):
            await client.probe(SecretStr("sk-unknown"))
    assert state_of(url)["requests"] == before


async def test_a_model_that_is_not_offered_is_the_requests_fault(url: str) -> None:
    client = LlmClient(LlmSettings(base_url=url, model="gpt-none"))
    with pytest.raises(LlmRequestError, match=r"llm\.model"):
        await client.complete(MESSAGES, SECRET)
    await client.close()


# -- endpoints that misbehave

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def chunk(content: object = None, reason: str | None = None, **more: Any) -> bytes:
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    data = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice], **more}
    return b"data: " + json.dumps(data).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
EVENTS = "text/event-stream"


@asynccontextmanager
async def endpoint(
    body: bytes, status: str = "200 OK", kind: str = EVENTS, headers: str = "", length: int | None = None
) -> AsyncIterator[str]:
    """Answers every request with this and closes the connection; a larger `length` breaks the answer off."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().casefold()
        for line in head.split("\r\n"):
            if line.startswith("content-length:"):
                await reader.readexactly(int(line.partition(":")[2]))
        size = len(body) if length is None else length
        writer.write(f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n{headers}\r\n".encode())
        writer.write(body)
        try:
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            pass  # the client had enough

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


async def complete(base_url: str, **settings: Any) -> Reply:
    async with client_of(base_url, **settings) as client:
        return await client.complete(MESSAGES, SECRET)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>the wrong address</html>",
        b"",
        b"data: {not json\n\n",
        b"data: 42\n\n",
        b"data: []\n\n",
        b'data: {"choices": 7}\n\n',
        b'data: {"choices": {"a": 1}}\n\n',
        b'data: {"choices": [{"delta": {"content": ["list"]}}]}\n\n',
        b'data: {"choices": [{}]}\n\n',
        b"data: \xff\xfe\n\n",
        b"\x00" * 5000,
        chunk("half") + b"data: {not json\n\n",
        chunk("half"),
        chunk("half") + DONE,
        chunk("half") + b'data: {"error": {"message": "overloaded", "type": "server_error"}}\n\n',
    ],
)
async def test_a_stream_of_garbage_is_unavailable(body: bytes) -> None:
    async with endpoint(body) as base_url:
        with pytest.raises(LlmUnavailableError):
            await complete(base_url)


@pytest.mark.parametrize("kind", ["text/html", "application/json"])
async def test_something_else_than_a_stream_is_unavailable(kind: str) -> None:
    async with endpoint(b'{"choices": [{"message": {"content": "{}"}}]}', kind=kind) as base_url:
        with pytest.raises(LlmUnavailableError, match=r"llm\.base_url"):
            await complete(base_url)


async def test_a_connection_that_breaks_in_mid_stream_is_unavailable() -> None:
    async with endpoint(chunk('{"riskLevel": "lo'), length=10_000) as base_url:
        with pytest.raises(LlmUnavailableError, match="broke off"):
            await complete(base_url)


async def test_an_endless_answer_is_cut() -> None:
    async with endpoint(chunk("x" * 10_000) * 1000) as base_url:
        reply = await complete(base_url)
    assert len(reply.text) == MAX_ANSWER


async def test_text_that_cannot_be_stored_is_replaced_and_missing_counts_are_zero() -> None:
    async with endpoint(chunk("a\x00b\ud83dc") + chunk(reason="stop") + DONE) as base_url:
        reply = await complete(base_url)
    reply.text.encode()
    assert "\x00" not in reply.text
    assert (reply.input_tokens, reply.output_tokens) == (0, 0)


async def test_an_error_within_a_stream_that_cannot_be_stored_is_replaced() -> None:
    body = b'data: {"error": {"message": "no \\u0000 and \\ud83d", "type": "server_error"}}\n\n'
    async with endpoint(body) as base_url:
        with pytest.raises(LlmUnavailableError, match="in mid-answer") as caught:
            await complete(base_url)
    str(caught.value).encode()
    assert "no \ufffd and" in str(caught.value)


async def test_throttling_told_within_a_stream_is_a_rate_limit() -> None:
    body = b'data: {"error": {"message": "slow down", "code": "Throttling.RateQuota"}}\n\n'
    async with endpoint(body) as base_url:
        with pytest.raises(RateLimitedError):
            await complete(base_url)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("400 Bad Request", LlmRequestError),
        ("402 Payment Required", LlmRequestError),
        ("404 Not Found", LlmRequestError),
        ("408 Request Timeout", LlmTimeoutError),
        ("422 Unprocessable Entity", LlmRequestError),
        ("429 Too Many Requests", RateLimitedError),
        ("500 Internal Server Error", LlmUnavailableError),
        ("529 Overloaded", LlmUnavailableError),
    ],
)
async def test_every_status_has_its_error_with_few_of_the_endpoints_words_and_no_key(
    status: str, kind: type[LlmError]
) -> None:
    body = json.dumps({"error": {"message": f"Incorrect key {SECRET.get_secret_value()}. " + "x" * 5000}}).encode()
    async with endpoint(body, status=status, kind="application/json") as base_url:
        with pytest.raises(kind) as caught:
            await complete(base_url)
    assert type(caught.value) is kind
    assert caught.value.http_status == int(status[:3])
    assert len(str(caught.value)) < 500
    assert SECRET.get_secret_value() not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ("Retry-After: 7\r\n", 7.0),
        ("Retry-After: 7\r\nretry-after-ms: 1500\r\n", 1.5),
        ("Retry-After: -1\r\n", 0.0),
        ("Retry-After: soon\r\n", None),
        ("", None),
    ],
)
async def test_retry_after(headers: str, expected: float | None) -> None:
    async with endpoint(b"{}", status="429 Too Many Requests", kind="application/json", headers=headers) as base_url:
        with pytest.raises(RateLimitedError) as caught:
            await complete(base_url)
    assert caught.value.retry_after == expected


async def test_retry_after_as_a_date() -> None:
    headers = f"Retry-After: {format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)}\r\n"
    async with endpoint(b"{}", status="429 Too Many Requests", kind="application/json", headers=headers) as base_url:
        with pytest.raises(RateLimitedError) as caught:
            await complete(base_url)
    assert caught.value.retry_after == pytest.approx(90, abs=30)


async def test_nobody_at_the_address_is_unavailable_and_names_the_setting() -> None:
    async with endpoint(b"") as base_url:
        pass
    with pytest.raises(LlmUnavailableError, match=r"cannot be reached.*llm\.base_url"):
        await complete(base_url)


async def test_a_probe_falls_back_where_models_are_not_listed() -> None:
    async with (
        endpoint(b"{}", status="404 Not Found", kind="application/json") as base_url,
        client_of(base_url) as client,
    ):
        with pytest.raises(LlmRequestError):  # of the one-token question, which this endpoint does not know either
            await client.probe(SECRET)
