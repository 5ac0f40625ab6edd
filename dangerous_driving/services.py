"""Each service, put together from its parts and run in its process. One function per sub-command."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import Engine

from dangerous_driving.assessment.windows import Window
from dangerous_driving.contracts import Alert, AssessmentTask, DetectionResult, RiskAssessmentResult
from dangerous_driving.errors import ConfigError
from dangerous_driving.ledger.database import open_engine
from dangerous_driving.ledger.schema import keep_ahead, require_current
from dangerous_driving.messaging import AckPolicy, Consumer, LagMeter, Producer, Topic, group_lag
from dangerous_driving.objects import open_store
from dangerous_driving.observability import logging
from dangerous_driving.observability.service import ServiceProcess, end_with_standard_input
from dangerous_driving.settings import CameraSettings, CameraSpec, Settings, config_file
from dangerous_driving.settings.tasks import Generator

if TYPE_CHECKING:
    from dangerous_driving.assessment.switch import LaneSwitch
    from dangerous_driving.assessment.window_run import WindowReport
    from dangerous_driving.camera.inventory import CameraInventory
    from dangerous_driving.camera.membership import Membership
    from dangerous_driving.camera.source import Source
    from dangerous_driving.messaging.spool import Spool

log = structlog.get_logger(__name__)

#: s for the spool's receipts that are out when the service stops; what is not acknowledged by then stays there.
REPLAY_STOP_SECONDS = 5.0

#: Services that read the log as a consumer group, and what they follow.
GROUPS: dict[str, tuple[Topic, ...]] = {
    "tasks": (Topic.DETECTION_RESULTS,),
    "assess": (Topic.ASSESSMENT_TASKS,),
    "alerts": (Topic.DETECTION_RESULTS, Topic.RISK_ASSESSMENT_RESULTS),
}


#: The same of services that run only where somebody wants them.
EXTRA_GROUPS: dict[str, tuple[Topic, ...]] = {
    "redis-feed": (Topic.RISK_ASSESSMENT_RESULTS, Topic.ALERTS),
}


def group_name(settings: Settings, service: str) -> str:
    """The service's consumer group."""
    return f"{settings.kafka.group_prefix}.{service}"


def lag_by_topic(settings: Settings, service: str) -> dict[Topic, int]:
    """How many messages the service has before it, by topic.

    Raises:
        BrokerError: no broker answered.
    """
    per_topic: dict[Topic, int] = {}
    lags = group_lag(settings.kafka, group_name(settings, service), follows=(GROUPS | EXTRA_GROUPS)[service])
    for (topic, _), lag in lags.items():
        per_topic[topic] = per_topic.get(topic, 0) + lag
    return per_topic


@contextmanager
def _ledger(settings: Settings, service: str) -> Iterator[Engine]:
    engine = open_engine(settings.database, application=f"dangerous-driving {service}")
    try:
        require_current(engine)
        yield engine
    finally:
        engine.dispose()


def open_camera(spec: CameraSpec, settings: CameraSettings) -> Source:
    """Open any camera's source, simulated scenes included.

    Raises:
        SourceError: see `camera.source.open_source`.
        ConfigError: there is no such simulated scene.
    """
    from dangerous_driving.simulation.cameras import open_source

    return open_source(spec, settings)


def simulated_cameras(count: int) -> tuple[CameraSpec, ...]:
    """So many cameras with rendered scenes, each different."""
    from dangerous_driving.simulation import cameras

    return cameras.simulated_cameras(count)


def own_weights() -> Path:
    """The weights that come with the project: for simulated scenes, and for nothing else."""
    from dangerous_driving.simulation import OWN_WEIGHTS

    return OWN_WEIGHTS


