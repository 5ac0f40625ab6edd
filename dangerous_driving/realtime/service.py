"""The realtime bridge as a service: the web server, the reader of the topics, and the cameras' statuses.

Acknowledgement: none. Every bridge sees all messages that are sent while it runs (a broadcast consumer) and gets from the
ledger the alerts that were sent while it did not.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import structlog
import uvicorn
import uvloop
from sqlalchemy import Engine

from dangerous_driving.alerts.lifecycle import Lifecycle
from dangerous_driving.alerts.service import AlertPublisher
from dangerous_driving.contracts import Alert, DetectionResult, RiskAssessmentResult
from dangerous_driving.errors import BrokerError, ConfigError, LedgerError
from dangerous_driving.ledger import overview
from dangerous_driving.ledger.alerts import changed_since
from dangerous_driving.messaging import AckPolicy, Consumer, Producer, Topic
from dangerous_driving.messaging.seam import Sender
from dangerous_driving.objects import ObjectStore
from dangerous_driving.realtime.acts import camera_status
from dangerous_driving.realtime.app import create_app
from dangerous_driving.realtime.compression import BridgeProtocol
from dangerous_driving.realtime.envelopes import MAX_CLIENT_MESSAGE
from dangerous_driving.realtime.feedback import FeedbackDesk
from dangerous_driving.realtime.hub import Hub
from dangerous_driving.realtime.reader import Receiver, TopicReader
from dangerous_driving.realtime.socket import RESUME_LIMIT, RESUME_OVERLAP
from dangerous_driving.settings import RealtimeSettings, Settings

log = structlog.get_logger(__name__)

#: s between two looks at the cameras' statuses
STATUS_SECONDS = 2.0
#: s between two looks at the lags
LAG_SECONDS = 5.0
#: s between two looks for clients that take nothing
STUCK_SECONDS = 1.0
#: bytes that the system keeps for a client on top of its queue: more would be old frames in a slow client's way
SEND_BUFFER = 128 * 1024
#: s that bytes may wait for a client to take them
UNSENT_SECONDS = 30
#: s that requests under way get at the end
SHUTDOWN_SECONDS = 5


def run(
    settings: Settings,
    engine: Engine,
    store: ObjectStore,
    producer: Producer,
    stop: threading.Event,
    *,
    ready: Callable[[int], None] = lambda _port: None,
    read_lag: Callable[[], dict[str, int]] | None = None,
) -> None:
    """Serve until `stop`.

    Args:
        settings: the whole tree.
        engine: of the ledger.
        store: where pictures lie.
        producer: verdicts go onto the topic with it, unreadable messages to dead-letter.
        stop: ends it; requests under way are answered first.
        ready: called with the port once clients can connect.
        read_lag: asks the broker how many messages each service has before it; raises BrokerError.

    Raises:
        ConfigError: neither token nor open access is set, or the port is in use.
    """

    def open_consumer() -> Receiver:
        return Consumer[DetectionResult | RiskAssessmentResult | Alert](
            settings.kafka,
            {
                Topic.DETECTION_RESULTS: DetectionResult,
                Topic.RISK_ASSESSMENT_RESULTS: RiskAssessmentResult,
                Topic.ALERTS: Alert,
            },
            name="realtime",
            policy=AckPolicy.BROADCAST,
            dead_letters=producer,
        )

    bridge = Bridge(settings, engine, store, producer, open_consumer, read_lag)
    # uvloop takes half the time of asyncio's own loop for the same messages (benchmarks/realtime.py)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bridge.serve(stop, ready))


class Bridge:
    """One bridge process, with what it talks to handed in."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        store: ObjectStore,
        producer: Sender,
        open_consumer: Callable[[], Receiver],
        read_lag: Callable[[], dict[str, int]] | None = None,
    ) -> None:
        self._read_lag = read_lag
        self._lag: dict[str, int] | None = None
        self._settings = settings
        self._engine = engine
        self._store = store
        self._producer = producer
        self._open_consumer = open_consumer

    async def serve(self, stop: threading.Event, ready: Callable[[int], None]) -> None:
        """Serve until `stop`; see `run`."""
        settings = self._settings
        hub = Hub(client_queue=settings.realtime.client_queue)
        reader = TopicReader(
            self._open_consumer,
            asyncio.get_running_loop(),
            hub.receive,
            self._missed_since,
            hub.fill,
        )
        publisher = AlertPublisher(self._engine, self._producer, delivery_timeout=settings.kafka.delivery_timeout)
        desk = FeedbackDesk(self._engine, Lifecycle(settings.alerts), publisher, hub)
        app = create_app(
            settings,
            self._engine,
            self._store,
            hub,
            desk,
            reader_healthy=lambda: reader.healthy,
            lag=lambda: self._lag,
        )
        # two threads of its own for what lasts as long as the bridge: the common ones are for short calls
        with contextlib.closing(listen(settings.realtime)) as listening, ThreadPoolExecutor(2, "bridge") as threads:
            loop = asyncio.get_running_loop()
            port = listening.getsockname()[1]
            log.info("listening", host=settings.realtime.host, port=port)
            server = _Server(
                uvicorn.Config(
                    app,
                    ws=BridgeProtocol,
                    ws_per_message_deflate=settings.realtime.compression,
                    ws_max_size=MAX_CLIENT_MESSAGE,
                    ws_ping_interval=20.0,
                    ws_ping_timeout=20.0,
                    log_config=None,
                    access_log=False,
                    server_header=False,
                    proxy_headers=bool(settings.realtime.trusted_proxies),
                    forwarded_allow_ips=list(settings.realtime.trusted_proxies),
                    lifespan="off",
                    timeout_graceful_shutdown=SHUTDOWN_SECONDS,
                ),
                lambda: ready(port),
            )
            stopping = asyncio.Event()
            parts: list[asyncio.Future[Any]] = [
                asyncio.create_task(server.serve(sockets=[listening]), name="server"),
                loop.run_in_executor(threads, reader.run, stop),
                asyncio.create_task(self._watch_cameras(hub, stopping), name="cameras"),
                asyncio.create_task(self._watch_lag(stopping), name="lag"),
                asyncio.create_task(_watch_clients(hub, stopping), name="clients"),
                # an event of threads, since signals and supervisors set it
                loop.run_in_executor(threads, stop.wait),
            ]
            try:
                await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stop.set()
                stopping.set()
                server.should_exit = True
                outcomes = await asyncio.gather(*parts, return_exceptions=True)
                await desk.close()
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def _missed_since(self, since: datetime) -> list[Alert]:
        return changed_since(self._engine, since - RESUME_OVERLAP, limit=RESUME_LIMIT)

    async def _watch_cameras(self, hub: Hub, stopping: asyncio.Event) -> None:
        away = False
        while not stopping.is_set():
            try:
                rows = await asyncio.to_thread(overview.list_cameras, self._engine)
            except LedgerError as error:
                if not away:
                    log.warning("camera_statuses_not_read", reason=str(error))
                away = True
            else:
                away = False
                hub.statuses(camera_status(row) for row in rows)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), STATUS_SECONDS)

    async def _watch_lag(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            if self._read_lag is not None:
                try:
                    self._lag = await asyncio.to_thread(self._read_lag)
                except BrokerError as error:
                    if self._lag is not None:
                        log.warning("lag_not_read", reason=str(error))
                    self._lag = None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), LAG_SECONDS)


async def _watch_clients(hub: Hub, stopping: asyncio.Event) -> None:
    # one look at all of them costs less than a timer for each message of each
    while not stopping.is_set():
        hub.give_up_stuck(time.monotonic())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), STUCK_SECONDS)


def listen(settings: RealtimeSettings) -> socket.socket:
    """A listening socket of the configured address.

    Raises:
        ConfigError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    # a port whose last connections are still closing is free; one that another process listens on is not
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # connections inherit it
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # the server closes a client that never reads once its last bytes are sent, which is never: let the system do it
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNSENT_SECONDS * 1000)
    try:
        listening.bind((settings.host, settings.port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        in_use = error.errno == errno.EADDRINUSE
        raise ConfigError(
            "realtime.port / --port" if in_use else "realtime.host",
            f"{settings.host}:{settings.port} cannot be used ({error.strerror})",
            "stop what listens there, or choose another port" if in_use else "name an address of this machine",
        ) from error
    listening.setblocking(False)
    return listening


class _Server(uvicorn.Server):
    """Signals are the process' affair (`observability.service`), not the server's; it says when it has started."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield
