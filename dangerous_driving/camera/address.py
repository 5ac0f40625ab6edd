"""Addresses of cameras, and what of them may be shown (pure)."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

#: What is shown in the place of a value.
HIDDEN = "***"

#: Recorders take parameters in the path too, ``/user=admin&password=x&channel=1`` or with "_" between them. A value goes
#: on to the next name that has one, whatever is in it, for it may be a password ("=" at its end is of base64). "_" is also
#: part of names and values: there only a name that such addresses have ends a value.
_PAIR = re.compile(
    r"""
    (?P<name>[^/=&;,]+)=
    (?P<value>.*?)
    (?=[/&;,][\w.-]+=[^=/&;,]|_(?:user|username|pass|password|passwd|pwd|channel|stream|subtype)=|$)
    """,
    re.IGNORECASE | re.VERBOSE,
)


def parameters(text: str) -> list[tuple[str, str]]:
    """Names and values of the ``name=value`` pairs in a path or query; a "_" between two is left on the name."""
    return [(pair["name"], pair["value"]) for pair in _PAIR.finditer(text)]


def shown(source: str) -> str:
    """A source without user, password, query and values in its path, for logs, tables and pages."""
    if "://" not in source:
        return source
    parts = urlsplit(source)
    host = parts.netloc.rpartition("@")[2]  # with its port, and the brackets of IPv6
    path = _PAIR.sub(rf"\g<name>={HIDDEN}", parts.path)
    return f"{parts.scheme}://{host}{path}"


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
