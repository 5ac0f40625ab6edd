"""Who may talk to the bridge, and do what: the token, its role, and where a browser's page came from. Pure.

A token is one of two kinds. ``realtime.token`` is one text for everybody, with one role: for a wall display, a script, a
small site. Signed tokens (JSON Web Tokens, HS256) carry a name, a role and an expiry; :func:`issue` makes them, and what
their bearers do is kept under their names.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

import jwt

from dangerous_driving.errors import ConfigError
from dangerous_driving.settings import RealtimeSettings

#: The WebSocket subprotocol of this interface. A browser, which cannot send headers there, offers its token beside it.
SUBPROTOCOL = "dangerous-driving.v1"
TOKEN_SUBPROTOCOL = "bearer."  # noqa: S105 - followed by the token in base64url without padding

ALGORITHM = "HS256"
AUDIENCE = "dangerous-driving-realtime"
#: s that the clocks of whoever issues and whoever checks may differ
LEEWAY = 5
LONGEST_NAME = 64


class Role(StrEnum):
    """What somebody may do, in rising order: look; judge alerts and switch cameras; read what others did."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def covers(self, needed: Role) -> bool:
        """Whether this role may do what `needed` may."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True)
class Caller:
    """Somebody who may talk to the bridge. ``name`` is empty unless a signed token proves it."""

    role: Role
    name: str = ""
    expires_at: datetime | None = None

    def called(self, said: str) -> str:
        """The name to keep with an act: the proven one, else what was `said`."""
        return self.name or said

    def expired(self, now: datetime) -> bool:
        """Whether the token was good for a time that is over."""
        return self.expires_at is not None and now >= self.expires_at


class NotAuthorisedError(Exception):
    """There is no token, or it is not good; the text says which and can be told to the caller."""


@dataclass(frozen=True)
class Access:
    """The rules that the settings make.

    With a token, whoever has it may connect, from a page of the bridge's own address or of ``allowed_origins``. With
    ``open_access`` there is nothing to know, so the address itself is checked too: otherwise any web page could make a
    name of its own point here and read along.
    """

    host: str
    allowed_origins: frozenset[str]
    role: Role
    token: str | None = field(default=None, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    revoked: frozenset[str] = frozenset()

    @classmethod
    def of(cls, settings: RealtimeSettings) -> Access:
        """The rules of these settings.

        Raises:
            ConfigError: there is no token, and open access is not asked for.
        """
        token = settings.token.get_secret_value() if settings.token else None
        secrets = tuple(
            secret.get_secret_value() for secret in (settings.token_secret, *settings.previous_token_secrets) if secret
        )
        if not token and not secrets and not settings.open_access:
            raise ConfigError(
                "realtime.token",
                "there is none, and open access is not asked for",
                "set DD_REALTIME__TOKEN_SECRET and issue tokens, or DD_REALTIME__TOKEN to a long random text, or "
                "realtime.open_access for a demo",
            )
        return cls(
            host=settings.host.lower(),
            allowed_origins=frozenset(origin.rstrip("/").lower() for origin in settings.allowed_origins),
            role=Role(settings.token_role),
            # open access is for everyone, also for those who happen to have a token
            token=None if settings.open_access else token or "",
            secrets=() if settings.open_access else secrets,
            revoked=frozenset(settings.revoked_tokens),
        )

    @property
    def open(self) -> bool:
        """Whether nobody needs a token."""
        return self.token is None

    def identify(self, *, authorization: str | None, protocols: Iterable[str] = (), query: str | None = None) -> Caller:
        """Who it is, by the token: as ``Authorization: Bearer``, as a subprotocol, or as ``?token=``.

        Raises:
            NotAuthorisedError: no good token came along.
        """
        if self.open:
            return Caller(self.role)
        offered = [query or ""]
        scheme, _, credentials = (authorization or "").partition(" ")
        if scheme.lower() == "bearer":
            offered.append(credentials.strip())
        offered += [
            _decoded(name.removeprefix(TOKEN_SUBPROTOCOL)) for name in protocols if name.startswith(TOKEN_SUBPROTOCOL)
        ]
        reason = "a token is needed"
        for text in filter(None, offered):
            if self.token and hmac.compare_digest(text.encode(), self.token.encode()):
                return Caller(self.role)
            try:
                return self._signed(text)
            except NotAuthorisedError as error:
                reason = str(error)
        raise NotAuthorisedError(reason)

    def _signed(self, text: str) -> Caller:
        for secret in self.secrets:
            try:
                claims = jwt.decode(
                    text,
                    secret,
                    algorithms=[ALGORITHM],  # never what the token itself says
                    audience=AUDIENCE,
                    leeway=LEEWAY,
                    options={"require": ["exp", "sub", "role", "jti"]},
                )
            except jwt.ExpiredSignatureError as error:
                raise NotAuthorisedError("the token has expired: ask for a new one") from error
            except jwt.InvalidSignatureError:
                continue  # perhaps an earlier secret's
            except jwt.InvalidTokenError:
                break
            return self._caller(claims)
        raise NotAuthorisedError("this token is not accepted")

    def _caller(self, claims: dict[str, Any]) -> Caller:
        name, role = claims["sub"], claims["role"]
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or role not in list(Role):
            raise NotAuthorisedError("this token is not accepted")
        if claims["jti"] in self.revoked:
            raise NotAuthorisedError("this token was revoked")
        return Caller(Role(role), name, datetime.fromtimestamp(claims["exp"], UTC))

    def allows_host(self, host: str | None) -> bool:
        """Whether this ``Host`` header may be the bridge's own."""
        if not self.open:
            return True
        name = _name(f"//{host or ''}")
        return _is_address(name) or name in {"localhost", self.host} | {
            _name(origin) for origin in self.allowed_origins
        }

    def allows_origin(self, origin: str | None, host: str | None) -> bool:
        """Whether a page of this ``Origin`` may use the bridge; programs that are no browser send none."""
        if origin is None:
            return True
        origin = origin.rstrip("/").lower()
        return origin in self.allowed_origins or (
            bool(host) and origin.partition("://")[2] == (host or "").lower() and self.allows_host(host)
        )


def issue(secret: str, *, name: str, role: Role, now: datetime, lifetime: timedelta) -> str:
    """A signed token.

    Raises:
        ConfigError: the name is empty or too long, or the lifetime is not positive.
    """
    if not 0 < len(name.strip()) <= LONGEST_NAME:
        raise ConfigError("--name", f"{name!r} is no name", f"give 1 to {LONGEST_NAME} characters")
    if lifetime <= timedelta(0):
        raise ConfigError("--hours", "the token would never be good", "give a number above 0")
    claims = {
        "aud": AUDIENCE,
        "sub": name.strip(),
        "role": role.value,
        "iat": now,
        "exp": now + lifetime,
        "jti": str(uuid.uuid4()),
    }
    return jwt.encode(claims, secret, algorithm=ALGORITHM)


def _name(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _decoded(text: str) -> str:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""
