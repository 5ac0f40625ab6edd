"""Webhooks: a signed POST of JSON."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self

import httpx

from dangerous_driving import __version__
from dangerous_driving.errors import ConfigError, DeliveryError, RefusedError
from dangerous_driving.notifications.rendering import Item, Rendered
from dangerous_driving.notifications.signature import signed_headers
from dangerous_driving.settings.notifications import WebhookReceiver, signing_key

#: Statuses of a receiver that is busy or restarting, not of one that does not want the message.
TRANSIENT = frozenset({408, 421, 425, 429})
#: s; longer wishes of a receiver are not followed.
LONGEST_RETRY_AFTER = 3600.0


class WebhookChannel:
    """Sends to one webhook. Redirects are not followed: the secret's signature is for the address in the settings.

    Raises:
        ConfigError: the secret has not the right form.
    """

    def __init__(
        self,
        receiver: WebhookReceiver,
        url: str,
        secret: str,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        try:
            signing_key(secret)
        except ValueError as error:
            raise ConfigError(
                f"notifications.receivers {receiver.name}: secret", "not of the right form", str(error)
            ) from error
        self._receiver = receiver
        self._url = url
        self._secret = secret
        self._clock = clock
        verify = ssl.create_default_context(cafile=str(receiver.ca_file)) if receiver.ca_file else True
        self._client = httpx.Client(
            timeout=receiver.timeout,
            follow_redirects=False,
            verify=verify,
            headers={"User-Agent": f"dangerous-driving/{__version__}"},
        )

    def deliver(self, item: Item, rendered: Rendered, picture: bytes | None = None) -> None:
        """Send one message; returns once the receiver has answered with 2xx.

        Raises:
            RefusedError: it answered with another status that will not change by itself.
            DeliveryError: it did not answer, or is busy.
        """
        del picture  # the JSON has its address
        headers = {
            "Content-Type": "application/json",
            **{name: value.get_secret_value() for name, value in self._receiver.headers.items()},
            **signed_headers(self._secret, item.notification_id, rendered.body, at=self._clock()),
        }
        try:
            # the body of the answer says nothing that is needed, and could be endless
            with self._client.stream("POST", self._url, content=rendered.body, headers=headers) as response:
                status, retry_after = response.status_code, response.headers.get("retry-after")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # its text may hold the address, which may be a secret
            raise DeliveryError(f"the webhook did not answer ({type(error).__name__})") from error
        if 200 <= status < 300:  # noqa: PLR2004
            return
        problem = f"the webhook answered with status {status}"
        if status in TRANSIENT or status >= 500:  # noqa: PLR2004
            raise DeliveryError(problem, retry_after=_seconds(retry_after, self._clock()))
        raise RefusedError(problem)

    def check(self) -> str:
        """Reach the address (without a message): any answer will do.

        Raises:
            DeliveryError: there is none.
        """
        try:
            status = self._client.head(self._url).status_code
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise DeliveryError(f"the webhook did not answer ({type(error).__name__})") from error
        return f"webhook answers (status {status} to HEAD)"

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _seconds(retry_after: str | None, now: datetime) -> float | None:
    if retry_after is None:
        return None
    if retry_after.isdecimal():
        return min(float(retry_after), LONGEST_RETRY_AFTER)
    try:
        when = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    if when.tzinfo is None:
        return None
    return min(max((when - now).total_seconds(), 0.0), LONGEST_RETRY_AFTER)
