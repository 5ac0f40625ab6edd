"""One trace from a frame's capture to the push of its alert, over a real broker and a real ledger."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY
from pydantic import SecretStr
from sqlalchemy import Engine

from dangerous_driving.alerts.service import AlertsService
from dangerous_driving.assessment.keys import load_keys, open_pool
from dangerous_driving.assessment.opening import open_assessor
from dangerous_driving.assessment.scheduler import Scheduler
from dangerous_driving.camera.frame import Frame
from dangerous_driving.contracts import (
    Alert,
    AssessmentTask,
    DetectionResult,
    RiskAssessmentResult,
    RiskLevel,
    in_utc_milliseconds,
)
from dangerous_driving.detection.delivery import ResultDelivery
from dangerous_driving.detection.engine import Detection
from dangerous_driving.detection.scene import scene_of
from dangerous_driving.messaging import (
    AckPolicy,
    Consumer,
    EmbeddedBroker,
    Producer,
    Topic,
    apply,
    embedded_kafka_settings,
)
from dangerous_driving.objects import FolderStore
from dangerous_driving.observability import tracing
from dangerous_driving.realtime.hub import Hub
from dangerous_driving.settings import (
    AlertsSettings,
    AssessmentSettings,
    DatabaseSettings,
    DetectionSettings,
    KafkaSettings,
    KeysSettings,
    LlmSettings,
    Settings,
)
from dangerous_driving.simulation.llm import serving
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.service import TasksService

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PATIENCE = 60.0  # s; only a hang reaches it
#: Of a whole answer, in their order.
STAGES = ("detected", "recorded", "claimed", "called", "assessed", "alert_final", "push_final")
SENT = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    yield InMemorySpanExporter()
    tracing.stop()


def trace(service: str, spans: InMemorySpanExporter, share: float = 1.0) -> tracing.Tracer:
    """As another process would: it knows nothing of what this one did before."""
    tracing.stop()
    spans._stopped = False  # one exporter for all of them
    tracer = tracing.start(service, "here", share, SimpleSpanProcessor(spans))
    assert tracer is not None
    return tracer


@pytest.fixture(scope="module")
def broker() -> Iterator[KafkaSettings]:
    with EmbeddedBroker() as embedded:
        kafka = embedded_kafka_settings(embedded.bootstrap_servers).model_copy(update={"session_timeout": 3.0})
        apply(kafka)
        yield kafka


def told(stage: str) -> tuple[float, float]:
    """How often a stage was reached so far, and the seconds from capture in all."""
    names = ("capture_to_stage_seconds_count", "capture_to_stage_seconds_sum")
    count, total = (REGISTRY.get_sample_value(name, {"stage": stage}) or 0.0 for name in names)
    return count, total


def begin(span: ReadableSpan) -> int:
    assert span.start_time is not None
    return span.start_time


def end(span: ReadableSpan) -> int:
    assert span.end_time is not None
    return span.end_time


@contextmanager
def running(work: Callable[[threading.Event], object]) -> Iterator[None]:
    stop = threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work(stop)
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()  # also when the test fails: a thread that is left disturbs all tests after it
        thread.join(PATIENCE)
    assert not failed


def wait_for(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"in vain waited for {what}"
        time.sleep(0.02)


def capture(settings: Settings, store: FolderStore) -> DetectionResult:
    """A frame with a pedestrian before a car, on the detection service's own way out."""
    detections = [
        Detection("car", 0.9, (400.0, 300.0, 620.0, 520.0)),
        Detection("person", 0.8, (560.0, 330.0, 620.0, 480.0)),
    ]
    sent: list[DetectionResult] = []
    with Producer(settings.kafka, "detect") as producer:

        def publish(result: DetectionResult) -> Any:
            sent.append(result)
            return producer.send(Topic.DETECTION_RESULTS, result, key=result.camera_id)

        delivery = ResultDelivery(DetectionSettings(), store, publish, model="test")
        image = np.full((720, 1280, 3), 90, np.uint8)
        frame = Frame("north", image, in_utc_milliseconds(datetime.now(UTC)), 1)
        delivery.deliver(frame, scene_of(detections, 1280, 720, DetectionSettings()), 0.05)
        producer.flush()
    (result,) = sent
    assert len(result.traffic_groups) == 1
    return result


