"""The object store in S3: MinIO, or any server that speaks its protocol."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice

import certifi
import structlog
import urllib3
from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error
from urllib3.exceptions import HTTPError, SSLError

from dangerous_driving.errors import ConfigError, ObjectNotFoundError, ObjectStoreError
from dangerous_driving.objects.keys import checked, checked_prefix
from dangerous_driving.objects.url import UrlMapping
from dangerous_driving.settings import ObjectsSettings

log = structlog.get_logger(__name__)

#: further attempts after a request that got no answer or a 5xx
RETRIES = 2
#: s before the second attempt, doubled for the next
RETRY_BACKOFF = 0.2
#: connections kept open, so threads that wait for the store at a time without opening more
CONNECTIONS = 16

#: how long a signed address holds: longer than a call with all its retries
PRESIGNED = timedelta(hours=1)

#: keys of one request that removes objects; what S3 takes
DELETE_BATCH = 1000

#: HTTP 401 and 403, whatever a server calls them, and a code of versitygw's own
_NOT_ALLOWED = frozenset({401, 403})
_NO_SUCH_USER = "XAdminUserNotFound"
_BUCKET_THERE = frozenset({"BucketAlreadyOwnedByYou", "BucketAlreadyExists"})


class S3Store(UrlMapping):
    """Objects of one bucket, which is made when the first one comes.

    Every request ends: it has ``objects.timeout`` to connect and as long between two reads, and is tried
    ``1 + RETRIES`` times.
    """

    def __init__(self, settings: ObjectsSettings) -> None:
        super().__init__("s3", settings.bucket)
        self._settings, self._bucket = settings, settings.bucket
        access_key = settings.access_key.get_secret_value() if settings.access_key else None
        secret_key = settings.secret_key.get_secret_value() if settings.secret_key else None
        if (access_key is None) is not (secret_key is None):
            missing = "objects.access_key" if access_key is None else "objects.secret_key"
            raise ConfigError(missing, "missing beside the other one", "set both, or neither for a public bucket")
        http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=settings.timeout, read=settings.timeout),
            maxsize=CONNECTIONS,
            retries=urllib3.Retry(
                total=RETRIES,
                backoff_factor=RETRY_BACKOFF,
                status_forcelist=(500, 502, 503, 504),
                redirect=0,
                respect_retry_after_header=False,  # MinIO says minutes, and whoever waits here is a camera's writer
            ),
            cert_reqs="CERT_REQUIRED",
            ca_certs=str(settings.ssl_cafile or certifi.where()),
        )
        try:
            self._client = Minio(
                settings.endpoint,
                access_key,
                secret_key,
                secure=settings.secure,
                region=settings.region,
                http_client=http,
            )
        except ValueError as error:
            raise ConfigError("objects.endpoint", str(error), "write host:port, without http://") from error

    def put(self, key: str, data: bytes, content_type: str) -> str:
        """See ``ObjectStore``."""
        url = self.url(key)
        with self._errors(f"cannot write {key!r}"):
            try:
                self._put(key, data, content_type)
            except S3Error as error:
                if error.code != "NoSuchBucket":
                    raise
                self._make_bucket()
                self._put(key, data, content_type)
        return url

    def _put(self, key: str, data: bytes, content_type: str) -> None:
        self._client.put_object(self._bucket, key, io.BytesIO(data), len(data), content_type)

    def _make_bucket(self) -> None:
        try:
            self._client.make_bucket(self._bucket, self._settings.region)
        except S3Error as error:
            if error.code not in _BUCKET_THERE:  # another process was faster
                raise
        else:
            log.info("bucket made", bucket=self._bucket)

    def get(self, key: str) -> bytes:
        """See ``ObjectStore``."""
        checked(key)
        with self._errors(f"cannot read {key!r}"):
            try:
                response = self._client.get_object(self._bucket, key)
            except S3Error as error:
                if error.code in ("NoSuchKey", "NoSuchBucket"):
                    raise ObjectNotFoundError(key) from error
                raise
            try:
                return bytes(response.read())
            finally:
                response.close()
                response.release_conn()

    def presigned(self, key: str) -> str:
        """An address at which others read the object with no credentials, for `PRESIGNED`.

        Raises:
            ObjectStoreError: the store was asked for its region, and did not answer.
            ContractError: this cannot be a key.
        """
        checked(key)
        with self._errors(f"cannot sign an address of {key!r}"):
            return self._client.presigned_get_object(self._bucket, key, expires=PRESIGNED)

    def list(self, prefix: str) -> Iterator[str]:
        """See ``ObjectStore``."""
        return self._pages(checked_prefix(prefix))

    def _pages(self, prefix: str) -> Iterator[str]:
        with self._errors(f"cannot list {prefix!r}"):
            try:
                for found in self._client.list_objects(self._bucket, prefix, recursive=True):
                    if found.object_name and not found.is_dir:
                        yield found.object_name
            except S3Error as error:
                if error.code != "NoSuchBucket":
                    raise

    def delete(self, keys: Iterable[str]) -> int:
        """See ``ObjectStore``; 1,000 keys a request."""
        count = 0
        for batch in _batched((checked(key) for key in keys), DELETE_BATCH):
            with self._errors(f"cannot remove {len(batch)} objects"):
                try:
                    refused = list(self._client.remove_objects(self._bucket, [DeleteObject(key) for key in batch]))
                except S3Error as error:
                    if error.code != "NoSuchBucket":
                        raise
                    refused = []
            found = [error for error in refused if error.code not in ("NoSuchKey", "NoSuchBucket")]
            if found:
                raise ObjectStoreError(
                    f"cannot remove {len(found)} objects in bucket {self._bucket} at {self._settings.endpoint} "
                    f"({found[0].code}: {found[0].name}); check what the server allows objects.access_key"
                )
            count += len(batch)
        return count

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        where = f"in bucket {self._bucket} at {self._settings.endpoint}"
        try:
            yield
        except S3Error as error:
            if error.response.status in _NOT_ALLOWED or error.code == _NO_SUCH_USER:
                raise ObjectStoreError(
                    f"{action} {where} ({error.code}); check the settings objects.access_key and objects.secret_key,"
                    " and what the server allows them"
                ) from error
            raise ObjectStoreError(f"{action} {where} ({error.code}: {error.message}); see the server's log") from error
        except (HTTPError, MinioException, OSError) as error:
            if isinstance(getattr(error, "reason", None), SSLError):
                raise ObjectStoreError(
                    f"{action} {where}: its certificate is not trusted, or it speaks no TLS; name your own authority's"
                    " certificate in objects.ssl_cafile, or set objects.secure to false"
                ) from error
            raise ObjectStoreError(
                f"{action} {where} ({type(error).__name__}); check that an S3 server answers at objects.endpoint and"
                f" that objects.secure = {str(self._settings.secure).lower()} suits it"
            ) from error


def _batched(keys: Iterator[str], size: int) -> Iterator[Sequence[str]]:
    while batch := list(islice(keys, size)):
        yield batch
