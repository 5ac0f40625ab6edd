"""Who may talk to the bridge."""

from __future__ import annotations

import base64

import pytest
from pydantic import SecretStr

from dangerous_driving.errors import ConfigError
from dangerous_driving.realtime.access import Access
from dangerous_driving.settings import RealtimeSettings

TOKEN = "a long, random text / with ünusual characters"


@pytest.fixture
def guarded() -> Access:
    return Access.of(RealtimeSettings(token=SecretStr(TOKEN), allowed_origins=("https://city.example",)))


@pytest.fixture
def open_to_all() -> Access:
    return Access.of(RealtimeSettings(open_access=True, allowed_origins=("https://city.example",)))


def as_protocol(token: str) -> str:
    return "bearer." + base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")


def test_neither_token_nor_open_access_is_an_error_that_names_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"realtime\.token.*open_access"):
        Access.of(RealtimeSettings())
    with pytest.raises(ConfigError, match=r"realtime\.token"):
        Access.of(RealtimeSettings(token=SecretStr("")))


def test_the_token_opens_in_each_of_its_three_places(guarded: Access) -> None:
    assert guarded.knows(authorization=f"Bearer {TOKEN}")
    assert guarded.knows(authorization=f"bearer  {TOKEN}")
    assert guarded.knows(authorization=None, query=TOKEN)
    assert guarded.knows(authorization=None, protocols=["dangerous-driving.v1", as_protocol(TOKEN)])


@pytest.mark.parametrize("wrong", ["", "wrong", TOKEN + "x", TOKEN[:-1], "Ω" * 50])
def test_nothing_else_does(guarded: Access, wrong: str) -> None:
    assert not guarded.knows(authorization=f"Bearer {wrong}")
    assert not guarded.knows(authorization=f"Basic {TOKEN}")
    assert not guarded.knows(authorization=None, query=wrong)
    assert not guarded.knows(authorization=None, protocols=[as_protocol(wrong), "bearer.%%%", "bearer.=", TOKEN])
    assert not guarded.knows(authorization=None)


def test_open_access_asks_for_nothing(open_to_all: Access) -> None:
    assert open_to_all.knows(authorization=None)


def test_the_token_is_not_shown(guarded: Access) -> None:
    assert TOKEN not in repr(guarded)


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (None, "city.example", True),  # no browser
        ("http://bridge:8080", "bridge:8080", True),  # the page's own
        ("http://BRIDGE:8080", "bridge:8080", True),
        ("https://city.example", "bridge:8080", True),  # configured
        ("https://city.example/", "bridge:8080", True),
        ("https://evil.example", "bridge:8080", False),
        ("http://bridge:9999", "bridge:8080", False),
        ("null", "bridge:8080", False),
        ("https://city.example.evil.example", "bridge:8080", False),
        ("https://evil.example", None, False),
        ("", "", False),
    ],
)
def test_pages_of_other_origins_are_refused(
    guarded: Access, origin: str | None, host: str | None, allowed: bool
) -> None:
    assert guarded.allows_origin(origin, host) is allowed


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8080", True),
        ("localhost:8080", True),
        ("[::1]:8080", True),
        ("192.168.1.7:8080", True),
        ("city.example", True),
        ("evil.example:8080", False),  # a name of somebody else that points here
        ("", False),
        (None, False),
        ("[", False),
    ],
)
def test_with_open_access_only_the_bridge_s_own_names_are_answered(
    open_to_all: Access, host: str | None, allowed: bool
) -> None:
    assert open_to_all.allows_host(host) is allowed
    assert open_to_all.allows_origin(f"http://{host}", host) is allowed


def test_with_a_token_any_name_is(guarded: Access) -> None:
    assert guarded.allows_host("whatever.example")
