from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr

from dangerous_driving.camera.frame import Frame, Image
from dangerous_driving.camera.reader import CameraReader
from dangerous_driving.camera.source import Source
from dangerous_driving.camera.status import CameraState, CameraStatus
from dangerous_driving.errors import LedgerError, SourceError
from dangerous_driving.settings import CameraSettings, CameraSpec

PATIENCE = 60.0  # s until a condition counts as never met

QUICK = CameraSettings(backoff_initial=0.01, backoff_max=0.05, open_timeout=2.0, read_timeout=0.5)


def spec(source: object = "fake", *, camera_id: str = "cam", loop: bool = True) -> CameraSpec:
    return CameraSpec(id=camera_id, source=SecretStr(str(source)), loop=loop)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the condition was never met"
        time.sleep(0.005)


class FakeSource:
    """Frames of value 0, 1, 2, … until `last`; then it ends, or fails when it is live."""

    def __init__(self, frames: int = 1_000_000, *, period: float | None = None, pause: float = 0.002) -> None:
        self.period = period
        self.stills = False
        self.size: tuple[int, int] | None = None
        self.frames, self.pause = frames, pause
        self.grabbed = self.retrieved = 0
        self.closed = False

    def grab(self) -> bool:
        time.sleep(self.pause)
        if self.grabbed >= self.frames:
            if self.period is None:
                raise SourceError("the stream ended")
            return False
        self.grabbed += 1
        return True

    def retrieve(self) -> Image:
        self.retrieved += 1
        return np.full((2, 2, 3), (self.grabbed - 1) % 256, np.uint8)

    def close(self) -> None:
        self.closed = True


class Opener:
    """Hands out what it is given, one after the other; the last one again and again."""

    def __init__(self, *outcomes: Source | SourceError | Callable[[], Source]) -> None:
        self.outcomes = list(outcomes)
        self.opened = 0

    def __call__(self, spec: CameraSpec, settings: CameraSettings) -> Source:
        outcome = self.outcomes[min(self.opened, len(self.outcomes) - 1)]
        self.opened += 1
        if isinstance(outcome, SourceError):
            raise outcome
        return outcome() if callable(outcome) else outcome


@pytest.fixture
def start() -> Iterator[Callable[[CameraReader], CameraReader]]:
    """Starts readers; all end, promptly, with the test."""
    readers: list[CameraReader] = []

    def starter(reader: CameraReader) -> CameraReader:
        readers.append(reader)
        reader.start()
        return reader

    yield starter
    for reader in readers:
        reader.stop()
    assert all(reader.join(PATIENCE) for reader in readers)


Start = Callable[[CameraReader], CameraReader]


def next_frame(reader: CameraReader, wanted_at: float = 0.0) -> Frame:
    wait_for(lambda: reader.ready_since is not None)
    frame = reader.take(wanted_at)
    assert frame is not None
    return frame


def test_only_the_newest_frame_is_kept(start: Start) -> None:
    source = FakeSource(frames=50, pause=0.0)
    reader = start(CameraReader(spec(), QUICK, source_opener=Opener(source, SourceError("gone"))))
    wait_for(lambda: source.closed)
    frame = reader.take(0.0)
    assert frame is not None
    assert frame.sequence == 50
    assert frame.image[0, 0, 0] == 49
    assert reader.take(0.0) is None


def test_capture_times_rise_in_whole_milliseconds_though_the_wall_clock_stands_or_is_set_back(start: Start) -> None:
    times = iter(datetime(2026, 1, 1, 12, tzinfo=UTC) - timedelta(microseconds=700_123 * n) for n in range(10**6))
    reader = start(CameraReader(spec(), QUICK, source_opener=Opener(FakeSource()), now=lambda: next(times)))
    captured = [next_frame(reader).captured_at for _ in range(10)]
    assert all(later > earlier for earlier, later in itertools.pairwise(captured))
    assert all(time.microsecond % 1000 == 0 and time.utcoffset() == timedelta(0) for time in captured)


def test_frames_that_nobody_waits_for_are_passed_over_without_converting_them(start: Start) -> None:
    source = FakeSource(pause=0.0005)
    reader = start(CameraReader(spec(), QUICK, source_opener=Opener(source)))
    next_frame(reader, wanted_at=float("inf"))
    converted, grabbed = source.retrieved, source.grabbed
    wait_for(lambda: source.grabbed > grabbed + 100)
    assert source.retrieved <= converted + 1  # one may have been under way
    assert reader.ready_since is None


