"""A camera's source, opened through OpenCV: video files, image folders, RTSP and HTTP(S) streams, USB devices.

OpenCV's objects and errors stop here: what it cannot open or read is a :class:`SourceError` without credentials.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import structlog
from cv2.utils import logging as cv2_logging
from numpy.typing import NDArray

from dangerous_driving.camera.frame import Image
from dangerous_driving.camera.secrets import with_secrets
from dangerous_driving.errors import ConfigError, SourceError, UnavailableError
from dangerous_driving.settings import CameraSettings, CameraSpec

log = structlog.get_logger(__name__)

# What FFmpeg and OpenCV write to standard error is no JSON, repeats with every reconnect and shows URLs with
# passwords. OpenCV reads the variable when it opens its first FFmpeg source; -8 is AV_LOG_QUIET.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
cv2_logging.setLogLevel(cv2_logging.LOG_LEVEL_SILENT)

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})

#: Of clips that state none, or one that no camera has.
ASSUMED_FPS = 25.0
PLAUSIBLE_FPS = (0.1, 240.0)

#: A recording that comes over the network and ends before so much of its length, less 1 s, was not played to its end.
WHOLE = 0.9

#: Of a picture without a colour axis (infrared cameras).
GREY_DIMENSIONS = 2

#: FFmpeg takes any text for ANSI art and plays it as a video.
_TEXT_CODEC = int.from_bytes(b"ansi", "little")


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What a source says of itself; None where it does not say, or (a live stream) has no such thing."""

    width: int  # px
    height: int  # px
    fps: float | None
    frame_count: int | None


class Source(Protocol):
    """An opened source. Used by one thread at a time."""

    @property
    def period(self) -> float | None:
        """Seconds between two frames of a recording, the pace to play it at; None when it is live and sets its own."""

    @property
    def stills(self) -> bool:
        """Whether it is made of single pictures, which may well be alike."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height in px of a source that makes its pictures itself; None where only a picture tells."""

    def grab(self) -> bool:
        """Go on to the next frame; False at the end. Blocks until there is one, at most the read time-out.

        Raises:
            SourceError: a live source is lost.
        """

    def retrieve(self) -> Image:
        """Picture of the frame grabbed last. Apart from `grab`, since converting costs and most frames are passed over.

        Raises:
            SourceError: it cannot be decoded.
        """

    def close(self) -> None:
        """Give the source free; safe to repeat."""


OpenSource = Callable[[CameraSpec, CameraSettings], Source]


def open_source(spec: CameraSpec, settings: CameraSettings) -> Source:
    """Open a camera's source. Waits for a stream at most ``camera.open_timeout`` s.

    Raises:
        SourceError: there is no such file, device or stream, it does not answer, or it is no video.
    """
    try:
        location = with_secrets(spec.source.get_secret_value(), settings.secrets_folder)
    except ConfigError as error:
        raise SourceError(str(error)) from error
    if location.isdecimal():
        return _VideoSource(spec, int(location), settings)
    if "://" in location:
        return _VideoSource(spec, location, settings)
    path = Path(location)
    try:
        if path.is_dir():
            return _PictureSource(spec, path, spec.frame_interval or settings.frame_interval)
        if not path.is_file():
            raise SourceError(f"there is no file or folder {location}")
        if path.stat().st_size == 0:
            raise SourceError(f"{location} is empty")
    except OSError as error:
        raise SourceError(f"{location} cannot be read ({error.strerror})") from error
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return _PictureSource(spec, path, spec.frame_interval or settings.frame_interval)
    # absolute: FFmpeg takes "name:rest" for a protocol
    return _VideoSource(spec, str(path.resolve()), settings)


def probe(
    spec: CameraSpec,
    settings: CameraSettings | None = None,
    *,
    setting: str = "--source",
    source_opener: OpenSource = open_source,
) -> SourceInfo:
    """Open a source, read one frame and close it again: whether a camera can be started at all.

    A source that makes its pictures itself is only opened: the first one may take it seconds, and it always has one.

    Args:
        spec: the camera.
        settings: time-outs; the defaults when left out.
        setting: what the error calls the source, as the user wrote it.
        source_opener: opens the source.

    Raises:
        ConfigError: there is no such file, or it holds no frame that can be decoded.
        UnavailableError: a stream or device does not answer.
    """
    settings = settings or CameraSettings()
    live = spec.kind == "live"
    try:
        source = source_opener(spec, settings)
        try:
            if source.size is not None:
                width, height = source.size
            elif source.grab():
                height, width = source.retrieve().shape[:2]
            else:
                raise SourceError(f"{spec.shown_source} holds no frame that can be decoded")
            return SourceInfo(width, height, *_rate_and_count(source))
        finally:
            source.close()
    except SourceError as error:
        if live:
            remedy = "check the address, the user and password in it and that the camera is on, or name a video file"
            raise UnavailableError(setting, str(error), remedy) from error
        remedy = "name a video file that plays (such as .mp4), a folder of pictures, a stream's URL or a device number"
        raise ConfigError(setting, str(error), remedy) from error


