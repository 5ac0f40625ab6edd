"""Real bridge processes behind a load balancer, with a broker and a ledger; and the proof that a kill loses no alert.

``python -m tests.realtime.bridges --seconds 60 --clients 50`` is ``make proof-bridge``.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import yaml
from pydantic import SecretStr
from sqlalchemy import Engine

from dangerous_driving.alerts.service import AlertPublisher
from dangerous_driving.contracts import AlertBasis, RiskLevel
from dangerous_driving.demo.data_folder import plain, write_private
from dangerous_driving.ledger import alerts as ledger_alerts
from dangerous_driving.ledger.database import open_engine
from dangerous_driving.ledger.embedded import EmbeddedPostgres
from dangerous_driving.ledger.schema import migrate
from dangerous_driving.messaging import EmbeddedBroker, Producer, apply
from dangerous_driving.messaging.embedded import embedded_kafka_settings
from dangerous_driving.ports import free_port
from dangerous_driving.realtime.client import BridgeClient
from dangerous_driving.settings import DatabaseSettings, KafkaSettings, ObjectsSettings, RealtimeSettings, Settings
from tests.realtime.conftest import LIFECYCLE, a_frame, a_sighting, moment

#: s; far more than anything here takes
PATIENCE = 60.0


@dataclass
class BridgeProcess:
    """`dangerous-driving realtime` in a process of its own, on a port that it keeps over restarts."""

    settings_file: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DD_")}
        with self.settings_file.with_suffix(f".{self.port}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dangerous_driving.cli", "realtime", "--config", str(self.settings_file)],
                env=environment | {"DD_REALTIME__PORT": str(self.port)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """As the kernel does it when memory is out."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    async def ready(self) -> None:
        deadline = time.monotonic() + PATIENCE
        async with httpx.AsyncClient() as http:
            while True:
                with suppress(httpx.HTTPError):
                    if (await http.get(f"http://127.0.0.1:{self.port}/readyz")).status_code == 200:
                        return
                assert self.process is not None
                assert self.process.poll() is None, "the bridge ended"
                assert time.monotonic() < deadline, "the bridge is not ready"
                await asyncio.sleep(0.1)


