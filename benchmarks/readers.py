"""What reading cameras costs, apart from detection: cores by number of cameras, picture size, rate and key-frame distance.

    .venv/bin/python benchmarks/readers.py [--quick]

Clips of simulated scenes with a sensor's noise are encoded as H.264 (3 Mbit/s at 1280 x 720) by GStreamer's openh264enc.
Part one runs `CameraReader`s in one process at the clips' own pace, with somebody who takes a frame of each every 1.8 s, as
detection does. Part two reads one clip without pace in three ways, each in a process of its own:

- ``all frames``: every frame is decoded, as `CameraReader` does it;
- ``key frames``: FFmpeg drops all others undecoded (``OPENCV_FFMPEG_CAPTURE_OPTIONS="avdiscard;nonkey"``), for live streams;
- ``on demand``: packets are kept since the last key frame and decoded when a frame is wanted (PyAV, where it is installed).

Files stand in for streams: network and depacketising are not in the figures. ``on demand`` is measured to show why it is
not built in: it saves less than half with key frames 1 to 2 s apart, for a second FFmpeg of 100 MB in the process.
A site whose live cameras ask for too much sets, in the environment of `dangerous-driving detect`,
``OPENCV_FFMPEG_CAPTURE_OPTIONS="rtsp_transport;tcp|avdiscard;nonkey"``: frames are then those of the key frames, so cameras
should send one each second. Files would play too fast with it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import structlog
from pydantic import SecretStr

from benchmarks.figures import Figure, tell
from dangerous_driving.camera.reader import CameraReader
from dangerous_driving.settings import CameraSettings, CameraSpec
from dangerous_driving.simulation.scenes import Light, Scenario, Scene, SceneSpec, Weather

INTERVAL = 1.8  # s between two frames that are wanted
CLIP_SECONDS = 8
PYTHON = "/usr/bin/python3"  # GStreamer's bindings are Debian's

ENCODER = """
import sys, gi
gi.require_version("Gst", "1.0")
from gi.repository import Gst
Gst.init(None)
width, height, fps, gop, bitrate, path = sys.argv[1:]
pipeline = Gst.parse_launch(
    f"fdsrc fd=0 blocksize={int(width) * int(height) * 3} ! rawvideoparse format=bgr width={width} height={height}"
    f" framerate={fps}/1 ! videoconvert ! openh264enc gop-size={gop} bitrate={bitrate} complexity=low ! h264parse"
    f" ! mp4mux ! filesink location={path}"
)
pipeline.set_state(Gst.State.PLAYING)
message = pipeline.get_bus().timed_pop_filtered(Gst.CLOCK_TIME_NONE, Gst.MessageType.EOS | Gst.MessageType.ERROR)
pipeline.set_state(Gst.State.NULL)
sys.exit(str(message.parse_error()) if message.type == Gst.MessageType.ERROR else 0)
"""


@dataclass(frozen=True)
class Clip:
    """A stream that cameras send. ``gop``: s between two key frames."""

    width: int
    height: int
    fps: int
    gop: float

    def __str__(self) -> str:
        return f"{self.width} x {self.height}, {self.fps}/s, key frame every {self.gop:g} s"


def encoded(clip: Clip, folder: Path) -> Path:
    """The clip as a file."""
    path = folder / f"{clip.width}-{clip.fps}-{clip.gop}.mp4"
    bitrate = int(3_000_000 * clip.width * clip.height * clip.fps / (1280 * 720 * 25))
    arguments = [clip.width, clip.height, clip.fps, int(clip.gop * clip.fps), bitrate, path]
    scene = Scene(SceneSpec(Scenario.FREE_FLOW, Light.DAY, Weather.DRY, seed=2, width=clip.width, height=clip.height))
    random = np.random.default_rng(0)
    noise = [random.normal(0, 3, (clip.height, clip.width, 3)).astype(np.int16) for _ in range(4)]
    encoder = subprocess.Popen(
        [PYTHON, "-c", ENCODER, *map(str, arguments)], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert encoder.stdin is not None
    for number in range(CLIP_SECONDS * clip.fps):
        picture = scene.frame(number / clip.fps).image + noise[number % 4]
        encoder.stdin.write(np.clip(picture, 0, 255).astype(np.uint8).tobytes())
    encoder.stdin.close()
    if encoder.wait():
        raise SystemExit("GStreamer could not encode the clip; for what it needs see system-packages in the Makefile")
    return path


def read_with_readers(path: Path, cameras: int, seconds: float) -> tuple[float, float]:
    """Cores used by so many `CameraReader`s, and the share of the frames that they could read."""
    settings = CameraSettings(frame_interval=INTERVAL)
    readers = [
        CameraReader(CameraSpec(id=f"cam-{number}", source=SecretStr(str(path))), settings) for number in range(cameras)
    ]
    for reader in readers:
        reader.start()
    while any(reader.ready_since is None for reader in readers):
        time.sleep(0.01)
    due = [time.monotonic() + INTERVAL * number / cameras for number in range(cameras)]
    first, last = [0] * cameras, [0] * cameras
    began, cpu = time.monotonic(), time.process_time()
    while time.monotonic() - began < seconds:
        for number, reader in enumerate(readers):
            if time.monotonic() >= due[number]:
                due[number] += INTERVAL
                frame = reader.take(due[number])
                if frame is not None:
                    first[number] = first[number] or frame.sequence
                    last[number] = frame.sequence
        time.sleep(0.01)
    took, used = time.monotonic() - began, time.process_time() - cpu
    for reader in readers:
        reader.stop()
    for reader in readers:
        reader.join(10)
    capture = cv2.VideoCapture(str(path))
    expected = capture.get(cv2.CAP_PROP_FPS) * (took - INTERVAL) * cameras
    return used / took, min(1.0, sum(late - early for early, late in zip(first, last, strict=True)) / expected)


def read_plainly(path: Path, way: str) -> float:
    """CPU seconds for one second of the stream, in this process."""
    cv2.setNumThreads(1)
    wanted = every = 0.0
    if way == "on demand":
        return _on_demand(path)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    fps, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    cpu = time.process_time()
    while capture.grab():
        every += 1 / fps
        if every >= wanted or way == "key frames":
            capture.retrieve()
            wanted += INTERVAL
    return (time.process_time() - cpu) / (count / fps)


def _on_demand(path: Path) -> float:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoder = stream.codec_context
        decoder.thread_count = 1
        fps = float(stream.average_rate)
        kept: list[av.Packet] = []
        read, wanted = 0, 0.7  # s: neither with the key frames nor against them
        cpu = time.process_time()
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            read += 1
            if packet.is_keyframe:
                kept = []
            kept.append(packet)
            if read / fps >= wanted:
                wanted += INTERVAL
                decoder.flush_buffers()
                frames = [frame for one in kept for frame in decoder.decode(one)]
                frames[-1].to_ndarray(format="bgr24")
        return (time.process_time() - cpu) / (read / fps)


def in_a_process(path: Path, way: str) -> float | None:
    """`read_plainly` in a process of its own; None where PyAV is not installed."""
    if way == "on demand" and importlib.util.find_spec("av") is None:
        return None
    environment = os.environ | ({"OPENCV_FFMPEG_CAPTURE_OPTIONS": "avdiscard;nonkey"} if way == "key frames" else {})
    command = [sys.executable, "-m", "benchmarks.readers", "--one", way, str(path)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(json.loads(answer.stdout))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes, shorter")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(read_plainly(Path(arguments.one[1]), arguments.one[0])))
        return
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    usual = Clip(1280, 720, 25, 1.0)
    clips = [usual, Clip(1280, 720, 25, 2.0), Clip(640, 360, 25, 1.0), Clip(640, 360, 10, 1.0)]
    if not arguments.quick:
        clips.append(Clip(1920, 1080, 25, 2.0))
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for clip in clips:
            print(f"[{time.strftime('%H:%M:%S')}] {clip}", flush=True)
            path = encoded(clip, Path(folder))
            baseline = in_a_process(path, "all frames") or 0.0
            figures.append(
                Figure(
                    f"{clip}: all frames", baseline, "cores/camera", note=f"{1000 * baseline / clip.fps:.2f} ms/frame"
                )
            )
            for way in ("key frames", "on demand"):
                cost = in_a_process(path, way)
                ratio = None if cost is None else cost / baseline
                figures.append(
                    Figure(
                        f"{clip}: {way}", cost, "cores/camera", baseline, ratio, note="" if cost else "not installed"
                    )
                )
            counts = (1, 10, 50) if clip in {usual, Clip(640, 360, 10, 1.0)} else (10,)
            for cameras in counts:
                cores, share = read_with_readers(path, cameras, 6.0 if arguments.quick else 12.0)
                figures.append(
                    Figure(f"{clip}: {cameras} readers", cores, "cores", note=f"read {share:.0%} of the frames")
                )
    tell("readers", figures)


if __name__ == "__main__":
    main()