async def realtime_lane(
    settings: Settings,
    engine: Engine,
    store: FolderStore,
    producer: Producer,
    consumer: Consumer[AssessmentTask],
    stop: threading.Event,
) -> None:
    pool = open_pool(settings.keys, engine)
    try:
        async with open_assessor(
            settings, service="assess", engine=engine, store=store, pool=pool, producer=producer
        ) as assessor:
            await Scheduler(assessor, consumer, settings.assessment, window_length=60).run(stop)
    finally:
        await pool.close()


def names_of(spans: InMemorySpanExporter, service: str) -> list[str]:
    name = f"dangerous-driving.{service}"
    return [span.name for span in spans.get_finished_spans() if span.resource.attributes["service.name"] == name]


def walk(
    broker: KafkaSettings, database: DatabaseSettings, ledger: Engine, tmp_path: Path, spans: InMemorySpanExporter
) -> tuple[DetectionResult, list[Alert]]:
    """One frame through the services, one after the other; returns it, and the alerts that were pushed."""
    store = FolderStore(tmp_path / "objects")
    keys = KeysSettings(secrets=(SecretStr("sk-simulated-1"),))

    def names(service: str) -> list[str]:
        return names_of(spans, service)

    with serving(keys=load_keys(keys), speed=5) as address:
        settings = Settings(
            node="test", database=database, kafka=broker, keys=keys,
            llm=LlmSettings(base_url=address, model="simulated-vl", timeout=10),
            # a group of consumers may take seconds to meet, and what is late by then would be left to the window lane
            assessment=AssessmentSettings(realtime_deadline=60),
            # whatever the level is: this is about the way
            alerts=AlertsSettings(open_level=RiskLevel.NONE, notify_level=RiskLevel.NONE, geometry_priority=None),
        )  # fmt: skip
        bridge = Consumer[Alert](settings.kafka, {Topic.ALERTS: Alert}, name="realtime", policy=AckPolicy.BROADCAST)

        trace("detect", spans)
        result = capture(settings, store)

        trace("tasks", spans)
        with (
            Producer(broker, "tasks") as producer,
            Consumer(
                broker, {Topic.DETECTION_RESULTS: DetectionResult}, name="tasks", policy=AckPolicy.AFTER_EFFECT
            ) as results,
        ):
            service = TasksService(ledger, results, producer, store=store, window_length=60, delivery_timeout=30)
            with running(service.run):
                wait_for(lambda: "task" in names("tasks"), "the task")

        trace("assess", spans)
        with (
            Producer(broker, "assess") as producer,
            Consumer(
                broker, {Topic.ASSESSMENT_TASKS: AssessmentTask}, name="assess", policy=AckPolicy.AFTER_EFFECT
            ) as tasks,
            running(lambda stop: asyncio.run(realtime_lane(settings, ledger, store, producer, tasks, stop))),
        ):
            wait_for(lambda: {"call", "result"} <= set(names("assess")), "the answer")

        trace("alerts", spans)
        with (
            Producer(broker, "alerts") as producer,
            Consumer[DetectionResult | RiskAssessmentResult](
                broker, {Topic.RISK_ASSESSMENT_RESULTS: RiskAssessmentResult}, name="alerts",
                policy=AckPolicy.AFTER_EFFECT,
            ) as answers,
            running(AlertsService(ledger, answers, producer, settings).run),
        ):  # fmt: skip
            wait_for(lambda: "alert" in names("alerts"), "the alert")

    trace("realtime", spans)
    hub = Hub(client_queue=10)
    alerts: list[Alert] = []

    def pushed() -> bool:
        received = [item.message for item in bridge.poll(0.2, 100)]
        alerts.extend(received)
        hub.receive(received)
        return "push" in names("realtime")

    wait_for(pushed, "the push")
    bridge.close()
    return result, alerts


