"""The drift watch's arithmetic: distances, expectations by hour and weekday, and when it speaks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.evaluation.drift import (
    Baseline,
    Bounds,
    Profile,
    Score,
    State,
    Variable,
    jensen_shannon_divergence,
    population_stability_index,
    score_day,
    told,
)
from dangerous_driving.evaluation.drift_watch import CameraDay, repeated

MONDAY = datetime(2025, 9, 1, tzinfo=UTC)
CLASSES = ("person", "bicycle", "car", "motorcycle", "bus", "truck")
Change = Callable[[dict[str, float]], dict[str, float]]

histograms = st.dictionaries(st.sampled_from(CLASSES), st.integers(0, 10_000), min_size=1).filter(
    lambda counts: sum(counts.values()) > 0
)


@given(histograms, histograms)
def test_distances_are_symmetric_not_negative_and_bounded(first: dict[str, int], second: dict[str, int]) -> None:
    there, back = (jensen_shannon_divergence(one, other) for one, other in ((first, second), (second, first)))
    assert there == pytest.approx(back)
    assert 0 <= there <= 1
    scaled = {bin_: count * 7 for bin_, count in first.items()}
    assert jensen_shannon_divergence(first, scaled) == pytest.approx(0, abs=1e-12)
    assert population_stability_index(first, second) >= 0
    assert population_stability_index(first, second) == pytest.approx(population_stability_index(second, first))
    assert population_stability_index(first, first) == 0


def test_distances_are_those_of_the_formulas() -> None:
    # the prior of half a count vanishes beside a hundred million
    expected, actual = {"a": 6e7, "b": 4e7}, {"a": 5e7, "b": 5e7}
    by_hand = (0.5 - 0.6) * log(0.5 / 0.6) + (0.5 - 0.4) * log(0.5 / 0.4)
    assert population_stability_index(expected, actual) == pytest.approx(by_hand, rel=1e-6)
    assert jensen_shannon_divergence({"a": 3}, {"b": 9}) == 1
    # of (1/2, 1/2) and (1, 0): 1 - 3/4 log2(3) + 1/2
    assert jensen_shannon_divergence({"a": 1, "b": 1}, {"a": 5}) == pytest.approx(1.5 - 0.75 * np.log2(3))


def traffic(
    *, days: int = 29, seed: int = 0, change: Change | None = None, hours: range = range(24), start: datetime = MONDAY
) -> list[Profile]:
    """A junction with rush hours, trucks by day, cyclists in the morning, strollers at weekends; the last day changed."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(days):
        for of_day in hours:
            hour = start + timedelta(days=number, hours=of_day)
            weekend = hour.weekday() >= 5
            shares = {"person": 0.1, "bicycle": 0.04, "car": 0.7, "motorcycle": 0.04, "bus": 0.02, "truck": 0.1}
            shares["truck"] *= 0.2 if weekend else 2.5 if 9 <= of_day <= 15 else 0.5
            shares["person"] *= 4 if weekend and 10 <= of_day <= 20 else 1
            shares["bicycle"] *= 3 if of_day in {7, 8} else 1
            if change is not None and number == days - 1:
                shares = change(shares)
            chances = np.array(list(shares.values())) / sum(shares.values())
            users = random.multinomial(random.poisson(30 if weekend else 60), chances)
            # one road user is in several frames
            seen = [int(random.poisson(6, count).sum()) for count in users]
            found.append(Profile(hour, dict(zip(CLASSES, seen, strict=True)), "yolo11n"))
    return found


def score(profiles: list[Profile], bounds: Bounds = Bounds()) -> Score:  # noqa: B008  # frozen
    return score_day(Variable.CLASS, profiles[-1].hour.date(), profiles, bounds)


@pytest.mark.parametrize("last_day", range(7))
def test_rush_hours_and_weekends_are_no_drift(last_day: int) -> None:
    found = score(traffic(days=28 + last_day, seed=last_day))
    assert (found.state, found.baseline_days) == (State.STABLE, 27 + last_day)
    assert found.psi is not None
    assert found.psi < 0.1


def test_a_sunday_held_against_all_days_would_look_like_one() -> None:
    profiles = traffic(days=28)  # ends on a Sunday
    sunday = profiles[-1].hour.date()
    today = {name: sum(one.counts[name] for one in profiles if one.hour.date() == sunday) for name in CLASSES}
    before = {name: sum(one.counts[name] for one in profiles if one.hour.date() < sunday) for name in CLASSES}
    assert population_stability_index(before, today) > 0.1
    assert (score(profiles).psi or 0) < 0.05


def test_a_camera_that_was_away_for_half_of_the_day_is_judged_by_the_other_half() -> None:
    whole = traffic()
    last = whole[-1].hour.date()
    nights = [one for one in whole if one.hour.date() < last or one.hour.hour < 6]
    assert score(nights, Bounds(counts=100)).state is State.STABLE


def trucks_for_cars(shares: dict[str, float]) -> dict[str, float]:
    return shares | {"car": shares["car"] * 0.5, "truck": shares["truck"] + shares["car"] * 0.5}


