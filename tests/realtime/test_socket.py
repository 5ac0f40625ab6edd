"""The WebSocket over a real connection."""

from __future__ import annotations

import base64
import time
from contextlib import suppress
from datetime import timedelta

import pytest
from sqlalchemy import Engine, text
from websockets.exceptions import ConnectionClosed, InvalidStatus

from dangerous_driving.contracts import AlertBasis, RiskLevel, Stage, iso_milliseconds
from dangerous_driving.errors import BrokerError
from dangerous_driving.ledger import alerts as ledger_alerts
from dangerous_driving.ledger.database import transaction
from tests.realtime.conftest import (
    BridgeFactory,
    RunningBridge,
    a_frame,
    a_sighting,
    an_answer,
    moment,
    wait_for,
)

pytestmark = pytest.mark.integration

TOKEN = "correct horse battery staple"


def test_everything_reaches_a_client_in_envelopes(bridge: RunningBridge) -> None:
    with bridge.socket() as client:
        kind, ack = client.receive()
        assert kind == "connection_ack"
        assert (ack["resumed"], ack["simulatedLlm"]) == (0, True)
        frame = a_frame("7")
        bridge.feed(frame)
        assert client.next("detection_result")["cameraId"] == 7
        bridge.feed(an_answer(frame, stage=Stage.PROVISIONAL))
        assert client.next("risk_assessment")["stage"] == "provisional"
        (alert,) = bridge.decide(a_sighting(frame))
        shown = client.next("alert")
        assert (shown["alertId"], shown["state"], shown["notify"]) == (alert.alert_id, "open", True)


def test_a_ping_is_answered(bridge: RunningBridge) -> None:
    with bridge.socket() as client:
        client.send("ping", nonce="7")
        assert client.next("pong")["nonce"] == "7"


def test_a_subscription_is_obeyed_from_its_confirmation_on(bridge: RunningBridge) -> None:
    with bridge.socket() as client:
        client.send("subscribe", cameras=["south"], minimumLevel="high")
        client.settle()
        for camera in ("north", "south"):
            frame = a_frame(camera)
            bridge.feed(frame)
            bridge.feed(an_answer(frame, RiskLevel.MEDIUM))
            bridge.decide(a_sighting(frame, RiskLevel.HIGH))
        assert client.next("detection_result")["cameraId"] == "south"
        assert client.receive()[0] == "alert"


def test_camera_statuses_come_from_the_ledger_and_go_on_when_they_change(
    start_bridge: BridgeFactory, ledger: Engine
) -> None:
    def set_status(status: str, reason: str) -> None:
        with transaction(ledger) as connection:
            connection.execute(
                text(
                    "INSERT INTO camera (id, name, kind, status, status_reason) VALUES ('n', 'North gate', 'replay', :s, :r)"
                    " ON CONFLICT (id) DO UPDATE SET status = :s, status_reason = :r, status_at = now()"
                ),
                {"s": status, "r": reason},
            )

    set_status("online", "")
    with start_bridge().socket() as client:
        status = client.next("camera_status")
        assert (status["name"], status["kind"], status["status"]) == ("North gate", "replay", "online")
        set_status("offline", "no frame for 10 s")
        status = client.next("camera_status")
        assert (status["status"], status["reason"]) == ("offline", "no frame for 10 s")


# verdicts


@pytest.mark.parametrize(("act", "verdict"), [("acknowledge", "acknowledged"), ("reject", "rejected")])
def test_a_verdict_is_kept_published_and_shown_to_everyone(bridge: RunningBridge, act: str, verdict: str) -> None:
    (alert,) = bridge.decide(a_sighting(a_frame()))
    with bridge.socket() as giver, bridge.socket() as other:
        for client in (giver, other):
            client.next("connection_ack")
        giver.send(act, alertId=alert.alert_id, note="<b>x</b>", by="Ada")
        for client in (giver, other):
            shown = client.next("alert")
            while shown["version"] < 2:
                shown = client.next("alert")
            assert (shown["verdict"], shown["verdictBy"], shown["verdictNote"]) == (verdict, "Ada", "<b>x</b>")
    kept = ledger_alerts.get_alert(bridge.engine, alert.alert_id)
    assert kept is not None
    assert kept.verdict == verdict
    wait_for(lambda: [sent.version for sent in bridge.producer.sent] == [1, 2], "the verdict on the topic")


def test_a_verdict_on_an_unknown_alert_is_an_error(bridge: RunningBridge) -> None:
    with bridge.socket() as client:
        client.send("acknowledge", alertId="'; DROP TABLE alert; --")
        assert client.next("error")["code"] == "unknown_alert"


# bad input


@pytest.mark.parametrize(
    "message",
    [
        '{"type": "reject", "data": {"alertId": "a", "by": "\\u0000"}}',
        "{",
        '{"type": "reboot"}',
        '{"type": "subscribe", "data": 7}',
        b"\x00\xff",
    ],
)
def test_an_unreadable_message_is_answered_and_the_client_stays(bridge: RunningBridge, message: str | bytes) -> None:
    with bridge.socket() as client:
        client.connection.send(message)
        assert client.next("error")["message"]
        client.settle()


def test_who_sends_only_rubbish_is_disconnected(bridge: RunningBridge) -> None:
    with bridge.socket() as client:
        for _ in range(21):
            client.connection.send("rubbish")
        with pytest.raises(ConnectionClosed) as closed:
            client.next("nothing but errors")
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


def test_a_message_beyond_the_limit_ends_the_connection_and_no_other(bridge: RunningBridge) -> None:
    with bridge.socket() as other, bridge.socket() as client:
        with suppress(ConnectionClosed):
            client.connection.send("x" * 10_000_000)
        with pytest.raises(ConnectionClosed) as closed:
            client.next("nothing more")
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
        other.settle()


