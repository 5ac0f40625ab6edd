"""How often somebody may do something."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.realtime.rates import Bucket, Rates


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.floats(0, 5), min_size=1, max_size=200), st.floats(0.1, 20), st.integers(1, 20))
def test_never_more_than_the_burst_and_what_the_rate_gave_since(pauses: list[float], rate: float, burst: int) -> None:
    clock = Clock()
    bucket = Bucket(rate, burst, clock)
    taken = 0
    for pause in pauses:
        clock.now += pause
        taken += bucket.take() == 0
        assert taken <= burst + rate * clock.now + 1e-6


@given(st.floats(0.1, 20), st.integers(1, 20))
def test_after_the_wait_that_it_names_there_is_one(rate: float, burst: int) -> None:
    clock = Clock()
    bucket = Bucket(rate, burst, clock)
    assert [bucket.take() for _ in range(burst)] == [0] * burst
    wait = bucket.take()
    assert wait > 0
    clock.now += wait * 1.001
    assert bucket.take() == 0


def test_keys_do_not_share_and_the_longest_unseen_is_forgotten() -> None:
    rates = Rates(1, 1, Clock(), most=2)
    assert rates.take("a") == rates.take("b") == 0
    assert rates.take("a") > 0
    assert rates.take("c") == 0  # forgets b
    assert rates.take("a") > 0
    assert rates.take("b") == 0
