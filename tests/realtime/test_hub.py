"""Queues of clients: what is dropped, what never is, and who gets what."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from dangerous_driving.contracts import (
    Alert,
    AlertBasis,
    AlertState,
    AssessmentMetadata,
    DetectionResult,
    RiskAssessment,
    RiskAssessmentResult,
    RiskLevel,
    TrafficGroup,
)
from dangerous_driving.realtime.envelopes import CameraStatus, ServerType, SubscriptionData
from dangerous_driving.realtime.hub import Client, Hub, Subscription
from tests.alerts.conftest import NOON

LOW, MEDIUM, HIGH = RiskLevel.LOW, RiskLevel.MEDIUM, RiskLevel.HIGH


def alert(number: int = 1, version: int = 1, camera: str = "north", level: RiskLevel = HIGH, **changes: Any) -> Alert:
    return Alert(
        alert_id=f"alert{number}",
        version=version,
        camera_id=camera,
        state=AlertState.OPEN,
        basis=AlertBasis.FINAL,
        risk_level=level,
        peak_level=level,
        group_bbox=(0, 0, 10, 10),
        opened_at=NOON,
        last_seen_at=NOON,
        updated_at=NOON,
        first_task_id="t",
        last_task_id="t",
        last_request_id="r",
    ).model_copy(update=changes)


def frame(number: int = 0, camera: str = "north") -> DetectionResult:
    group = TrafficGroup(
        group_index=1, object_count=2, bbox=(0, 0, 1, 1), classes=("car",), group_image_base64="QUJD" * 1000
    )
    return DetectionResult(
        message_id=f"frame{number}",
        camera_id=camera,
        timestamp=NOON + timedelta(seconds=number),
        image_width=10,
        image_height=10,
        raw_frame_url=f"folder://traffic/frames/{camera}/{number}.jpg",
        detected_objects=(),
        traffic_groups=(group,),
    )


def assessment(level: RiskLevel = HIGH, camera: str = "north", run: str = "live") -> RiskAssessmentResult:
    return RiskAssessmentResult(
        message_id="m",
        request_id="r",
        camera_id=camera,
        timestamp=NOON,
        results=(RiskAssessment(group_index=1, risk_level=level),),
        has_dangerous_driving=True,
        max_risk_level=level,
        metadata=AssessmentMetadata(run=run),
    )


async def waiting(client: Client) -> list[tuple[str, dict[str, Any]]]:
    found = []
    while len(client):
        message = json.loads(await client.next())
        found.append((message["type"], message["data"]))
    return found


def hub(queue: int = 100) -> Hub:
    return Hub(client_queue=queue, clock=lambda: NOON + timedelta(seconds=1.5))


# who gets what


async def test_everyone_gets_everything_unless_they_say_otherwise() -> None:
    bridge = hub()
    client, _ = bridge.connect()
    bridge.receive([frame(), assessment(), alert()])
    assert [kind for kind, _ in await waiting(client)] == ["detection_result", "risk_assessment", "alert"]


async def test_pictures_in_base64_do_not_reach_the_page() -> None:
    bridge = hub()
    client, _ = bridge.connect()
    bridge.receive([frame()])
    ((_, data),) = await waiting(client)
    assert "groupImageBase64" not in data["trafficGroups"][0]
    assert data["trafficGroups"][0]["objectCount"] == 2


async def test_a_subscription_to_cameras_hides_the_others() -> None:
    bridge = hub()
    client, _ = bridge.connect()
    client.subscription.add(SubscriptionData(cameras=("south",)))
    for camera in ("north", "south"):
        bridge.receive([frame(camera=camera), assessment(camera=camera), alert(camera=camera, alert_id=camera)])
        bridge.statuses([status(camera)])
    assert {data["cameraId"] for _, data in await waiting(client)} == {"south"}


async def test_a_minimum_level_hides_lower_assessments_and_alerts_but_no_frames() -> None:
    bridge = hub()
    client, _ = bridge.connect()
    client.subscription.add(SubscriptionData(minimum_level=HIGH))
    bridge.receive([frame(), assessment(MEDIUM), assessment(HIGH), alert(1, level=MEDIUM), alert(2, level=HIGH)])
    assert [kind for kind, _ in await waiting(client)] == ["detection_result", "risk_assessment", "alert"]


async def test_an_alert_that_was_shown_is_shown_to_its_end_when_its_level_falls() -> None:
    bridge = hub()
    client, _ = bridge.connect()
    client.subscription.add(SubscriptionData(minimum_level=HIGH))
    bridge.receive([alert(version=1, level=HIGH), alert(version=2, level=MEDIUM)])
    assert [data["version"] for _, data in await waiting(client)] == [1, 2]


async def test_a_version_is_handed_on_once_and_never_after_a_newer_one() -> None:
    bridge = hub()
    client, _ = bridge.connect()
    bridge.receive([alert(version=2), alert(version=2), alert(version=1), alert(version=3)])
    assert [data["version"] for _, data in await waiting(client)] == [2, 3]


async def test_results_of_backfills_are_not_news() -> None:
    bridge = hub()
    client, _ = bridge.connect()
    bridge.receive([assessment(run="backfill")])
    assert await waiting(client) == []


async def test_a_new_client_is_told_how_the_cameras_are_and_what_they_saw_last() -> None:
    bridge = hub()
    bridge.statuses([status("north")])
    bridge.receive([frame(1), frame(2), frame(1), alert()])
    _, first = bridge.connect()
    messages = [json.loads(text) for text in first]
    assert [message["type"] for message in messages] == ["camera_status", "detection_result"]
    assert messages[1]["data"]["messageId"] == "frame2"


async def test_a_frame_that_comes_late_does_not_replace_a_newer_one() -> None:
    bridge = hub()
    client, _ = bridge.connect()
    bridge.receive([frame(2), frame(1)])
    assert [data["messageId"] for _, data in await waiting(client)] == ["frame2"]


async def test_a_status_is_handed_on_when_it_changes() -> None:
    bridge = hub()
    client, _ = bridge.connect()
    for reason in ("", "", "no frame for 10 s", "no frame for 10 s"):
        bridge.statuses([status("north", reason)])
    assert [data["reason"] for _, data in await waiting(client)] == ["", "no frame for 10 s"]


def status(camera: str, reason: str = "") -> CameraStatus:
    return CameraStatus(
        camera_id=camera, name=camera, kind="live", frame_interval=1.8, status="online", reason=reason, at=NOON
    )


async def test_recent_pictures_are_known_by_camera_and_frame() -> None:
    bridge = hub()
    bridge.receive([frame(7)])
    assert bridge.picture("north", "frame7") == "folder://traffic/frames/north/7.jpg"
    assert bridge.picture("south", "frame7") is None


# slow clients


async def test_a_slow_client_loses_its_oldest_frames_and_no_alert() -> None:
    bridge = hub(queue=4)
    client, _ = bridge.connect()
    bridge.receive([alert(1), *(frame(number) for number in range(10)), alert(2)])
    assert [data.get("messageId") or data["alertId"] for _, data in await waiting(client)] == [
        "alert1",
        "frame8",
        "frame9",
        "alert2",
    ]
    assert not client.too_slow.is_set()


async def test_a_client_for_whom_only_alerts_wait_is_too_slow() -> None:
    before = REGISTRY.get_sample_value("websocket_too_slow_total") or 0
    bridge = hub(queue=3)
    slow, _ = bridge.connect()
    quick, _ = bridge.connect()
    bridge.receive(alert(number) for number in range(3))
    assert len(await waiting(quick)) == 3
    assert not slow.too_slow.is_set()
    bridge.receive([alert(3), alert(4)])
    assert slow.too_slow.is_set()
    assert not quick.too_slow.is_set()
    assert REGISTRY.get_sample_value("websocket_too_slow_total") == before + 1


async def test_a_frame_finds_no_room_where_only_alerts_wait() -> None:
    def dropped() -> float:
        return REGISTRY.get_sample_value("websocket_dropped_total", {"type": "detection_result"}) or 0

    before = dropped()
    bridge = hub(queue=2)
    client, _ = bridge.connect()
    bridge.receive([alert(1), alert(2), frame()])
    assert not client.too_slow.is_set()
    assert dropped() == before + 1
    assert [kind for kind, _ in await waiting(client)] == ["alert", "alert"]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["alert", "detection_result", "risk_assessment", "take"]), max_size=60),
    st.integers(1, 6),
)
def test_no_sequence_grows_a_queue_loses_an_alert_or_turns_the_order(events: list[str], most: int) -> None:
    async def play() -> None:
        client = Client(most)
        sent: list[tuple[str, int]] = []
        taken: list[tuple[str, int]] = []
        for number, event in enumerate(events):
            if event != "take":
                client.put(ServerType(event), json.dumps([event, number]))
                sent.append((event, number))
            elif len(client):
                taken.append(tuple(json.loads(await client.next())))
            assert len(client) <= most
            if client.too_slow.is_set():
                return
        while len(client):
            taken.append(tuple(json.loads(await client.next())))
        assert taken == sorted(taken, key=lambda item: item[1])
        assert [item for item in taken if item[0] == "alert"] == [item for item in sent if item[0] == "alert"]

    asyncio.run(play())


async def test_a_disconnected_client_gets_nothing_more() -> None:
    bridge = hub()
    client, _ = bridge.connect()
    assert bridge.clients == REGISTRY.get_sample_value("websocket_clients") == 1
    bridge.disconnect(client)
    bridge.receive([alert()])
    assert len(client) == 0
    assert bridge.clients == REGISTRY.get_sample_value("websocket_clients") == 0


async def test_the_way_from_capture_to_push_is_measured_at_each_stage() -> None:
    def observed(stage: str) -> tuple[float, float]:
        names = ("capture_to_stage_seconds_count", "capture_to_stage_seconds_sum")
        count, total = (REGISTRY.get_sample_value(name, {"stage": stage}) or 0 for name in names)
        return count, total

    before = {basis: observed(f"push_{basis}") for basis in AlertBasis}
    bridge = hub()
    for version, basis in enumerate((*AlertBasis, AlertBasis.FINAL), start=1):
        bridge.receive([alert(version=version, basis=basis)])
    bridge.fill([alert(9)])  # long after: says nothing of the way
    for basis in AlertBasis:
        count, total = observed(f"push_{basis}")
        assert count - before[basis][0] == 1
        assert total - before[basis][1] == pytest.approx(1.5)


# subscriptions


@pytest.mark.parametrize(
    ("acts", "wanted"),
    [
        ([], {"a", "b", "c"}),
        ([("add", ("a",))], {"a"}),
        ([("add", ("a",)), ("add", ("b",))], {"a", "b"}),
        ([("add", ("a", "b")), ("remove", ("b",))], {"a"}),
        ([("remove", ("a",))], {"b", "c"}),
        ([("remove", ("a",)), ("add", None)], {"a", "b", "c"}),
        ([("remove", None)], set()),
        ([("remove", None), ("add", ("c",))], {"c"}),
    ],
)
def test_subscriptions_add_up(acts: list[tuple[str, tuple[str, ...] | None]], wanted: set[str]) -> None:
    subscription = Subscription()
    for act, cameras in acts:
        getattr(subscription, act)(SubscriptionData(cameras=cameras))
    assert {camera for camera in "abc" if subscription.wants_camera(camera)} == wanted


def test_a_new_level_leaves_the_cameras_as_they_are() -> None:
    subscription = Subscription()
    subscription.add(SubscriptionData(cameras=("a",)))
    subscription.add(SubscriptionData(minimum_level=MEDIUM))
    assert subscription.wants_camera("a")
    assert not subscription.wants_camera("b")
    assert not subscription.wants_level(LOW)
