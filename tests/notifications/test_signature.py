"""Signatures as Standard Webhooks describes them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.notifications.signature import signed_headers, verified
from tests.alerts.conftest import NOON
from tests.notifications.conftest import SECRET


def test_the_signature_is_that_of_the_specification_s_example() -> None:
    """The example of the Standard Webhooks specification, version 1."""
    headers = signed_headers(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}',
        at=datetime.fromtimestamp(1614265330, UTC),
    )  # fmt: skip
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1), st.binary())
def test_what_was_signed_is_genuine_and_nothing_else_is(message_id: str, body: bytes) -> None:
    headers = signed_headers(SECRET, message_id, body, at=NOON)
    assert verified(SECRET, headers, body, now=NOON)
    assert not verified(SECRET, headers, body + b" ", now=NOON)
    assert not verified(SECRET, headers | {"webhook-id": message_id + "x"}, body, now=NOON)
    assert not verified("whsec_" + "A" * 32, headers, body, now=NOON)


@pytest.mark.parametrize(("seconds", "genuine"), [(299, True), (-299, True), (301, False), (-301, False)])
def test_an_old_message_is_refused(seconds: int, genuine: bool) -> None:
    headers = signed_headers(SECRET, "id", b"{}", at=NOON)
    assert verified(SECRET, headers, b"{}", now=NOON + timedelta(seconds=seconds)) is genuine


@pytest.mark.parametrize(
    "change",
    [{"webhook-timestamp": "now"}, {"webhook-timestamp": "9" * 30}, {"webhook-signature": "v2,abc"},
     {"webhook-signature": ""}, {"webhook-id": ""}],
)  # fmt: skip
def test_broken_headers_are_not_genuine(change: dict[str, str]) -> None:
    assert not verified(SECRET, signed_headers(SECRET, "id", b"{}", at=NOON) | change, b"{}", now=NOON)
