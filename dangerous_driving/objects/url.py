"""URLs of objects, as messages carry them; pure."""

from __future__ import annotations

from urllib.parse import quote, unquote

from dangerous_driving.errors import ConfigError, ContractError
from dangerous_driving.objects.keys import checked


class UrlMapping:
    """``scheme://bucket/key``, with the key percent-encoded where a URL needs it."""

    def __init__(self, scheme: str, bucket: str) -> None:
        if not bucket or "/" in bucket:
            raise ConfigError("objects.bucket", f"{bucket!r} is no name of a bucket", "use letters, digits and '-'")
        self._root = f"{scheme}://{bucket}/"

    def url(self, key: str) -> str:
        """The URL of `key`."""
        return self._root + quote(checked(key))

    def key(self, url: str) -> str:
        """The key of `url`."""
        if not url.startswith(self._root):
            raise ContractError("object URL", "", f"{url!r} is not of this store, whose URLs begin with {self._root}")
        return checked(unquote(url.removeprefix(self._root)))
