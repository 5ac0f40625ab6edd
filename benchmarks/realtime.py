"""The bridge under many clients: how late alerts are, whether any is lost, what a client costs, what slow clients do to others.

    python -m benchmarks.realtime            # 1,000 clients, 50 cameras, 28 frames/s, 2 alerts/s
    python -m benchmarks.realtime --quick    # 200 clients, seconds instead of a minute

Three runs one after the other, in processes of their own, on the same messages at the same times, with the same clients:

- ``bare``: a broadcast loop with the same library (uvicorn and websockets): it encodes each message once and sends it to
  the clients of its camera, and does nothing else: no queue, no token, no ledger, no resume;
- ``bridge``: the real bridge, on a real ledger, fed with the same messages in the place of a broker;
- ``bridge, slow``: the bridge, with 10 % of the clients asking for all cameras and reading a seventh of what comes, into
  a small buffer: the others' delays are compared. It counts only if frames of the slow ones were dropped, and it says so.

A client subscribes to four cameras. Delays are from the moment a message is handed to the server until the client's
process has it, over loopback, on one clock. The clients are one more process, which shares the machine's cores with the
server: delays include the time until they get to read. All load stays on loopback and ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing as mp
import os
import queue
import resource
import socket
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import psutil
import uvloop

from benchmarks.figures import Figure, tell
from dangerous_driving.contracts import (
    Alert,
    AlertBasis,
    AlertState,
    DetectedObject,
    DetectionResult,
    Message,
    RiskLevel,
    TrafficGroup,
    message_id_of,
)
from dangerous_driving.observability.metrics import WEBSOCKET_DROPPED

SUBSCRIBED = 4
#: Boxes in a frame, and groups, as in the clips of a junction.
OBJECTS, GROUPS = 12, 3
TARGET_MS = 250.0
#: s after the last message until what has not come counts as lost
LATEST_SECONDS = 30.0


@dataclass(frozen=True)
class Load:
    """What is sent for how long, and to how many."""

    clients: int
    cameras: int
    frames_per_second: float
    alerts_per_second: float
    seconds: float
    warm_up: float  # s at the beginning whose alerts are not counted
    slow: float = 0.0  # share of the clients that are slow
    compression: bool = True


@dataclass
class Served:
    """A server in its process."""

    process: Any
    port: int
    control: Connection


# messages


def frame(camera: int) -> DetectionResult:
    """A frame of now."""
    at = datetime.now(UTC)
    name = f"cam-{camera:02d}"
    return DetectionResult(
        message_id=message_id_of(name, at),
        camera_id=name,
        timestamp=at,
        image_width=1280,
        image_height=720,
        raw_frame_url=f"s3://traffic/frames/{name}/2026/01/01/00/{at.timestamp()}.jpg",
        detected_objects=tuple(
            DetectedObject(
                object_id=n + 1, class_name="car", confidence=0.5 + n / 40,
                bbox=(37.5 * n, 311.25, 37.5 * n + 88, 377.5),
            )
            for n in range(OBJECTS)
        ),
        traffic_groups=tuple(
            TrafficGroup(
                group_index=n + 1, object_count=3, bbox=(100.0 * n, 300, 100.0 * n + 200, 400), classes=("car", "person"),
                priority=0.5,
            )
            for n in range(GROUPS)
        ),
    )  # fmt: skip


def alert(number: int, camera: int) -> Alert:
    """An alert of now; its version 1 is its only one."""
    at = datetime.now(UTC)
    return Alert(
        alert_id=f"alert-{number}", version=1, camera_id=f"cam-{camera:02d}", state=AlertState.OPEN, basis=AlertBasis.FINAL,
        risk_level=RiskLevel.HIGH, peak_level=RiskLevel.HIGH, risk_types=("pedestrian_conflict",),
        description="A person steps in front of a moving car; the car brakes", group_bbox=(1, 2, 300, 400),
        opened_at=at, last_seen_at=at, updated_at=at, first_task_id=f"t{number}", last_task_id=f"t{number}",
        last_request_id=f"m{number}", notify=True,
    )  # fmt: skip


def expected(client: int, cameras: int, alerts: int) -> set[int]:
    """The numbers of the alerts that a client is to get."""
    wanted = set(cameras_of(client, cameras))
    return {index for index in range(alerts) if f"cam-{index % cameras:02d}" in wanted}


def cameras_of(client: int, cameras: int) -> list[str]:
    """Four cameras next to each other, a client further."""
    return [f"cam-{(client * SUBSCRIBED + n) % cameras:02d}" for n in range(SUBSCRIBED)]


# servers: each in a process of its own, fed through a pipe with what to send when


class Feed:
    """Hands a thread's messages to the bridge's reader in the place of a consumer of the log."""

    def __init__(self) -> None:
        self.waiting: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def poll(self, timeout: float, max_records: int) -> list[Any]:
        from dangerous_driving.messaging import Received, Topic

        found: list[Any] = []
        with suppress(queue.Empty):
            found.append(self.waiting.get(timeout=timeout))
            while len(found) < max_records:  # all that is there, as a consumer gives it
                found.append(self.waiting.get_nowait())
        return [Received(Topic.ALERTS, 0, 0, None, message) for message in found]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def send_on_time(load: Load, put: Any) -> list[float]:
    """Make the messages at their times and hand them to `put`; the wall-clock time of each alert's hand-over."""
    begin = time.monotonic()
    frames = alerts = 0
    sent: list[float] = []
    while (now := time.monotonic() - begin) < load.seconds:
        next_frame, next_alert = frames / load.frames_per_second, alerts / load.alerts_per_second
        wait = min(next_frame, next_alert) - now
        if wait > 0:
            time.sleep(wait)
        elif next_alert <= next_frame:
            message: Message = alert(alerts, alerts % load.cameras)
            sent.append(time.time())
            put(message)
            alerts += 1
        else:
            put(frame(frames % load.cameras))
            frames += 1
    return sent


