"""Settings of the bridge to the browser; a section of the tree in `settings`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from dangerous_driving.settings.section import Section

#: bytes; RFC 7518, section 3.2: a key of HS256 has at least the size of its hash
SHORTEST_SECRET = 32


class RealtimeSettings(Section):
    """The bridge to the browser."""

    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0: all of this machine")
    port: int = Field(default=8080, ge=0, le=65535, description="of page, WebSocket and REST; 0: any free one")
    token: SecretStr | None = Field(default=None, description="one for everybody, with the role of token_role")
    token_role: Literal["viewer", "operator", "admin"] = Field(
        default="operator", description="what who has `token` may do; with open_access, what everyone may"
    )
    token_secret: SecretStr | None = Field(
        default=None,
        description="signs tokens that carry a name, a role and an expiry (dangerous-driving token issue); 32 bytes or more",
    )
    previous_token_secrets: tuple[SecretStr, ...] = Field(
        default=(), description="tokens that these signed are still accepted until they expire"
    )
    revoked_tokens: tuple[str, ...] = Field(
        default=(), description="ids (jti) of signed tokens that are refused before they expire"
    )
    open_access: bool = Field(default=False, description="no token: the demo only")
    allowed_origins: tuple[str, ...] = Field(
        default=(), description="origins of pages that may connect, besides the page's own"
    )
    trusted_proxies: tuple[str, ...] = Field(
        default=(), description="addresses or networks whose X-Forwarded-For is believed (the load balancer's)"
    )
    client_queue: int = Field(default=200, gt=0, description="messages that wait for one client at most")
    max_clients: int = Field(default=2000, gt=0, description="WebSockets of this process; the next one gets HTTP 503")
    connect_rate: float = Field(
        default=2.0, gt=0, description="WebSockets a second that one address may open in the long run"
    )
    connect_burst: int = Field(default=60, gt=0, description="WebSockets that one address may open at once")
    message_rate: float = Field(default=10.0, gt=0, description="messages a second that one client may send")
    message_burst: int = Field(default=50, gt=0, description="messages that one client may send at once")
    request_rate: float = Field(default=100.0, gt=0, description="requests a second of one address in the long run")
    request_burst: int = Field(default=500, gt=0, description="requests that one address may make at once")
    compression: bool = Field(default=True, description="permessage-deflate, each message compressed once for all")
    demo_banner: bool = Field(default=False, description="the page says what is simulated or replayed")

    @model_validator(mode="after")
    def _long_enough(self) -> Self:
        for name, secrets in (
            ("token_secret", [self.token_secret]),
            ("previous_token_secrets", self.previous_token_secrets),
        ):
            for secret in secrets:
                if secret is not None and len(secret.get_secret_value().encode()) < SHORTEST_SECRET:
                    raise ValueError(
                        f"{name}: at least {SHORTEST_SECRET} bytes; make one with: openssl rand -base64 48"
                    )
        return self