def _rate_and_count(source: Source) -> tuple[float | None, int | None]:
    if isinstance(source, _VideoSource):
        return source.fps, source.frame_count
    return (None, source.count) if isinstance(source, _PictureSource) else (None, None)


class _VideoSource:
    """What FFmpeg plays (files, RTSP over TCP, HTTP), or a USB device."""

    stills = False
    size: tuple[int, int] | None = None

    def __init__(self, spec: CameraSpec, location: str | int, settings: CameraSettings) -> None:
        self._shown = spec.shown_source
        if isinstance(location, int):
            self._capture = _opened(self._shown, location, cv2.CAP_ANY, [])
        else:
            options = [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, int(settings.open_timeout * 1000),
                cv2.CAP_PROP_READ_TIMEOUT_MSEC, int(settings.read_timeout * 1000),
                # one decoding thread per camera: with many cameras more only wait for each other
                cv2.CAP_PROP_N_THREADS, 1,
            ]  # fmt: skip
            self._capture = _opened(self._shown, location, cv2.CAP_FFMPEG, options)
            if int(self._capture.get(cv2.CAP_PROP_FOURCC)) == _TEXT_CODEC:
                self.close()
                raise SourceError(f"{self._shown} is a text, not a video")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if PLAUSIBLE_FPS[0] <= fps <= PLAUSIBLE_FPS[1] else None
        # a length is what tells a recording, wherever it comes from, from a stream
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.frame_count = int(count) if math.isfinite(count) and count > 0 and isinstance(location, str) else None
        self.period = 1 / (self.fps or ASSUMED_FPS) if self.frame_count else None
        self._remote = isinstance(location, str) and "://" in location
        self._played = 0.0  # s of it, if it is remote

    def grab(self) -> bool:
        try:
            grabbed = self._capture.grab()
        except cv2.error as error:
            raise SourceError(f"{self._shown}: reading failed ({error.err})") from error
        if not grabbed and self.period is None:
            raise SourceError(f"{self._shown}: the stream ended or sent nothing in time")
        if self._remote and self.period is not None and self.frame_count is not None:
            # by time and not by frames, whose number FFmpeg only guesses for some formats
            if grabbed:
                self._played = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            elif self._played < WHOLE * self.frame_count * self.period - 1.0:
                raise SourceError(f"{self._shown}: the transfer broke off before the end of the recording")
        return grabbed

    def retrieve(self) -> Image:
        try:
            decoded, image = self._capture.retrieve()
        except cv2.error as error:
            raise SourceError(f"{self._shown}: a frame cannot be decoded ({error.err})") from error
        if not decoded or image is None or image.size == 0:
            raise SourceError(f"{self._shown}: a frame cannot be decoded")
        return _colour(image)

    def close(self) -> None:
        self._capture.release()


def _opened(shown: str, location: str | int, backend: int, options: list[int]) -> cv2.VideoCapture:
    try:
        capture = cv2.VideoCapture(location, backend, options)
    except cv2.error as error:
        raise SourceError(f"{shown} cannot be opened ({error.err})") from error
    if not capture.isOpened():
        capture.release()
        raise SourceError(f"{shown} cannot be opened: no such device or stream, no answer, or not a video")
    assert isinstance(capture, cv2.VideoCapture)  # noqa: S101
    return capture


class _PictureSource:
    """The pictures of a folder in the order of their names (or one picture), each for one frame interval."""

    stills = True
    size: tuple[int, int] | None = None

    def __init__(self, spec: CameraSpec, path: Path, period: float) -> None:
        self._shown = spec.shown_source
        self._camera_id = spec.id
        self._paths = _pictures(path) if path.is_dir() else [path]
        if not self._paths:
            suffixes = ", ".join(sorted(PICTURE_SUFFIXES))
            raise SourceError(f"{self._shown} holds no picture ({suffixes})")
        self._next = 0
        self._image: Image | None = None
        self._any_decoded = False
        self.period: float | None = period
        self.count = len(self._paths)

    def grab(self) -> bool:
        # a picture is decoded here already: one that cannot be is passed over, which is no reason to "reconnect"
        while self._next < len(self._paths):
            path = self._paths[self._next]
            self._next += 1
            self._image = _decoded(path)
            if self._image is not None:
                self._any_decoded = True
                return True
            log.warning("picture_unreadable", camera_id=self._camera_id, path=str(path))
        if not self._any_decoded:
            raise SourceError(f"{self._shown}: none of {self.count} picture(s) can be decoded")
        return False

    def retrieve(self) -> Image:
        if self._image is None:
            raise SourceError(f"{self._shown}: no picture was read yet")
        return self._image

    def close(self) -> None:
        self._image = None


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file())


def _decoded(path: Path) -> Image | None:
    try:
        data = np.fromfile(path, dtype=np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except (OSError, cv2.error):
        return None
    return None if image is None else _colour(image)


def _colour(image: NDArray[np.generic]) -> Image:
    pixels = image.astype(np.uint8, copy=False)
    if pixels.ndim == GREY_DIMENSIONS:
        pixels = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR), dtype=np.uint8)
    return pixels
