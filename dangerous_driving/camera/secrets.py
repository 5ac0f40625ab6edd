"""Secrets in cameras' sources: ``${NAME}`` stands for what the environment or a mounted file holds."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

from dangerous_driving.errors import ConfigError
from dangerous_driving.settings import SECRET_PREFIX, secret_of_environment

_PLACEHOLDER = re.compile(r"\$\{([A-Za-z0-9_.-]+)\}")


def placeholders(source: str) -> list[str]:
    """Names of the secrets that a source asks for."""
    return _PLACEHOLDER.findall(source)


def with_secrets(source: str, folder: Path | None) -> str:
    """A source with its placeholders replaced, percent-encoded where it is a URL.

    Args:
        source: of a camera.
        folder: ``camera.secrets_folder``.

    Raises:
        ConfigError: a secret is neither in the environment nor in the folder; names it.
    """

    def secret(match: re.Match[str]) -> str:
        value = _secret(match[1], folder)
        return quote(value, safe="") if "://" in source else value

    return _PLACEHOLDER.sub(secret, source)


def _secret(name: str, folder: Path | None) -> str:
    value = secret_of_environment(name)
    if value is None and folder is not None:
        try:
            value = (folder / name).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError):
            value = None  # told below, with both places
    if value is None:
        raise ConfigError(
            f"${{{name}}}",
            "a source asks for this secret, and it is not set",
            f"set {SECRET_PREFIX}{name}, or write it to a file {name} in camera.secrets_folder",
        )
    return value
