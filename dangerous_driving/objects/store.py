"""The object store behind one interface: a folder, or any S3 (MinIO)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import urlsplit

import certifi
import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from dangerous_driving.errors import ConfigError, ObjectNotFoundError, ObjectStoreError
from dangerous_driving.settings import ObjectsSettings

#: Attempts for one request to S3 when the connection breaks or the server is busy.
ATTEMPTS = 3

#: Parts of names that are being written; never listed.
DRAFT = ".draft-"


class ObjectStore(Protocol):
    """Keeps bytes under keys such as ``frames/cam-1/2025/10/20/10/ID.jpg``."""

    def put(self, key: str, data: bytes, content_type: str) -> str:
        """Keep `data`, whole or not at all; what lay there before is replaced. Returns the URL."""
        ...

    def get(self, key: str) -> bytes:
        """Read an object. Raises ObjectNotFoundError when there is none."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """All keys below the prefix, sorted."""
        ...

    def url(self, key: str) -> str:
        """The URL of a key, as messages carry it. Pure."""
        ...

    def key(self, url: str) -> str:
        """The key of a URL of this store. Pure. Raises ObjectStoreError for another store's."""
        ...


class FolderStore:
    """Objects as files below one folder; URLs are ``folder://BUCKET/KEY``, so that the folder may move."""

    def __init__(self, folder: Path, *, bucket: str = "traffic") -> None:
        self._folder = folder.absolute()
        self._bucket = bucket

    def put(self, key: str, data: bytes, content_type: str) -> str:  # noqa: ARG002  # a file keeps no type
        """Keep `data`: written beside its place and moved there, so that nobody ever sees half an object.

        It is not forced to the disk: after a crash of the machine the last seconds may be missing, which `verify` names.
        """
        path = self._path(key)
        draft = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(prefix=DRAFT, dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(draft).replace(path)
        except OSError as error:
            if draft:
                Path(draft).unlink(missing_ok=True)
            raise ObjectStoreError(
                f"cannot write {path} ({error.strerror}); check objects.folder and the space on its disk"
            ) from error
        return self.url(key)

    def get(self, key: str) -> bytes:
        """Read an object."""
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise ObjectNotFoundError(key) from error
        except OSError as error:
            raise ObjectStoreError(f"cannot read object {key!r} ({error.strerror}); check objects.folder") from error

    def list(self, prefix: str) -> Iterator[str]:
        """All keys below the prefix, sorted."""
        # a prefix is a string, not a folder: begin at its last whole folder
        start = self._folder / prefix.rpartition("/")[0]
        found = (
            (Path(folder) / name).relative_to(self._folder).as_posix()
            for folder, _, names in os.walk(start)
            for name in names
            if not name.startswith(DRAFT)
        )
        yield from sorted(key for key in found if key.startswith(prefix))

    def url(self, key: str) -> str:
        """``folder://BUCKET/KEY``."""
        return f"folder://{self._bucket}/{_checked(key)}"

    def key(self, url: str) -> str:
        """The key of such a URL."""
        return _key(url, "folder", self._bucket)

    def _path(self, key: str) -> Path:
        return self._folder / _checked(key)


class S3Store:
    """Objects in a bucket of MinIO or any S3; URLs are ``s3://BUCKET/KEY``. The bucket is made when it is missing."""

    def __init__(self, settings: ObjectsSettings) -> None:
        self._bucket = settings.bucket
        self._endpoint = settings.endpoint
        time_out = urllib3.Timeout(connect=settings.timeout, read=settings.timeout)
        retries = urllib3.Retry(total=ATTEMPTS - 1, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504])
        self._client = Minio(
            settings.endpoint,
            access_key=settings.access_key.get_secret_value() if settings.access_key else None,
            secret_key=settings.secret_key.get_secret_value() if settings.secret_key else None,
            secure=settings.secure,
            # without a region the client asks for it with a request of its own, before the first one
            region=settings.region or "us-east-1",
            http_client=urllib3.PoolManager(
                timeout=time_out, retries=retries, maxsize=16, cert_reqs="CERT_REQUIRED", ca_certs=certifi.where()
            ),
        )
        self._bucket_is_there = False

    def put(self, key: str, data: bytes, content_type: str) -> str:
        """Keep `data` in one request."""
        import io

        _checked(key)
        with _mapped(self._endpoint, key):
            if not self._bucket_is_there:
                self._make_bucket()
            self._client.put_object(self._bucket, key, io.BytesIO(data), len(data), content_type=content_type)
        return self.url(key)

    def get(self, key: str) -> bytes:
        """Read an object."""
        _checked(key)
        with _mapped(self._endpoint, key):
            response = self._client.get_object(self._bucket, key)
            try:
                return bytes(response.read())
            finally:
                response.close()
                response.release_conn()

    def list(self, prefix: str) -> Iterator[str]:
        """All keys below the prefix, sorted (S3 lists them so)."""
        with _mapped(self._endpoint, prefix):
            if not self._bucket_is_there:
                self._make_bucket()
            for item in self._client.list_objects(self._bucket, prefix=prefix, recursive=True):
                if item.object_name and not item.is_dir:
                    yield item.object_name

    def url(self, key: str) -> str:
        """``s3://BUCKET/KEY``."""
        return f"s3://{self._bucket}/{_checked(key)}"

    def key(self, url: str) -> str:
        """The key of such a URL."""
        return _key(url, "s3", self._bucket)

    def _make_bucket(self) -> None:
        if not self._client.bucket_exists(self._bucket):
            try:
                self._client.make_bucket(self._bucket)
            except S3Error as error:
                if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise  # else another process was first
        self._bucket_is_there = True


