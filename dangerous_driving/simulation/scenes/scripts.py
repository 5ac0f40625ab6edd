"""What happens in each scenario, and the ordinary traffic around it (pure)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dangerous_driving.simulation.scenes.road import FAR_END, LENGTH, NEAR_END, Road
from dangerous_driving.simulation.scenes.spec import Scenario
from dangerous_driving.simulation.scenes.traffic import (
    LAP_SPEED,
    PEDESTRIAN_RANGE,
    PERIOD,
    Actor,
    Cast,
    Path,
    Pose,
    Random,
    along_lane,
    still,
    stop_and_go,
    strolling,
    through,
)

#: s within the period at which traffic on the main road has a red light.
RED = (2.0, 20.0)


@dataclass(frozen=True, eq=False)
class Play:
    """A scenario on its road: everybody in it."""

    road: Road
    actors: tuple[Actor, ...]


def play(scenario: Scenario, random: Random) -> Play:
    """The road and everybody on it, by scenario and seed."""
    road = Road.of(
        random,
        junction=scenario is Scenario.RED_LIGHT,
        crossing=scenario is Scenario.STEPPING_OUT or random.random() < 0.3,
    )
    cast = Cast(random, road)
    scripted = _SCRIPTS[scenario](cast)
    _ordinary(cast, dense=scenario is Scenario.QUEUE, junction=road.junction is not None)
    return Play(road, tuple(cast.without_clashes(scripted)))


def _ordinary(cast: Cast, *, dense: bool, junction: bool) -> None:
    random, road = cast.random, cast.road
    for direction in (1, -1):
        if junction:
            continue  # there, all is scripted
        if dense and direction == 1:
            continue
        for number in range(road.lanes):
            laps = int(random.integers(2, 4)) - (1 if number == road.lanes - 1 and random.random() < 0.4 else 0)
            place = float(random.uniform(0, 25))
            while place < LENGTH - 12:
                path = along_lane(
                    road.lane(direction, number) + random.normal(0, 0.15), direction, place, laps * LAP_SPEED
                )
                if random.random() < 0.24:
                    cast.two_wheeler(path, kind="motorcycle", direction=direction)
                else:
                    cast.vehicle(path, direction=direction)
                place += float(random.uniform(15, 60))
    for side in (1, -1):
        for _ in range(int(random.integers(0, 4))):
            edge = side * (road.half - random.uniform(0.4, 0.55))
            cast.two_wheeler(
                along_lane(edge, side, float(random.uniform(0, LENGTH)), 2 * LAP_SPEED / 2),
                kind="bicycle",
                direction=side,
            )
        for _ in range(int(random.integers(1, 6))):
            x = side * (road.half + random.uniform(0.6, road.pavement - 0.3))
            start = float(random.uniform(0, PEDESTRIAN_RANGE[1] - PEDESTRIAN_RANGE[0]))
            direction = int(random.choice([-1, 1]))
            cast.pedestrian(strolling(x, direction, start))
            if random.random() < 0.35:  # two together
                cast.pedestrian(strolling(x + 0.65, direction, start))
        for _ in range(int(random.integers(0, 3))):
            cast.pedestrian(
                still(
                    side * (road.half + random.uniform(0.5, road.pavement)),
                    float(random.uniform(8, 45)),
                    float(random.uniform(0, 6.28)),
                )
            )
        if not junction and road.lanes == 1 and random.random() < 0.6:
            for y in np.arange(float(random.uniform(12, 20)), 60.0, 6.2):
                if random.random() < 0.6:
                    cast.vehicle(still(side * (road.half + 1.3), float(y), 0.0 if side > 0 else np.pi), kind="car")
    if road.crossing is not None and not junction and random.random() < 0.5:
        begin = float(random.uniform(0, 25))
        walk = road.half + 1.5
        cast.pedestrian(through([(begin, walk, road.crossing), (begin + 2 * walk / 1.4, -walk, road.crossing)]))


def _free_flow(_: Cast) -> list[Actor]:
    return []


def _queue(cast: Cast) -> list[Actor]:
    road, random = cast.road, cast.random
    actors = []
    for number in range(road.lanes):
        place = float(random.uniform(0, 6))
        while place < LENGTH - 9:
            actor = cast.vehicle(stop_and_go(road.lane(1, number), 1, place, swing=4.4), kind=None, direction=1)
            place += 2 * actor.half_length + float(random.uniform(1.6, 3.0))
            # room for the next one's front half, whatever it will be
            actors.append(actor)
            place += 3.0 if random.random() < 0.5 else 4.0
    return _spaced(actors)


def _spaced(actors: list[Actor]) -> list[Actor]:
    """Those of a lane that do not touch the one before."""
    good: list[Actor] = []
    for actor in actors:
        pose = actor.path(0.0)
        assert pose is not None  # noqa: S101  # always there
        fits = all(
            (other := before.path(0.0)) is None
            or abs(other.x - pose.x) > 1.5
            or abs(other.y - pose.y) > actor.half_length + before.half_length + 1.0
            for before in good
        )
        if fits:
            good.append(actor)
    return good


def _tailgating(cast: Cast) -> list[Actor]:
    road, random = cast.road, cast.random
    direction = int(random.choice([-1, 1]))
    x = road.lane(direction, 0)
    speed = 4 * LAP_SPEED  # 14 m/s, 50 km/h
    start = 20.0
    ahead = cast.vehicle(
        along_lane(x, direction, start, speed), kind=str(random.choice(["car", "truck", "van"])), direction=direction
    )
    behind_by = ahead.half_length + 2.25 + float(random.uniform(2.8, 4.5))
    behind = cast.vehicle(along_lane(x + 0.15, direction, start - behind_by, speed), kind="car", direction=direction)
    return [ahead, behind]


def _cut_in(cast: Cast) -> list[Actor]:
    road, random = cast.road, cast.random
    direction = int(random.choice([-1, 1]))
    inner, speed = road.lane(direction, 0), 3 * LAP_SPEED
    outer = road.lane(direction, 1) if road.lanes > 1 else -inner
    actors = []
    for meeting in (8.0, 8.0 + PERIOD / 3, 8.0 + 2 * PERIOD / 3):
        # at the meeting the one that is cut in on is 25 m from the camera
        start = (25.0 - NEAR_END if direction > 0 else FAR_END - 25.0) - speed * meeting
        slow = along_lane(inner, direction, start, speed)
        behind = cast.vehicle(slow, kind="car", direction=direction)
        actors += [
            behind,
            cast.vehicle(_cutting(slow, outer, inner, direction, meeting), kind="car", direction=direction),
        ]
    return actors


def _cutting(slow: Path, outer: float, inner: float, direction: int, meeting: float) -> Path:
    def at_offset(at: float) -> tuple[float, float, Pose]:
        base = slow(at)
        assert base is not None  # noqa: S101  # lanes are endless
        since = (at - meeting + PERIOD / 2) % PERIOD - PERIOD / 2
        ahead = float(np.interp(since, [-5.0, -1.0, 1.5, 6.0], [-16.0, 3.0, 6.4, 12.0]))
        share = float(np.clip((since + 1.2) / 2.2, 0, 1))
        return outer + (inner - outer) * share * share * (3 - 2 * share), base.y + direction * ahead, base

    def pose(at: float) -> Pose | None:
        since = (at - meeting + PERIOD / 2) % PERIOD - PERIOD / 2
        if not -5.0 <= since <= 5.0:
            return None
        (x0, y0, _), (x1, y1, base) = at_offset(at - 0.05), at_offset(at)
        if abs(y1 - y0) > 5 or not NEAR_END < y1 < FAR_END:
            return None
        heading = float(np.arctan2(-(x1 - x0), y1 - y0))
        return Pose(x1, y1, heading, float(np.hypot(x1 - x0, y1 - y0) / 0.05), base.gone)

    return pose


def _wrong_way(cast: Cast) -> list[Actor]:
    road, random = cast.road, cast.random
    direction = int(random.choice([-1, 1]))
    x = road.lane(direction, 0)
    actors = []
    for begin in (3.0, 16.0, 29.0):
        far, near = (FAR_END - 30, NEAR_END) if direction > 0 else (NEAR_END, FAR_END - 30)
        ghost = cast.vehicle(through([(begin, x, far), (begin + 10.5, x, near)]), kind="car", direction=direction)
        actors.append(ghost)
        # one that comes the right way gives way to the edge and stops
        edge = road.lane(direction, 1) if road.lanes > 1 else x + direction * 1.3
        start, stop = (NEAR_END, 24.0) if direction > 0 else (88.0, 40.0)
        other = through(
            [
                (begin, x, start),
                (begin + 2.0, x, start * 0.5 + stop * 0.5),
                (begin + 4.5, edge, stop),
                (begin + 8.5, edge, stop),
                (begin + 11.5, x, FAR_END - 30 if direction > 0 else NEAR_END),
            ]
        )
        actors.append(cast.vehicle(other, kind="car", direction=direction))
    return actors


def _stepping_out(cast: Cast) -> list[Actor]:
    road, random = cast.road, cast.random
    actors = []
    for begin, direction in ((4.0, -1), (17.0, 1), (30.0, -1)):
        y = float(random.uniform(16, 26)) if road.crossing is None or random.random() < 0.6 else road.crossing
        lane = road.lane(direction, road.lanes - 1)
        walk = road.half + 1.2
        step = begin + 3.0
        actors.append(
            cast.pedestrian(
                through(
                    [(begin, direction * walk, y - 3), (step, direction * (road.half + 0.3), y), (step + 1.6, lane - direction * 0.2, y),
                     (step + 3.2, lane - direction * 0.6, y), (step + 6.5, -direction * walk, y)]
                )
            )
        )  # fmt: skip
        start, end = (NEAR_END, FAR_END - 20) if direction > 0 else (FAR_END - 45, NEAR_END)
        halt = y - direction * 4.6
        actors.append(
            cast.vehicle(
                through(
                    [
                        (begin, lane, start),
                        (step + 0.9, lane, halt - direction * 7),
                        (step + 2.2, lane, halt),
                        (step + 5.0, lane, halt),
                        (step + 8.8, lane, end),
                    ]
                ),
                kind="car",
                direction=direction,
            )
        )
    return actors


def _pavement(cast: Cast) -> list[Actor]:
    road, random = cast.road, cast.random
    actors = []
    for begin in (2.0, 15.0, 28.0):
        side = int(random.choice([-1, 1]))
        lane, beside = road.lane(side, road.lanes - 1), side * (road.half + 1.35)
        near = [
            (begin, lane, NEAR_END),
            (begin + 2.0, lane, 6.0),
            (begin + 4.0, beside, 18.0),
            (begin + 8.0, beside, 38.0),
            (begin + 11.0, lane, 62.0),
        ]
        far = [
            (begin, lane, 80.0),
            (begin + 2.5, lane, 55.0),
            (begin + 4.5, beside, 42.0),
            (begin + 8.5, beside, 18.0),
            (begin + 11.5, lane, NEAR_END),
        ]
        actors.append(
            cast.vehicle(
                through(near if side > 0 else far), kind=str(random.choice(["car", "car", "van"])), direction=side
            )
        )
        inside = side * (road.half + road.pavement + 0.1)
        actors.append(cast.pedestrian(through([(begin, inside, 30.0), (begin + 11.5, inside, 18.0)])))
    return actors


def _red_light(cast: Cast) -> list[Actor]:
    road, random = cast.road, cast.random
    assert road.junction is not None  # noqa: S101  # this scenario has one
    begin, end = road.junction
    actors = []
    red, green = RED
    for direction in (1, -1):
        stop = begin - 6.5 if direction > 0 else end + 6.5
        away, come = (FAR_END - 20, NEAR_END) if direction > 0 else (NEAR_END, FAR_END - 20)
        place = stop
        for number in range(int(random.integers(1, 4))):
            lane = road.lane(direction, 1)
            arrive = red + 2.0 + 1.2 * number
            path = through(
                [
                    (max(0.0, arrive - 4.5), lane, come),
                    (arrive, lane, place),
                    (green + 0.8 * number, lane, place),
                    (green + 8.0 + 1.2 * number, lane, away),
                ]
            )
            actor = cast.vehicle(path, kind=None if number else "car", direction=direction)
            actors.append(actor)
            place -= direction * (2 * actor.half_length + 5.0)
        for number in range(2):  # the green light's traffic
            start = 26.0 + 3.2 * number + float(random.uniform(0, 1))
            actors.append(
                cast.vehicle(
                    through([(start, road.lane(direction, 0), come), (start + 9.0, road.lane(direction, 0), away)]),
                    direction=direction,
                )
            )
    middle = (begin + end) / 2
    for number in range(3):
        start = 4.0 + 4.6 * number
        side = -1 if number % 2 else 1
        y = middle - side * 2.0
        if number == 1:  # brakes for the one who runs the red light
            actors.append(
                cast.vehicle(
                    through(
                        [
                            (start, -side * 60, y),
                            (start + 3.2, -side * 12.5, y),
                            (start + 5.5, -side * 11.0, y),
                            (start + 10, side * 60, y),
                        ]
                    ),
                    kind="car",
                )
            )
        else:
            actors.append(cast.vehicle(through([(start, -side * 60, y), (start + 9.0, side * 60, y)])))
    direction = int(random.choice([-1, 1]))
    away, come = (FAR_END - 20, NEAR_END) if direction > 0 else (NEAR_END, FAR_END - 20)
    runner = cast.vehicle(
        through(
            [
                (7.5, road.lane(direction, 0), come),
                (7.5 + (abs(middle - come) / 14), road.lane(direction, 0), middle),
                (7.5 + abs(away - come) / 14, road.lane(direction, 0), away),
            ]
        ),
        kind="car",
        direction=direction,
    )
    return [runner, *actors]


_SCRIPTS = {
    Scenario.FREE_FLOW: _free_flow,
    Scenario.QUEUE: _queue,
    Scenario.TAILGATING: _tailgating,
    Scenario.CUT_IN: _cut_in,
    Scenario.WRONG_WAY: _wrong_way,
    Scenario.STEPPING_OUT: _stepping_out,
    Scenario.PAVEMENT: _pavement,
    Scenario.RED_LIGHT: _red_light,
}
