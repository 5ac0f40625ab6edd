"""Snoozes and quiet hours over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine

from dangerous_driving.contracts import RiskLevel
from dangerous_driving.ledger.quiet import read_quiet
from tests.realtime.conftest import BridgeFactory, RunningBridge, a_frame, a_sighting

pytestmark = pytest.mark.integration


def test_a_snoozed_camera_s_alerts_open_without_ringing(bridge: RunningBridge) -> None:
    with bridge.http() as http:
        body = {"seconds": 600, "note": "road works", "by": "Ada"}
        answer = http.put("/api/quiet/north/snooze", json=body).json()
        assert answer["quietUntil"] == answer["snoozedUntil"] is not None
        assert (answer["snoozedBy"], answer["note"]) == ("Ada", "road works")
        (held,) = bridge.decide(a_sighting(a_frame("north"), RiskLevel.HIGH))
        (rung,) = bridge.decide(a_sighting(a_frame("south"), RiskLevel.HIGH))
        assert (held.notify, held.held_reason, rung.notify) == (False, "snooze", True)
        assert http.post("/api/quiet/north/snooze/end").json()["quietUntil"] is None
        assert [item["cameraId"] for item in http.get("/api/quiet").json()] == ["north"]
        assert http.get("/api/quiet/other").json()["snoozedUntil"] is None


def test_quiet_hours_are_set_replaced_and_taken_away(bridge: RunningBridge, ledger: Engine) -> None:
    with bridge.http() as http:
        night = {"begin": "22:00", "end": "06:00", "days": ["fri", "sat"]}
        answer = http.put("/api/quiet/*/hours", json={"quietHours": [night]}).json()
        assert answer["quietHours"] == [night]
        assert answer["timeZone"] == "UTC"
        assert len(read_quiet(ledger)["*"].hours) == 1
        assert http.put("/api/quiet/*/hours", json={"quietHours": []}).json()["quietHours"] == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("north/snooze", {"seconds": 0}),
        ("north/snooze", {"seconds": 10**9}),
        ("north/snooze", {"seconds": 60, "note": "x" * 2001}),
        ("north/snooze", {"seconds": 60, "note": "a\x00b"}),
        ("north/snooze", {"seconds": 60, "by": ""}),
        ("no%20camera/snooze", {"seconds": 60}),
        ("north/hours", {"quietHours": [{"begin": "25:00", "end": "06:00"}]}),
        ("north/hours", {"quietHours": [{"begin": "22:00", "end": "06:00", "days": ["someday"]}]}),
        ("north/hours", {"quietHours": [{"begin": "22:00", "end": "06:00"}] * 2}),
        ("north/hours", {"quietHours": [{"begin": "22:00", "end": f"06:{minute:02}"} for minute in range(21)]}),
        ("north/hours", {}),
    ],
)
def test_what_is_out_of_range_is_refused(bridge: RunningBridge, path: str, body: dict[str, Any]) -> None:
    with bridge.http() as http:
        assert http.put(f"/api/quiet/{path}", json=body).status_code == 422


def test_nobody_snoozes_without_a_token(start_bridge: BridgeFactory, ledger: Engine) -> None:
    bridge = start_bridge(token="correct horse battery staple", open_access=False)
    with bridge.http() as http:
        assert http.put("/api/quiet/north/snooze", json={"seconds": 60}).status_code == 401
        assert http.get("/api/quiet").status_code == 401
    assert read_quiet(ledger) == {}
