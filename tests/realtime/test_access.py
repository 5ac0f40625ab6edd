"""Who may talk to the bridge."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from pydantic import SecretStr, ValidationError

from dangerous_driving.errors import ConfigError
from dangerous_driving.realtime.access import Access, NotAuthorisedError, Role, issue
from dangerous_driving.settings import RealtimeSettings

NOW = datetime.now(UTC)
SECRET = "a secret of more than thirty-two bytes"
EARLIER = "an earlier secret of thirty-two bytes"
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
    for caller in (
        guarded.identify(authorization=f"Bearer {TOKEN}"),
        guarded.identify(authorization=f"bearer  {TOKEN}"),
        guarded.identify(authorization=None, query=TOKEN),
        guarded.identify(authorization=None, protocols=["dangerous-driving.v1", as_protocol(TOKEN)]),
    ):
        assert (caller.role, caller.name, caller.expires_at) == (Role.OPERATOR, "", None)


@pytest.mark.parametrize("wrong", ["", "wrong", TOKEN + "x", TOKEN[:-1], "Ω" * 50, "a.b.c", "."])
def test_nothing_else_does(guarded: Access, wrong: str) -> None:
    for offer in (
        {"authorization": f"Bearer {wrong}"},
        {"authorization": f"Basic {TOKEN}"},
        {"query": wrong},
        {"protocols": [as_protocol(wrong), "bearer.%%%", "bearer.=", TOKEN]},
        {},
    ):
        with pytest.raises(NotAuthorisedError):
            guarded.identify(**({"authorization": None} | offer))


def test_open_access_asks_for_nothing(open_to_all: Access) -> None:
    assert open_to_all.identify(authorization=None).role is Role.OPERATOR


# signed tokens


@pytest.fixture
def signed() -> Access:
    return Access.of(RealtimeSettings(token_secret=SecretStr(SECRET), previous_token_secrets=(SecretStr(EARLIER),)))


def a_token(secret: str = SECRET, role: Role = Role.OPERATOR) -> str:
    return issue(secret, name="Ada", role=role, now=NOW, lifetime=timedelta(hours=1))


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("secret", [SECRET, EARLIER])
def test_a_signed_token_says_who_it_is(signed: Access, role: Role, secret: str) -> None:
    caller = signed.identify(authorization=f"Bearer {a_token(secret, role)}")
    assert (caller.name, caller.role) == ("Ada", role)
    assert caller.expires_at is not None
    assert not caller.expired(NOW)
    assert caller.expired(NOW + timedelta(hours=1, seconds=1))
    assert caller.called("Eve") == "Ada"


def forged() -> dict[str, tuple[str, str]]:
    none = jwt.encode({"sub": "Ada", "role": "admin", "exp": 4e9, "jti": "x"}, "", algorithm="none")
    header, _, signature = a_token().split(".")
    other_payload = a_token(role=Role.ADMIN).split(".")[1]
    return {
        "expired": (issue(SECRET, name="Ada", role=Role.ADMIN, now=NOW - timedelta(hours=2), lifetime=timedelta(hours=1)), "expired"),
        "of another secret": (a_token("z" * 40), "not accepted"),
        "unsigned": (none, "not accepted"),
        "with another payload": (f"{header}.{other_payload}.{signature}", "not accepted"),
        "for another service": (altered(aud="elsewhere"), "not accepted"),
        "without expiry": (altered(exp=None), "not accepted"),
        "without role": (altered(role=None), "not accepted"),
        "of an unknown role": (altered(role="root"), "not accepted"),
        "with a long name": (altered(sub="x" * 65), "not accepted"),
    }  # fmt: skip


def altered(**claims: Any) -> str:
    known = jwt.decode(a_token(), SECRET, algorithms=["HS256"], audience="dangerous-driving-realtime") | claims
    return jwt.encode({k: v for k, v in known.items() if v is not None}, SECRET, algorithm="HS256")


@pytest.mark.parametrize("kind", list(forged()))
def test_a_token_that_is_not_good_is_refused_and_says_why(signed: Access, kind: str) -> None:
    token, reason = forged()[kind]
    with pytest.raises(NotAuthorisedError, match=reason):
        signed.identify(authorization=f"Bearer {token}")


def test_a_revoked_token_is_refused() -> None:
    token = a_token()
    jti = jwt.decode(token, SECRET, algorithms=["HS256"], audience="dangerous-driving-realtime")["jti"]
    access = Access.of(RealtimeSettings(token_secret=SecretStr(SECRET), revoked_tokens=(jti,)))
    with pytest.raises(NotAuthorisedError, match="revoked"):
        access.identify(authorization=f"Bearer {token}")
    assert access.identify(authorization=f"Bearer {a_token()}").name == "Ada"


def test_a_short_secret_is_refused_and_not_shown() -> None:
    with pytest.raises(ValidationError, match="at least 32 bytes") as refused:
        RealtimeSettings(token_secret=SecretStr("hunter2"))
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(("name", "hours"), [("", 1), ("x" * 65, 1), ("Ada", 0), ("Ada", -1)])
def test_a_token_for_nobody_or_never_is_an_error(name: str, hours: float) -> None:
    with pytest.raises(ConfigError, match=r"--name|--hours"):
        issue(SECRET, name=name, role=Role.VIEWER, now=NOW, lifetime=timedelta(hours=hours))


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
