"""How often the drift watch speaks when nothing has changed, and how often it is silent when something has.

    .venv/bin/python -m benchmarks.drift [--quick]

Simulated hours of one camera (said so: no pictures, only counts): rush hours, trucks by day, cyclists in the morning,
strollers at weekends, days that differ from each other, and road users that are in several frames each, so that counts
are worth less than they look. Each trial is 28 days before the day that is judged. Beside it, the same index without
regard to hour and weekday: today's counts against all that the weeks before had.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
from rich.progress import track

from benchmarks.figures import Figure, tell
from dangerous_driving.evaluation.drift import (
    Bounds,
    Profile,
    State,
    Variable,
    population_stability_index,
    score_day,
)

CLASSES = ("person", "bicycle", "car", "motorcycle", "bus", "truck")
START = datetime(2025, 9, 1, tzinfo=UTC)
Shares = np.ndarray
#: What happens to a camera on the day: shares of the classes before and after.
CHANGES: dict[str, Callable[[Shares], Shares]] = {
    "half of the cars are taken for trucks": lambda mix: mix + np.array([0, 0, -0.5, 0, 0, 0.5]) * mix[2],
    "the camera was turned to the pavement": lambda mix: mix * np.array([12, 4, 0.3, 0.3, 0.3, 0.3]),
    "persons are found no more": lambda mix: mix * np.array([0.02, 1, 1, 1, 1, 1]),
    "a third of the cars are missed": lambda mix: mix * np.array([1, 1, 0.67, 1, 1, 1]),
}


def hours(random: np.random.Generator, change: Callable[[Shares], Shares] | None) -> list[Profile]:
    """Four weeks of a camera and the day after them."""
    own = random.dirichlet([6, 2, 20, 2, 1.5, 5])
    busy = float(random.uniform(10, 80))
    first = START + timedelta(days=int(random.integers(0, 7)))
    found = []
    for day in range(29):
        restless = np.exp(random.normal(0, 0.1, len(CLASSES)))
        for of_day in range(24):
            hour = first + timedelta(days=day, hours=of_day)
            weekend = hour.weekday() >= 5
            mix = own * restless
            mix[5] *= 0.4 if weekend else 1.6 if 9 <= of_day <= 15 else 0.6
            mix[0] *= 2.5 if weekend and 10 <= of_day <= 20 else 1
            mix[1] *= 2 if of_day in {7, 8} else 1
            if change is not None and day == 28:
                mix = change(mix)
            rush = 1 + 2 * np.exp(-(((of_day - 8) / 2) ** 2)) + 2 * np.exp(-(((of_day - 17) / 2) ** 2))
            volume = busy * (0.2 if of_day < 5 else 1.2 if weekend else rush)
            users = random.poisson(volume * mix / own.sum())
            seen = [int(random.poisson(6, count).sum()) for count in users]
            found.append(Profile(hour, dict(zip(CLASSES, seen, strict=True)), "weights"))
    return found


def plain(profiles: list[Profile]) -> float:
    """The index of the day against all days before, whatever their hours."""
    day = profiles[-1].hour.date()
    sums: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for profile in profiles:
        into = sums[profile.hour.date() == day]
        for name, count in profile.counts.items():
            into[name] = into.get(name, 0) + count
    return population_stability_index(*sums)


def main() -> None:
    """Run the trials and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the trials")
    trials = 30 if parser.parse_args().quick else 200
    random = np.random.default_rng(1)
    bounds = Bounds()
    figures = []
    for name, change in {"nothing has changed": None, **CHANGES}.items():
        states = dict.fromkeys(State, 0)
        without_hours = 0
        for _ in track(range(trials), description=name):
            profiles = hours(random, change)
            states[score_day(Variable.CLASS, profiles[-1].hour.date(), profiles, bounds).state] += 1
            without_hours += plain(profiles) >= bounds.moderate
        noticed = states[State.MODERATE] + states[State.DRIFTED]
        calm = change is None
        figures.append(
            Figure(
                f"{name}: moderate or drifted",
                noticed / trials,
                "of the days",
                without_hours / trials,
                target="< 0.01" if calm else "",
                met=noticed / trials < 0.01 if calm else None,
                note=f"  told at once: {states[State.DRIFTED] / trials:.2f}; baseline: without hour and weekday",
            )
        )
    tell("drift", figures)


if __name__ == "__main__":
    main()