@asynccontextmanager
async def load_balancer(ports: list[int]) -> AsyncIterator[int]:
    """Passes each connection on to the next of the bridges that answers; the port it listens on."""
    turns = itertools.count()
    streams: set[asyncio.StreamWriter] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        streams.add(writer)
        try:
            first = next(turns)
            for offset in range(len(ports)):
                try:
                    there, back = await asyncio.open_connection("127.0.0.1", ports[(first + offset) % len(ports)])
                except OSError:
                    continue  # this bridge is down
                await asyncio.gather(pump(reader, back), pump(there, writer))
                return
        finally:
            writer.close()
            streams.discard(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for stream in list(streams):
            stream.close()


@dataclass
class Watcher:
    """A client and what it was given."""

    client: BridgeClient
    changes: bool
    seen: list[tuple[str, int]] = field(default_factory=list)

    async def run(self) -> None:
        async for alert in self.client.alerts(changes=self.changes):
            self.seen.append((alert.alert_id, alert.version))

    @property
    def given(self) -> list[tuple[str, int]]:
        """What must be unique: versions for those that follow changes, ids for the others."""
        return self.seen if self.changes else [(alert_id, 0) for alert_id, _ in self.seen]

    def newest(self) -> dict[str, int]:
        return dict(self.seen)


@dataclass(frozen=True)
class Outcome:
    """What the clients ended with."""

    alerts: int
    versions: int
    kills: int
    clients: int
    missing: int
    doubled: int
    stale: int  # a client that follows changes and does not have the newest version
    backwards: int

    @property
    def held(self) -> bool:
        return not (self.missing or self.doubled or self.stale or self.backwards)


async def prove(
    folder: Path, engine: Engine, database: DatabaseSettings, kafka: KafkaSettings, *, seconds: float, clients: int,
    rate: float = 2.0, kills: int = 4, bridges: int = 2,
) -> Outcome:  # fmt: skip
    """Make alerts for `seconds`, kill -9 and restart the bridges in turn meanwhile, and compare what the clients have."""
    apply(kafka)
    settings = Settings(
        kafka=kafka,
        database=database,
        objects=ObjectsSettings(kind="folder", folder=folder / "objects"),
        realtime=RealtimeSettings(open_access=True, connect_burst=100_000, request_burst=100_000),
    )
    settings_file = folder / "settings.yaml"
    write_private(settings_file, yaml.safe_dump(plain(settings)))
    processes = [BridgeProcess(settings_file, free_port()) for _ in range(bridges)]
    async with AsyncExitStack() as stack:
        for process in processes:
            process.start()
            stack.callback(process.kill)
        for process in processes:
            await process.ready()
        port = await stack.enter_async_context(load_balancer([process.port for process in processes]))
        producer = stack.enter_context(Producer(kafka, "proof"))
        publisher = AlertPublisher(engine, producer, delivery_timeout=PATIENCE)
        watchers = [Watcher(BridgeClient(f"http://127.0.0.1:{port}"), changes=bool(n % 2)) for n in range(clients)]
        tasks = [asyncio.create_task(watcher.run()) for watcher in watchers]
        stack.push_async_callback(_end, tasks)
        await _until(lambda: all(watcher.client.greeting for watcher in watchers), "greetings")
        killing = asyncio.create_task(_kill_in_turn(processes, kills, seconds))
        stack.push_async_callback(_end, [killing])
        wanted = await _make_alerts(engine, publisher, seconds, rate)
        await killing

        def complete() -> bool:
            return all(
                set(watcher.newest()) == set(wanted) and (not watcher.changes or watcher.newest() == wanted)
                for watcher in watchers
            )

        with suppress(TimeoutError):
            await _until(complete, "the last alerts")
        await asyncio.sleep(1)  # what would come twice comes now
        for task in tasks:
            assert not task.done(), task
        return _outcome(watchers, wanted, kills)


def _outcome(watchers: list[Watcher], wanted: dict[str, int], kills: int) -> Outcome:
    return Outcome(
        alerts=len(wanted),
        versions=sum(wanted.values()),
        kills=kills,
        clients=len(watchers),
        missing=sum(len(set(wanted) - set(watcher.newest())) for watcher in watchers),
        doubled=sum(len(watcher.given) - len(set(watcher.given)) for watcher in watchers),
        stale=sum(bool(watcher.changes and watcher.newest() != wanted) for watcher in watchers),
        backwards=sum(
            later[1] < earlier[1]
            for watcher in watchers
            for alert_id in watcher.newest()
            for earlier, later in itertools.pairwise([entry for entry in watcher.seen if entry[0] == alert_id])
        ),
    )


async def _make_alerts(engine: Engine, publisher: AlertPublisher, seconds: float, rate: float) -> dict[str, int]:
    """Provisional alerts, each final half a second later; the newest version of each."""
    wanted: dict[str, int] = {}
    begin = time.monotonic()
    for number in range(int(seconds * rate)):
        await asyncio.sleep(max(0.0, begin + number / rate - time.monotonic()))
        frame = a_frame(f"cam-{number}", moment())
        for kind, level in ((AlertBasis.PROVISIONAL, RiskLevel.MEDIUM), (AlertBasis.FINAL, RiskLevel.HIGH)):
            for change in await asyncio.to_thread(
                ledger_alerts.advance, engine, LIFECYCLE, [a_sighting(frame, level, kind)]
            ):
                wanted[change.after.alert.alert_id] = change.after.alert.version
            await asyncio.to_thread(publisher.publish)
    return wanted


async def _kill_in_turn(processes: list[BridgeProcess], kills: int, seconds: float) -> None:
    for number in range(kills):
        await asyncio.sleep(seconds / (kills + 1))
        process = processes[number % len(processes)]
        process.kill()
        await asyncio.sleep(min(2.0, seconds / (kills + 1) / 2))
        process.start()
        await process.ready()


async def _until(condition: object, what: str) -> None:
    assert callable(condition)
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.05)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--bridges", type=int, default=2)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(EmbeddedPostgres(folder / "postgres"))
        database = DatabaseSettings(url=SecretStr(server.create_database("proof")))
        engine = open_engine(database)
        stack.callback(engine.dispose)
        migrate(engine)
        broker = stack.enter_context(EmbeddedBroker().start())
        print(  # noqa: T201
            f"{arguments.bridges} bridges behind a load balancer, {arguments.clients} clients, alerts for "
            f"{arguments.seconds:g} s, kill -9 of a bridge {arguments.kills} times in turn ...",
            flush=True,
        )
        outcome = asyncio.run(
            prove(
                folder,
                engine,
                database,
                embedded_kafka_settings(broker.bootstrap_servers),
                seconds=arguments.seconds,
                clients=arguments.clients,
                kills=arguments.kills,
                bridges=arguments.bridges,
            )
        )
    print(outcome)  # noqa: T201
    print("held: each client has each alert exactly once by id" if outcome.held else "NOT held")  # noqa: T201
    sys.exit(not outcome.held)


if __name__ == "__main__":
    main()
