"""Orders to a simulated LLM that is running."""

from __future__ import annotations

from typing import Any

import httpx

from dangerous_driving.errors import ConfigError, UnavailableError

TIMEOUT = 10.0  # s


def order(url: str, action: str, amount: float, key: str | None) -> dict[str, Any]:
    """Change the faults of a key, or of the whole endpoint; returns its counters.

    Raises:
        ConfigError: the order is not understood, or there is no such key.
        UnavailableError: no simulated LLM answers there.
    """
    address = f"{url.removesuffix('/').removesuffix('/v1')}/admin/faults"
    try:
        answer = httpx.post(address, json={"action": action, "key": key, "amount": amount}, timeout=TIMEOUT)
    except httpx.HTTPError as error:
        raise UnavailableError(
            "--url", f"{address} does not answer ({type(error).__name__})", "start: dangerous-driving simulate llm"
        ) from error
    if answer.status_code == httpx.codes.NOT_FOUND:
        raise ConfigError(
            "--key", f"{address}: {answer.text[:200]}", "see the hashes with: dangerous-driving keys list"
        )
    if answer.is_error:
        raise ConfigError("action, amount", f"{address} refuses it: {answer.text[:300]}", "see --help")
    state: dict[str, Any] = answer.json()
    return state