def test_a_client_that_never_reads_is_disconnected_and_no_other_notices(start_bridge: BridgeFactory) -> None:
    bridge = start_bridge(client_queue=20)
    with bridge.socket() as quick, bridge.socket(max_queue=1, compression=None) as stuck:
        wait_for(lambda: _clients(bridge) == 2, "two clients")
        frame = a_frame()
        (alert,) = bridge.decide(a_sighting(frame, description="x" * 20_000), publish=False)
        version = 0
        deadline = time.monotonic() + 20
        while _clients(bridge) == 2 and time.monotonic() < deadline:
            for _ in range(10):
                version += 1
                bridge.feed(alert.model_copy(update={"version": version}))
            while quick.next("alert")["version"] < version:
                pass
        assert _clients(bridge) == 1
        quick.settle()
        del stuck


def _clients(bridge: RunningBridge) -> int:
    with bridge.http() as http:
        return int(http.get("/api/status").json()["clients"])


# resume


def test_a_client_that_comes_back_gets_what_it_missed(bridge: RunningBridge) -> None:
    bridge.decide(a_sighting(a_frame("early", moment(50))).model_copy(update={"at": moment(40)}))
    with bridge.socket() as client:
        client.next("connection_ack")
    last_seen = moment()
    missed = [alert for camera in ("a", "b") for alert in bridge.decide(a_sighting(a_frame(camera)))]
    with bridge.socket(f"?after={iso_milliseconds(last_seen)}") as client:
        assert client.next("connection_ack")["resumed"] == 2
        assert [client.next("alert")["alertId"] for _ in missed] == [alert.alert_id for alert in missed]


def test_a_resume_that_would_be_too_long_says_so(bridge: RunningBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dangerous_driving.realtime.socket.RESUME_LIMIT", 1)
    for camera in ("a", "b"):
        bridge.decide(a_sighting(a_frame(camera)))
    with bridge.socket(f"?after={iso_milliseconds(moment(5))}") as client:
        ack = client.next("connection_ack")
        assert (ack["resumed"], ack["truncated"]) == (1, True)


@pytest.mark.parametrize("after", ["yesterday", "2026-01-01T00:00:00", ""])
def test_a_time_that_is_none_is_an_error_but_no_end(bridge: RunningBridge, after: str) -> None:
    with bridge.socket(f"?after={after}") as client:
        assert client.next("connection_ack")["truncated"]
        assert "after" in client.next("error")["message"]
        client.settle()


def test_alerts_of_the_time_without_a_broker_are_filled_in(bridge: RunningBridge) -> None:
    with bridge.socket() as client:
        client.settle()
        opened = bridge.opened
        bridge.decide(a_sighting(a_frame()), publish=False)  # its message went by while nobody read
        bridge.feed(BrokerError("away"))
        assert client.next("alert")["version"] == 1
        assert bridge.opened > opened


def test_after_a_restart_a_client_has_every_alert_exactly_once_by_id_and_version(bridge: RunningBridge) -> None:
    seen: list[tuple[str, int]] = []
    with bridge.socket() as client:
        bridge.decide(a_sighting(a_frame("a"), kind=AlertBasis.PROVISIONAL))
        shown = client.next("alert")
        seen.append((shown["alertId"], shown["version"]))
        last_seen = shown["updatedAt"]
    made = [bridge.decide(a_sighting(a_frame("b"))), bridge.decide(a_sighting(a_frame("c")))]
    bridge.restart()
    with bridge.socket(f"?after={last_seen}") as client:
        expected = {alert.alert_id for (alert,) in made} | {seen[0][0]}
        found: set[str] = set()
        while found != expected:
            found.add(client.next("alert")["alertId"])


# access


def test_without_the_token_the_connection_is_closed_with_its_own_code(start_bridge: BridgeFactory) -> None:
    bridge = start_bridge(token=TOKEN)
    for query in ("", "?token=wrong"):
        with bridge.socket(query) as client, pytest.raises(ConnectionClosed) as closed:
            client.receive()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4401


def test_the_token_opens_as_query_header_or_subprotocol(start_bridge: BridgeFactory) -> None:
    bridge = start_bridge(token=TOKEN)
    encoded = base64.urlsafe_b64encode(TOKEN.encode()).decode().rstrip("=")
    for query, options in (
        ("?token=" + TOKEN.replace(" ", "%20"), {}),
        ("", {"additional_headers": {"Authorization": f"Bearer {TOKEN}"}}),
        ("", {"subprotocols": ["dangerous-driving.v1", f"bearer.{encoded}"]}),
    ):
        with bridge.socket(query, **options) as client:
            assert client.receive()[0] == "connection_ack"


def test_pages_of_other_origins_are_refused_at_the_handshake(start_bridge: BridgeFactory) -> None:
    bridge = start_bridge(allowed_origins=("https://city.example",))
    for origin in ("https://evil.example", "null"):
        with pytest.raises(InvalidStatus) as refused, bridge.socket(origin=origin):
            pass
        assert refused.value.response.status_code == 403
    for origin in (bridge.url, "https://city.example"):
        with bridge.socket(origin=origin) as client:
            assert client.receive()[0] == "connection_ack"


def test_frames_of_long_ago_do_not_reach_the_page_again(bridge: RunningBridge) -> None:
    new = a_frame(at=moment())
    old = a_frame(at=new.timestamp - timedelta(seconds=60))
    with bridge.socket() as client:
        bridge.feed(new)
        bridge.feed(old)
        assert client.next("detection_result")["messageId"] == new.message_id
        assert [kind for kind, _ in client.settle()] == []
