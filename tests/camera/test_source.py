from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import SecretStr

from dangerous_driving.camera.source import open_source, probe
from dangerous_driving.errors import ConfigError, SourceError, UnavailableError
from dangerous_driving.settings import CameraSettings, CameraSpec

SETTINGS = CameraSettings(open_timeout=0.3, read_timeout=0.3)


def camera(source: object) -> CameraSpec:
    return CameraSpec(id="cam", source=SecretStr(str(source)))


def picture(path: Path, value: int, size: tuple[int, int] = (40, 30)) -> None:
    assert cv2.imwrite(str(path), np.full((size[1], size[0], 3), value, np.uint8))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi"])
def test_a_clip_tells_its_size_rate_and_length(write_clip: Callable[..., Path], name: str) -> None:
    info = probe(camera(write_clip(name, frames=5, fps=20)))
    assert (info.width, info.height, info.fps, info.frame_count) == (64, 48, 20.0, 5)


def test_a_clip_is_read_frame_by_frame_to_its_end_at_its_own_pace(write_clip: Callable[..., Path]) -> None:
    source = open_source(camera(write_clip(frames=5, fps=20)), SETTINGS)
    means = []
    while source.grab():
        image = source.retrieve()
        assert image.shape == (48, 64, 3)
        assert image.dtype == np.uint8
        means.append(round(float(image.mean()) / 10))
    assert means == [0, 1, 2, 3, 4]
    assert source.period == pytest.approx(1 / 20)
    source.close()
    source.close()


def test_a_file_whose_name_looks_like_a_protocol_is_a_file(
    write_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_clip("cam:1.mp4")
    monkeypatch.chdir(path.parent)
    assert probe(camera("cam:1.mp4")).frame_count == 5


def no_such_file(path: Path) -> None:
    """Leaves it missing."""


def empty_file(path: Path) -> None:
    path.touch()


def text(path: Path) -> None:
    path.write_text("this is no video\n" * 200)


def noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(1).bytes(50_000))


def empty_folder(path: Path) -> None:
    path.mkdir()


def folder_of_corrupt_pictures(path: Path) -> None:
    path.mkdir()
    (path / "a.jpg").write_bytes(b"\xff\xd8\xff no jpeg")
    (path / "b.png").touch()


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("missing.mp4", no_such_file),
        ("empty.mp4", empty_file),
        ("text.mp4", text),
        ("text.txt", text),
        ("noise.mp4", noise),
        ("noise.jpg", noise),
        ("folder", empty_folder),
        ("folder", folder_of_corrupt_pictures),
    ],
)
def test_a_source_that_cannot_be_played_is_named_with_a_remedy_and_without_noise(
    tmp_path: Path, name: str, make: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / name)
    with pytest.raises(ConfigError, match=r"^--source: .*; name a video file") as raised:
        probe(camera(tmp_path / name))
    assert str(tmp_path / name) in raised.value.problem
    assert capfd.readouterr().err == ""


def test_a_truncated_clip_is_refused(write_clip: Callable[..., Path]) -> None:
    path = write_clip(frames=20)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ConfigError, match=r"clip\.mp4"):
        probe(camera(path))


def test_the_setting_is_named_as_the_caller_says(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^camera.cameras\.0\.source: "):
        probe(camera(tmp_path / "missing.mp4"), setting="camera.cameras.0.source")


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_an_unreachable_stream_is_unavailable_and_its_password_stays_secret(scheme: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port, every connection is refused
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=address) as raised:
            probe(camera(f"{scheme}://admin:hunter2@{address}/live?token=hunter3"), SETTINGS)
    assert "hunter" not in str(raised.value)
    assert "admin" not in str(raised.value)


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_server_that_says_nothing_is_given_up_after_the_open_timeout(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UnavailableError):
        probe(camera(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/live"), SETTINGS)


def test_a_usb_device_that_is_not_there_is_unavailable(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnavailableError, match=r"^--source: 97 "):
        probe(camera("97"), SETTINGS)
    assert capfd.readouterr().err == ""


def test_a_folder_is_played_in_the_order_of_names_and_passes_over_what_is_no_picture(tmp_path: Path) -> None:
    picture(tmp_path / "b.png", 20)
    picture(tmp_path / "a.png", 10)
    (tmp_path / "aa.jpg").write_bytes(b"corrupt")
    (tmp_path / "notes.txt").write_text("not a picture")
    picture(tmp_path / "c.png", 30, size=(1, 1))
    spec = CameraSpec(id="cam", source=SecretStr(str(tmp_path)), frame_interval=0.7)
    source = open_source(spec, SETTINGS)
    seen = []
    while source.grab():
        seen.append((int(source.retrieve().mean()), source.retrieve().shape))
    assert seen == [(10, (30, 40, 3)), (20, (30, 40, 3)), (30, (1, 1, 3))]
    assert source.period == 0.7
    info = probe(spec)
    assert (info.width, info.height, info.fps, info.frame_count) == (40, 30, None, 4)


def test_a_picture_of_a_hundred_megapixels_is_read_and_one_of_billions_is_passed_over(tmp_path: Path) -> None:
    assert cv2.imwrite(
        str(tmp_path / "a.png"), np.full((10_000, 10_000), 9, np.uint8), [cv2.IMWRITE_PNG_COMPRESSION, 1]
    )
    # the header of a bitmap that claims 60,000 x 60,000 pixels
    bitmap = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    (tmp_path / "b.bmp").write_bytes(bitmap)
    picture(tmp_path / "c.png", 30)
    source = open_source(camera(tmp_path), SETTINGS)
    shapes = []
    while source.grab():
        shapes.append(source.retrieve().shape)
    assert shapes == [(10_000, 10_000, 3), (30, 40, 3)]


def test_a_clip_with_corrupt_frames_goes_on_after_them(write_clip: Callable[..., Path]) -> None:
    path = write_clip("clip.avi", frames=24, size=(320, 240))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = np.random.default_rng(3).bytes(300)
    path.write_bytes(data)
    source = open_source(camera(path), SETTINGS)
    values = []
    while source.grab():
        values.append(round(float(source.retrieve().mean()) / 10))
    assert values[:6] == list(range(6))
    assert values[-5:] == list(range(19, 24))


def test_one_picture_is_a_source(tmp_path: Path) -> None:
    picture(tmp_path / "only.png", 10)
    assert probe(camera(tmp_path / "only.png")).frame_count == 1


def test_a_grey_picture_comes_in_three_channels(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((30, 40), 99, np.uint8))
    source = open_source(camera(tmp_path), SETTINGS)
    assert source.grab()
    assert source.retrieve().shape == (30, 40, 3)


def test_a_picture_that_was_never_read_is_an_error(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 10)
    with pytest.raises(SourceError):
        open_source(camera(tmp_path), SETTINGS).retrieve()


def test_a_real_clip_tells_what_its_source_says(shared: Path) -> None:
    info = probe(camera(shared / "samples/clips/junction_cars_cyclist.mp4"))
    assert (info.width, info.height, info.fps, info.frame_count) == (800, 600, 20.0, 60)