def detect(settings: Settings, *, leash: bool, settings_file: Path | None = None) -> None:
    """Cameras -> detection results. Cameras follow the settings file and the ledger's table while it runs.

    Those that several detectors know are divided among them (see `camera.membership`).
    """
    from dangerous_driving.assessment.inline import InlineLane
    from dangerous_driving.camera.following import CameraFollower
    from dangerous_driving.camera.inventory import Registration
    from dangerous_driving.camera.status import CameraStatus
    from dangerous_driving.detection.delivery import ResultDelivery
    from dangerous_driving.detection.engine import open_engine as open_detector
    from dangerous_driving.detection.publishing import Receipt
    from dangerous_driving.detection.replay import Replay
    from dangerous_driving.detection.service import DetectionService
    from dangerous_driving.ledger.cameras import register_cameras, set_camera_status
    from dangerous_driving.messaging.late_producer import LateProducer

    detector = open_detector(settings.detection)
    with ServiceProcess("detect", settings, leash=leash) as process, ExitStack() as stack:
        # cameras go on without the ledger: their names and states come there when it is back
        engine = open_engine(settings.database, application="dangerous-driving detect")
        stack.callback(engine.dispose)
        spool = _spool(settings, stack)
        # nor without brokers: what is detected is spooled
        producer = stack.enter_context(
            LateProducer(settings.kafka, f"detect-{settings.node}", on_failure=process.stop.set)
        )
        store = open_store(settings.objects)

        switch = follow_switch(settings, engine, process.stop)
        inline = stack.enter_context(InlineLane(settings, engine, store, producer, switch))

        def publish(result: DetectionResult) -> Receipt:
            return producer.send(Topic.DETECTION_RESULTS, result, key=result.camera_id)

        delivery = ResultDelivery(
            settings.detection,
            store,
            publish,
            model=detector.model_name,
            node=settings.node,
            spool=spool,
            taker=inline,
        )
        if spool is not None:
            replay = Replay(
                spool,
                store,
                publish,
                retry=settings.spool.retry,
                answered=lambda: delivery.answered_at,
                on_failure=process.stop.set,
            )
            replay.start()
            stack.callback(replay.stop, REPLAY_STOP_SECONDS)

        file = settings_file or config_file()
        inventory = _inventory(settings, engine, file)
        cameras = inventory.look()
        # the others let go of what it reports for its own: so only when it can read
        membership = _membership(settings, engine)
        stack.callback(membership.leave)
        own = membership.own(cameras)
        register = Registration(partial(register_cameras, engine, frame_interval=settings.camera.frame_interval))

        def on_status(status: CameraStatus) -> None:
            if not membership.left:  # else whoever takes over says how it is
                set_camera_status(engine, status.camera_id, status.state, status.reason, status.at, by=membership.name)

        service = DetectionService(
            settings.camera.model_copy(update={"cameras": own}),
            settings.detection,
            detector,
            delivery,
            on_status=on_status,
            source_opener=open_camera,
            waits_for_cameras=settings.camera.from_table or file is not None or len(own) < len(cameras),
        )

        follower = CameraFollower(
            inventory,
            membership,
            service,
            register=register,
            refresh=settings.camera.refresh,
            lease=settings.camera.lease,
        )
        follower.start(own, process.stop)
        process.ready()
        service.run(process.stop)
        follower.check()
        producer.check()


def _inventory(settings: Settings, engine: Engine, file: Path | None) -> CameraInventory:
    """The cameras that a detector knows: of the settings file and of the ledger's table."""
    from dangerous_driving.camera.inventory import CameraInventory, Origin, SettingsFile, Switched
    from dangerous_driving.ledger.cameras import stopped_cameras, table_cameras

    of_settings: Origin = SettingsFile(file) if file is not None else lambda: settings.camera.cameras
    origins: dict[str, Origin] = {"settings": Switched(of_settings, lambda: stopped_cameras(engine))}
    if settings.camera.from_table:
        origins["table"] = lambda: table_cameras(engine)
    return CameraInventory(origins)


def _spool(settings: Settings, stack: ExitStack) -> Spool | None:
    from dangerous_driving.messaging.spool import Spool

    if settings.spool.folder is None:
        return None
    spool = Spool(settings.spool.folder, settings.spool.max_bytes)
    stack.callback(spool.close)
    return spool


def _membership(settings: Settings, engine: Engine) -> Membership:
    """A detector among the others. A restart keeps its name; its spool, if it has one, is one process's."""
    from dangerous_driving.camera.membership import Membership
    from dangerous_driving.ledger.detectors import LedgerRegister

    folder = settings.spool.folder
    name = f"{settings.node}:{folder.resolve()}" if folder else settings.node
    register = LedgerRegister(engine, name, settings.node, lease=settings.camera.lease)
    return Membership(name, settings.node, register)


def follow_switch(settings: Settings, engine: Engine, stop: threading.Event) -> LaneSwitch:
    """The switch of lanes, looked at anew every few seconds until `stop`."""
    from dangerous_driving.assessment.switch import LaneSwitch
    from dangerous_driving.ledger.switches import read_switch

    switch = LaneSwitch(settings.assessment.switch_file, lambda: read_switch(engine))
    switch.look()
    following = threading.Thread(
        target=switch.follow, args=(settings.assessment.switch_refresh, stop), name="switch", daemon=True
    )
    following.start()
    return switch


