"""Starts the parts of a demo in order, watches them, drains what is left, and ends everything."""

from __future__ import annotations

import dataclasses
import secrets
import shutil
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from types import FrameType

import yaml
from pydantic import SecretStr
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from sqlalchemy import Engine

from dangerous_driving.demo import dagster_home
from dangerous_driving.demo import status as status_module
from dangerous_driving.demo.data_folder import DAGSTER_DATABASE, LEDGER_DATABASE, write_private
from dangerous_driving.demo.parts import (
    Part,
    PartFailedError,
    end_left_behind,
    environment_of,
    last_words,
    leashed,
    own_command,
)
from dangerous_driving.demo.plan import Plan
from dangerous_driving.demo.status import Status
from dangerous_driving.errors import BrokerError, DangerousDrivingError, LedgerError
from dangerous_driving.ledger.database import open_engine
from dangerous_driving.ledger.embedded import EmbeddedPostgres
from dangerous_driving.ledger.schema import migrate
from dangerous_driving.messaging import apply as apply_topics
from dangerous_driving.messaging import embedded_kafka_settings
from dangerous_driving.objects import open_store
from dangerous_driving.services import GROUPS, lag_by_topic
from dangerous_driving.settings import Settings
from dangerous_driving.tasks.reimport import Reimported, reimport

START_SECONDS = 180.0  # until a part must be ready; Dagster imports for a minute on a busy machine of two cores
STOP_SECONDS = 20.0  # until a part that was asked to stop is killed
LOOK_SECONDS = 2.0  # between looks at the ledger
PLAIN_SECONDS = 10.0  # between lines where there is no terminal

#: In the order of the flow.
SERVICES = ("detect", "tasks", "assess", "alerts", "realtime", "exporter")
#: These speak to the broker, and start anew when it does, since its address changes.
ON_BROKER = SERVICES


def run(plan: Plan, console: Console) -> int:
    """Run the demo to its end; returns the exit code: 0 when everything captured is dealt with, else 1."""
    demo = Demo(plan, console)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, demo.on_signal)
    signal.signal(signal.SIGUSR1, demo.on_enough)
    try:
        with demo.started():
            demo.capture()
            return demo.finish()
    except PartFailedError as error:
        console.print(Text.assemble(("error: ", "red"), str(error)), soft_wrap=True)
        return 1
    except InterruptedStartError:
        console.print("stopped while starting")
        return 1


class InterruptedStartError(DangerousDrivingError):
    """The user asked to stop while the parts were being started."""


class Demo:
    """One demo from its start to its end."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self._plan = plan
        self._console = console
        self._settings: Settings = plan.settings
        self._parts: dict[str, Part] = {}
        self._stop = threading.Event()
        self._enough = threading.Event()
        self._database: EmbeddedPostgres | None = None
        self._engine: Engine | None = None
        self._status = Status()
        self._dagster_url: str | None = None
        self._lag: dict[str, int] = {}
        self._follow_broker = False  # its clients do not know its new address yet

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """The first signal stops the demo cleanly."""
        self._stop.set()

    def on_enough(self, _number: int, _frame: FrameType | None) -> None:
        """SIGUSR1 ends the capture as if its seconds were over."""
        self._enough.set()

    # start

    @contextmanager
    def started(self) -> Iterator[None]:
        """Everything running within the block, and ended after it, whatever happens."""
        folder = self._plan.folder
        folder.open()
        try:
            with self._console.status("starting") as progress:
                left = end_left_behind(folder.path)
                if left:
                    self._console.print(f"ended {left} processes that an earlier demo of this folder left behind")
                progress.update("starting PostgreSQL")
                self._database = EmbeddedPostgres(folder.postgres)
                self._open_database(self._database)
                progress.update("starting the broker")
                self._start_broker()
                progress.update("reading the object store")
                done = self._reimport()
                if done.written:
                    self._console.print(f"imported {done.written} frames that the ledger lacked")
                for name in self._planned(self._database):
                    progress.update(f"starting {name}")
                    self._parts[name].start()
                self._await_ready(progress.update)
                # the cameras last: what is captured finds everybody listening
                self._parts["detect"].start()
            yield
        finally:
            with self._console.status("stopping"):
                self._end_all()
                if self._engine:
                    self._engine.dispose()
                if self._database:
                    self._database.close()
                folder.close()

    def _open_database(self, database: EmbeddedPostgres) -> None:
        url = SecretStr(database.create_database(LEDGER_DATABASE))
        self._dagster_url = database.create_database(DAGSTER_DATABASE) if self._plan.dagster_port else None
        self._settings = self._settings.model_copy(
            update={"database": self._settings.database.model_copy(update={"url": url})}
        )
        self._engine = open_engine(self._settings.database, application="demo")
        migrate(self._engine)

    def _start_broker(self) -> None:
        folder = self._plan.folder
        folder.broker_file.unlink(missing_ok=True)
        part = self._part("broker", own_command("broker", "--address-file", str(folder.broker_file)))
        folder.write_settings(self._settings)  # it reads only what does not depend on it
        part.start()
        self._await_broker(part)

    def _await_broker(self, part: Part) -> None:
        deadline = time.monotonic() + START_SECONDS
        file = self._plan.folder.broker_file
        while not (file.exists() and (address := file.read_text(encoding="utf-8").strip())):
            if not part.running() or time.monotonic() > deadline:
                raise PartFailedError(f"the broker did not start: {last_words(part.log)}")
            self._pause(0.1)
        self._settings = self._settings.model_copy(update={"kafka": embedded_kafka_settings(address)})
        self._plan.folder.write_settings(self._settings)
        apply_topics(self._settings.kafka)

    def _reimport(self) -> Reimported:
        assert self._engine is not None  # noqa: S101  # opened before
        return reimport(self._engine, open_store(self._settings.objects), window_length=self._settings.windows.length)

    def _planned(self, database: EmbeddedPostgres) -> list[str]:
        names = [name for name in SERVICES if name != "detect"]
        if self._plan.llm_port is not None:
            self._write_simulated_keys()
            self._part("llm", own_command("simulate", "llm", "--port", str(self._plan.llm_port)))
            names.insert(0, "llm")
        for name in SERVICES:
            self._part(name, own_command(name))
        if self._settings.notifications.receivers:
            self._part("notify", own_command("notify"))
            names.append("notify")
        if self._plan.dagster_port is not None:
            folder = self._plan.folder
            dagster_home.prepare(folder.dagster_home)
            environment = dagster_home.environment(folder.dagster_home, database.url(DAGSTER_DATABASE))
            for name, argv in dagster_home.commands(self._plan.dagster_port).items():
                self._part(name, leashed(*argv), **environment)
                names.append(name)
        return names

    def _write_simulated_keys(self) -> None:
        file = self._plan.folder.keys_file
        if not file.exists():
            keys = [
                {"label": f"simulated {number}", "secret": f"sk-simulated-{secrets.token_hex(8)}"}
                for number in range(1, self._settings.demo.keys + 1)
            ]
            write_private(
                file, "# keys of the simulated LLM: they open nothing else\n" + yaml.safe_dump({"keys": keys})
            )

    def _part(self, name: str, argv: list[str], **environment: str) -> Part:
        folder = self._plan.folder
        part = Part(
            name=name,
            argv=argv,
            log=folder.logs / f"{name}.log",
            environment=environment_of(folder.path, folder.settings_file, **environment),
            max_restarts=self._settings.demo.max_restarts,
        )
        self._parts[name] = part
        return part

    def _await_ready(self, say: Callable[[str], None]) -> None:
        addresses = [self._plan.page + "readyz"]
        if self._plan.llm_port is not None:
            addresses.append(f"http://127.0.0.1:{self._plan.llm_port}/healthz")
        if self._plan.dagster_port is not None:
            addresses.append(f"http://127.0.0.1:{self._plan.dagster_port}/server_info")
        deadline = time.monotonic() + START_SECONDS
        for address in addresses:
            say(f"waiting for {address}")
            while not answers(address):
                if time.monotonic() > deadline:
                    raise PartFailedError(
                        f"{address} does not answer after {START_SECONDS:.0f} s; see {self._plan.folder.logs}"
                    )
                self._watch()
                self._pause(0.25)

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise InterruptedStartError("stopped by a signal")

    # capture

    def capture(self) -> None:
        """Show the status until the time of capture is over or a signal comes."""
        seconds = self._plan.seconds
        end = time.monotonic() + seconds if seconds is not None else float("inf")
        with self._screen() as show:
            while time.monotonic() < end and not self._stop.is_set() and not self._enough.is_set():
                self._watch()
                left = f", {end - time.monotonic():.0f} s left" if seconds is not None else ", Ctrl-C ends it"
                show(f"capturing{left}")
                self._stop.wait(min(LOOK_SECONDS, max(end - time.monotonic(), 0.01)))

    @contextmanager
    def _screen(self) -> Iterator[Callable[[str], None]]:
        if not self._console.is_terminal:
            last = 0.0

            def line(title: str) -> None:
                nonlocal last
                if time.monotonic() - last >= PLAIN_SECONDS:
                    last = time.monotonic()
                    now = self._look()
                    told = "; ".join(f"{name} {value}" for name, value in status_module.rows(now).items())
                    self._console.print(f"{title}: {told}", highlight=False, soft_wrap=True)

            for name, address in self._addresses().items():
                self._console.print(f"{name}: {address}", highlight=False, soft_wrap=True)
            yield line
            return
        with Live(console=self._console, auto_refresh=False, transient=True) as live:

            def table(title: str) -> None:
                shown = status_module.table(
                    self._look(), list(self._parts.values()), title=title, addresses=self._addresses()
                )
                live.update(shown, refresh=True)

            yield table

    def _addresses(self) -> dict[str, str]:
        addresses = {"page": self._plan.page}
        if self._plan.dagster_port is not None:
            addresses["dagster"] = f"http://127.0.0.1:{self._plan.dagster_port}/"
        addresses["sql"] = f'psql "{self._settings.database.url.get_secret_value()}"'
        addresses["logs"] = str(self._plan.folder.logs)
        return addresses

    def _watch(self) -> None:
        """Restart what died. What needs it waits meanwhile: each part rides out the absence of the others."""
        if self._database is not None and not self._database.running:
            self._console.print("PostgreSQL died and is started again")
            try:
                self._database.close()
                self._database = EmbeddedPostgres(self._plan.folder.postgres)
            except LedgerError as error:
                self._console.print(Text(f"not yet: {error}"), soft_wrap=True)
        broker = self._parts["broker"]
        if not broker.running():
            self._plan.folder.broker_file.unlink(missing_ok=True)  # of the one that died
            if broker.watch():
                self._console.print("the broker died and was restarted; its clients follow")
                self._follow_broker = True
        if self._follow_broker and broker.running():
            self._after_broker(broker)
        for part in list(self._parts.values()):
            if part is not broker and part.watch():
                self._console.print(f"{part.name} died and was restarted ({part.restarts}x); its log: {part.log}")

    def _after_broker(self, broker: Part) -> None:
        # it forgot everything and listens elsewhere: its clients start anew, and the store fills the gap
        try:
            self._await_broker(broker)
            self._reimport()
        except InterruptedStartError:
            return
        except (BrokerError, LedgerError) as error:
            self._console.print(Text(f"not yet: {error}"), soft_wrap=True)  # at the next look
            return
        self._follow_broker = False
        for name in ON_BROKER:
            part = self._parts[name]
            if part.running() and not part.ended and part.process:
                part.process.send_signal(signal.SIGTERM)

    def _look(self) -> Status:
        assert self._engine is not None  # noqa: S101  # opened before
        self._lag = self._ask_lag()
        try:
            self._status = status_module.look(
                self._engine,
                window_length=self._settings.windows.length,
                lag=self._lag,
                dagster_url=self._dagster_url,
            )
        except LedgerError as error:
            # the last look stands, and is not taken for the end
            self._console.print(Text(f"no look at the ledger: {error}"), soft_wrap=True)
            return dataclasses.replace(self._status, unpublished=max(self._status.unpublished, 1))
        return self._status

    def _ask_lag(self) -> dict[str, int]:
        if self._follow_broker:
            return self._lag  # nobody listens at the address that is known
        try:
            return {service: sum(lag_by_topic(self._settings, service).values()) for service in GROUPS}
        except BrokerError:
            return self._lag  # it is being restarted; the watch tells

    # end

    def finish(self) -> int:
        """Drain unless a signal came, say how it stands, and return the exit code."""
        if self._stop.is_set():
            self._summary(self._look(), "stopped; start again with the same --data-dir to go on")
            return 0
        self._parts["detect"].terminate()
        self._parts["detect"].wait(STOP_SECONDS)
        now = self._drain()
        if self._stop.is_set():
            self._summary(now, "stopped while draining; start again with the same --data-dir to go on")
            return 0
        if not now.drained:
            self._summary(now, f"not drained within {self._settings.demo.drain_timeout:.0f} s (demo.drain_timeout)")
            return 1
        self._summary(now, "finished")
        return 0

    def _drain(self) -> Status:
        imported = False
        now = self._look()
        total = max(now.waiting + sum(now.lag.values()) + now.windows_open, 1)
        deadline = time.monotonic() + self._settings.demo.drain_timeout
        columns = (TextColumn("draining"), BarColumn(), TextColumn("{task.fields[left]}"), TimeElapsedColumn())
        with Progress(*columns, console=self._console) as progress:
            bar = progress.add_task("drain", total=total, left="")
            while time.monotonic() < deadline and not self._stop.is_set():
                imported = imported or self._imported()
                now = self._look()
                left = now.waiting + sum(now.lag.values()) + now.windows_open
                total = max(total, left)
                progress.update(
                    bar,
                    total=total,
                    completed=total - left,
                    left=f"{now.waiting} tasks, {sum(now.lag.values())} messages, {now.windows_open} windows left",
                )
                if imported and now.drained and self._dagster_idle(now):
                    break
                if self._plan.dagster_port is None and not sum(now.lag.values()):
                    self._run_windows()
                self._watch()
                self._stop.wait(LOOK_SECONDS)
        return now

    def _imported(self) -> bool:
        try:
            self._reimport()
        except LedgerError as error:
            self._console.print(Text(f"not yet: {error}"), soft_wrap=True)
            return False
        return True

    def _dagster_idle(self, now: Status) -> bool:
        """No run is under way, so that none is cut off."""
        busy = {"QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING"}
        return not any(now.runs.get(state) for state in busy)

    def _run_windows(self) -> None:
        # without Dagster nobody else carries the window lane; beside the drain's loop, which goes on watching
        part = self._parts.get("windows") or self._part("windows", own_command("windows", "run", "--open-too"))
        if not part.running():
            part.start()
            part.ended = True  # it ends by itself, and is no part that died then

    def _summary(self, now: Status, title: str) -> None:
        self._console.rule(title)
        for name, value in status_module.rows(now).items():
            self._console.print(f"{name:>14}  {value}", highlight=False)
        restarted = {part.name: part.restarts for part in self._parts.values() if part.restarts}
        if restarted:
            self._console.print(f"{'restarted':>14}  {status_module.counts(restarted)}", highlight=False)
        if self._settings.llm.simulated:
            self._console.print(f"{'note':>14}  the answers come from a simulated LLM ({self._settings.llm.model})")
        self._console.print(
            f"{'check it':>14}  {own_program()} verify --grace 0 --data-dir {self._plan.folder.path}",
            highlight=False,
            soft_wrap=True,
        )

    def _end_all(self) -> None:
        # in the order of the flow, so that each part can still hand on what it holds; what they all need goes last
        last = ("llm", "broker")
        others = [name for name in self._parts if name not in (*SERVICES, *last)]
        try:
            for group in (["detect"], ["assess", *others], SERVICES, last):
                parts = [self._parts[name] for name in group if name in self._parts]
                for part in parts:
                    part.terminate()
                deadline = time.monotonic() + STOP_SECONDS
                for part in parts:
                    part.wait(deadline - time.monotonic())
        finally:
            self._plan.folder.broker_file.unlink(missing_ok=True)


def own_program() -> str:
    """How a user calls this program: by name when it is on the PATH, else by where it lies."""
    if shutil.which("dangerous-driving"):
        return "dangerous-driving"
    return str(Path(sys.executable).with_name("dangerous-driving"))


def answers(address: str) -> bool:
    """Whether the address answers with success."""
    try:
        with urllib.request.urlopen(address, timeout=2) as response:  # noqa: S310  # our own http address
            return bool(response.status == HTTPStatus.OK)
    except OSError:
        return False
