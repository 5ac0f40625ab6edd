"""The simulated endpoint as lean as can be: same limits, latencies and faults, little processor time.

One `asyncio.Protocol` per connection and a timer per part instead of a web framework, since client, endpoint and database share
two cores in a benchmark. It counts requests in exact sliding windows as `SimulatedEndpoint` does, because it is one, and answers
in four parts: the level first, then the rest.

    python -m benchmarks.endpoint --keys 10 --port-file PATH      # ends with standard input
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from dangerous_driving.assessment.keys import Key
from dangerous_driving.simulation.llm_endpoint import Action, Plan, Refusal, SimulatedEndpoint

#: What `openai` and LiteLLM read of a stream.
HEAD = {"id": "chatcmpl-simulated", "object": "chat.completion.chunk", "created": 0, "model": "simulated-vl"}
PARTS = (
    '{"riskLevel": "low", "seconds": %.3f, "confidence": 0.7, ',
    '"riskTypes": ["tailgating"], ',
    '"description": "[simulated] Two cars close to each other.", ',
    '"triggerObjectIds": [1, 2], "dangerObjectCount": 2}',
)


#: How long the answer takes by the model's own account stands in it, so that callers can tell what they add to it.


def _chunk(text: str | None, reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text is not None else {}, "finish_reason": reason}
    return _event({**HEAD, "choices": [choice]})


def _event(data: dict[str, Any]) -> bytes:
    body = f"data: {json.dumps(data)}\n\n".encode()
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"


CHUNKS = tuple(_chunk(part) for part in PARTS[1:])
END = (
    _chunk(None, "stop")
    + _event({**HEAD, "choices": [], "usage": {"prompt_tokens": 1100, "completion_tokens": 50, "total_tokens": 1150}})
    + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
)
GARBAGE = _chunk("<html>this is no answer</html>") + _chunk(None, "stop") + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nx-simulated: true\r\n\r\n"
)


class Connection(asyncio.Protocol):
    """One connection: requests one after the other."""

    def __init__(self, endpoint: SimulatedEndpoint, delays: list[float]) -> None:
        self.endpoint, self.delays = endpoint, delays
        self.buffer = b""
        self.transport: asyncio.Transport
        self.loop = asyncio.get_running_loop()
        self.timers: list[asyncio.TimerHandle] = []
        self.plan: Plan | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in self.timers:
            timer.cancel()
        if self.plan is not None:
            self.plan.account.left += 1

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.buffer[:end]
            length = 0
            secret = ""
            for line in head.split(b"\r\n")[1:]:
                name, _, value = line.partition(b":")
                lowered = name.lower()
                if lowered == b"content-length":
                    length = int(value)
                elif lowered == b"authorization":
                    secret = value.decode().partition("Bearer ")[2].strip()
            if len(self.buffer) < end + 4 + length:
                return
            body = self.buffer[end + 4 : end + 4 + length]
            self.buffer = self.buffer[end + 4 + length :]
            self.answer(head.split(b" ", 2)[1].decode(), secret, body)

    def answer(self, path: str, secret: str, body: bytes) -> None:
        if path.endswith("/chat/completions"):
            self.chat(secret, b'"stream":true' in body.replace(b'"stream": true', b'"stream":true'))
        elif path == "/admin/state":
            usage = resource.getrusage(resource.RUSAGE_SELF)
            state = {**self.endpoint.state(), "cpu": usage.ru_utime + usage.ru_stime, "delays": self.delays}
            self.send(200, json.dumps(state).encode())
        elif path == "/admin/faults":
            order = json.loads(body)
            amount = order.get("amount", 1.0)
            if order["action"] == "revoke" and amount == 1.0:
                amount = 401.0
            self.endpoint.change(order.get("key"), Action(order["action"]), amount)
            self.send(200, b"{}")
        else:
            self.send(404, b"{}")

    def send(self, status: int, body: bytes, more: str = "") -> None:
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{more}\r\n"
        self.transport.write(head.encode() + body)

    def chat(self, secret: str, streamed: bool) -> None:
        verdict = self.endpoint.admit(secret)
        if isinstance(verdict, Refusal):
            more = ""
            if verdict.retry_after is not None:
                more = f"retry-after: {max(int(verdict.retry_after + 0.999), 1)}\r\nretry-after-ms: {int(verdict.retry_after * 1000) + 1}\r\n"
            error = {"error": {"message": f"[simulated] {verdict.message}", "type": verdict.code, "code": verdict.code}}
            self.send(verdict.status, json.dumps(error).encode(), more)
            return
        self.plan = verdict
        if not streamed:
            self.timers = [self.loop.call_later(verdict.whole, self.whole)]
            return
        if verdict.hang:
            verdict.account.hung += 1
            self.transport.write(STREAM)
            return
        step = (verdict.whole - verdict.first_token) / len(PARTS)
        later = [self.loop.call_later(verdict.first_token + step * n, self.part, n) for n in range(len(PARTS))]
        self.timers = [*later, self.loop.call_later(verdict.whole, self.end)]

    def whole(self) -> None:
        plan, self.plan = self.plan, None
        assert plan is not None
        plan.account.answered += 1
        text = "".join(PARTS) % plan.whole
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1100, "completion_tokens": 50, "total_tokens": 1150}
        body = {**HEAD, "object": "chat.completion", "choices": [choice], "usage": usage}
        self.send(200, json.dumps(body).encode())

    def part(self, number: int) -> None:
        assert self.plan is not None
        if self.plan.garbage:
            if number == 0:
                self.transport.write(STREAM)
            return
        first = number == 0
        self.transport.write(STREAM + _chunk(PARTS[0] % self.plan.whole) if first else CHUNKS[number - 1])

    def end(self) -> None:
        plan, self.plan = self.plan, None
        assert plan is not None
        if plan.garbage:
            plan.account.garbage += 1
            self.transport.write(GARBAGE)
            return
        plan.account.answered += 1
        self.transport.write(END)


async def serve(port_file: Path, keys: list[Key], *, seed: int, speed: float, second: float, minute: float) -> None:
    endpoint = SimulatedEndpoint(keys, clock=time.monotonic, seed=seed, speed=speed, second=second, minute=minute)
    loop = asyncio.get_running_loop()
    delays = [0.0, 0.0]  # longest and second longest pause of this loop: what it adds to the requests' way
    server = await loop.create_server(lambda: Connection(endpoint, delays), "127.0.0.1", 0, backlog=2048)
    port_file.with_suffix(".new").write_text(str(server.sockets[0].getsockname()[1]))
    port_file.with_suffix(".new").rename(port_file)
    stop = asyncio.Event()
    threading.Thread(
        target=lambda: (os.read(sys.stdin.fileno(), 1), loop.call_soon_threadsafe(stop.set)),
        daemon=True,
    ).start()
    while not stop.is_set():
        before = loop.time()
        await asyncio.sleep(0.01)
        delays[:] = sorted([*delays, round(loop.time() - before - 0.01, 3)], reverse=True)[:2]


def secrets_of(count: int) -> list[str]:
    return [f"sk-simulated-{number}" for number in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keys", type=int, default=10)
    parser.add_argument("--port-file", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--second", type=float, default=1.0)
    parser.add_argument("--minute", type=float, default=60.0)
    parser.add_argument("--rpm", type=int, default=300)
    given = parser.parse_args()
    with contextlib.suppress(PermissionError):
        os.nice(-5)  # its pauses would be counted as the clients'
    gc.freeze()
    keys = [Key(SecretStr(secret), 10, given.rpm) for secret in secrets_of(given.keys)]
    asyncio.run(
        serve(given.port_file, keys, seed=given.seed, speed=given.speed, second=given.second, minute=given.minute)
    )


if __name__ == "__main__":
    main()
