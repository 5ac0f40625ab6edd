"""What clients may say, and what they are told when it cannot be understood."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dangerous_driving.contracts import RiskLevel
from dangerous_driving.realtime.envelopes import Feedback, Ping, Subscribe, UnreadableError, Unsubscribe, read


def test_each_type_is_read() -> None:
    assert isinstance(read('{"type": "ping"}'), Ping)
    subscribed = read('{"type": "subscribe", "data": {"cameras": [7, "north"], "minimumLevel": "medium"}}')
    assert isinstance(subscribed, Subscribe)
    assert subscribed.data.cameras == ("7", "north")
    assert subscribed.data.minimum_level is RiskLevel.MEDIUM
    assert isinstance(read('{"type": "unsubscribe", "data": {}}'), Unsubscribe)
    feedback = read('{"type": "reject", "data": {"alertId": "a", "note": "a shadow", "by": "Ada"}}')
    assert isinstance(feedback, Feedback)
    assert (feedback.type, feedback.data.note, feedback.data.by) == ("reject", "a shadow", "Ada")


@pytest.mark.parametrize(
    ("text", "code", "names"),
    [
        (None, "bad_json", "text"),
        ("", "bad_json", "JSON"),
        ("{", "bad_json", "JSON"),
        ("[" * 100_000, "bad_json", "JSON"),
        ("7", "bad_message", "dictionary"),
        ("{}", "unknown_type", "subscribe"),
        ('{"type": "reboot"}', "unknown_type", "acknowledge"),
        ('{"type": "acknowledge"}', "bad_message", "data"),
        ('{"type": "acknowledge", "data": {"note": "x"}}', "bad_message", "alertId"),
        ('{"type": "reject", "data": {"alertId": "a", "by": ""}}', "bad_message", "by"),
        ('{"type": "subscribe", "data": {"cameras": ["../etc"]}}', "bad_message", "camera"),
        ('{"type": "subscribe", "data": {"minimumLevel": "extreme"}}', "bad_message", "minimumLevel"),
        (json.dumps({"type": "reject", "data": {"alertId": "a", "note": "x" * 2001}}), "bad_message", "note"),
        (
            json.dumps({"type": "subscribe", "data": {"cameras": [f"c{n}" for n in range(1001)]}}),
            "bad_message",
            "cameras",
        ),
    ],
)
def test_what_cannot_be_understood_is_answered_with_the_reason(text: str | None, code: str, names: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        read(text)
    assert caught.value.problem.code == code
    assert names in caught.value.problem.message


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
kinds = st.sampled_from(["ping", "subscribe", "unsubscribe", "acknowledge", "reject"]) | values


@settings(deadline=None)
@given(st.text() | st.fixed_dictionaries({"type": kinds, "data": values}).map(json.dumps) | values.map(json.dumps))
def test_no_message_ends_in_another_error(text: str) -> None:
    with suppress(UnreadableError):
        read(text)