def tasks(settings: Settings, *, leash: bool) -> None:
    """Detection results -> frames and tasks in the ledger, tasks on the topic."""
    from dangerous_driving.tasks.service import TasksService

    with (
        ServiceProcess("tasks", settings, leash=leash) as process,
        _ledger(settings, "tasks") as engine,
        Producer(settings.kafka, f"tasks-{settings.node}") as producer,
        Consumer(
            settings.kafka,
            {Topic.DETECTION_RESULTS: DetectionResult},
            name="tasks",
            policy=AckPolicy.AFTER_EFFECT,
            dead_letters=producer,
        ) as consumer,
        LagMeter(settings.kafka, consumer),
    ):
        # here, since this service runs in every set-up
        threading.Thread(target=keep_ahead, args=(engine, process.stop), name="partitions", daemon=True).start()
        process.ready()
        log.info("tasks_are_sent_by", generator=settings.tasks.generator.value)
        TasksService(
            engine,
            consumer,
            producer if settings.tasks.generator is Generator.PYTHON else None,
            store=open_store(settings.objects),
            in_flight=min(2000, max(settings.kafka.max_unacknowledged // 2, 1)),
            window_length=settings.windows.length,
            delivery_timeout=settings.kafka.delivery_timeout,
        ).run(process.stop)


def assess(settings: Settings, *, leash: bool) -> None:
    """The realtime lane."""
    from dangerous_driving.assessment.keys import open_pool
    from dangerous_driving.assessment.opening import open_assessor
    from dangerous_driving.assessment.scheduler import Scheduler

    async def work(
        process: ServiceProcess, engine: Engine, producer: Producer, consumer: Consumer[AssessmentTask]
    ) -> None:
        pool = open_pool(settings.keys, engine)
        try:
            async with open_assessor(
                settings,
                service="assess",
                engine=engine,
                store=open_store(settings.objects),
                pool=pool,
                producer=producer,
            ) as assessor:
                switch = follow_switch(settings, engine, process.stop)
                process.ready()
                scheduler = Scheduler(
                    assessor, consumer, settings.assessment, window_length=settings.windows.length, switch=switch
                )
                await scheduler.run(process.stop)
        finally:
            await pool.close()

    with (
        ServiceProcess("assess", settings, leash=leash) as process,
        _ledger(settings, "assess") as engine,
        Producer(settings.kafka, f"assess-{settings.node}") as producer,
        Consumer(
            settings.kafka,
            {Topic.ASSESSMENT_TASKS: AssessmentTask},
            name="assess",
            policy=AckPolicy.AFTER_EFFECT,
            dead_letters=producer,
        ) as consumer,
        LagMeter(settings.kafka, consumer),
    ):
        asyncio.run(work(process, engine, producer, consumer))


def alerts(settings: Settings, *, leash: bool) -> None:
    """Results and geometry -> alerts."""
    from dangerous_driving.alerts.service import AlertsService

    with (
        ServiceProcess("alerts", settings, leash=leash) as process,
        _ledger(settings, "alerts") as engine,
        Producer(settings.kafka, f"alerts-{settings.node}") as producer,
        Consumer[DetectionResult | RiskAssessmentResult](
            settings.kafka,
            {Topic.DETECTION_RESULTS: DetectionResult, Topic.RISK_ASSESSMENT_RESULTS: RiskAssessmentResult},
            name="alerts",
            policy=AckPolicy.AFTER_EFFECT,
            dead_letters=producer,
        ) as consumer,
        LagMeter(settings.kafka, consumer),
    ):
        process.ready()
        AlertsService(engine, consumer, producer, settings).run(process.stop)


def notify(settings: Settings, *, leash: bool) -> None:
    """What alerts tell -> receivers: webhooks, e-mail, MQTT.

    Raises:
        ConfigError: there is no receiver, or one of them is unusable.
    """
    from dangerous_driving.notifications.opening import open_posts
    from dangerous_driving.notifications.service import NotifyService

    if not settings.notifications.receivers:
        raise ConfigError(
            "notifications.receivers", "there is none, so nobody could be told", "add one to the settings file"
        )
    posts = open_posts(settings)
    with ServiceProcess("notify", settings, leash=leash) as process, _ledger(settings, "notify") as engine:
        process.ready()
        NotifyService(engine, posts, settings.notifications, store=open_store(settings.objects)).run(process.stop)


def redis_feed(settings: Settings, *, leash: bool) -> None:
    """Results and alerts -> Redis, for the big screens of the old system.

    Raises:
        ConfigError: no address is set, or the extra `redis` is not installed.
    """
    from dangerous_driving.alerts.redis_feed import RedisFeed, open_redis

    server = open_redis(settings.redis)
    with (
        ServiceProcess("redis-feed", settings, leash=leash) as process,
        Producer(settings.kafka, f"redis-feed-{settings.node}") as producer,
        Consumer[RiskAssessmentResult | Alert](
            settings.kafka,
            {Topic.RISK_ASSESSMENT_RESULTS: RiskAssessmentResult, Topic.ALERTS: Alert},
            name="redis-feed",
            policy=AckPolicy.AFTER_EFFECT,
            dead_letters=producer,
        ) as consumer,
    ):
        process.ready()
        RedisFeed(server, consumer, settings.redis).run(process.stop)


def realtime(settings: Settings, *, leash: bool) -> None:
    """The page, the WebSocket and REST; it has its own address, which serves /metrics, /healthz and /readyz too."""
    from dangerous_driving.realtime.service import run

    with (
        ServiceProcess("realtime", settings, leash=leash, endpoint=False) as process,
        _ledger(settings, "realtime") as engine,
        Producer(settings.kafka, f"realtime-{settings.node}") as producer,
    ):

        def read_lag() -> dict[str, int]:
            return {service: sum(lag_by_topic(settings, service).values()) for service in GROUPS}

        run(
            settings,
            engine,
            open_store(settings.objects),
            producer,
            process.stop,
            ready=lambda port: process.tell_address(settings.realtime.host, port),
            read_lag=read_lag,
        )


def exporter(settings: Settings, *, leash: bool) -> None:
    """What the ledger and the brokers know -> metrics."""
    from dangerous_driving.observability.exporter import Exporter

    with (
        ServiceProcess("exporter", settings, leash=leash) as process,
        _ledger(settings, "exporter") as engine,
    ):
        groups = GROUPS | (EXTRA_GROUPS if settings.redis.url else {})
        follows = {group_name(settings, service): topics for service, topics in groups.items()}
        process.ready()
        Exporter(settings, engine, follows).run(process.stop)


def broker(settings: Settings, address_file: Path, *, leash: bool) -> None:
    """The embedded broker."""
    from dangerous_driving.messaging import run_embedded_broker

    with ServiceProcess("broker", settings, leash=leash) as process:
        process.ready()
        run_embedded_broker(address_file, process.stop)


def simulated_llm(settings: Settings, *, host: str, port: int, seed: int, speed: float, leash: bool) -> None:
    """The simulated LLM, which accepts the configured keys (any key when none is configured)."""
    from dangerous_driving.assessment.keys import load_keys
    from dangerous_driving.simulation.llm import serve

    with ServiceProcess("simulated-llm", settings, leash=leash, endpoint=False) as process:
        serve(host, port, keys=load_keys(settings.keys), seed=seed, speed=speed, stop=process.stop)


def run_windows(settings: Settings, *, open_too: bool, leash: bool = False) -> list[WindowReport]:
    """Assess what is left in the windows, some at a time; returns a report each."""
    from dangerous_driving.assessment.keys import open_pool
    from dangerous_driving.assessment.opening import open_assessor
    from dangerous_driving.assessment.window_run import assess_windows, by_living_workers
    from dangerous_driving.ledger.windows import due_windows, take_over_windows

    async def work(engine: Engine, producer: Producer, windows: list[Window]) -> list[WindowReport]:
        pool = open_pool(settings.keys, engine)
        opened = partial(
            open_assessor,
            settings,
            service="window-run",
            engine=engine,
            store=open_store(settings.objects),
            pool=pool,
            producer=producer,
        )
        assess = partial(assess_windows, run_id="command line", settings=settings.assessment)
        try:
            return await by_living_workers(opened, windows, assess)
        finally:
            await pool.close()

    if leash:  # a part of a demo: its lines are read with those of the services
        logging.configure(level=settings.observability.log_level, service="window-run", node=settings.node)
        end_with_standard_input()
    with _ledger(settings, "window-run") as engine:
        now, length, lateness = datetime.now(UTC), settings.windows.length, settings.windows.lateness
        while take_over_windows(engine, length=length, now=now, lateness=None if open_too else lateness):
            pass
        due = due_windows(
            engine,
            now=now,
            # with open ones: as if the newest had closed already
            lateness=-float(length) if open_too else lateness,
            length=length,
            limit=1_000_000,
            given_up_too=True,  # a person asks
        )
        if not due:
            return []
        with Producer(settings.kafka, f"window-run-{settings.node}") as producer:
            return asyncio.run(work(engine, producer, [item.window for item in due]))