def open_store(settings: ObjectsSettings) -> ObjectStore:
    """The store that the settings name.

    Raises:
        ConfigError: S3 without credentials.
    """
    if settings.kind == "folder":
        return FolderStore(settings.folder, bucket=settings.bucket)
    if settings.access_key is None or settings.secret_key is None:
        raise ConfigError(
            "objects.access_key",
            "S3 needs credentials",
            "set objects.access_key and objects.secret_key (DD_OBJECTS__…)",
        )
    return S3Store(settings)


def _checked(key: str) -> str:
    # keys come from messages and addresses too: none may lead out of the store
    path = PurePosixPath(key)
    if not key or path.is_absolute() or key != path.as_posix() or any(part in ("..", ".") for part in path.parts):
        raise ObjectStoreError(f"{key!r} is no object key; keys are relative paths without '..' and empty parts")
    if "\\" in key or "\0" in key:
        raise ObjectStoreError(f"{key!r} is no object key; it has a character that file systems take amiss")
    return key


def _key(url: str, scheme: str, bucket: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != scheme or parts.netloc != bucket:
        raise ObjectStoreError(
            f"{url!r} is not of this store ({scheme}://{bucket}/…); check objects.kind and objects.bucket"
        )
    return _checked(url.removeprefix(f"{scheme}://{bucket}/"))


class _mapped:  # noqa: N801  # reads as a statement
    """Maps the client's errors to ObjectStoreError within its block."""

    def __init__(self, endpoint: str, key: str) -> None:
        self._endpoint = endpoint
        self._key = key

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, S3Error):
            if error.code in ("NoSuchKey", "NoSuchObject", "NoSuchBucket"):
                raise ObjectNotFoundError(self._key) from error
            remedy = (
                "check objects.access_key and objects.secret_key"
                if error.code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "InvalidAccessKey")
                else "look at the store's own log"
            )
            raise ObjectStoreError(f"{self._endpoint} refused {self._key!r} ({error.code}); {remedy}") from error
        if isinstance(
            error, MinioException | ServerError | InvalidResponseError | urllib3.exceptions.HTTPError | OSError
        ):
            raise ObjectStoreError(
                f"{self._endpoint} does not answer ({type(error).__name__}); check objects.endpoint and objects.secure"
            ) from error
