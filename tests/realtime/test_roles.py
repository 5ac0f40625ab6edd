"""Viewers look, operators act, admins read what others did: over every route and every message there is."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from websockets.exceptions import ConnectionClosed, InvalidStatus

from dangerous_driving.ledger.database import transaction
from dangerous_driving.realtime.access import Role, issue
from dangerous_driving.realtime.envelopes import CLIENT_MESSAGES
from tests.realtime.conftest import BridgeFactory, RunningBridge, a_frame, a_sighting, wait_for

pytestmark = pytest.mark.integration

SECRET = "a secret of more than thirty-two bytes"
#: Messages that change nothing for anybody else.
HARMLESS = {"ping", "subscribe", "unsubscribe"}


@pytest.fixture
def bridge(start_bridge: BridgeFactory) -> RunningBridge:
    bridge = start_bridge(token_secret=SECRET, open_access=False)
    add_camera(bridge, "north")
    return bridge


def add_camera(bridge: RunningBridge, camera: str) -> None:
    with transaction(bridge.engine) as connection:
        connection.execute(text("INSERT INTO camera (id, name) VALUES (:id, :id)"), {"id": camera})


def a_token(role: Role, name: str = "Ada", **lifetime: float) -> str:
    return issue(SECRET, name=name, role=role, now=datetime.now(UTC), lifetime=timedelta(**lifetime or {"hours": 1}))


def bearer(role: Role, name: str = "Ada") -> dict[str, str]:
    return {"Authorization": f"Bearer {a_token(role, name)}"}


def contents(bridge: RunningBridge) -> list[Any]:
    """All that an act could change."""
    with transaction(bridge.engine) as connection:
        return [
            connection.execute(text(query)).all()
            for query in (
                "SELECT * FROM alert ORDER BY 1",
                "SELECT * FROM camera ORDER BY 1",
                "SELECT * FROM audit_entry",
            )
        ]


def every_route(http: httpx.Client) -> list[tuple[str, str]]:
    document = http.get("/api/openapi.json").json()
    return [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]


def filled(path: str, alert_id: str) -> str:
    return re.sub(
        r"\{(\w+)\}", lambda match: {"alert_id": alert_id, "camera_id": "north"}.get(match[1], "message"), path
    )


def test_a_viewer_can_view_and_do_nothing_else_on_any_route(bridge: RunningBridge) -> None:
    (alert,) = bridge.decide(a_sighting(a_frame()))
    with bridge.http() as http:
        routes = every_route(http)
    assert ("POST", "/api/alerts/{alert_id}/acknowledge") in routes
    before = contents(bridge)
    with bridge.http(**bearer(Role.VIEWER)) as viewer, bridge.http() as nobody:
        for method, path in routes:
            url = filled(path, alert.alert_id)
            body: dict[str, Any] = {} if method == "GET" else {"json": {"by": "Eve", "note": "x"}}
            assert nobody.request(method, url, **body).status_code == 401, (method, path)
            status = viewer.request(method, url, **body).status_code
            if method == "GET" and path != "/api/audit":
                assert status in (200, 404, 422), (method, path)
            else:
                assert status == 403, (method, path)
        assert viewer.get("/api/me").json()["role"] == "viewer"
    assert contents(bridge) == before


def test_a_viewer_can_do_nothing_on_the_socket_but_listen(bridge: RunningBridge) -> None:
    (alert,) = bridge.decide(a_sighting(a_frame()))
    before = contents(bridge)
    with bridge.socket(additional_headers=bearer(Role.VIEWER)) as client:
        assert client.next("connection_ack")["role"] == "viewer"
        for kind in sorted(set(CLIENT_MESSAGES) - HARMLESS):
            client.send(kind, alertId=alert.alert_id, cameraId="north")
            assert client.next("error")["code"] == "forbidden", kind
        for kind in sorted(HARMLESS):
            client.send(kind)
        assert "error" not in [kind for kind, _ in client.settle()]
    assert contents(bridge) == before


def test_what_is_done_is_kept_under_the_proven_name_and_read_by_admins(bridge: RunningBridge) -> None:
    (alert,) = bridge.decide(a_sighting(a_frame()))
    with bridge.http(**bearer(Role.OPERATOR)) as http:
        path = f"/api/alerts/{alert.alert_id}/acknowledge"
        assert http.post(path, json={"by": "Eve", "note": "seen"}).json()["verdictBy"] == "Ada"
        assert http.post("/api/alerts/unknown/reject", json={}).status_code == 404
        assert http.post("/api/cameras/north/stop", json={}).json()["running"] is False
        assert http.get("/api/audit").status_code == 403
    with bridge.socket(additional_headers=bearer(Role.OPERATOR, "Bo")) as client:
        client.send("start_stream", cameraId="north", by="Eve")
        wait_for(lambda: client.next("camera_status")["running"], "the camera")
        client.send("check_camera", cameraId="south")
        assert client.next("error")["code"] == "unknown_camera"
    with bridge.http(**bearer(Role.ADMIN)) as admin:
        entries = admin.get("/api/audit").json()["items"]
        assert [(e["actor"], e["role"], e["act"], e["target"], e["outcome"]) for e in reversed(entries)] == [
            ("Ada", "operator", "acknowledged", alert.alert_id, "done"),
            ("Ada", "operator", "rejected", "unknown", "unknown_target"),
            ("Ada", "operator", "stop_stream", "north", "done"),
            ("Bo", "operator", "start_stream", "north", "done"),
            ("Bo", "operator", "check_camera", "south", "unknown_target"),
        ]
        assert all(entry["proven"] and entry["address"] == "127.0.0.1" for entry in entries)
        assert entries[-1]["detail"] == {"note": "seen"}
        page = admin.get("/api/audit", params={"limit": 2}).json()
        assert [entry["id"] for entry in page["items"]] == [entry["id"] for entry in entries[:2]]
        rest = admin.get("/api/audit", params={"before": page["nextBefore"], "actor": "Ada"}).json()
        assert [entry["act"] for entry in rest["items"]] == ["stop_stream", "rejected", "acknowledged"]


def test_an_act_that_cannot_be_written_down_is_not_done(bridge: RunningBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    (alert,) = bridge.decide(a_sighting(a_frame()))
    with transaction(bridge.engine) as connection:
        connection.execute(text("ALTER TABLE audit_entry RENAME TO elsewhere"))
    try:
        with bridge.http(**bearer(Role.OPERATOR)) as http:
            assert http.post(f"/api/alerts/{alert.alert_id}/reject", json={}).status_code == 503
            assert http.get(f"/api/alerts/{alert.alert_id}").json()["alert"]["verdict"] is None
    finally:
        with transaction(bridge.engine) as connection:
            connection.execute(text("ALTER TABLE elsewhere RENAME TO audit_entry"))


def test_a_camera_that_is_stopped_says_so_to_everyone(bridge: RunningBridge) -> None:
    with bridge.socket(additional_headers=bearer(Role.VIEWER)) as viewer:
        viewer.next("camera_status")
        with bridge.http(**bearer(Role.OPERATOR)) as http:
            http.post("/api/cameras/north/stop", json={})
        assert viewer.next("camera_status")["running"] is False
        assert viewer.next("stream_stopped")["cameraId"] == "north"


@pytest.mark.parametrize("kind", ["expired", "forged", "none"])
def test_a_token_that_is_not_good_gets_its_own_answer(bridge: RunningBridge, kind: str) -> None:
    token = {
        "expired": issue(
            SECRET, name="A", role=Role.ADMIN, now=datetime.now(UTC) - timedelta(hours=2), lifetime=timedelta(hours=1)
        ),
        "forged": issue(
            "another secret of thirty-two bytes!",
            name="A",
            role=Role.ADMIN,
            now=datetime.now(UTC),
            lifetime=timedelta(1),
        ),
        "none": "",
    }[kind]
    with bridge.http(**{"Authorization": f"Bearer {token}"} if token else {}) as http:
        answer = http.get("/api/alerts")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert {"expired": "expired", "forged": "not accepted", "none": "needed"}[kind] in answer.json()["detail"]
    with bridge.socket(f"?token={token}") as client, pytest.raises(ConnectionClosed) as closed:
        client.receive()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4401


def test_a_connection_ends_with_its_token(bridge: RunningBridge) -> None:
    token = a_token(Role.VIEWER, seconds=1.2)
    with bridge.socket(f"?token={token}") as client:
        assert client.next("connection_ack")["expiresAt"]
        with pytest.raises(ConnectionClosed) as closed:
            client.next("nothing more")
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, "expired" in closed.value.rcvd.reason) == (4401, True)


# floods


def test_who_connects_too_often_waits_and_nobody_else_notices(start_bridge: BridgeFactory) -> None:
    bridge = start_bridge(connect_burst=3, connect_rate=0.5)
    with bridge.socket() as steady, bridge.socket(), bridge.socket():
        with pytest.raises(InvalidStatus) as refused, bridge.socket():
            pass
        assert refused.value.response.status_code == 429
        assert 1 <= int(refused.value.response.headers["Retry-After"]) <= 2
        steady.settle()


def test_a_full_bridge_says_so(start_bridge: BridgeFactory) -> None:
    bridge = start_bridge(max_clients=1)
    with bridge.socket() as client:
        client.settle()
        with pytest.raises(InvalidStatus) as refused, bridge.socket():
            pass
        assert refused.value.response.status_code == 503
        client.settle()


def test_who_sends_too_much_is_told_then_disconnected(start_bridge: BridgeFactory) -> None:
    bridge = start_bridge(message_burst=5, message_rate=1)
    with bridge.socket() as other, bridge.socket() as client:
        for _ in range(60):
            client.send("ping")
        assert client.next("error")["code"] == "rate_limited"
        with pytest.raises(ConnectionClosed) as closed:
            client.next("nothing but errors")
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1008
        other.settle()


def test_who_asks_too_often_waits(start_bridge: BridgeFactory) -> None:
    bridge = start_bridge(request_burst=20, request_rate=1)
    with bridge.http() as http:
        answers = [http.get("/healthz") for _ in range(30)]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert answers[-1].headers["retry-after"]


def test_a_thousand_subscriptions_are_taken_and_no_more(bridge: RunningBridge) -> None:
    with bridge.socket(additional_headers=bearer(Role.VIEWER)) as client:
        client.send("subscribe", cameras=[f"c{number}" for number in range(1000)])
        client.send("subscribe", cameras=["one-more"])
        assert client.next("error")["code"] == "too_many_cameras"
        client.send("subscribe", cameras=[f"c{number}" for number in range(1001)])
        assert client.next("error")["code"] == "bad_message"
        client.settle()
