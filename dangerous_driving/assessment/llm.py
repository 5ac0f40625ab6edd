"""The client of the vision LLM: any OpenAI-compatible endpoint, answers streamed, every failure a typed error.

This is the only module that knows the ``openai`` package. Its own retries are off: the key pool and the assessor decide
what is tried again and on which key.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import openai
from pydantic import SecretStr
from structlog.contextvars import get_contextvars

from dangerous_driving.assessment.key_pool import StatedLimits
from dangerous_driving.errors import (
    KeyRejectedError,
    LlmError,
    LlmRequestError,
    LlmTimeoutError,
    LlmUnavailableError,
    RateLimitedError,
)
from dangerous_driving.observability.metrics import LLM_FIRST_TOKEN, LLM_LATENCY, LLM_TOKENS, exemplar
from dangerous_driving.settings import LlmSettings

#: Told of the answer's text so far, each time it has grown.
OnText = Callable[[str], Awaitable[None] | None]

#: Characters that are read of one answer; a longer one is cut (asked for are a few hundred).
MAX_ANSWER = 64_000
#: Characters of an endpoint's own words that go into an error.
MAX_QUOTE = 200

NOWHERE = "http://127.0.0.1:9/v1"
_NO_KEY = "none"  # the SDK wants a key when it is made; each call brings its own


@dataclass(frozen=True)
class Reply:
    """One whole answer. Latencies are seconds from the request on; tokens are 0 where the endpoint does not count.

    ``limits``: of the key, where the endpoint's headers tell them.
    """

    text: str
    input_tokens: int
    output_tokens: int
    first_token_latency: float | None
    latency: float
    model: str
    limits: StatedLimits | None = None


@dataclass(frozen=True)
class _Part:
    """One chunk of a stream; ``tokens``: input and output, usually with the last one only."""

    text: str
    last: bool
    model: str | None
    tokens: tuple[int, int] | None


#: What comes first of a stream: what the headers say of the key's limits.
_Stream = AsyncGenerator[_Part | StatedLimits]


class LlmClient:
    """One endpoint, one connection pool for all keys. Use it in one event loop and close it there.

    Args:
        settings: address, model and time-outs.
    """

    def __init__(self, settings: LlmSettings) -> None:
        self._settings = settings
        timeout = openai.Timeout(settings.timeout, connect=settings.connect_timeout)
        self._http = openai.DefaultAsyncHttpxClient(timeout=timeout)
        self._client = openai.AsyncOpenAI(
            base_url=settings.base_url, api_key=_NO_KEY, http_client=self._http, timeout=timeout, max_retries=0
        )
        self._by_key: dict[str, openai.AsyncOpenAI] = {}

    async def complete(
        self,
        messages: list[dict[str, Any]],
        secret: SecretStr,
        on_text: OnText | None = None,
        *,
        on_sent: Callable[[], None] | None = None,
        response_format: dict[str, Any] | None = None,
        answers: int = 1,
    ) -> Reply:
        """Ask, and read the streamed answer to its end.

        Args:
            messages: in OpenAI's chat format.
            secret: the API key of this call.
            on_text: called with the text so far, before the next part is read.
            on_sent: called when the request is about to leave.
            response_format: structured output, where the endpoint supports it.
            answers: how many are asked for in one, each of at most ``llm.max_tokens``.

        Raises:
            LlmError: one of its kinds, with HTTP status and Retry-After where the endpoint gave them.
        """
        started = time.monotonic()
        body = {
            "model": self._settings.model,
            "messages": messages,
            "temperature": self._settings.temperature,
            "max_tokens": self._settings.max_tokens * answers,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if response_format is not None:
            body["response_format"] = response_format
        async with self._mapped_errors(secret):
            reply = await self._complete(self._parts(body, secret, on_sent), on_text, started)
        # the id of the task is bound to the log's context by whoever asks
        asked = exemplar("task_id", get_contextvars().get("task_id"))
        LLM_LATENCY.observe(reply.latency, asked)
        if reply.first_token_latency is not None:
            LLM_FIRST_TOKEN.observe(reply.first_token_latency, asked)
        LLM_TOKENS.labels("input").inc(reply.input_tokens)
        LLM_TOKENS.labels("output").inc(reply.output_tokens)
        return reply

    async def probe(self, secret: SecretStr) -> None:
        """Ask the endpoint whether it is there and takes this key, as cheaply as it allows.

        Raises:
            LlmError: one of its kinds.
        """
        async with self._mapped_errors(secret):
            client = self._client_of(secret)
            try:
                await client.models.list()
            except openai.APIStatusError as error:
                if error.status_code not in {404, 405, 501}:
                    raise
                # no list of models here: one token shows the same
                await client.chat.completions.create(
                    model=self._settings.model, messages=[{"role": "user", "content": "ok"}], max_tokens=1
                )

    async def warm_up(self) -> None:
        """Have the SDK import and build what it does at its first request, which takes a tenth of a second of the event loop.

        The request goes nowhere: no server listens on the discard port of this machine.
        """
        nowhere = self._client.with_options(base_url=NOWHERE, api_key=_NO_KEY, timeout=1.0)
        try:
            await nowhere.post("/chat/completions", body={}, cast_to=object)
        except openai.OpenAIError:
            return

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    def _client_of(self, secret: SecretStr) -> openai.AsyncOpenAI:
        key = secret.get_secret_value()
        if key not in self._by_key:
            self._by_key[key] = self._client.with_options(api_key=key)
        return self._by_key[key]

    async def _complete(self, stream: _Stream, on_text: OnText | None, started: float) -> Reply:
        text, model, finished = "", self._settings.model, False
        limits: StatedLimits | None = None
        input_tokens = output_tokens = 0
        first: float | None = None
        async with aclosing(stream) as parts:
            async for part in parts:
                if isinstance(part, StatedLimits):
                    limits = part
                    continue
                input_tokens, output_tokens = part.tokens or (input_tokens, output_tokens)
                model, finished = part.model or model, finished or part.last
                if part.text:
                    first = first if first is not None else time.monotonic() - started
                    text += part.text
                    if on_text is not None and inspect.isawaitable(waiting := on_text(text)):
                        await waiting
                if len(text) > MAX_ANSWER:
                    text, finished = text[:MAX_ANSWER], True
                    break
        if not finished:
            said = "broke off in mid-answer" if text else "sent no answer: does llm.base_url end in the right path?"
            raise LlmUnavailableError(f"the endpoint {said}", http_status=200)
        return Reply(text, input_tokens, output_tokens, first, time.monotonic() - started, model, limits)

    async def _parts(self, body: dict[str, Any], secret: SecretStr, on_sent: Callable[[], None] | None) -> _Stream:
        try:
            client = self._client_of(secret)
            if on_sent is not None:
                on_sent()
            stream = await client.post(
                "/chat/completions",
                body=body,
                # chunks as plain data: the SDK's models cost more than all the rest of a call, and check nothing
                cast_to=object,
                stream=True,
                stream_cls=openai.AsyncStream[object],
            )
            limits = _stated_limits(stream.response.headers)
            if limits is not None:
                yield limits
            async with stream:
                async for chunk in stream:
                    yield _part(chunk)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            # no event of a chat: the SDK neither catches errors in the stream's JSON nor checks its form
            raise LlmUnavailableError("the endpoint's stream is garbled", http_status=200) from error

    @asynccontextmanager
    async def _mapped_errors(self, secret: SecretStr) -> AsyncIterator[None]:
        limit = self._settings.timeout
        try:
            async with asyncio.timeout(limit) as deadline:
                yield
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise LlmTimeoutError(f"no whole answer within {limit:g} s (llm.timeout)") from error
        except openai.APITimeoutError as error:
            raise LlmTimeoutError(
                f"{self._settings.base_url} did not answer in time (llm.connect_timeout, llm.timeout)"
            ) from error
        except openai.APIStatusError as error:
            raise _of_status(error, secret) from error
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise LlmUnavailableError(
                f"{self._settings.base_url} cannot be reached or broke off ({type(cause).__name__}: {_quote(str(cause), secret)}); "
                "check llm.base_url"
            ) from error
        except openai.APIError as error:
            raise _of_stream(error, secret) from error
        except openai.OpenAIError as error:
            raise LlmError(f"the request could not be made ({_quote(str(error), secret)})") from error


def _part(chunk: Any) -> _Part:
    """Read one event's data.

    Raises:
        ValueError, TypeError, AttributeError, KeyError: it is no chunk of a chat.
    """
    choices, usage, model = chunk.get("choices") or (), chunk.get("usage"), chunk.get("model")
    choice = choices[0] if choices else {}  # the chunk of the usage has none
    return _Part(
        text=_storable((choice.get("delta") or {}).get("content") or ""),
        last=choice.get("finish_reason") is not None,
        model=_storable(str(model)) if model else None,
        tokens=(int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)) if usage else None,
    )


def _of_status(error: openai.APIStatusError, secret: SecretStr) -> LlmError:
    status = error.status_code
    said = _quote(error.message, secret)
    retry_after = _retry_after(error.response.headers, now=datetime.now(UTC))
    kind: type[LlmError]
    if status in {401, 403}:
        kind, text = KeyRejectedError, f"the endpoint does not accept this key ({said}); replace it or enable it there"
    elif status == 429:  # noqa: PLR2004
        kind, text = RateLimitedError, f"too many requests on this key ({said})"
    elif status == 408:  # noqa: PLR2004
        kind, text = LlmTimeoutError, f"the endpoint gave up on the request ({said})"
    elif status >= 500:  # noqa: PLR2004
        kind, text = LlmUnavailableError, f"the endpoint failed ({said})"
    else:
        kind, text = LlmRequestError, f"the endpoint refuses the request ({said}); check llm.model and llm.base_url"
    found = kind(text, http_status=status, retry_after=retry_after)
    limits = _stated_limits(error.response.headers)
    if limits is not None:
        found.qps_limit, found.rpm_limit = limits.qps, limits.rpm
    return found


def _of_stream(error: openai.APIError, secret: SecretStr) -> LlmError:
    """An error that the endpoint sent within a stream it had begun with status 200."""
    said = _quote(error.message, secret)
    code = f"{error.code or ''} {error.type or ''}".casefold()
    if "rate" in code.split() or any(word in code for word in ("rate_limit", "throttl", "429")):
        return RateLimitedError(f"too many requests on this key ({said})", http_status=200)
    return LlmUnavailableError(f"the endpoint failed in mid-answer ({said})", http_status=200)


def _retry_after(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """Seconds, from ``retry-after-ms``, or ``Retry-After`` as seconds or as a date."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(float(value) / unit, 0.0)
        except ValueError:
            pass
        try:
            return max((parsedate_to_datetime(value) - now).total_seconds(), 0.0)
        except (ValueError, TypeError):  # neither form, or a date without time zone
            continue
    return None


