"""What is dangerous in a scene, from the world's own geometry: metres, seconds, speeds (pure).

The thresholds: a gap of less than 0.9 s at more than 6 m/s is tailgating, high below 0.4 s (many countries fine gaps
below half of the speedometer's figure in metres, 1.8 s, and ban driving below 0.9 s); a person on the carriageway whom
a vehicle reaches within 2.5 s is in conflict with it, the more severe time-to-collision class of Hydén's conflict
technique being 1.5 s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from dangerous_driving.contracts import RiskLevel
from dangerous_driving.simulation.scenes.road import Road
from dangerous_driving.simulation.scenes.scripts import RED
from dangerous_driving.simulation.scenes.traffic import PERIOD, Actor, Pose

TAILGATING_GAP = 0.9  # s
CLOSE_GAP = 0.4  # s
MOVING = 2.0  # m/s
FAST = 6.0  # m/s
REACHED = 2.5  # s until a vehicle is where the person is
TOGETHER = 9.0  # m between road users of one group


@dataclass(frozen=True, slots=True)
class Danger:
    """Who endangers whom, how, and how much."""

    actor_ids: tuple[int, ...]
    risk_type: str
    risk_level: RiskLevel


def dangers(actors: Sequence[Actor], poses: Mapping[int, Pose], road: Road, at: float) -> list[Danger]:
    """All dangers at a time, the worst first.

    Args:
        actors: everybody.
        poses: of those that are there now.
        road: where they are.
        at: s of scene time.
    """
    here = [actor for actor in actors if actor.number in poses]
    vehicles = [actor for actor in here if actor.class_name in {"car", "truck", "bus", "motorcycle"}]
    people = [actor for actor in here if actor.class_name == "person" and actor.rider_of is None]
    found: list[Danger] = []
    for vehicle in vehicles:
        pose = poses[vehicle.number]
        if pose.speed < MOVING:
            continue
        found += _wrong_way(vehicle, pose, vehicles, poses)
        found += _on_pavement(vehicle, pose, people, poses, road)
        found += _red_light(vehicle, pose, vehicles, poses, road, at)
        for person in people:
            found += _conflict(vehicle, pose, person, poses[person.number], road)
    for first, second in combinations(vehicles, 2):
        for behind, ahead in ((first, second), (second, first)):
            found += _following(behind, poses[behind.number], ahead, poses[ahead.number])
    return sorted(found, key=lambda danger: -danger.risk_level.rank)


def _forward(pose: Pose) -> tuple[float, float]:
    return -float(np.sin(pose.heading)), float(np.cos(pose.heading))


def _ahead(pose: Pose, other: Pose) -> tuple[float, float]:
    """How far another is in front and to the side, m."""
    fx, fy = _forward(pose)
    dx, dy = other.x - pose.x, other.y - pose.y
    return dx * fx + dy * fy, abs(dx * fy - dy * fx)


def _following(behind: Actor, pose: Pose, ahead: Actor, other: Pose) -> list[Danger]:
    if pose.speed < FAST or np.cos(pose.heading - other.heading) < 0.7:
        return []
    along, aside = _ahead(pose, other)
    gap = along - behind.half_length - ahead.half_length
    if not (along > 0 and aside < 1.9 and gap < TAILGATING_GAP * pose.speed):
        return []
    pair = (behind.number, ahead.number)
    sideways = abs(np.sin(other.heading)) * other.speed
    if sideways > 0.4 and gap < 0.6 * pose.speed:
        return [Danger(pair, "dangerous_manoeuvre", RiskLevel.HIGH if gap < 0.3 * pose.speed else RiskLevel.MEDIUM)]
    if aside > 1.2:
        return []
    return [Danger(pair, "tailgating", RiskLevel.HIGH if gap < CLOSE_GAP * pose.speed else RiskLevel.MEDIUM)]


def _wrong_way(actor: Actor, pose: Pose, vehicles: Sequence[Actor], poses: Mapping[int, Pose]) -> list[Danger]:
    if not actor.lane_direction or np.cos(pose.heading) * actor.lane_direction > -0.7:
        return []
    near = [
        other.number
        for other in vehicles
        if other.number != actor.number
        and 0 < _ahead(pose, poses[other.number])[0] < 30
        and _ahead(pose, poses[other.number])[1] < 5
    ]
    return [Danger((actor.number, *near), "wrong_way", RiskLevel.HIGH)]


def _on_pavement(
    actor: Actor, pose: Pose, people: Sequence[Actor], poses: Mapping[int, Pose], road: Road
) -> list[Danger]:
    if road.junction and abs(pose.x) > road.half:
        return []  # it is on the crossing road
    if not road.half < abs(pose.x) < road.half + road.pavement:
        return []
    near = [
        person.number
        for person in people
        if np.hypot(poses[person.number].x - pose.x, poses[person.number].y - pose.y) < 12
    ]
    return [Danger((actor.number, *near), "pavement_driving", RiskLevel.HIGH if near else RiskLevel.MEDIUM)]


def _red_light(
    actor: Actor, pose: Pose, vehicles: Sequence[Actor], poses: Mapping[int, Pose], road: Road, at: float
) -> list[Danger]:
    if (
        not road.junction
        or not RED[0] + 1 < at % PERIOD < RED[1]
        or abs(np.cos(pose.heading)) < 0.7
        or pose.speed < FAST
    ):
        return []
    begin, end = road.junction
    if not begin - 3 < pose.y < end + 3:
        return []
    crossing = [
        other.number
        for other in vehicles
        if abs(np.cos(poses[other.number].heading)) < 0.7
        and abs(poses[other.number].x) < 25
        and begin < poses[other.number].y < end
    ]
    return [Danger((actor.number, *crossing), "red_light", RiskLevel.HIGH)]


def _conflict(vehicle: Actor, pose: Pose, person: Actor, other: Pose, road: Road) -> list[Danger]:
    if abs(other.x) > road.half or road.junction:
        return []
    along, aside = _ahead(pose, other)
    gap = along - vehicle.half_length
    if not (-0.5 < gap < REACHED * pose.speed and aside < 2.4):
        return []
    level = RiskLevel.HIGH if gap < 1.5 * pose.speed or gap < 4 else RiskLevel.MEDIUM
    return [Danger((vehicle.number, person.number), "pedestrian_conflict", level)]


def clusters(numbers: Sequence[int], poses: Mapping[int, Pose]) -> list[tuple[int, ...]]:
    """Road users that are near each other (chains of at most `TOGETHER` m), at least two; in rising order."""
    left = list(numbers)
    found = []
    while left:
        chain, left = [left[0]], left[1:]
        for member in chain:  # grows while it is walked
            here = poses[member]
            near = [other for other in left if np.hypot(poses[other].x - here.x, poses[other].y - here.y) <= TOGETHER]
            chain += near
            left = [other for other in left if other not in near]
        if len(chain) > 1:
            found.append(tuple(sorted(chain)))
    return found
