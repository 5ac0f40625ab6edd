from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.camera.picture import Flaw
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


@pytest.mark.parametrize("silent_for", [0.5, 30.0])
def test_a_failure_makes_no_camera_better(silent_for: float) -> None:
    camera = health()
    camera.frame(1.0)
    camera.looked(Flaw.FROZEN)
    assert camera.failed(1.0 + silent_for, "the stream ended")
    assert (camera.state, camera.reason) == (CameraState.OFFLINE, "the stream ended")


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


def test_a_frozen_picture_turns_a_camera_offline_and_the_next_live_one_online() -> None:
    camera = health()
    camera.frame(1.0)
    assert camera.looked(Flaw.FROZEN)
    assert camera.state is CameraState.OFFLINE
    assert "frozen" in camera.reason
    assert not camera.frame(2.0)  # more of the same
    assert not camera.check(50.0)
    assert camera.looked(None)
    assert (camera.state, camera.reason) == (CameraState.ONLINE, "")


@pytest.mark.parametrize("flaw", [Flaw.BLACK, Flaw.COVERED])
def test_a_blind_camera_is_degraded_and_says_why(flaw: Flaw) -> None:
    camera = health()
    camera.frame(1.0)
    assert camera.looked(flaw)
    assert camera.state is CameraState.DEGRADED
    assert camera.reason
    assert not camera.frame(2.0)


def test_a_blind_camera_that_falls_silent_is_offline() -> None:
    camera = health()
    camera.frame(1.0)
    camera.looked(Flaw.BLACK)
    assert camera.check(12.0)
    assert camera.state is CameraState.OFFLINE


def test_a_lost_stream_tells_its_own_reason_whatever_it_showed_before() -> None:
    camera = health()
    camera.frame(1.0)
    camera.looked(Flaw.BLACK)
    assert camera.failed(2.0, "the stream ended")
    assert camera.reason == "the stream ended"
    assert camera.frame(3.0)
    assert camera.state is CameraState.ONLINE


events = st.lists(
    st.one_of(
        st.just(("frame", None)),
        st.tuples(st.just("looked"), st.sampled_from([None, *Flaw])),
        st.tuples(st.just("failed"), st.sampled_from(["gone", "refused"])),
        st.just(("check", None)),
    ),
    max_size=60,
)


@given(events, st.floats(0.1, 6))
def test_every_change_is_told_once_and_a_state_other_than_online_has_a_reason(
    history: list[tuple[str, str | Flaw | None]], step: float
) -> None:
    camera = health()
    told: tuple[CameraState | None, str] = (None, "")
    worse = [None, CameraState.ONLINE, CameraState.DEGRADED, CameraState.OFFLINE]
    for number, (event, value) in enumerate(history, 1):
        now = number * step
        if event == "frame":
            changed = camera.frame(now)
        elif event == "looked":
            changed = camera.looked(value if isinstance(value, Flaw) else None)
        elif event == "failed":
            changed = camera.failed(now, str(value))
        else:
            changed = camera.check(now)
        assert changed == ((camera.state, camera.reason) != told)
        if event in {"failed", "check"}:  # only a picture makes a camera better
            assert worse.index(camera.state) >= worse.index(told[0])
        told = (camera.state, camera.reason)
        if camera.state is not None:
            assert bool(camera.reason) == (camera.state is not CameraState.ONLINE)
        silent = camera.last_frame_at is None or now - camera.last_frame_at >= camera.offline_after
        if event == "check" and silent and now >= camera.offline_after:
            assert camera.state is CameraState.OFFLINE