def test_of_a_slow_stream_the_picture_after_the_wanted_time_is_given_and_not_an_old_one(start: Start) -> None:
    class OnePerSecond(FakeSource):
        asked, seconds, allowed = 0, 100.0, threading.Semaphore(0)

        def grab(self) -> bool:
            self.asked += 1
            assert self.allowed.acquire(timeout=PATIENCE)
            self.seconds += 1.0
            return super().grab()

    source = OnePerSecond()
    reader = start(CameraReader(spec(), QUICK, source_opener=Opener(source), clock=lambda: source.seconds))

    def pass_seconds(seconds: int) -> float | None:
        asked = source.asked
        source.allowed.release(seconds)
        wait_for(lambda: source.asked == asked + seconds)  # it is done with the frame before
        return reader.ready_since

    wait_for(lambda: source.asked == 1)
    assert pass_seconds(1) == 101.0
    reader.take(wanted_at=105.5)
    assert pass_seconds(4) is None  # the one of 105.0 would be half a second old
    assert pass_seconds(1) == 106.0
    reader.take(wanted_at=108.1)
    assert pass_seconds(2) == 108.0  # near enough
    reader.stop()
    source.allowed.release(9)


class DecodingSlowly(FakeSource):
    """Its second picture is decoded for as long as the test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.decoding, self.decoded = threading.Event(), threading.Event()

    def retrieve(self) -> Image:
        image = super().retrieve()
        if self.retrieved == 2:
            self.decoding.set()
            assert self.decoded.wait(PATIENCE)
        return image


def test_a_picture_that_was_being_decoded_when_the_one_before_it_was_taken_is_not_kept_until_the_next_is_due(
    start: Start,
) -> None:
    source = DecodingSlowly()
    reader = start(CameraReader(spec(), QUICK, source_opener=Opener(source)))
    assert source.decoding.wait(PATIENCE)
    next_frame(reader, wanted_at=time.monotonic() + 3600)
    source.decoded.set()
    read = source.grabbed
    wait_for(lambda: source.grabbed > read + 5)
    assert reader.ready_since is None


def test_a_picture_that_takes_longer_to_decode_than_until_the_next_is_due_is_given(start: Start) -> None:
    source = DecodingSlowly()
    reader = start(CameraReader(spec(), QUICK, source_opener=Opener(source)))
    assert source.decoding.wait(PATIENCE)
    due = time.monotonic() + 0.3
    next_frame(reader, wanted_at=due)
    wait_for(lambda: time.monotonic() > due)
    source.frames = source.grabbed  # so that no later one can be given in its place
    source.decoded.set()
    assert next_frame(reader).sequence == source.grabbed


def test_a_recording_is_played_at_its_own_pace(start: Start) -> None:
    source = FakeSource(period=3600.0)
    reader = start(CameraReader(spec(), QUICK, source_opener=Opener(source)))
    assert next_frame(reader).sequence == 1
    time.sleep(0.05)
    assert source.grabbed == 1


def test_a_looped_clip_starts_again_at_its_end(start: Start, write_clip: Callable[..., Path]) -> None:
    told: list[CameraStatus] = []
    reader = start(CameraReader(spec(write_clip(frames=3, fps=200)), QUICK, on_status=told.append))
    wait_for(lambda: next_frame(reader).sequence > 9)
    assert [status.state for status in told] == [CameraState.ONLINE]


def test_a_clip_played_once_ends_offline_and_says_so(start: Start, write_clip: Callable[..., Path]) -> None:
    told: list[CameraStatus] = []
    path = write_clip(frames=3, fps=200)
    reader = start(CameraReader(spec(path, loop=False), QUICK, on_status=told.append))
    assert reader.join(PATIENCE)
    assert [status.state for status in told] == [CameraState.ONLINE, CameraState.OFFLINE]
    assert told[-1].reason == f"{path} was played to its end"
    assert next_frame(reader).sequence == 3


def test_a_lost_source_is_opened_again_and_its_states_are_told_in_order(start: Start) -> None:
    told: list[CameraStatus] = []
    lost, back = FakeSource(frames=3), FakeSource()
    opener = Opener(SourceError("no route"), lost, SourceError("no route"), back)
    reader = start(CameraReader(spec(), QUICK, on_status=told.append, source_opener=opener))
    wait_for(lambda: back.grabbed)
    wait_for(lambda: reader.state is CameraState.ONLINE and len(told) >= 5)
    assert [(status.state, status.reason) for status in told] == [
        (CameraState.OFFLINE, "no route"),
        (CameraState.ONLINE, ""),
        (CameraState.DEGRADED, "the stream ended"),
        (CameraState.DEGRADED, "no route"),
        (CameraState.ONLINE, ""),
    ]
    assert lost.closed
    assert {status.camera_id for status in told} == {"cam"}


def test_one_cameras_failure_does_not_touch_another(start: Start) -> None:
    failing = start(CameraReader(spec(camera_id="bad"), QUICK, source_opener=Opener(SourceError("gone"))))
    working = start(CameraReader(spec(camera_id="good"), QUICK, source_opener=Opener(FakeSource())))
    wait_for(lambda: failing.state is CameraState.OFFLINE)
    first = next_frame(working).sequence
    assert next_frame(working).sequence > first


def test_a_silent_source_turns_offline_although_its_thread_hangs_in_a_read(start: Start) -> None:
    hanging = threading.Event()

    class Hanging(FakeSource):
        def grab(self) -> bool:
            return super().grab() if self.grabbed < 1 else hanging.wait(PATIENCE)

    now = 100.0
    reader = start(CameraReader(spec(), QUICK, source_opener=Opener(Hanging()), clock=lambda: now))
    states = []
    wait_for(lambda: reader.state is CameraState.ONLINE)
    reader.check()
    states.append(reader.state)
    now += QUICK.offline_after
    reader.check()
    states.append(reader.state)
    reader.stop()
    hanging.set()
    assert states == [CameraState.ONLINE, CameraState.OFFLINE]


def test_a_recording_with_long_pauses_between_its_pictures_is_not_taken_for_silent(start: Start) -> None:
    now = 100.0
    slow = FakeSource(period=3600.0)
    reader = start(CameraReader(spec(), QUICK, source_opener=Opener(slow), clock=lambda: now))
    wait_for(lambda: reader.state is CameraState.ONLINE)
    now += 2 * 3600
    reader.check()
    assert reader.state is CameraState.ONLINE


def test_a_reader_stops_while_it_waits_for_the_next_attempt_or_the_next_frame(start: Start) -> None:
    patient = CameraSettings(backoff_initial=3600.0, backoff_max=3600.0)
    waiting = start(CameraReader(spec(), patient, source_opener=Opener(SourceError("gone"))))
    pacing = start(CameraReader(spec(), patient, source_opener=Opener(FakeSource(period=3600.0))))
    wait_for(lambda: waiting.state and pacing.state)
    for reader in (waiting, pacing):
        reader.stop()
        assert reader.join(PATIENCE)


def test_a_status_that_cannot_be_told_stops_no_camera(start: Start) -> None:
    def refuse(status: CameraStatus) -> None:
        raise LedgerError("the database is away")

    reader = start(CameraReader(spec(), QUICK, on_status=refuse, source_opener=Opener(FakeSource())))
    assert next_frame(reader).sequence >= 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_unforeseen_error_leaves_the_camera_offline_with_the_reason(start: Start) -> None:
    class Broken(FakeSource):
        def retrieve(self) -> Image:
            raise ZeroDivisionError("oh")

    told: list[CameraStatus] = []
    reader = start(CameraReader(spec(), QUICK, on_status=told.append, source_opener=Opener(Broken())))
    assert reader.join(PATIENCE)
    assert told[-1].state is CameraState.OFFLINE
    assert "ZeroDivisionError: oh" in told[-1].reason


class MjpegServer:
    """A camera that streams MJPEG over HTTP, the way most do."""

    def __init__(self, port: int = 0) -> None:
        ending = self._ending = threading.Event()
        encoded, data = cv2.imencode(".jpg", np.full((48, 64, 3), 77, np.uint8))
        assert encoded
        jpeg = data.tobytes()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                part = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(jpeg), jpeg)
                try:
                    while not ending.wait(0.01):
                        self.wfile.write(part)
                except OSError:
                    return

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Requests are no news."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def kill(self) -> None:
        self._ending.set()
        self._server.shutdown()
        self._server.server_close()


def test_a_stream_over_http_comes_back_after_its_server_was_away(start: Start) -> None:
    server = MjpegServer()
    told: list[CameraStatus] = []
    reader = start(CameraReader(spec(f"http://127.0.0.1:{server.port}/live"), QUICK, on_status=told.append))
    try:
        assert next_frame(reader).image.shape == (48, 64, 3)
        server.kill()
        wait_for(lambda: reader.state is CameraState.DEGRADED)
        server = MjpegServer(server.port)
        wait_for(lambda: reader.state is CameraState.ONLINE)
        sequence = next_frame(reader).sequence
        assert next_frame(reader).sequence > sequence
    finally:
        server.kill()
    states = [status.state for status in told]
    assert states[0] is CameraState.ONLINE
    assert CameraState.DEGRADED in states


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {"camera_id": "cam", **labels}) or 0.0


class Freezing(FakeSource):
    """Sends its first picture again and again until it is thawed."""

    thawed = False

    def retrieve(self) -> Image:
        picture = np.full((48, 64, 3), 200, np.uint8)
        picture[20:] = 11 + self.grabbed % 200 if self.thawed else 10
        return picture


def test_a_frozen_camera_is_offline_gives_no_more_frames_and_comes_back_by_itself(start: Start) -> None:
    told: list[CameraStatus] = []
    settings = CameraSettings(frame_interval=0.01, frozen_after=3)
    source = Freezing()
    before = metric("frames_skipped_total", reason="frozen")
    reader = start(CameraReader(spec(), settings, on_status=told.append, source_opener=Opener(source)))
    wait_for(lambda: told and told[-1].state is CameraState.OFFLINE)
    assert "frozen" in told[-1].reason
    assert metric("camera_up") == 0
    reader.take(0.0)
    wait_for(lambda: metric("frames_skipped_total", reason="frozen") > before + 3)
    assert reader.take(0.0) is None
    source.thawed = True
    wait_for(lambda: told[-1].state is CameraState.ONLINE)
    assert next_frame(reader).image[-1, -1, 0] != 10


def replay(frames: int, **more: object) -> CameraSpec:
    return CameraSpec.model_validate({"id": "cam", "source": "clip.mp4", "pace": "fast", "loop": False} | more)


def test_a_fast_recording_gives_each_frame_once_and_never_runs_ahead(start: Start) -> None:
    source = FakeSource(frames=30, period=3600.0, pause=0.0)
    told: list[CameraStatus] = []
    reader = start(CameraReader(replay(30), QUICK, on_status=told.append, source_opener=Opener(source)))
    sequences = []
    for number in range(1, 31):
        sequences.append(next_frame(reader, wanted_at=float("inf")).sequence)
        assert source.grabbed <= number + 1
    assert sequences == list(range(1, 31))
    assert reader.join(PATIENCE)
    assert [status.state for status in told] == [CameraState.ONLINE, CameraState.OFFLINE]


def test_a_fast_recording_is_not_silent_while_nobody_takes_its_frame(start: Start) -> None:
    settings = CameraSettings(offline_after=2.0)
    reader = start(CameraReader(replay(9), settings, source_opener=Opener(FakeSource(period=0.01))))
    wait_for(lambda: reader.state is CameraState.ONLINE)
    for _ in range(25):
        time.sleep(0.1)
        reader.check()
        assert reader.state is CameraState.ONLINE


def test_a_fast_reader_stops_while_nobody_takes_its_frame(start: Start) -> None:
    reader = start(CameraReader(replay(9), QUICK, source_opener=Opener(FakeSource(period=3600.0))))
    wait_for(lambda: reader.ready_since is not None)
    reader.stop()
    assert reader.join(PATIENCE)


@pytest.mark.parametrize("lost", [True, False])
def test_a_reader_that_was_stopped_inside_a_read_tells_nothing_more_and_leaves_the_metric_to_its_successor(
    start: Start, lost: bool
) -> None:
    """A camera whose source is changed has two readers for a while."""
    reading, release = threading.Event(), threading.Event()

    class Hanging(FakeSource):
        def grab(self) -> bool:
            reading.set()
            release.wait(PATIENCE)
            if lost:
                raise SourceError("the stream ended")
            return super().grab()

    told: list[CameraStatus] = []
    old = start(CameraReader(spec(), QUICK, on_status=told.append, source_opener=Opener(Hanging())))
    assert reading.wait(PATIENCE)
    old.stop()
    assert metric("camera_up") == 0
    new = start(CameraReader(spec(), QUICK, source_opener=Opener(FakeSource())))
    wait_for(lambda: new.state is CameraState.ONLINE)
    release.set()
    assert old.join(PATIENCE)
    assert told == []
    assert metric("camera_up") == 1
