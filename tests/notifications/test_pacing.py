"""Rate limits: nothing is dropped, and nobody gets more than he wants."""

from __future__ import annotations

from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.notifications.pacing import MOST_IN_DIGEST, Waiting, pace
from tests.alerts.conftest import NOON

WINDOW = timedelta(seconds=600)


def names(count: int, prefix: str = "n") -> list[Waiting]:
    return [Waiting(f"{prefix}{number}") for number in range(count)]


def test_what_fits_is_sent_as_it_is() -> None:
    step = pace(names(3), [], now=NOON, limit=3, window=WINDOW)
    assert step.send == ("n0", "n1", "n2")
    assert step.digest == ()


def test_of_a_burst_the_first_come_singly_and_the_rest_in_one_digest() -> None:
    step = pace(names(30), [], now=NOON, limit=10, window=WINDOW)
    assert step.send == tuple(f"n{number}" for number in range(9))
    assert step.digest == tuple(f"n{number}" for number in range(9, 30))


def test_at_the_limit_all_waits_until_a_place_comes_free() -> None:
    sent = [NOON - timedelta(seconds=age) for age in (500, 100, 50)]
    step = pace(names(5), sent, now=NOON, limit=3, window=WINDOW)
    assert (step.send, step.digest) == ((), ())
    assert step.look_again == NOON + timedelta(seconds=100)
    assert pace(names(5), sent, now=NOON + timedelta(seconds=100), limit=3, window=WINDOW).digest


def test_what_was_held_in_a_quiet_time_comes_in_one_message() -> None:
    held = [Waiting(f"h{number}", held=True) for number in range(4)]
    step = pace([*held, *names(1)], [], now=NOON, limit=10, window=WINDOW)
    assert step.send == ("n0",)
    assert step.digest == ("h0", "h1", "h2", "h3")
    assert pace(held[:1], [], now=NOON, limit=10, window=WINDOW).send == ("h0",)


def test_a_digest_that_failed_is_sent_again_as_it_is() -> None:
    step = pace([Waiting("d", digest=True), *names(4)], [], now=NOON, limit=2, window=WINDOW)
    assert step.send == ("d",)
    assert step.digest == ("n0", "n1", "n2", "n3")
    assert pace([Waiting("d", digest=True), *names(4)], [], now=NOON, limit=1, window=WINDOW).send == ("d",)


arrivals = st.lists(st.tuples(st.integers(0, 3000), st.booleans()), max_size=120)


@given(arrivals, st.integers(1, 6))
def test_everything_is_told_once_and_never_faster_than_the_limit(arriving: list[tuple[int, bool]], limit: int) -> None:
    """A receiver over an hour: messages arrive as drawn, and the pace is asked every ten seconds."""
    waiting: list[Waiting] = []
    sent: list[datetime] = []
    told: list[str] = []
    coming = sorted(arriving)
    for second in range(0, 8000, 10):
        while coming and coming[0][0] <= second:
            at, held = coming.pop(0)
            waiting.append(Waiting(f"{len(told) + len(waiting)}-{at}-{len(coming)}", held=held))
        now = NOON + timedelta(seconds=second)
        step = pace(waiting, sent, now=now, limit=limit, window=WINDOW)
        assert len(step.digest) != 1
        assert len(step.digest) <= MOST_IN_DIGEST
        told += [*step.send, *step.digest]
        sent += [now] * (len(step.send) + bool(step.digest))
        gone = {*step.send, *step.digest}
        assert len(gone) == len(step.send) + len(step.digest)
        waiting = [item for item in waiting if item.notification_id not in gone]
        assert sum(at > now - WINDOW for at in sent) <= limit
    assert waiting == []
    assert len(set(told)) == len(told) == len(arriving)
