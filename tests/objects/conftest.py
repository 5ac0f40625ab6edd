"""Both stores for the behaviour suite: a folder, and a real S3 server."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from dangerous_driving.objects import PrunableStore as ObjectStore
from dangerous_driving.objects import open_store
from dangerous_driving.ports import free_port
from dangerous_driving.settings import ObjectsSettings

BUILD = Path(__file__).resolve().parents[1] / "servers" / "versitygw.sh"
#: s; a build takes about 80
BUILD_TIMEOUT = 600
START_TIMEOUT = 30.0


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectsSettings]:
    """Settings of a running S3 server."""
    built = subprocess.run([BUILD], capture_output=True, text=True, timeout=BUILD_TIMEOUT, check=False)
    if built.returncode:
        missing = f"no S3 server: {built.stderr.strip().splitlines()[-1:]}"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("s3")
    (folder / "buckets").mkdir()
    (folder / "metadata").mkdir()
    endpoint = f"127.0.0.1:{free_port()}"
    settings = ObjectsSettings(
        kind="s3",
        endpoint=endpoint,
        access_key=SecretStr("tester"),
        secret_key=SecretStr(secrets.token_hex(16)),
        timeout=5.0,
    )
    assert settings.access_key is not None
    assert settings.secret_key is not None
    environment = os.environ | {
        "ROOT_ACCESS_KEY": settings.access_key.get_secret_value(),
        "ROOT_SECRET_KEY": settings.secret_key.get_secret_value(),
    }
    command: list[str | Path] = [
        built.stdout.strip(),
        "--port",
        endpoint,
        "--quiet",
        "posix",
        "--sidecar",
        folder / "metadata",
    ]
    with (folder / "log").open("w") as output:
        server = subprocess.Popen([*command, folder / "buckets"], env=environment, stdout=output, stderr=output)
        try:
            wait_for(endpoint, server)
            yield settings
        finally:
            server.terminate()
            server.wait(START_TIMEOUT)


def wait_for(endpoint: str, server: subprocess.Popen[bytes]) -> None:
    host, port = endpoint.split(":")
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            assert server.poll() is None, "the S3 server ended"
            assert time.monotonic() < deadline, "the S3 server did not start"
            time.sleep(0.05)
        else:
            return


@pytest.fixture
def s3_settings(s3_server: ObjectsSettings) -> ObjectsSettings:
    """The server, with a bucket of this test's own that is not there yet."""
    return s3_server.model_copy(update={"bucket": f"test-{uuid.uuid4().hex[:12]}"})


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.integration)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store of each kind."""
    if request.param == "folder":
        return open_store(ObjectsSettings(folder=tmp_path / "objects"))
    settings: ObjectsSettings = request.getfixturevalue("s3_settings")
    return open_store(settings)
