"""Cameras come, change and go while the service runs, and nobody else notices."""

from __future__ import annotations

from collections import Counter

import cv2
import numpy as np
import pytest
from prometheus_client import REGISTRY, generate_latest
from pydantic import SecretStr

from dangerous_driving.camera.frame import Image
from dangerous_driving.camera.source import Source
from dangerous_driving.camera.status import CameraState
from dangerous_driving.errors import ConfigError
from dangerous_driving.settings import CameraSettings, CameraSpec, PrivacySpec
from tests.detection.test_service import PAIR, GreyCamera, Running, cameras, metric, of, wait_for


def spec(camera_id: str, **more: object) -> CameraSpec:
    return CameraSpec(id=camera_id, source=SecretStr("fake")).model_copy(update=more)


class Opened(Counter[str]):
    """Counts how often each camera's source was opened."""

    def __call__(self, camera: CameraSpec, _settings: CameraSettings) -> Source:
        self[camera.id] += 1
        return GreyCamera()


def test_a_camera_that_is_added_gives_results() -> None:
    with Running(cameras("a")) as running:
        wait_for(lambda: of(running, "a"))
        running.service.apply([spec("a"), spec("b")])
        wait_for(lambda: len(of(running, "b")) > 2)
    assert [status.state for status in running.statuses if status.camera_id == "b"] == [CameraState.ONLINE]


def test_a_camera_that_is_removed_gives_no_more_and_says_so_and_its_series_go() -> None:
    with Running(cameras("stays", "goes")) as running:
        wait_for(lambda: of(running, "stays") and of(running, "goes"))
        running.service.apply([spec("stays")])
        wait_for(lambda: [s for s in running.statuses if s.camera_id == "goes" and s.state is CameraState.OFFLINE])
        wait_for(lambda: b'camera_up{camera_id="goes"}' not in generate_latest(REGISTRY))
        given = len(of(running, "goes"))
        before = len(of(running, "stays"))
        wait_for(lambda: len(of(running, "stays")) > before + 5)
        assert len(of(running, "goes")) == given
        assert metric("camera_up", camera_id="stays") == 1


def test_a_removed_camera_may_come_back() -> None:
    with Running(cameras("a", "b")) as running:
        wait_for(lambda: of(running, "b"))
        running.service.apply([spec("a")])
        wait_for(lambda: [s for s in running.statuses if s.reason == "the camera was removed"])
        given = len(of(running, "b"))
        running.service.apply([spec("a"), spec("b")])
        wait_for(lambda: len(of(running, "b")) > given + 2)
    times = [result.timestamp for result in of(running, "b")]
    assert times == sorted(set(times))


def test_only_a_camera_whose_source_changed_is_opened_again() -> None:
    opened = Opened()
    with Running(cameras("a", "b"), source_opener=opened) as running:
        wait_for(lambda: of(running, "a") and of(running, "b"))
        running.service.apply([spec("a", source=SecretStr("another")), spec("b", group_distance=1.0)])
        wait_for(lambda: opened["a"] == 2)
        # b has other settings from now on, on the same connection
        wait_for(lambda: any(not result.traffic_groups for result in of(running, "b")))
    assert opened["b"] == 1


def test_states_are_told_again_when_they_are_asked_for() -> None:
    with Running(cameras("a", "b")) as running:
        wait_for(lambda: {status.camera_id for status in running.statuses} == {"a", "b"})
        running.service.tell_again()
        wait_for(lambda: len(running.statuses) == 4)
        before, after = running.statuses[:2], running.statuses[2:]
        assert {(status.camera_id, status.state) for status in after} == {
            ("a", CameraState.ONLINE),
            ("b", CameraState.ONLINE),
        }
        assert max(status.at for status in before) <= min(status.at for status in after)


def test_the_interval_of_a_running_camera_can_be_changed() -> None:
    slow = CameraSettings(cameras=(spec("a", frame_interval=3600.0), spec("b")), frame_interval=0.02)
    with Running(slow) as running:
        wait_for(lambda: len(of(running, "b")) > 3)
        running.service.apply([spec("a", frame_interval=0.02), spec("b")])
        wait_for(lambda: len(of(running, "a")) > 5)


def test_an_id_that_is_there_twice_is_refused_and_nothing_changes() -> None:
    with Running(cameras("a")) as running:
        with pytest.raises(ConfigError, match="used twice: b"):
            running.service.apply([spec("a"), spec("b"), spec("b")])
        wait_for(lambda: len(of(running, "a")) > 2)
        assert not of(running, "b")


class Textured(GreyCamera):
    """A picture in which a mask shows; the frames after the first two are all the same."""

    def retrieve(self) -> Image:
        picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        picture[0, 0] = self.count % 256  # not frozen
        return picture


def test_what_leaves_the_site_is_masked_and_what_the_engine_sees_is_not() -> None:
    seen: list[Image] = []

    def look(images: list[Image]) -> bool:
        seen.extend(images)
        return False

    settings = CameraSettings(cameras=(spec("a", privacy=PrivacySpec(heads=True)),), frame_interval=0.02)
    with Running(settings, source_opener=lambda *_: Textured()) as running:
        running.engine.fails = look  # type: ignore[attr-defined]
        wait_for(lambda: len(of(running, "a")) > 2 and seen)
        result = of(running, "a")[-1]
    assert result.raw_frame_url is not None
    stored = cv2.imdecode(
        np.frombuffer(running.store.get(running.store.key(result.raw_frame_url)), np.uint8), cv2.IMREAD_COLOR
    )
    assert stored is not None
    x1, y1, x2, _ = (int(side) for side in PAIR[1].bbox)
    head = np.s_[y1 : y1 + 5, x1:x2]
    assert stored[head].std() < 0.5 * seen[0][head].std()


def test_an_unchanged_scene_is_passed_over_where_that_is_wanted() -> None:
    settings = CameraSettings(
        cameras=(spec("gated", motion_max_gap=3600.0), spec("plain")), frame_interval=0.02, frozen_after=10_000
    )
    before = metric("frames_skipped_total", camera_id="gated", reason="unchanged")
    with Running(settings, source_opener=lambda *_: Textured()) as running:
        wait_for(lambda: len(of(running, "plain")) > 5)
        wait_for(lambda: metric("frames_skipped_total", camera_id="gated", reason="unchanged") > before + 3)
    assert len(of(running, "gated")) == 1
