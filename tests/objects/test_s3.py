"""What is particular to S3: buckets, credentials, and a server that is away."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from minio import Minio
from pydantic import SecretStr

from dangerous_driving.errors import ConfigError, ObjectNotFoundError, ObjectStoreError
from dangerous_driving.objects import FolderStore, ObjectStore, S3Store, open_store, reachable_url
from dangerous_driving.ports import free_port
from dangerous_driving.settings import ObjectsSettings
from tests.conftest import missing_component

#: s; the time-outs in these tests add up to less, so only an unbounded wait reaches it
BOUND = 20.0


@pytest.mark.integration
def test_many_first_writers_make_one_bucket(s3_settings: ObjectsSettings) -> None:
    stores = [open_store(s3_settings) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda store: store.put(f"k{id(store)}", b"x", "text/plain"), stores))
    assert len(list(stores[0].list(""))) == 4
    assert stores[0].url("a") == f"s3://{s3_settings.bucket}/a"


@pytest.mark.integration
def test_the_content_type_is_kept(s3_settings: ObjectsSettings) -> None:
    open_store(s3_settings).put("a.jpg", b"x", "image/jpeg")
    assert s3_settings.access_key is not None
    assert s3_settings.secret_key is not None
    client = Minio(
        s3_settings.endpoint,
        s3_settings.access_key.get_secret_value(),
        s3_settings.secret_key.get_secret_value(),
        secure=False,
    )
    assert client.stat_object(s3_settings.bucket, "a.jpg").content_type == "image/jpeg"


@pytest.mark.integration
def test_an_endpoint_without_credentials_reads_a_picture_by_its_signed_address(s3_settings: ObjectsSettings) -> None:
    store = open_store(s3_settings)
    url = store.put("groups/cam/2026/03/01/12/a b+ü.jpg", b"a picture", "image/jpeg")
    address = reachable_url(store, url)
    with urllib.request.urlopen(address, timeout=10) as answer:
        assert answer.read() == b"a picture"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(address.partition("?")[0], timeout=10)
    assert reachable_url(store, "https://elsewhere/a.jpg") == "https://elsewhere/a.jpg"


def test_a_folder_has_no_addresses_for_others(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    with pytest.raises(ConfigError, match=r"objects\.kind to s3"):
        reachable_url(store, store.put("a.jpg", b"x", "image/jpeg"))


@pytest.mark.integration
@pytest.mark.parametrize("wrong", ["access_key", "secret_key"])
def test_wrong_credentials_name_both_settings_and_no_secret(s3_settings: ObjectsSettings, wrong: str) -> None:
    open_store(s3_settings).put("a", b"x", "text/plain")
    store = open_store(s3_settings.model_copy(update={wrong: SecretStr("hunter2-wrong")}))
    uses = (lambda: store.put("a", b"x", "text/plain"), lambda: store.get("a"), lambda: list(store.list("")))
    for use in uses:
        with pytest.raises(ObjectStoreError, match=r"objects\.access_key and objects\.secret_key") as caught:
            use()
        assert not isinstance(caught.value, ObjectNotFoundError)
        assert "hunter2" not in str(caught.value)


def assert_away(store: ObjectStore) -> None:
    uses = (lambda: store.put("a", b"x", "text/plain"), lambda: store.get("a"), lambda: list(store.list("")))
    for use in uses:
        begun = time.monotonic()
        with pytest.raises(ObjectStoreError, match=r"objects\.endpoint") as caught:
            use()
        assert caught.value.retriable
        assert time.monotonic() - begun < BOUND


def settings_of(endpoint: str, timeout: float) -> ObjectsSettings:
    return ObjectsSettings(
        kind="s3", endpoint=endpoint, access_key=SecretStr("a"), secret_key=SecretStr("b"), timeout=timeout
    )


def test_a_server_that_is_gone_is_a_retriable_error_soon() -> None:
    assert_away(open_store(settings_of(f"127.0.0.1:{free_port()}", timeout=1.0)))


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and says nothing."""
    listener = socket.create_server(("127.0.0.1", 0))
    taken: list[socket.socket] = []

    def take() -> None:
        while True:
            try:
                taken.append(listener.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=take)
    thread.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()
    for connection in taken:
        connection.close()


def test_a_server_that_does_not_answer_is_a_retriable_error_in_bounded_time(silent_server: str) -> None:
    assert_away(open_store(settings_of(silent_server, timeout=0.3)))


@pytest.fixture
def busy_server() -> Iterator[tuple[str, list[str]]]:
    """Refuses every request as MinIO does while too much is asked of it; and what was asked."""
    asked: list[str] = []
    body = b"<?xml version='1.0'?><Error><Code>SlowDownWrite</Code><Message>reduce your rate</Message></Error>"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(503)
            self.send_header("Retry-After", "60")
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_asks_for_a_minute_is_a_retriable_error_soon(busy_server: tuple[str, list[str]]) -> None:
    address, asked = busy_server
    # with its region known the client begins with the request itself
    store = open_store(settings_of(address, timeout=5.0).model_copy(update={"region": "us-east-1"}))
    begun = time.monotonic()
    with pytest.raises(ObjectStoreError) as caught:
        store.put("a", b"x", "text/plain")
    assert caught.value.retriable
    assert time.monotonic() - begun < BOUND
    assert asked == ["PUT /traffic/a"] * 3


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"secret_key": None}, r"objects\.secret_key"),
        ({"access_key": None}, r"objects\.access_key"),
        ({"endpoint": "http://127.0.0.1:9000/path"}, r"objects\.endpoint"),
    ],
)
def test_settings_that_contradict_each_other_are_named(changes: dict[str, object], setting: str) -> None:
    with pytest.raises(ConfigError, match=setting):
        S3Store(settings_of("127.0.0.1:9000", 1.0).model_copy(update=changes))


@pytest.mark.integration
def test_a_server_with_a_certificate_of_ones_own_authority_is_trusted_when_it_is_named(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        missing_component("no openssl to make a certificate with: install Debian's package openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1")
            self.end_headers()
            self.wfile.write(b"x")

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = ObjectsSettings(
        kind="s3", endpoint=f"127.0.0.1:{server.server_address[1]}", secure=True, region="us-east-1", timeout=5
    )
    try:
        with pytest.raises(ObjectStoreError, match="certificate"):
            open_store(settings).get("a")
        assert open_store(settings.model_copy(update={"ssl_cafile": certificate})).get("a") == b"x"
    finally:
        server.shutdown()
        server.server_close()
