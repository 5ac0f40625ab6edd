"""The object store: pictures and detection results under keys, in a folder or in S3."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from dangerous_driving.errors import ConfigError
from dangerous_driving.objects.folder import FolderStore
from dangerous_driving.objects.s3 import S3Store
from dangerous_driving.settings import ObjectsSettings


class ObjectStore(Protocol):
    """Three methods that do I/O and the mapping between keys and URLs. Safe to share between threads."""

    def put(self, key: str, data: bytes, content_type: str) -> str:
        """Keep `data` under `key`, in place of what was there, and return its URL. A reader sees all of it or nothing.

        Raises:
            ObjectStoreError: the store refused or did not answer in time.
            ContractError: this cannot be a key.
        """
        ...

    def get(self, key: str) -> bytes:
        """What is kept under `key`.

        Raises:
            ObjectNotFoundError: nothing is.
            ObjectStoreError: the store refused or did not answer in time.
            ContractError: this cannot be a key.
        """
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """All keys that begin with `prefix`, sorted, read as they are asked for. None is an empty iterator.

        Raises:
            ObjectStoreError: the store refused or did not answer in time; also while iterating.
            ContractError: no key can begin so.
        """
        ...

    def url(self, key: str) -> str:
        """The URL that messages carry for `key`, such as ``s3://traffic/frames/…``; pure."""
        ...

    def key(self, url: str) -> str:
        """The key that `url` names; pure.

        Raises:
            ContractError: the URL is not of this store.
        """
        ...


class PrunableStore(ObjectStore, Protocol):
    """A store from which objects can be removed: what retention asks for, and nobody else."""

    def delete(self, keys: Iterable[str]) -> int:
        """Remove what is kept under these keys; what is not there is no error, so that it can be done again.

        Returns:
            How many keys there were.

        Raises:
            ObjectStoreError: the store refused or did not answer in time; some may be gone.
            ContractError: one cannot be a key; those before it may be gone.
        """
        ...


def reachable_url(store: ObjectStore, url: str) -> str:
    """The address at which somebody outside can read what `url` names: signed for a while, if it is this store's.

    Raises:
        ConfigError: the store has no addresses that others could read.
        ObjectStoreError: the store did not answer.
        ContractError: the URL is of another store.
    """
    if url.startswith(("https://", "http://")):
        return url
    if not isinstance(store, S3Store):
        raise ConfigError("llm.images", "nobody else can read from a folder", "set it to base64, or objects.kind to s3")
    return store.presigned(store.key(url))


def open_store(settings: ObjectsSettings) -> PrunableStore:
    """The store that the settings name. Nothing is read or written yet.

    Raises:
        ConfigError: the settings contradict each other.
    """
    if settings.kind == "folder":
        return FolderStore(settings.folder, settings.bucket)
    return S3Store(settings)