@pytest.mark.integration
def test_a_frame_is_one_trace_from_its_capture_to_the_push_of_its_alert(
    broker: KafkaSettings,
    database: DatabaseSettings,
    ledger: Engine,
    tmp_path: Path,
    spans: InMemorySpanExporter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # a scheduler that starts would find the task in the ledger before it comes over the topic
    monkeypatch.setattr("dangerous_driving.assessment.scheduler.claim_pending_realtime", lambda *_, **__: [])
    before = {stage: told(stage) for stage in STAGES}
    result, alerts = walk(broker, database, ledger, tmp_path, spans)

    found = spans.get_finished_spans()
    assert {span.context.trace_id for span in found if span.context} == {tracing._trace_id(result.message_id)}
    assert set(names_of(spans, "detect")) == {"capture", "detect"}
    assert set(names_of(spans, "tasks")) == {"task"}
    assert set(names_of(spans, "assess")) == {"claim", "wait for key", "first token", "call", "result"}
    assert set(names_of(spans, "alerts")) == {"alert"}
    assert set(names_of(spans, "realtime")) == {"push"}

    by_id = {span.context.span_id: span for span in found if span.context}
    (root,) = [span for span in found if span.parent is None]
    assert root.name == "capture"

    def parents(name: str) -> set[str]:
        return {by_id[span.parent.span_id].name for span in found if span.name == name and span.parent}

    # each hangs on whose message brought it: over the headers, since no process knew of the one before
    assert parents("detect") == parents("task") == {"capture"}
    assert parents("claim") == parents("wait for key") == parents("first token") == parents("call") == {"task"}
    # both results lay there when the alerts service came: usually the whole answer alone opens the alert
    assert {"call"} <= parents("alert") <= {"first token", "call"}
    assert parents("push") == {"alert"}
    assert all(begin(root) <= begin(span) <= end(span) for span in found)
    (task,) = [span for span in found if span.name == "task"]
    assert task.attributes is not None
    assert task.attributes["task_id"] == f"{result.message_id}_group1"
    assert {alert.last_request_id for alert in alerts} == {result.message_id}

    # and each stage was reached once, one after the other, so that the seconds between them add up to the whole
    reached = {stage: (told(stage)[0] - before[stage][0], told(stage)[1] - before[stage][1]) for stage in STAGES}
    assert {count for count, _ in reached.values()} == {1}
    seconds = [since_capture for _, since_capture in reached.values()]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0


def test_a_message_that_lost_its_headers_goes_on_in_its_frames_trace(spans: InMemorySpanExporter) -> None:
    tracer = trace("tasks", spans)
    result = detection_result(captured_at=NOW)
    for headers in ([], [("traceparent", None)], [("traceparent", b"nonsense")], [("traceparent", b"00-0-0-zz")]):
        tracer.received(result, headers, NOW)
        tracer.span("task", result.message_id, "task 1", until=NOW, attributes={})
    for span in spans.get_finished_spans():
        assert span.context is not None
        assert span.parent is not None
        assert span.context.trace_id == tracing._trace_id(result.message_id)
        assert span.parent.span_id == tracing._root_id(result.message_id)


def test_a_message_of_a_foreign_sender_hangs_on_its_span_and_tells_it_on(spans: InMemorySpanExporter) -> None:
    tracer = trace("tasks", spans)
    result = detection_result(captured_at=NOW)
    tracer.received(result, [("other", b"x"), ("traceparent", SENT.encode())], NOW)
    assert tracer.headers(result) == [("traceparent", SENT.encode())]
    tracer.span("task", result.message_id, until=NOW + timedelta(seconds=1), attributes={})
    (span,) = spans.get_finished_spans()
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" in SENT
    assert end(span) - begin(span) == 1_000_000_000  # from when the message came
    assert span.context is not None
    assert f"{span.context.span_id:016x}" in tracer.headers(result)[0][1].decode()


def test_a_share_of_the_frames_is_traced_and_all_processes_agree_which(spans: InMemorySpanExporter) -> None:
    traced: dict[str, set[str]] = {}
    for service in ("tasks", "assess"):
        tracer = trace(service, spans, share=0.3)
        for number in range(300):
            result = detection_result(captured_at=NOW + timedelta(seconds=number))
            tracer.span(service, result.message_id, until=NOW, attributes={"message_id": result.message_id})
        traced[service] = {
            str((span.attributes or {})["message_id"]) for span in spans.get_finished_spans() if span.name == service
        }
    assert traced["tasks"] == traced["assess"]
    assert 50 < len(traced["tasks"]) < 140


def test_it_is_off_by_default_and_headers_go_only_while_it_is_on(
    broker: KafkaSettings, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Settings().observability.trace_share == 0
    assert tracing.start("tasks", "here", 0) is None
    assert tracing.current() is None
    sent: list[Any] = []
    with Producer(broker, "test") as producer:
        send = producer._client.send

        def spy(topic: str, **message: Any) -> Any:
            sent.append(message["headers"])
            return send(topic, **message)

        monkeypatch.setattr(producer._client, "send", spy)
        result = detection_result("headers", NOW)
        producer.send(
            Topic.ALERTS, result, key="headers"
        ).result()  # a topic that no other test reads from its beginning
        trace("tasks", spans)
        producer.send(Topic.ALERTS, result, key="headers").result()
    assert sent[0] is None
    assert [name for name, _ in sent[1]] == ["traceparent"]
