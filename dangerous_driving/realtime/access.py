"""Who may talk to the bridge: the token, and where a browser's page came from. Pure."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from dangerous_driving.errors import ConfigError
from dangerous_driving.settings import RealtimeSettings

#: The WebSocket subprotocol of this interface. A browser, which cannot send headers there, offers its token beside it.
SUBPROTOCOL = "dangerous-driving.v1"
TOKEN_SUBPROTOCOL = "bearer."  # noqa: S105 - followed by the token in base64url without padding


@dataclass(frozen=True)
class Access:
    """The rules that the settings make.

    With a token, whoever has it may connect, from a page of the bridge's own address or of ``allowed_origins``. With
    ``open_access`` there is nothing to know, so the address itself is checked too: otherwise any web page could make a
    name of its own point here and read along.
    """

    token: str | None = field(repr=False)
    host: str
    allowed_origins: frozenset[str]

    @classmethod
    def of(cls, settings: RealtimeSettings) -> Access:
        """The rules of these settings.

        Raises:
            ConfigError: there is no token, and open access is not asked for.
        """
        token = settings.token.get_secret_value() if settings.token else None
        if not token and not settings.open_access:
            raise ConfigError(
                "realtime.token",
                "there is none, and open access is not asked for",
                "set DD_REALTIME__TOKEN to a long random text, or realtime.open_access for a demo",
            )
        origins = frozenset(origin.rstrip("/").lower() for origin in settings.allowed_origins)
        # open access is for everyone, also for those who happen to have a token
        return cls(None if settings.open_access else token, settings.host.lower(), origins)

    def knows(self, *, authorization: str | None, protocols: Iterable[str] = (), query: str | None = None) -> bool:
        """Whether the token came along: as ``Authorization: Bearer``, as a subprotocol, or as ``?token=``."""
        if self.token is None:
            return True
        offered = [query or ""]
        scheme, _, credentials = (authorization or "").partition(" ")
        if scheme.lower() == "bearer":
            offered.append(credentials.strip())
        offered += [
            _decoded(name.removeprefix(TOKEN_SUBPROTOCOL)) for name in protocols if name.startswith(TOKEN_SUBPROTOCOL)
        ]
        return any(hmac.compare_digest(text.encode(), self.token.encode()) for text in offered)

    def allows_host(self, host: str | None) -> bool:
        """Whether this ``Host`` header may be the bridge's own."""
        if self.token is not None:
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