def _stated_limits(headers: Mapping[str, str]) -> StatedLimits | None:
    """A key's limits per second and minute, as some endpoints tell them.

    ``x-ratelimit-limit-requests`` (OpenAI, Azure: a minute's), ``x-ratelimit-limit-req-minute`` and ``-second``, and the
    IETF's draft ``RateLimit-Policy: 10;w=1, 300;w=60``.
    """
    found: dict[int, int] = {}
    for name, seconds in (
        ("x-ratelimit-limit-requests", 60),
        ("x-ratelimit-limit-req-minute", 60),
        ("x-ratelimit-limit-req-second", 1),
    ):
        value = headers.get(name, "")
        if value.isdecimal() and int(value) > 0:
            found[seconds] = int(value)
    for limit, seconds in re.findall(
        r"(?:^|,)\s*(?:\"[^\"]*\";q=)?(\d+)\s*;\s*w=(\d+)", headers.get("ratelimit-policy", "")
    ):
        if int(limit) > 0:
            found[int(seconds)] = int(limit)
    qps, rpm = found.get(1), found.get(60)
    return StatedLimits(qps, rpm) if qps or rpm else None


def _quote(text: str, secret: SecretStr) -> str:
    """The endpoint's words: short, on one line, storable, and without the key, which some endpoints repeat."""
    return _storable(" ".join(text.replace(secret.get_secret_value(), "***").split())[:MAX_QUOTE])


def _storable(text: str) -> str:
    """Without what PostgreSQL and UTF-8 refuse: NUL and halves of surrogate pairs."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