def _serve_bridge(load: Load, url: str, control: Connection) -> None:
    from pydantic import SecretStr

    from dangerous_driving.ledger.database import open_engine
    from dangerous_driving.objects import FolderStore
    from dangerous_driving.realtime.service import Bridge
    from dangerous_driving.settings import DatabaseSettings, RealtimeSettings, Settings

    settings = Settings(
        realtime=RealtimeSettings(
            port=0, open_access=True, connect_burst=100_000, compression=load.compression, max_clients=100_000
        )
    )
    engine = open_engine(DatabaseSettings(url=SecretStr(url)))
    feed = Feed()
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        bridge = Bridge(settings, engine, FolderStore(Path(folder)), object(), lambda: feed)  # type: ignore[arg-type]
        threading.Thread(target=_obey, args=(load, feed.waiting.put, control, stop), daemon=True).start()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as the service does
            runner.run(bridge.serve(stop, control.send))
    engine.dispose()


def _obey(load: Load, put: Any, control: Connection, stop: threading.Event) -> None:
    while True:
        word = control.recv()
        if word == "memory":
            gc.collect()
            control.send(psutil.Process().memory_info().rss)
        elif word == "send":
            before = resource.getrusage(resource.RUSAGE_SELF)
            sent = send_on_time(load, put)
            after = resource.getrusage(resource.RUSAGE_SELF)
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            dropped = sum(
                sample.value
                for metric in WEBSOCKET_DROPPED.collect()
                for sample in metric.samples
                if sample.name.endswith("_total")
            )
            control.send((sent, used / load.seconds, dropped))
        else:
            stop.set()
            return