def test_a_changed_mix_is_a_drift_that_names_what_has_changed() -> None:
    found = score(traffic(change=trucks_for_cars))
    assert found.state is State.DRIFTED
    assert {change.bin for change in found.changes[:2]} == {"truck", "car"}
    truck = next(change for change in found.changes if change.bin == "truck")
    assert truck.actual > 2 * truck.expected
    assert "the mix of classes has changed (PSI" in told(found)
    assert "truck" in told(found)
    assert found.psi is not None
    assert found.jensen_shannon is not None
    assert 0 < found.jensen_shannon < found.psi


def test_a_camera_that_is_always_restless_is_not_told_for_what_is_usual_there() -> None:
    # a market street whose mix jumps from day to day
    random = np.random.default_rng(1)
    profiles = [
        Profile(MONDAY + timedelta(days=day, hours=hour), {"person": 400 if busy else 40, "car": 100}, "m")
        for day, busy in enumerate(random.random(35) < 0.5)
        for hour in range(8, 18)
    ]
    found = score(profiles)
    assert found.psi is not None
    assert found.usual is not None
    assert found.usual > 0.25
    assert found.state is State.STABLE


def test_a_class_that_is_new_is_told_and_the_noise_of_rare_ones_is_not() -> None:
    before = [
        Profile(MONDAY + timedelta(days=day, hours=8), {"car": 5000, "bus": 100, "bicycle": day % 2})
        for day in range(9)
    ]
    now = MONDAY + timedelta(days=9, hours=8)
    found = score([*before, Profile(now, {"car": 480, "bus": 15, "motorcycle": 1, "bicycle": 1})])
    assert found.state is State.STABLE
    assert found.psi == pytest.approx(0.012, abs=0.01)
    found = score([*before, Profile(now, {"car": 480, "bus": 15, "motorcycle": 240})])
    assert found.state is State.DRIFTED
    assert found.changes[0].bin == "rarer ones"


def test_too_little_of_the_day_or_too_few_days_say_nothing() -> None:
    assert score(traffic(days=5)).state is State.TOO_LITTLE  # four days before it
    assert score(traffic(days=6)).state is not State.TOO_LITTLE
    few = traffic()
    last = few[-1].hour.date()
    few = [one for one in few if one.hour.date() < last] + [Profile(few[-1].hour, {"car": 199}, "m")]
    found = score(few)
    assert (found.state, found.psi, found.count) == (State.TOO_LITTLE, None, 199)
    assert score_day(Variable.CLASS, date(2025, 9, 1), [], Bounds()).state is State.TOO_LITTLE


def test_what_comes_after_the_day_does_not_matter() -> None:
    profiles = traffic(days=35)
    day = (MONDAY + timedelta(days=28)).date()
    assert score_day(Variable.CLASS, day, profiles, Bounds()) == score(traffic(days=29))


def test_other_weights_are_named_beside_the_drift() -> None:
    profiles = traffic(change=trucks_for_cars)
    last = profiles[-1].hour.date()
    changed = [Profile(p.hour, p.counts, "yolo12s" if p.hour.date() == last else p.model) for p in profiles]
    found = score(changed)
    assert (found.model, found.model_changed) == ("yolo12s", True)
    assert "the detector's weights changed, too (yolo12s)" in told(found)
    assert not score(profiles).model_changed


def test_an_hour_that_was_seldom_seen_is_expected_to_be_like_its_wider_ranges() -> None:
    past = [Profile(MONDAY + timedelta(days=day, hours=8), {"car": 90, "bus": 10}) for day in range(5)]
    past.append(Profile(MONDAY + timedelta(hours=3), {"bus": 10}))  # too little to stand for 3 o'clock
    expected = Baseline(past).expected([Profile(MONDAY + timedelta(days=7, hours=3), {"car": 10})])
    assert expected["car"] / sum(expected.values()) == pytest.approx(450 / 510)


def test_a_day_is_taken_out_of_the_baseline_that_judges_it() -> None:
    past = traffic(days=6)
    day = [one for one in past if one.hour.date() == MONDAY.date()]
    rest = [one for one in past if one.hour.date() != MONDAY.date()]
    assert Baseline(past).without(day).expected(day) == Baseline(rest).expected(day)


def test_a_moderate_change_that_stays_is_told() -> None:
    moderate = Score(Variable.CLASS, State.MODERATE, 0.15, 0.02, 0.05, 900, 9000, 20)
    assert repeated(moderate, 1, 3).state is State.MODERATE
    assert repeated(moderate, 2, 3).state is State.DRIFTED
    stable = Score(Variable.CLASS, State.STABLE, 0.05, 0.01, 0.05, 900, 9000, 20)
    assert repeated(stable, 5, 3).state is State.STABLE


def test_a_camera_is_as_restless_as_its_worst_variable() -> None:
    calm = Score(Variable.CLASS, State.STABLE, 0.05, 0.01, 0.05, 900, 9000, 20)
    silent = Score(Variable.GROUP_SIZE, State.TOO_LITTLE, None, None, None, 9, 90, 2)
    loud = Score(Variable.ROAD_USERS, State.DRIFTED, 0.9, 0.2, 0.05, 900, 9000, 20)
    assert CameraDay("a", MONDAY.date(), (silent, calm)).state is State.STABLE
    assert CameraDay("a", MONDAY.date(), (silent, loud, calm)).state is State.DRIFTED
    assert CameraDay("a", MONDAY.date(), (silent,)).state is State.TOO_LITTLE
    assert CameraDay("a", MONDAY.date(), (calm,)).message == ""
    assert "road users" in CameraDay("a", MONDAY.date(), (calm, loud)).message
