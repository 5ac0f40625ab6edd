"""Telling a person over a webhook. Best effort: what is told is kept elsewhere, too."""

from __future__ import annotations

import httpx
import structlog
from pydantic import SecretStr

log = structlog.get_logger(__name__)


def post(url: SecretStr, body: dict[str, object], *, timeout: float) -> bool:
    """Post `body` as JSON; returns whether it was taken. The URL is never logged: it may carry a token.

    Args:
        url: http or https.
        body: what is said; ``text`` is what chat systems show.
        timeout: s.
    """
    try:
        response = httpx.post(url.get_secret_value(), json=body, timeout=timeout)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        log.warning("webhook_not_reached", reason=type(error).__name__, remedy="check operations.webhook")
        return False
    if response.is_success:
        return True
    log.warning("webhook_refused", http_status=response.status_code, remedy="check operations.webhook")
    return False
