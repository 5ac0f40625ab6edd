"""Who is told of what."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from dangerous_driving.contracts import Alert, AlertState, RiskLevel, Verdict
from dangerous_driving.notifications.plan import planned
from dangerous_driving.settings.notifications import (
    EmailReceiver,
    MqttReceiver,
    NotificationsSettings,
    Told,
    WebhookReceiver,
)
from tests.alerts.conftest import NOON
from tests.notifications.conftest import SECRET, alert

LOW, MEDIUM, HIGH = RiskLevel.LOW, RiskLevel.MEDIUM, RiskLevel.HIGH
ALL: tuple[Told, ...] = ("ring", "raised", "escalation", "withdrawn", "closed", "judged")


def receiver(**values: Any) -> WebhookReceiver:
    return WebhookReceiver(
        **{"name": "desk", "kind": "webhook", "url": "https://desk/hook", "secret": SECRET, "tells": ALL} | values
    )


def kind(told: RiskLevel | None, shown: Alert, **values: Any) -> str | None:
    found = planned(receiver(**values), shown, told, now=NOON)
    return found.kind if found else None


@pytest.mark.parametrize(
    ("minimum", "reached", "heard"),
    [(HIGH, HIGH, True), (HIGH, MEDIUM, False), (MEDIUM, MEDIUM, True), (MEDIUM, HIGH, True), (HIGH, None, False)],
)
def test_a_receiver_hears_of_alerts_that_reach_its_level(
    minimum: RiskLevel, reached: RiskLevel | None, heard: bool
) -> None:
    assert (kind(None, alert(reached_level=reached), min_level=minimum) == "ring") is heard


@pytest.mark.parametrize(
    ("values", "heard"),
    [
        ({"cameras": ("crossing", "gate")}, True),
        ({"cameras": ("gate",)}, False),
        ({"risk_types": ("pedestrian_conflict",)}, True),
        ({"risk_types": ("tailgating",)}, False),
        ({"tells": ("closed",)}, False),
    ],
)
def test_a_receiver_hears_of_its_cameras_types_and_occasions(values: dict[str, Any], heard: bool) -> None:
    assert (kind(None, alert(), **values) == "ring") is heard


def test_an_alert_of_no_type_yet_concerns_everybody() -> None:
    assert kind(None, alert(risk_types=()), risk_types=("tailgating",)) == "ring"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"reached_level": HIGH}, "raised"),
        ({"reached_level": MEDIUM}, None),
        ({"escalation": 1, "notify": True}, "escalation"),
        ({"state": AlertState.WITHDRAWN}, "withdrawn"),
        ({"state": AlertState.CLOSED}, "closed"),
        ({"verdict": Verdict.REJECTED, "verdict_at": NOON}, "judged"),
        ({"verdict": Verdict.REJECTED, "verdict_at": NOON - timedelta(seconds=9)}, None),
    ],
)
def test_what_follows_is_told_to_those_who_heard_of_it(changes: dict[str, Any], expected: str | None) -> None:
    shown = alert(**{"reached_level": None, "notify": False} | changes)
    assert kind(MEDIUM, shown, min_level=MEDIUM) == expected
    if "reached_level" not in changes:
        assert kind(None, shown, min_level=MEDIUM) is None


def test_in_a_quiet_time_a_message_waits_for_its_end_unless_the_receiver_is_never_quiet() -> None:
    end = NOON + timedelta(hours=8)
    shown = alert(notify=False, held_reason="quiet_hours", held_until=end)
    held = planned(receiver(), shown, None, now=NOON)
    assert held is not None
    assert (held.due_at, held.held_reason) == (end, "quiet_hours")
    wall = planned(receiver(quiet=False), shown, None, now=NOON)
    assert wall is not None
    assert (wall.due_at, wall.held_reason) == (NOON, None)
    late = planned(receiver(), shown, None, now=end)  # planned only after the quiet time
    assert late is not None
    assert (late.due_at, late.held_reason) == (end, None)


@given(st.sampled_from(list(RiskLevel)), st.sampled_from([None, *RiskLevel]), st.booleans())
def test_planning_again_gives_the_same_ids(minimum: RiskLevel, reached: RiskLevel | None, told: bool) -> None:
    shown = alert(reached_level=reached)
    before = LOW if told else None
    first, second = (planned(receiver(min_level=minimum), shown, before, now=NOON) for _ in range(2))
    assert first == second


# settings


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"secret": "short"}, "whsec_"),
        ({"secret": "whsec_c2hvcnQ="}, "whsec_"),
        ({"url": "ftp://desk"}, "http"),
        ({"url": "https://"}, "http"),
        ({"headers": {"X": "a\r\nEvil: 1"}}, "header"),
        ({"name": "two words"}, "name"),
        ({"tells": ()}, "told nothing"),
        ({"rate_limit": 0}, "rate_limit"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_wrong_webhook_is_refused_by_name_without_its_secret(values: dict[str, Any], names: str) -> None:
    with pytest.raises(ValidationError, match=names) as error:
        receiver(**values)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("address", ["nobody", "a@b\r\nBcc: c@d", "a b@c", "Ada <ada@city>", "a@b,c@d"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="name@host"):
        EmailReceiver(name="mail", kind="email", host="mx", sender="dd@city", recipients=(address,))


@pytest.mark.parametrize("topic", ["", "alerts/#", "a/+/b", "a/{alert_id}"])
def test_what_is_no_topic_is_refused(topic: str) -> None:
    with pytest.raises(ValidationError, match="topic"):
        MqttReceiver(name="wall", kind="mqtt", host="broker", topic=topic)


def test_receivers_are_told_apart_by_their_kind_and_name() -> None:
    both = {"name": "desk", "kind": "webhook", "url": "https://desk/hook", "secret": SECRET}
    with pytest.raises(ValidationError, match="receiver used twice: desk"):
        NotificationsSettings.model_validate({"receivers": [both, both]})
    with pytest.raises(ValidationError, match="claim_timeout"):
        NotificationsSettings(receivers=(receiver(timeout=40),))
    with pytest.raises(ValidationError, match="kind"):
        NotificationsSettings.model_validate({"receivers": [both | {"kind": "pigeon"}]})
    shown = str(NotificationsSettings.model_validate({"receivers": [both]}).model_dump(mode="json"))
    assert SECRET not in shown
    assert SecretStr("x") != SecretStr(SECRET)
