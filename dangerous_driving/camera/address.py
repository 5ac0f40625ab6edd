"""Addresses of cameras, and what of them may be shown (pure)."""

from __future__ import annotations

from urllib.parse import urlsplit


def shown(source: str) -> str:
    """A source without user, password and query, for logs, tables and pages."""
    if "://" not in source:
        return source
    parts = urlsplit(source)
    host = parts.netloc.rpartition("@")[2]  # with its port, and the brackets of IPv6
    return f"{parts.scheme}://{host}{parts.path}"


def is_misread(source: str) -> bool:
    """Whether a URL falls into other parts than its writer meant: a "/", "?" or "#" in a password ends the host there."""
    if "://" not in source:
        return False
    try:
        parts = urlsplit(source)
        port = parts.port
    except ValueError:  # no number where the port is
        return True
    return port == 0 or ("@" in source and "@" not in parts.netloc)
