"""REST, pictures, headers and health, over real HTTP."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, text

from dangerous_driving.contracts import AlertBasis, RiskLevel, iso_milliseconds
from dangerous_driving.errors import BrokerError, ConfigError, LedgerError
from dangerous_driving.ledger import overview
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.frames import record_detections
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.realtime.service import listen
from dangerous_driving.settings import RealtimeSettings
from dangerous_driving.tasks.derivation import tasks_from_detection
from tests.realtime.conftest import (
    BridgeFactory,
    FedConsumer,
    RunningBridge,
    a_frame,
    a_sighting,
    moment,
    wait_for,
)

pytestmark = pytest.mark.integration

TOKEN = "correct horse battery staple"


@pytest.fixture
def http(bridge: RunningBridge) -> Any:
    with bridge.http() as client:
        yield client


# alerts


def test_alerts_come_in_pages_with_filters(bridge: RunningBridge, http: httpx.Client) -> None:
    for number, camera in enumerate(("7", "7", "south", "south", "south")):
        level = RiskLevel.HIGH if number % 2 else RiskLevel.MEDIUM
        bridge.decide(a_sighting(a_frame(camera, moment(300 - 40 * number)), level))
    page = http.get("/api/alerts", params={"limit": 2}).json()
    ids = [alert["alertId"] for alert in page["items"]]
    while page["nextCursor"]:
        page = http.get("/api/alerts", params={"limit": 2, "cursor": page["nextCursor"]}).json()
        ids += [alert["alertId"] for alert in page["items"]]
    everything = http.get("/api/alerts").json()
    assert ids == [alert["alertId"] for alert in everything["items"]]
    assert everything["nextCursor"] is None

    def count(**wanted: Any) -> int:
        return len(http.get("/api/alerts", params=wanted).json()["items"])

    assert len(ids) == 5
    assert count(camera="7") == 2
    assert count(level="high") == 2
    assert count(state=["open", "closed"]) == 5
    assert count(state="withdrawn") == 0
    assert count(since=iso_milliseconds(moment(200))) == 2
    assert count(before=iso_milliseconds(moment(200))) == 3


def test_one_alert_comes_with_its_history(bridge: RunningBridge, http: httpx.Client) -> None:
    frame = a_frame()
    bridge.decide(a_sighting(frame, kind=AlertBasis.GEOMETRY, level=RiskLevel.MEDIUM))
    bridge.decide(a_sighting(frame, kind=AlertBasis.PROVISIONAL))
    ((alert),) = bridge.decide(a_sighting(frame))
    detail = http.get(f"/api/alerts/{alert.alert_id}").json()
    assert detail["alert"]["version"] == 3
    assert [(step["kind"], step["level"], step["alert"]["state"]) for step in detail["history"]] == [
        ("geometry", "medium", "provisional"),
        ("provisional", "high", "provisional"),
        ("final", "high", "open"),
    ]


@pytest.mark.parametrize(("act", "verdict"), [("acknowledge", "acknowledged"), ("reject", "rejected")])
def test_a_verdict_is_kept_published_and_pushed(
    bridge: RunningBridge, http: httpx.Client, act: str, verdict: str
) -> None:
    (alert,) = bridge.decide(a_sighting(a_frame()))
    with bridge.socket() as client:
        given = http.post(f"/api/alerts/{alert.alert_id}/{act}", json={"by": "Ada", "note": "<script>"}).json()
        assert (given["verdict"], given["verdictBy"], given["verdictNote"]) == (verdict, "Ada", "<script>")
        while client.next("alert")["verdict"] != verdict:
            pass
    wait_for(lambda: len(bridge.producer.sent) == 2, "the verdict on the topic")
    assert http.get(f"/api/alerts/{alert.alert_id}").json()["alert"]["verdict"] == verdict


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/api/alerts/unknown", None, 404),
        ("GET", "/api/alerts/unknown/image", None, 404),
        ("POST", "/api/alerts/unknown/acknowledge", {}, 404),
        ("POST", "/api/alerts/a/reject", {"by": ""}, 422),
        ("POST", "/api/alerts/a/reject", {"note": "x" * 2001}, 422),
        ("POST", "/api/alerts/a/reject", {"note": "x" * 100_000}, 413),
        ("POST", "/api/alerts/a/reject", {"note": "a\x00b"}, 422),
        ("POST", "/api/cameras/a/stop", {"by": "\x00"}, 422),
        ("GET", "/api/alerts?limit=0", None, 422),
        ("GET", "/api/alerts?limit=201", None, 422),
        ("GET", "/api/alerts?level=extreme", None, 422),
        ("GET", "/api/alerts?cursor=1'--", None, 422),
        ("GET", "/api/alerts?since=yesterday", None, 422),
        ("GET", "/api/alerts?camera=../etc", None, 422),
        ("GET", "/api/nothing", None, 404),
        ("GET", "/../pyproject.toml", None, 404),
        ("GET", "/%2e%2e/service.py", None, 404),
        ("GET", "/..%2fservice.py", None, 404),
    ],
)
def test_wrong_requests_get_their_answer(
    http: httpx.Client, method: str, path: str, body: dict[str, Any] | None, status: int
) -> None:
    assert http.request(method, path, json=body).status_code == status


def test_a_body_of_unknown_length_is_refused(bridge: RunningBridge, http: httpx.Client) -> None:
    assert http.post("/api/alerts/a/reject", content=iter([b"{}"])).status_code == 411


# pictures


def test_a_recent_frame_is_found_before_the_ledger_has_it(bridge: RunningBridge, http: httpx.Client) -> None:
    frame = a_frame(store=bridge.store)
    bridge.feed(frame)
    path = f"/api/frames/north/{frame.message_id}/image"
    answer = wait_for(lambda: (found := http.get(path)).status_code == 200 and found, "the frame")
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["cache-control"] == "private, max-age=86400, immutable"
    assert answer.content == bridge.store.get(bridge.store.key(str(frame.raw_frame_url)))


def test_pictures_of_any_age_are_found_by_their_time(bridge: RunningBridge, http: httpx.Client) -> None:
    frame = a_frame(at=moment(5000), store=bridge.store)
    (task,) = tasks_from_detection(frame)
    record_detections(bridge.engine, Partitions(), [frame], [task], window_length=3600)
    (alert,) = bridge.decide(a_sighting(frame))
    at = {"at": iso_milliseconds(frame.timestamp)}
    group_picture = bridge.store.get(bridge.store.key(str(task.group_image_url)))
    assert http.get(f"/api/frames/north/{frame.message_id}/image", params=at).content.startswith(b"\xff\xd8")
    assert http.get(f"/api/groups/north/{task.task_id}/image", params=at).content == group_picture
    assert http.get(f"/api/alerts/{alert.alert_id}/image").content == group_picture
    for path, params in (
        (f"/api/frames/north/{frame.message_id}/image", {}),
        (f"/api/frames/south/{frame.message_id}/image", at),
        (f"/api/frames/north/{frame.message_id}x/image", at),
        (f"/api/groups/south/{task.task_id}/image", at),
    ):
        assert http.get(path, params=params).status_code == 404


@pytest.mark.parametrize(
    "url",
    [
        "folder://traffic/frames/south/2026/01/01/00/secret.jpg",  # another camera's
        "folder://traffic/frames/north/../../../../etc/passwd.jpg",
        "folder://traffic/frames/north/2026/01/01/00/result.json",
        "folder://elsewhere/frames/north/a.jpg",
        "file:///etc/passwd",
        "s3://traffic/frames/north/a.jpg",
    ],
)
def test_no_message_can_make_the_bridge_read_anything_else(bridge: RunningBridge, http: httpx.Client, url: str) -> None:
    bridge.store.put("frames/south/2026/01/01/00/secret.jpg", b"secret", "image/jpeg")
    bridge.store.put("frames/north/2026/01/01/00/result.json", b"{}", "application/json")
    frame = a_frame().model_copy(update={"raw_frame_url": url})
    with bridge.socket() as client:
        bridge.feed(frame)
        client.next("detection_result")
    assert http.get(f"/api/frames/north/{frame.message_id}/image").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/api/frames/..%2f..%2fetc/passwd/image",
        "/api/frames/north/..%2f..%2fpasswd/image",
        "/api/frames/north/..%5c..%5cpasswd/image",
        "/api/frames/north/%00/image",
        "/api/groups/north/a%27%20OR%201=1/image?at=2026-01-01T00:00:00Z",
    ],
)
def test_paths_lead_nowhere_else(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code in (404, 422)


# cameras and counts


def test_cameras_and_counts(bridge: RunningBridge, http: httpx.Client) -> None:
    frame = a_frame("7")
    record_detections(bridge.engine, Partitions(), [frame], tasks_from_detection(frame), window_length=3600)
    with transaction(bridge.engine) as connection:
        connection.execute(
            text("INSERT INTO api_key (key_hash, label, qps_limit, rpm_limit) VALUES ('hash1', 'first', 10, 300)")
        )
    bridge.decide(a_sighting(frame))
    assert [(camera["cameraId"], camera["kind"], camera["status"]) for camera in http.get("/api/cameras").json()] == [
        (7, "live", "unknown")
    ]
    status = http.get("/api/status").json()
    assert status["tasks"] == {"pending": 1}
    assert status["alerts"] == {"open": 1}
    assert status["cameras"] == {"unknown": 1}
    assert status["keys"] == [
        {"keyHash": "hash1", "label": "first", "state": "available", "reason": "", "used": 0, "limit": 300}
    ]
    assert (status["llmModel"], status["simulatedLlm"]) == ("simulated-vl", True)


# access and headers


@pytest.mark.parametrize("path", ["/api/alerts", "/api/cameras", "/api/status", "/api/frames/n/m/image"])
def test_the_token_is_asked_for_data_but_not_for_the_page(start_bridge: BridgeFactory, path: str) -> None:
    bridge = start_bridge(token=TOKEN)
    with bridge.http() as http:
        assert http.get(path).status_code == 401
        assert http.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert http.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code in (200, 404)
        assert http.get(path, params={"token": TOKEN}).status_code in (200, 404)
        assert http.get("/").status_code == 200


def test_a_foreign_page_changes_nothing(bridge: RunningBridge, http: httpx.Client) -> None:
    (alert,) = bridge.decide(a_sighting(a_frame()))
    path = f"/api/alerts/{alert.alert_id}/reject"
    assert http.post(path, json={}, headers={"Origin": "https://evil.example"}).status_code == 403
    assert http.get(f"/api/alerts/{alert.alert_id}").json()["alert"]["verdict"] is None
    assert http.post(path, json={}, headers={"Origin": bridge.url}).status_code == 200


def test_with_open_access_a_foreign_name_for_this_machine_is_refused(http: httpx.Client) -> None:
    assert http.get("/api/alerts", headers={"Host": "evil.example:8080"}).status_code == 421


@pytest.mark.parametrize("path", ["/", "/app.js", "/style.css", "/api/alerts", "/api/nothing", "/healthz"])
def test_every_answer_carries_the_security_headers(http: httpx.Client, path: str) -> None:
    headers = http.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["script-src"] == "'self'"
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"]


# health


def test_health_readiness_and_metrics(bridge: RunningBridge, http: httpx.Client) -> None:
    assert http.get("/healthz").status_code == 200
    wait_for(lambda: http.get("/readyz").status_code == 200, "readiness")
    assert "websocket_clients" in http.get("/metrics").text


def test_it_is_not_ready_while_the_topics_are_not_read(
    start_bridge: BridgeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise BrokerError("away")

    monkeypatch.setattr(FedConsumer, "poll", away)
    with start_bridge().http() as http:
        answer = http.get("/readyz")
        assert (answer.status_code, answer.json()["reason"]) == (503, "the topics are not read")


def test_without_the_database_it_says_so_and_gives_no_details(
    bridge: RunningBridge, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise LedgerError("the database did not answer (password for user postgres); check database.url")

    wait_for(lambda: http.get("/readyz").status_code == 200, "readiness")
    monkeypatch.setattr(overview, "ping", away)
    monkeypatch.setattr(overview, "list_cameras", away)
    assert http.get("/readyz").json()["reason"] == "the database does not answer"
    answer = http.get("/api/cameras")
    assert answer.status_code == 503
    assert "password" not in answer.text


# starting


def test_a_port_in_use_is_an_error_that_names_the_setting(bridge: RunningBridge) -> None:
    with pytest.raises(ConfigError, match=r"realtime\.port / --port.*choose another port"):
        listen(RealtimeSettings(port=bridge.port))


def test_an_address_of_another_machine_is_an_error(ledger: Engine) -> None:
    with pytest.raises(ConfigError, match=r"realtime\.host"):
        listen(RealtimeSettings(host="203.0.113.7", port=0))


def test_neither_token_nor_open_access_ends_it_at_once(start_bridge: BridgeFactory) -> None:
    with pytest.raises(ConfigError, match=r"realtime\.token"):
        start_bridge(open_access=False)


def test_it_ends_when_it_is_told_to_with_clients_connected(bridge: RunningBridge) -> None:
    with bridge.socket() as client:
        client.settle()
        bridge.stop()
    assert bridge.failure is None
    assert not any(thread.name.startswith("bridge") for thread in threading.enumerate())


def test_pictures_are_looked_up_to_the_millisecond(bridge: RunningBridge, http: httpx.Client) -> None:
    frame = a_frame(at=moment(100), store=bridge.store)
    record_detections(bridge.engine, Partitions(), [frame], [], window_length=3600)
    late = iso_milliseconds(frame.timestamp + timedelta(milliseconds=1))
    assert http.get(f"/api/frames/north/{frame.message_id}/image", params={"at": late}).status_code == 404
