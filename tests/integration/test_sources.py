"""Every kind of live source from a real server, which is killed and comes back while the camera is read."""

from __future__ import annotations

import functools
import itertools
import logging
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import cv2
import numpy as np
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from dangerous_driving.camera.frame import Frame
from dangerous_driving.camera.reader import CameraReader
from dangerous_driving.camera.status import CameraState, CameraStatus
from dangerous_driving.ports import free_port
from dangerous_driving.settings import CameraSettings, CameraSpec
from tests.conftest import missing_component

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

SCRIPT = Path(__file__).parents[1] / "servers/stream.py"
PYTHON = "/usr/bin/python3"  # GStreamer's bindings are Debian's

SETTINGS = CameraSettings(
    frame_interval=0.2, open_timeout=3, read_timeout=3, backoff_initial=0.1, backoff_max=0.5, offline_after=2
)
PASSWORD = "s3cret-of-the-camera"


def wait_for(condition: Callable[[], object], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


@contextmanager
def stream(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A stream until the end of the block, where it is killed."""
    try:
        check = subprocess.run([PYTHON, str(SCRIPT), "check"], capture_output=True, text=True)
    except OSError as error:
        missing_component(f"no {PYTHON} with GStreamer: {error}")
        raise
    if check.returncode:
        missing_component(
            f"no GStreamer for {PYTHON} (see system-packages in the Makefile): {check.stdout}{check.stderr}"
        )
    process = subprocess.Popen([PYTHON, str(SCRIPT), *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


class Watched:
    """A reader with all that it gave."""

    def __init__(self, source: str, *, loop: bool = True) -> None:
        self.statuses: list[CameraStatus] = []
        self.frames: list[Frame] = []
        self.reader = CameraReader(
            CameraSpec(id="road", source=SecretStr(source), loop=loop),
            SETTINGS,
            on_status=self.statuses.append,
            on_frame=self._take,
        )

    def _take(self) -> None:
        frame = self.reader.take(0.0)
        if frame is not None:
            self.frames.append(frame)

    def __enter__(self) -> Self:
        self.reader.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.reader.stop()
        assert self.reader.join(SETTINGS.read_timeout + SETTINGS.open_timeout + 5)

    def sees(self, width: int, height: int) -> bool:
        self.reader.check()
        return bool(self.frames) and self.frames[-1].image.shape == (height, width, 3)

    def lost(self) -> bool:
        self.reader.check()
        return bool(self.statuses) and self.statuses[-1].state is not CameraState.ONLINE

    def offline(self) -> bool:
        self.reader.check()
        return self.statuses[-1].state is CameraState.OFFLINE


def assert_told_everything(watched: Watched) -> None:
    """Online, lost, and online again, each with its reason; frames of strictly rising times."""
    # the reader may have knocked before the server was there
    states = list(
        itertools.dropwhile(
            lambda state: state is not CameraState.ONLINE, (status.state for status in watched.statuses)
        )
    )
    assert states[-1] is CameraState.ONLINE
    assert CameraState.OFFLINE in states
    assert all(status.reason for status in watched.statuses if status.state is not CameraState.ONLINE)
    times = [frame.captured_at for frame in watched.frames]
    assert all(early < late for early, late in itertools.pairwise(times))


def test_rtsp_with_a_password_over_a_restart_with_another_resolution(caplog: pytest.LogCaptureFixture) -> None:
    port = str(free_port())
    caplog.set_level(logging.DEBUG)
    with capture_logs() as logs, Watched(f"rtsp://operator:{PASSWORD}@127.0.0.1:{port}/road") as watched:
        with stream("rtsp", port, "320x240", "operator", PASSWORD):
            wait_for(lambda: watched.sees(320, 240) and len(watched.frames) > 10)
        wait_for(watched.offline)
        with stream("rtsp", port, "640x360", "operator", PASSWORD):
            wait_for(lambda: watched.sees(640, 360))
            assert_told_everything(watched)
    assert PASSWORD not in repr(logs) + caplog.text + repr(watched.statuses)


def test_rtsp_with_a_wrong_password_is_offline_and_does_not_tell_it() -> None:
    port = str(free_port())
    wrong = "not-the-pass"
    with (
        stream("rtsp", port, "320x240", "operator", PASSWORD),
        capture_logs() as logs,
        Watched(f"rtsp://operator:{wrong}@127.0.0.1:{port}/road") as watched,
    ):
        wait_for(lambda: watched.statuses and watched.offline())
    assert wrong not in repr(logs) + repr(watched.statuses)


def test_an_rtsp_stream_that_stands_still_is_noticed() -> None:
    port = str(free_port())
    with stream("rtsp", port, "320x240") as server, Watched(f"rtsp://127.0.0.1:{port}/road") as watched:
        wait_for(lambda: len(watched.frames) > 5)
        server.send_signal(signal.SIGSTOP)  # connected, and silent
        wait_for(watched.offline)
        server.send_signal(signal.SIGCONT)
        wait_for(lambda: watched.statuses[-1].state is CameraState.ONLINE)
        assert_told_everything(watched)


def test_hls_over_a_restart(tmp_path: Path) -> None:
    port = free_port()
    with Watched(f"http://127.0.0.1:{port}/live.m3u8") as watched:
        with served(port, functools.partial(Quiet, directory=str(tmp_path))), stream("hls", str(tmp_path), "320x240"):
            wait_for(lambda: watched.sees(320, 240) and len(watched.frames) > 10)
        wait_for(watched.offline)
        again = tmp_path / "again"
        again.mkdir()
        with stream("hls", str(again), "640x360"), served(port, functools.partial(Quiet, directory=str(again))):
            wait_for(lambda: watched.sees(640, 360))
            assert_told_everything(watched)


def test_mjpeg_over_http_over_a_restart() -> None:
    port = free_port()
    with Watched(f"http://127.0.0.1:{port}/video.mjpg") as watched:
        with served(port, functools.partial(Mjpeg, size=(320, 240))):
            wait_for(lambda: watched.sees(320, 240) and len(watched.frames) > 10)
        wait_for(watched.offline)
        with served(port, functools.partial(Mjpeg, size=(640, 360))):
            wait_for(lambda: watched.sees(640, 360))
            assert_told_everything(watched)


def test_mjpeg_whose_server_stops_sending_is_noticed_and_comes_back() -> None:
    port = free_port()
    stalled = threading.Event()
    handler = functools.partial(Mjpeg, size=(320, 240), stalled=stalled)
    with Watched(f"http://127.0.0.1:{port}/video.mjpg") as watched, served(port, handler):
        wait_for(lambda: len(watched.frames) > 5)
        stalled.set()  # connected, and silent
        wait_for(watched.offline)
        stalled.clear()
        wait_for(lambda: watched.statuses[-1].state is CameraState.ONLINE)
        assert_told_everything(watched)


def test_hls_whose_encoder_hangs_is_noticed_and_comes_back(tmp_path: Path) -> None:
    port = free_port()
    with (
        Watched(f"http://127.0.0.1:{port}/live.m3u8") as watched,
        served(port, functools.partial(Quiet, directory=str(tmp_path))),
        stream("hls", str(tmp_path), "320x240") as encoder,
    ):
        wait_for(lambda: len(watched.frames) > 5)
        encoder.send_signal(signal.SIGSTOP)  # the web server still has the last playlist
        wait_for(watched.offline)
        count = len(watched.frames)
        encoder.send_signal(signal.SIGCONT)
        wait_for(lambda: watched.statuses[-1].state is CameraState.ONLINE and len(watched.frames) > count)
        assert_told_everything(watched)


def test_a_recording_over_http_that_breaks_off_is_not_taken_for_played_to_its_end(tmp_path: Path) -> None:
    port = free_port()
    recording = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(recording), cv2.VideoWriter.fourcc(*"MJPG"), 15, (320, 240))
    random = np.random.default_rng(1)
    for _ in range(90):
        writer.write(random.integers(0, 255, (240, 320, 3), dtype=np.uint8))
    writer.release()
    slow = functools.partial(Slow, content=recording.read_bytes(), seconds=5.0)
    with Watched(f"http://127.0.0.1:{port}/clip.avi", loop=False) as watched:
        with served(port, slow):
            wait_for(lambda: len(watched.frames) > 10)
        wait_for(watched.offline)
        assert all("to its end" not in status.reason for status in watched.statuses)
        assert any("broke off" in status.reason for status in watched.statuses)
        with served(port, slow):
            wait_for(lambda: watched.statuses[-1].reason.endswith("was played to its end"))
        states = [status.state for status in watched.statuses]
        assert states[-2:] == [CameraState.ONLINE, CameraState.OFFLINE]


class Slow(BaseHTTPRequestHandler):
    """Sends a file evenly over some seconds."""

    def __init__(self, *arguments: object, content: bytes, seconds: float) -> None:
        self.content, self.seconds = content, seconds
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        step = len(self.content) // 100
        try:
            for start in range(0, len(self.content), step):
                if self.server.stopped.is_set():  # type: ignore[attr-defined]
                    return
                self.wfile.write(self.content[start : start + step])
                time.sleep(self.seconds / 100)
        except OSError:
            return  # the client went

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Nothing."""


class Mjpeg(BaseHTTPRequestHandler):
    def __init__(self, *arguments: object, size: tuple[int, int], stalled: threading.Event | None = None) -> None:
        self.size, self.stalled = size, stalled
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        width, height = self.size
        try:
            for number in itertools.count():
                if self.server.stopped.is_set():  # type: ignore[attr-defined]
                    return
                if self.stalled is not None and self.stalled.is_set():
                    time.sleep(0.02)
                    continue
                picture = np.full((height, width, 3), 90, np.uint8)
                cv2.circle(picture, (number * 7 % width, height // 2), 30, (20, 200, 240), -1)
                data = cv2.imencode(".jpg", picture)[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n".encode()
                self.wfile.write(head + data + b"\r\n")
                time.sleep(1 / 15)
        except OSError:
            return  # the client went

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@contextmanager
def served(port: int, handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    server.stopped = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.stopped.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()
        thread.join()
