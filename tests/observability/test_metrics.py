"""Metrics: the page about them is true, labels are bounded, and an id leads from a slow bucket to a task."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from pydantic import SecretStr

from dangerous_driving.assessment.key_pool import Budget, Key, KeyPool, KeyUsage, MemoryStorage, Policy
from dangerous_driving.assessment.keys import _Metrics
from dangerous_driving.observability import metrics
from dangerous_driving.observability.service import ServiceProcess
from dangerous_driving.settings import Settings
from tests.observability.exposition import documented, problems, told

#: Names that dashboards of operators stand on: they are kept.
OF_THE_PLAN = {
    "detection_total": {"camera_id"},
    "llm_calls_total": {"key_id", "status"},
    "llm_latency_seconds": set(),
    "kafka_consumer_lag": {"topic", "partition"},
    "api_key_status": {"key_id", "status"},
}


def ours() -> dict[str, Counter | Gauge | Histogram]:
    found = [item for item in vars(metrics).values() if isinstance(item, Counter | Gauge | Histogram)]
    return {item._name + ("_total" if isinstance(item, Counter) else ""): item for item in found}


def test_the_page_lists_every_metric_with_its_type_and_labels() -> None:
    page = documented()
    assert page.keys() == ours().keys()
    for name, metric in ours().items():
        assert (page[name].kind, page[name].labels) == (
            type(metric).__name__.lower(),
            frozenset(metric._labelnames),
        ), name


def test_the_names_of_the_plan_are_kept() -> None:
    for name, labels in OF_THE_PLAN.items():
        assert labels <= documented()[name].labels


def test_ids_are_never_labels() -> None:
    for name, metric in ours().items():
        assert not {"task_id", "message_id", "alert_id", "request_id", "url", "call_id", "run"} & set(
            metric._labelnames
        ), name


@pytest.fixture
def address() -> Iterator[str]:
    import threading

    process = ServiceProcess("tasks", Settings())
    assert process._server is not None
    threading.Thread(target=process._server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{process._server.server_address[1]}/metrics"
    process._server.shutdown()
    process._server.server_close()


def test_what_a_service_tells_is_what_the_page_says(address: str) -> None:
    metrics.FRAMES_RECORDED.inc()
    with urllib.request.urlopen(address) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        text = answer.read().decode()
    assert "frames_recorded_total" in told(text)
    assert [problem for problem in problems("tasks", text) if "not documented" in problem] == []
    assert problems("tasks", "# TYPE nonsense gauge\nnonsense 1\n")
    assert problems("tasks", '# TYPE camera_up gauge\ncamera_up{camera_id="a"} 1\n')  # detect tells it
    assert problems("detect", '# TYPE camera_up gauge\ncamera_up{camera="a"} 1\n')
    assert not problems("detect", '# TYPE camera_up gauge\ncamera_up{camera_id="a"} 1\n')


def test_a_slow_bucket_tells_a_task_where_openmetrics_is_asked_for(address: str) -> None:
    metrics.LLM_LATENCY.observe(27.0, metrics.exemplar("task_id", "slow_group3"))
    request = urllib.request.Request(address, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    with urllib.request.urlopen(request) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        families = list(openmetrics_families(answer.read().decode()))  # type: ignore[no-untyped-call]
    (latency,) = [family for family in families if family.name == "llm_latency_seconds"]
    remembered = {sample.labels["le"]: sample.exemplar for sample in latency.samples if sample.name.endswith("_bucket")}
    assert remembered["30.0"] is not None
    assert remembered["30.0"].labels == {"task_id": "slow_group3"}


def test_an_id_that_is_too_long_for_an_exemplar_is_left_out() -> None:
    registry = CollectorRegistry()
    histogram = Histogram("some_seconds", "…", registry=registry)
    histogram.observe(1.0, metrics.exemplar("task_id", "x" * 160))
    histogram.observe(1.0, metrics.exemplar("task_id", "x" * 121))
    histogram.observe(1.0, metrics.exemplar("task_id", None))
    assert histogram.collect()


def usage(key_hash: str, status: str) -> KeyUsage:
    return KeyUsage(
        key_hash=key_hash, label="", qps_limit=10, rpm_limit=300, used_second=1, used_minute=7, in_flight=0,
        status=status, reason="", cooling_for=0.0,
    )  # fmt: skip


def test_the_series_of_a_key_begin_at_nought_and_end_with_it() -> None:
    def value(name: str, **labels: str) -> float | None:
        return REGISTRY.get_sample_value(name, labels)

    told_by_the_pool = _Metrics()
    told_by_the_pool.stands([usage("one", "available"), usage("two", "disabled")])
    # so that the first failure is a rise, which a rate sees
    assert value("llm_calls_total", key_id="one", status="unavailable") == 0
    assert value("api_key_status", key_id="two", status="disabled") == 1
    assert value("api_key_status", key_id="two", status="available") == 0
    told_by_the_pool.ended("one", "unavailable")
    told_by_the_pool.stands([usage("one", "cooling")])
    assert value("llm_calls_total", key_id="one", status="unavailable") == 1
    assert value("api_key_status", key_id="one", status="cooling") == 1
    assert value("api_key_status", key_id="two", status="disabled") is None
    assert value("api_key_used", key_id="two", window="minute") is None


async def test_a_pool_tells_no_share_of_a_budget_for_it_would_stand_until_the_lane_asks_again() -> None:
    """After midnight, too: whoever looks at the day's spending tells it, which is the exporter."""
    lane = "a lane with a budget"
    storage = MemoryStorage([Key("one", 10, 300)], Policy(budgets={lane: Budget(calls=2)}))
    pool = KeyPool(
        {"one": SecretStr("sk-one")}, storage, policy=Policy(budgets={lane: Budget(calls=2)}), observer=_Metrics()
    )
    for _ in range(2):
        await pool.report(await pool.reserve(lane))
    assert pool.spent(lane).calls == 2
    assert REGISTRY.get_sample_value("llm_budget_used_ratio", {"lane": lane}) is None
    await pool.close()