def _serve_bare(load: Load, _url: str, control: Connection) -> None:  # noqa: C901 - a server in one function
    import uvicorn
    from starlette.applications import Starlette
    from starlette.routing import WebSocketRoute
    from starlette.websockets import WebSocket, WebSocketDisconnect

    listeners: dict[str, set[WebSocket]] = {}

    async def ws(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text('{"type":"connection_ack","data":{}}')
        wanted = json.loads(await websocket.receive_text())["data"]["cameras"]
        for camera in wanted:
            listeners.setdefault(camera, set()).add(websocket)
        try:
            while True:
                await websocket.receive_text()
        except WebSocketDisconnect:
            for camera in wanted:
                listeners[camera].discard(websocket)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        stop = threading.Event()

        async def broadcast(message: Alert | DetectionResult) -> None:
            kind = "alert" if isinstance(message, Alert) else "detection_result"
            text = f'{{"type":"{kind}","data":{message.model_dump_json(by_alias=True)}}}'
            for websocket in list(listeners.get(message.camera_id, ())):
                await websocket.send_text(text)

        def put(message: Any) -> None:
            asyncio.run_coroutine_threadsafe(broadcast(message), loop).result(60)

        server = uvicorn.Server(
            uvicorn.Config(
                Starlette(routes=[WebSocketRoute("/ws", ws)]), port=0, ws="websockets-sansio", lifespan="off",
                log_config=None, access_log=False, ws_per_message_deflate=load.compression,
            )
        )  # fmt: skip
        threading.Thread(target=_obey, args=(load, put, control, stop), daemon=True).start()
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        control.send(server.servers[0].sockets[0].getsockname()[1])
        await asyncio.to_thread(stop.wait)
        server.should_exit = True
        await serving

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # uvicorn's own choice where it is installed
        runner.run(main())


# clients: one process, which reads frames of the WebSocket by itself, since a thousand full clients would be the bottleneck


@dataclass
class Reader:
    """One client: reads whole messages, and notes when each alert came."""

    number: int
    wanted: list[str]
    greeted: asyncio.Event
    alerts: list[tuple[int, float]] = field(default_factory=list)
    frames: int = 0


async def _client(reader: Reader, port: int, *, slow: bool, compression: bool) -> None:
    from websockets.asyncio.client import connect

    connecting = socket.socket()
    connecting.setblocking(False)
    if slow:
        connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await asyncio.get_running_loop().sock_connect(connecting, ("127.0.0.1", port))
    async with connect(
        f"ws://127.0.0.1:{port}/ws", open_timeout=60, compression="deflate" if compression and not slow else None, max_size=None,
        ping_interval=None, max_queue=4, sock=connecting,
    ) as connection:  # fmt: skip
        first = json.loads(await connection.recv())
        assert first["type"] == "connection_ack"
        wanted = {} if slow else {"cameras": reader.wanted}
        await connection.send(json.dumps({"type": "subscribe", "data": wanted}))
        reader.greeted.set()
        while slow:
            await connection.recv()
            await asyncio.sleep(0.25)
        async for text in connection:
            came = time.time()
            if text.startswith('{"type":"alert"'):  # type: ignore[arg-type]
                start = text.index("alert-") + 6  # type: ignore[arg-type]
                reader.alerts.append((int(text[start : text.index('"', start)]), came))  # type: ignore[arg-type]
            else:
                reader.frames += 1


def _run_clients(load: Load, control: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    gc.disable()  # pauses of the measuring process are no delay of the server
    control.send("ready")  # what is imported above is no memory or time of anybody's
    port = control.recv()

    async def main() -> None:
        every = round(1 / load.slow) if load.slow else 0
        readers = [Reader(number, cameras_of(number, load.cameras), asyncio.Event()) for number in range(load.clients)]
        tasks = []
        for reader in readers:
            slow = bool(every) and reader.number % every == 0
            tasks.append(asyncio.create_task(_client(reader, port, slow=slow, compression=load.compression)))
            if reader.number % 50 == 49:
                await asyncio.gather(*(other.greeted.wait() for other in readers[: reader.number + 1]))
        await asyncio.gather(*(reader.greeted.wait() for reader in readers))
        control.send("connected")
        alerts = await asyncio.to_thread(control.recv)  # so many were sent
        deadline = time.monotonic() + LATEST_SECONDS
        while time.monotonic() < deadline and not all(
            len(reader.alerts) >= len(expected(reader.number, load.cameras, alerts))
            for reader in readers
            if not (every and reader.number % every == 0)
        ):
            await asyncio.sleep(0.2)
        control.send(
            [
                (reader.number, reader.alerts, reader.frames)
                for reader in readers
                if not (every and reader.number % every == 0)
            ]
        )
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())


# runs


@dataclass(frozen=True)
class Outcome:
    """What one run gave; delays in ms."""

    p50: float
    p99: float
    worst: float
    lost: int
    doubled: int
    alerts: int  # deliveries
    frames: int
    per_client_kib: float
    cores: float
    dropped: int  # frames, for slow clients


def measure(name: str, serve: Any, load: Load, url: str) -> Outcome:
    """One run."""
    print(f"{name}: {load.clients} clients, {load.seconds:g} s ...", flush=True)
    context = mp.get_context("spawn")
    with ExitStack() as stack:
        server_control, theirs = context.Pipe()
        server = context.Process(target=serve, args=(load, url, theirs), daemon=True)
        server.start()
        stack.callback(_end, server)
        port = server_control.recv()
        clients_control, their_end = context.Pipe()
        clients = context.Process(target=_run_clients, args=(load, their_end), daemon=True)
        clients.start()
        stack.callback(_end, clients)
        clients_control.recv()
        empty = _ask(server_control, "memory")
        clients_control.send(port)
        assert clients_control.recv() == "connected"
        time.sleep(2)
        full = _ask(server_control, "memory")
        sent, cores, dropped = _ask(server_control, "send")
        clients_control.send(len(sent))
        received = clients_control.recv()
        server_control.send("stop")
    delays: list[float] = []
    lost = doubled = frames = 0
    counted = range(round(load.warm_up * load.alerts_per_second), len(sent))
    for number, seen_alerts, seen_frames in received:
        alerts = [(index, came) for index, came in seen_alerts if index in counted]
        wanted = {index for index in counted if f"cam-{index % load.cameras:02d}" in cameras_of(number, load.cameras)}
        got = [index for index, _ in alerts]
        lost += len(wanted - set(got))
        doubled += len(got) - len(set(got))
        frames += seen_frames
        delays += [1000 * (came - sent[index]) for index, came in alerts]
    p50, p99, worst = (float(np.percentile(delays, share)) for share in (50, 99, 100))
    outcome = Outcome(
        p50, p99, worst, lost, doubled, len(delays), frames, (full - empty) / load.clients / 1024, cores, int(dropped)
    )
    print(f"  {outcome}", flush=True)
    return outcome


def _ask(control: Connection, word: str) -> Any:
    control.send(word)
    return control.recv()


def _end(process: Any) -> None:
    process.join(10)
    if process.is_alive():
        process.kill()
        process.join()


def figures(load: Load, url: str) -> list[Figure]:
    """All runs, and what they mean."""
    bare = measure("bare broadcast loop", _serve_bare, load, url)
    bridge = measure("bridge", _serve_bridge, load, url)
    slowed = Load(**{**load.__dict__, "slow": 0.1})
    slow = measure("bridge, 10 % slow", _serve_bridge, slowed, url)
    plain = measure("bridge, no compression", _serve_bridge, Load(**{**load.__dict__, "compression": False}), url)
    who = f"{load.clients} clients"
    return [
        Figure(f"P99 alert delay, {who}", bridge.p99, "ms", bare.p99, bridge.p99 / bare.p99, "< 250", bridge.p99 < TARGET_MS,
               "baseline: bare broadcast loop, same library"),
        Figure(f"P50 alert delay, {who}", bridge.p50, "ms", bare.p50, bridge.p50 / bare.p50),
        Figure("alerts lost", float(bridge.lost), "of " + str(bridge.alerts + bridge.lost), float(bare.lost), None, "0", bridge.lost == 0),
        Figure("alerts doubled", float(bridge.doubled), "of " + str(bridge.alerts), float(bare.doubled), None, "0", bridge.doubled == 0),
        Figure("memory per client", bridge.per_client_kib, "KiB", bare.per_client_kib, bridge.per_client_kib / bare.per_client_kib),
        Figure("server's CPU", bridge.cores, "cores", bare.cores, bridge.cores / bare.cores),
        Figure("frames delivered", float(bridge.frames), "messages", float(bare.frames), bridge.frames / bare.frames),
        Figure("P99 of the others, 10 % slow", slow.p99, "ms", bridge.p99, slow.p99 / bridge.p99, "ratio < 1.2", slow.p99 / bridge.p99 < 1.2),
        Figure("frames dropped for the slow 10 %", float(slow.dropped), "messages", None, None, "> 0", slow.dropped > 0),
        Figure("alerts lost by the others, 10 % slow", float(slow.lost), "of " + str(slow.alerts + slow.lost), None, None, "0", slow.lost == 0),
        Figure("P99 alert delay, no compression", plain.p99, "ms", bridge.p99, plain.p99 / bridge.p99),
        Figure("memory per client, no compression", plain.per_client_kib, "KiB", bridge.per_client_kib, plain.per_client_kib / bridge.per_client_kib),
        Figure("server's CPU, no compression", plain.cores, "cores", bridge.cores, plain.cores / bridge.cores),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="200 clients for 24 s")
    parser.add_argument("--clients", type=int)
    parser.add_argument("--seconds", type=float)
    arguments = parser.parse_args()
    load = Load(
        clients=arguments.clients or (200 if arguments.quick else 1000),
        cameras=50,
        frames_per_second=28,
        alerts_per_second=2,
        seconds=arguments.seconds or (24 if arguments.quick else 75),
        warm_up=14 if arguments.quick else 15,
    )
    if sys.platform != "linux":
        print("measured on Linux only", file=sys.stderr)
    from dangerous_driving.ledger.embedded import EmbeddedPostgres
    from dangerous_driving.ledger.schema import migrate

    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder) / "postgres") as server:
        from pydantic import SecretStr

        from dangerous_driving.ledger.database import open_engine
        from dangerous_driving.settings import DatabaseSettings

        url = server.create_database("bench")
        engine = open_engine(DatabaseSettings(url=SecretStr(url)))
        migrate(engine)
        engine.dispose()
        found = figures(load, url)
    tell("realtime" if not arguments.quick else "realtime-quick", found)
    os._exit(0)  # daemons of multiprocessing are gone already; its resource tracker takes its time


if __name__ == "__main__":
    main()
