from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.camera.status import Backoff, CameraHealth, CameraState


def health(**changes: float) -> CameraHealth:
    return CameraHealth(offline_after=changes.pop("offline_after", 10.0), started_at=0.0)


def test_the_first_frame_turns_a_camera_online_and_further_ones_change_nothing() -> None:
    camera = health()
    assert (camera.state, camera.reason) == (None, "")
    assert camera.frame(1.0)
    assert camera.state is CameraState.ONLINE
    assert not camera.frame(2.0)


def test_a_source_that_never_gave_a_frame_is_offline_at_its_first_failure() -> None:
    camera = health()
    assert camera.failed(0.1, "connection refused")
    assert (camera.state, camera.reason) == (CameraState.OFFLINE, "connection refused")


def test_a_lost_source_is_degraded_until_it_was_away_for_long() -> None:
    camera = health()
    camera.frame(1.0)
    assert camera.failed(2.0, "the stream ended")
    assert camera.state is CameraState.DEGRADED
    assert not camera.failed(3.0, "the stream ended")
    assert not camera.check(10.9)
    assert camera.check(11.0)
    assert (camera.state, camera.reason) == (CameraState.OFFLINE, "the stream ended")
    assert not camera.check(12.0)
    assert camera.frame(13.0)
    assert (camera.state, camera.reason) == (CameraState.ONLINE, "")


def test_silence_without_any_failure_turns_a_camera_offline() -> None:
    camera = health()
    camera.frame(1.0)
    assert camera.check(11.0)
    assert (camera.state, camera.reason) == (CameraState.OFFLINE, "no frame for 10 s")


def test_a_camera_that_says_nothing_from_the_start_turns_offline() -> None:
    camera = health()
    assert not camera.check(9.9)
    assert camera.check(10.0)
    assert camera.state is CameraState.OFFLINE


def test_another_reason_is_a_change() -> None:
    camera = health()
    camera.failed(1.0, "no route")
    assert not camera.failed(2.0, "no route")
    assert camera.failed(3.0, "wrong password")


def test_what_was_played_to_its_end_stays_offline_with_that_reason() -> None:
    camera = health()
    camera.frame(1.0)
    assert camera.ended("played to its end")
    assert not camera.check(100.0)
    assert camera.reason == "played to its end"


@given(st.floats(0.01, 10), st.floats(1, 60), st.text(min_size=1, max_size=8))
def test_waits_double_up_to_the_cap_and_are_spread_below_it(initial: float, factor: float, camera_id: str) -> None:
    maximum = initial * factor
    backoff = Backoff(initial, maximum, camera_id)
    delays = [backoff.next_delay() for _ in range(80)]
    plain = [min(maximum, initial * 2.0**attempt) for attempt in range(80)]
    assert all(0.75 * most <= delay <= most for delay, most in zip(delays, plain, strict=True))
    assert delays == sorted(delays)
    backoff.reset()
    assert backoff.next_delay() == delays[0]


def test_cameras_do_not_knock_in_step() -> None:
    delays = {Backoff(1.0, 30.0, f"cam-{number}").next_delay() for number in range(20)}
    assert len(delays) > 15
