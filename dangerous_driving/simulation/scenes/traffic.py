"""Who is on the road and where at any time (pure): everything repeats after `PERIOD` seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dangerous_driving.simulation.scenes import vehicles
from dangerous_driving.simulation.scenes.mesh import Mesh
from dangerous_driving.simulation.scenes.people import Person
from dangerous_driving.simulation.scenes.road import FAR_END, LENGTH, NEAR_END, Road
from dangerous_driving.simulation.scenes.vehicles import Shape

Random = np.random.Generator

#: s
PERIOD = 40.0

#: m/s at which a lap of the road takes a whole part of the period, so that the scene repeats without a jump.
LAP_SPEED = LENGTH / PERIOD

PEDESTRIAN_RANGE = (5.0, 61.0)

TWO_WHEELERS = frozenset({"bicycle", "motorcycle"})


@dataclass(frozen=True, slots=True)
class Pose:
    """Where somebody is: m, radians (0 drives away from the camera, along y), m/s; ``gone``: m travelled so far."""

    x: float
    y: float
    heading: float
    speed: float
    gone: float


Path = Callable[[float], Pose | None]
"""Place at a time in s; None while not there."""


@dataclass(frozen=True, eq=False)
class Actor:
    """One road user. ``lane_direction``: +1 or -1, the way its lane leads, 0 where it is on none.

    A two-wheeler and its rider are two actors with one path.
    """

    number: int
    class_name: str
    path: Path
    shape: Shape | None
    person: Person | None
    rider_of: int | None = None
    lane_direction: int = 0

    @property
    def half_length(self) -> float:
        """M."""
        return self.shape.half_length if self.shape else 0.25

    def mesh(self, pose: Pose) -> Mesh:
        """Its surface now, in its own axes (x forward)."""
        if self.person is None:
            assert self.shape is not None  # noqa: S101  # one of the two
            return self.shape.mesh
        if self.rider_of is None:
            return self.person.walking(pose.gone)
        if self.class_name == "person" and self.shape is not None and self.shape.half_length > 0.9:
            return self.person.riding(np.array([-0.3, 0.0, 0.84]), reach=0.62, pedalled=float("nan"))
        return self.person.riding(np.array([-0.18, 0.0, 0.98]), reach=0.52, pedalled=pose.gone / 0.7)


def along_lane(x: float, direction: int, start: float, speed: float) -> Path:
    """Round and round on a lane: m, +1 or -1, m from its beginning at time 0, m/s (a multiple of `LAP_SPEED`)."""

    def pose(at: float) -> Pose:
        gone = start + speed * at
        place = gone % LENGTH
        y = NEAR_END + place if direction > 0 else FAR_END - place
        return Pose(x, y, 0.0 if direction > 0 else np.pi, speed, gone)

    return pose


def stop_and_go(x: float, direction: int, start: float, swing: float) -> Path:
    """A slow lane: `LAP_SPEED` on average, nearly standing three times per period."""

    def pose(at: float) -> Pose:
        turn = 2 * np.pi * 3 / PERIOD
        gone = start + LAP_SPEED * at + swing * np.sin(turn * at)
        speed = LAP_SPEED + swing * turn * np.cos(turn * at)
        place = gone % LENGTH
        y = NEAR_END + place if direction > 0 else FAR_END - place
        return Pose(x, float(y), 0.0 if direction > 0 else np.pi, float(max(0.0, speed)), float(gone))

    return pose


def strolling(x: float, direction: int, start: float) -> Path:
    """To and fro on a pavement at walking pace."""
    near, far = PEDESTRIAN_RANGE
    speed = (far - near) / PERIOD

    def pose(at: float) -> Pose:
        gone = start + speed * at
        place = gone % (far - near)
        y = near + place if direction > 0 else far - place
        return Pose(x + 0.15 * np.sin(place / 3.0), y, 0.0 if direction > 0 else np.pi, speed, gone)

    return pose


def still(x: float, y: float, heading: float) -> Path:
    """Parked, or standing about."""
    return lambda _: Pose(x, y, heading, 0.0, 0.3)


def through(points: list[tuple[float, float, float]]) -> Path:
    """Through points (s, m, m), smoothly; not there before the first and after the last.

    Between two points the position follows a cubic with the mean of the neighbouring velocities at its ends, limited so
    that nobody goes beyond a place where he stops (Fritsch, Carlson: Monotone Piecewise Cubic Interpolation, 1980).
    """
    table = np.array(points)
    times, places = table[:, 0], table[:, 1:]
    slopes = np.diff(places, axis=0) / np.diff(times)[:, None]
    tangents = np.concatenate([slopes[:1], (slopes[:-1] + slopes[1:]) / 2, slopes[-1:]])
    for index in range(len(slopes)):
        flat = np.abs(slopes[index]) < 1e-6
        tangents[index : index + 2, flat] = 0.0
    inner = slopes[:-1] * slopes[1:] <= 0
    tangents[1:-1][inner] = 0.0
    steps = np.arange(times[0], times[-1] + 0.05, 0.05)

    def position(at: float) -> tuple[np.ndarray, np.ndarray]:
        index = int(np.clip(np.searchsorted(times, at, side="right") - 1, 0, len(slopes) - 1))
        span = times[index + 1] - times[index]
        u = (at - times[index]) / span
        begin, end = places[index], places[index + 1]
        out, into = tangents[index] * span, tangents[index + 1] * span
        place = (
            (2 * u**3 - 3 * u**2 + 1) * begin
            + (u**3 - 2 * u**2 + u) * out
            + (3 * u**2 - 2 * u**3) * end
            + (u**3 - u**2) * into
        )
        velocity = (
            (6 * u**2 - 6 * u) * begin
            + (3 * u**2 - 4 * u + 1) * out
            + (6 * u - 6 * u**2) * end
            + (3 * u**2 - 2 * u) * into
        ) / span
        return place, velocity

    track = np.array([position(float(step))[0] for step in steps])
    travelled = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(track, axis=0), axis=1))])
    # a heading that lasts while standing
    moves = np.gradient(track, axis=0)
    moving = np.linalg.norm(moves, axis=1) > 0.01
    angles = np.arctan2(-moves[:, 0], moves[:, 1])
    known = np.flatnonzero(moving)
    angles = np.unwrap(angles[known])[np.clip(np.searchsorted(known, np.arange(len(steps))), 0, len(known) - 1)]

    def pose(at: float) -> Pose | None:
        at = at % PERIOD
        if not times[0] <= at <= times[-1]:
            return None
        place, velocity = position(at)
        return Pose(
            float(place[0]),
            float(place[1]),
            float(np.interp(at, steps, angles)),
            float(np.linalg.norm(velocity)),
            float(np.interp(at, steps, travelled)),
        )

    return pose


class Cast:
    """Makes actors and numbers them."""

    def __init__(self, random: Random, road: Road) -> None:
        self.random, self.road = random, road
        self.actors: list[Actor] = []

    def vehicle(self, path: Path, *, kind: str | None = None, direction: int = 0) -> Actor:
        """A car, van, truck or bus on a path; by chance which, unless named."""
        kind = kind or str(self.random.choice(["car", "van", "truck", "bus"], p=[0.66, 0.10, 0.13, 0.11]))
        make = {"car": vehicles.car, "van": vehicles.van, "truck": vehicles.truck, "bus": vehicles.bus}[kind]
        return self._add("truck" if kind == "van" else kind, path, make(self.random), None, direction)

    def two_wheeler(self, path: Path, *, kind: str, direction: int = 0) -> Actor:
        """A bicycle or motorcycle with its rider; returns the vehicle."""
        shape = (vehicles.bicycle if kind == "bicycle" else vehicles.motorcycle)(self.random)
        machine = self._add(kind, path, shape, None, direction)
        self._add("person", path, shape, Person.of(self.random, rider=True), direction, rider_of=machine.number)
        return machine

    def pedestrian(self, path: Path) -> Actor:
        """Somebody on foot."""
        return self._add("person", path, None, Person.of(self.random), 0)

    def _add(
        self,
        class_name: str,
        path: Path,
        shape: Shape | None,
        person: Person | None,
        direction: int,
        rider_of: int | None = None,
    ) -> Actor:
        actor = Actor(len(self.actors) + 1, class_name, path, shape, person, rider_of, direction)
        self.actors.append(actor)
        return actor

    def without_clashes(self, scripted: list[Actor]) -> list[Actor]:
        """All actors but those of the ordinary traffic that would drive into a scripted one, or into one another.

        ``scripted`` stay whatever happens.
        """
        kept = {actor.number for actor in scripted}
        order = [*scripted, *(actor for actor in self.actors if actor.number not in kept)]
        tracks = {
            actor.number: [actor.path(at) for at in np.arange(0.0, PERIOD, 0.2)]
            for actor in order
            if not actor.rider_of
        }
        good: list[Actor] = []
        dropped: set[int] = set()
        for actor in order:
            if actor.rider_of is not None:
                if actor.rider_of not in dropped:
                    good.append(actor)
                continue
            clashes = actor.number not in kept and any(
                _clash(actor, tracks[actor.number], other, tracks[other.number])
                for other in good
                if other.rider_of is None
            )
            if clashes:
                dropped.add(actor.number)
            else:
                good.append(actor)
        return sorted(good, key=lambda actor: actor.number)


def _clash(actor: Actor, track: list[Pose | None], other: Actor, other_track: list[Pose | None]) -> bool:
    walkers = actor.class_name == "person" and other.class_name == "person"
    along = 0.7 if walkers else actor.half_length + other.half_length + 1.2
    across = 0.5 if walkers else 1.9
    if actor.shape and other.shape and TWO_WHEELERS & {actor.class_name, other.class_name}:
        # a car passes a bicycle at the kerb within its lane
        across = actor.shape.half_width + other.shape.half_width + 0.05
    for mine, theirs in zip(track, other_track, strict=True):
        if mine is None or theirs is None:
            continue
        turned = abs(np.sin(mine.heading - theirs.heading)) > 0.5
        reach = max(along, across + 2.5) if turned else along
        if abs(mine.y - theirs.y) < reach and abs(mine.x - theirs.x) < (reach if turned else across):
            return True
    return False
