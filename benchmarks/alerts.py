"""How many alerts a danger makes: the lifecycle over all simulated scenarios, against their exact truth.

    python -m benchmarks.alerts [--quick] [--seeds 6] [--interval 1.8]

**What is fed.** Every scenario x light x seed, two periods of its script, a frame every 1.8 s. Boxes come from the scene's
own geometry (no picture is rendered: equal truth, a thousandth of the time), moved by some pixels; road users are overlooked
and whole frames missed at random, more at night. Grouping, priorities, parsing of answers and the lifecycle are the
platform's own. Geometry, streamed level and whole answer come after latencies like those of the simulated LLM; some answers
are late by up to 20 s (the window lane's), some never come.

**Who answers.** `truth`: a model that sees what is there: level and type of the true danger in the group, else none. `llm`:
the simulated LLM's own rules, which know nothing but boxes: it overlooks dangers and takes queues for tailgating.

**What is counted.** A *danger* is a chain of moments at which road users in sight truly endanger each other: two moments
belong together when they share a road user, are of one kind (tailgating, cutting in and a near crash are one kind; a
conflict with a person, wrong way, red light and pavement are each their own, see the head of `alerts/lifecycle.py`) and lie at most a gap
(three frame intervals) apart. Dangers whose groups were one traffic group at some moment are one danger: a group is what is assessed, so
nobody could tell them apart. An alert *belongs* to the dangers in the groups whose whole answers it holds.

- split: the share of dangers with an alert that have more than one;
- merged: the share of alerts with a danger that belong to more than one.

Alerts that were withdrawn count for neither: they are over, and their danger has an alert or none.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from unittest import mock

from benchmarks.figures import Figure, tell
from dangerous_driving.alerts import lifecycle as lifecycle_module
from dangerous_driving.alerts.inputs import Sighting, Tick
from dangerous_driving.alerts.lifecycle import CameraState, Lifecycle
from dangerous_driving.assessment.answer import parse_answer
from dangerous_driving.assessment.risk import families_of
from dangerous_driving.contracts import AlertBasis, AlertState, DetectedObject, RiskLevel, message_id_of, task_id_of
from dangerous_driving.detection.engine import Detection
from dangerous_driving.detection.scene import FoundGroup, scene_of
from dangerous_driving.settings import AlertsSettings, DetectionSettings
from dangerous_driving.simulation.llm_answers import answer_to
from dangerous_driving.simulation.scenes import Light, Scenario, Scene, SceneSpec
from dangerous_driving.simulation.scenes.scene import SceneOutline, TrueObject
from dangerous_driving.simulation.scenes.traffic import PERIOD

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
PERIODS = 2
AIM = 0.05

#: Shares of road users that detection overlooks, as a network does; whole frames that a camera or the network misses.
OVERLOOKED = {Light.DAY: 0.03, Light.DUSK: 0.06, Light.NIGHT: 0.12}
MISSED_FRAMES = 0.05
#: Shares of answers that come late, by 5 to 20 s, and that never come.
LATE, LOST = 0.05, 0.02
JITTER = 0.02  # of a box's side

Actors = frozenset[int]
#: Who endangers whom, and of what kind it is.
Moment = tuple[Actors, frozenset[str]]


@dataclass(frozen=True)
class Look:
    """One traffic group of one frame: who is in it, and the dangers in it."""

    task_id: str
    at: float
    members: Actors
    dangers: tuple[Moment, ...]


@dataclass
class Score:
    """Counts over scenes."""

    dangers: int = 0
    found: int = 0
    split: int = 0
    alerts: int = 0
    merged: int = 0
    without_danger: int = 0
    rings: int = 0
    withdrawn: int = 0
    worst: list[str] = field(default_factory=list)

    def add(self, other: Score) -> None:
        for name in ("dangers", "found", "split", "alerts", "merged", "without_danger", "rings", "withdrawn"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.worst += other.worst

    @property
    def split_share(self) -> float:
        return self.split / self.found if self.found else 0.0

    @property
    def merged_share(self) -> float:
        return self.merged / self.alerts if self.alerts else 0.0


def dangers_of(looks: Iterable[Look], gap: float) -> dict[tuple[str, Moment], int]:
    """The danger, by number, that each moment (task, who endangers whom) belongs to."""
    moments = sorted(
        ((look.at, look.task_id, danger) for look in looks for danger in look.dangers), key=lambda moment: moment[0]
    )
    parent = list(range(len(moments)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for later, (at, task, danger) in enumerate(moments):
        for earlier in range(later - 1, -1, -1):
            before, other_task, other = moments[earlier]
            if at - before > gap + 1e-6:
                break
            if task == other_task or (danger[0] & other[0] and danger[1] & other[1]):
                parent[root(later)] = root(earlier)
    return {(task, danger): root(index) for index, (_, task, danger) in enumerate(moments)}


def score(looks: Sequence[Look], alerts: dict[str, set[str]], gap: float) -> Score:
    """Compare alerts, as the tasks whose whole answers they hold, with the dangers in these tasks' groups."""
    numbers = dangers_of(looks, gap)
    of_task: dict[str, set[int]] = defaultdict(set)
    for (task, _), number in numbers.items():
        of_task[task].add(number)
    alerts_of: dict[int, set[str]] = defaultdict(set)
    found = Score(dangers=len(set(numbers.values())))
    for alert_id, tasks in alerts.items():
        mine = set().union(*(of_task[task] for task in tasks))
        if not mine:
            found.without_danger += 1
            continue
        found.alerts += 1
        found.merged += len(mine) > 1
        for number in mine:
            alerts_of[number].add(alert_id)
    found.found = len(alerts_of)
    found.split = sum(len(several) > 1 for several in alerts_of.values())
    return found


@lru_cache(maxsize=4)
def _scene(scenario: Scenario, seed: int) -> Scene:
    return Scene(SceneSpec(scenario, seed=seed))


@lru_cache(maxsize=100_000)
def outline_at(scenario: Scenario, seed: int, at: float) -> SceneOutline:
    """The same in every light."""
    return _scene(scenario, seed).outline(at)


def run_scene(
    spec: SceneSpec,
    *,
    answers: str,
    interval: float,
    lifecycle: Lifecycle,
    seed: int,
    trace: bool = False,
    periods: int = PERIODS,
) -> Score:
    """One camera on one scene."""
    camera = f"sim-{spec.scenario}-{spec.light}-{spec.seed}"
    draw = random.Random(f"{camera}:{seed}")  # noqa: S311  # repeatable is the point
    inputs: list[Sighting | Tick] = []
    looks: list[Look] = []
    previous = None
    for number in range(int(periods * PERIOD / interval)):
        at = number * interval
        if draw.random() < MISSED_FRAMES:
            continue
        outline = outline_at(spec.scenario, spec.seed, round(at % PERIOD, 3))
        seen = [thing for thing in outline.objects if draw.random() >= OVERLOOKED[spec.light]]
        detections = [
            Detection(thing.class_name, round(draw.uniform(0.5, 0.95), 4), _moved(thing, draw)) for thing in seen
        ]
        order = sorted(range(len(seen)), key=lambda index: -detections[index].confidence)
        found = scene_of(
            [detections[index] for index in order], spec.width, spec.height, DetectionSettings(), previous=previous
        )
        previous = found.road_users
        actor_of = {
            thing.object_id: next(
                seen[index].actor_id
                for index in order
                if all(abs(a - b) < 0.06 for a, b in zip(detections[index].bbox, thing.bbox, strict=True))
            )
            for thing in found.objects
        }
        captured = NOON + timedelta(seconds=at)
        message = message_id_of(camera, captured)
        for index, group in enumerate(found.groups, 1):
            task = task_id_of(message, index)
            objects = [thing for thing in found.objects if _centre_in(thing, group)]
            members = frozenset(actor_of[thing.object_id] for thing in objects)
            named = _answer(answers, objects, members, outline)
            looks.append(Look(task, at, members, named.dangers))
            inputs += _sightings(camera, captured, message, task, group, named, draw)
    inputs += [
        Tick(at=NOON + timedelta(seconds=second, milliseconds=500)) for second in range(int(periods * PERIOD) + 90)
    ]
    inputs.sort(key=lambda given: given.at)
    state = CameraState(camera, frame_interval=interval, simulated=True)
    state, changes = lifecycle.replay(state, inputs)
    # the last of an answer's changes is that of the alert which it belongs to (the first may free another one's claim)
    holder = {
        change.input.task_id: change.after.alert.alert_id
        for change in changes
        if isinstance(change.input, Sighting)
        and change.input.kind is AlertBasis.FINAL
        and change.input.level.rank >= RiskLevel.MEDIUM.rank
    }
    holds: dict[str, set[str]] = defaultdict(set)
    for task, alert_id in holder.items():
        holds[alert_id].add(task)
    result = score(looks, dict(holds), lifecycle.gap(interval).total_seconds())
    result.rings = sum(change.after.alert.notify for change in changes)
    result.withdrawn = sum(tracked.alert.state is AlertState.WITHDRAWN for tracked in state.alerts)
    if result.split or result.merged:
        result.worst.append(f"{camera}: {result.split} split, {result.merged} merged")
    if trace:
        _trace(looks, holds, lifecycle.gap(interval).total_seconds(), inputs)
    return result


@dataclass(frozen=True)
class Answered:
    """What a model says of a group: level, types, the level as streamed, and the dangers that it is about."""

    level: RiskLevel
    streamed: RiskLevel
    types: tuple[str, ...]
    dangers: tuple[Moment, ...]


def _answer(who: str, objects: Sequence[DetectedObject], members: Actors, outline: SceneOutline) -> Answered:
    there = [danger for danger in outline.dangers if set(danger.actor_ids[:2]) <= members]
    dangers = tuple(dict.fromkeys((frozenset(danger.actor_ids), families_of([danger.risk_type])) for danger in there))
    if who == "truth":
        if not there:
            return Answered(RiskLevel.NONE, RiskLevel.NONE, (), ())
        level = max((danger.risk_level for danger in there), key=lambda level: level.rank)
        return Answered(level, level, tuple(dict.fromkeys(danger.risk_type for danger in there)), dangers)
    geometry = {
        "objects": [
            {"objectId": item.object_id, "class": item.class_name, "bbox": [round(side) for side in item.bbox]}
            for item in objects
        ]
    }
    answer = parse_answer(
        answer_to([{"role": "user", "content": json.dumps(geometry)}]), [item.object_id for item in objects]
    )
    return Answered(answer.risk_level, answer.stated_level or answer.risk_level, answer.risk_types, dangers)


def _sightings(
    camera: str,
    captured: datetime,
    message: str,
    task: str,
    group: FoundGroup,
    named: Answered,
    draw: random.Random,
) -> list[Sighting]:
    def sighting(kind: AlertBasis, after: float, level: RiskLevel, types: tuple[str, ...] = ()) -> Sighting:
        return Sighting(
            kind=kind, at=captured + timedelta(seconds=after), camera_id=camera, task_id=task, request_id=message,
            captured_at=captured, level=level, bbox=group.bbox, risk_types=types,
        )  # fmt: skip

    # as the simulated LLM's own: log-normal, median and 95th percentile 0.4 and 0.8 s, 1.2 and 2.5 s
    detected = draw.uniform(0.15, 0.4)
    first = detected + math.exp(draw.gauss(math.log(0.4), 0.42))
    whole = max(detected + math.exp(draw.gauss(math.log(1.2), 0.45)), first)
    made = []
    if group.priority >= 0.9:
        made.append(sighting(AlertBasis.GEOMETRY, detected, RiskLevel.MEDIUM))
    if draw.random() < LOST:
        return made
    if draw.random() < LATE:  # the window lane's: it does not stream
        return [*made, sighting(AlertBasis.FINAL, draw.uniform(5, 20), named.level, named.types)]
    return [
        *made,
        sighting(AlertBasis.PROVISIONAL, first, named.streamed),
        sighting(AlertBasis.FINAL, whole, named.level, named.types),
    ]


def _moved(thing: TrueObject, draw: random.Random) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = thing.bbox
    wide, tall = JITTER * (x2 - x1), JITTER * (y2 - y1)
    return (
        x1 + draw.gauss(0, wide), y1 + draw.gauss(0, tall), x2 + draw.gauss(0, wide), y2 + draw.gauss(0, tall),
    )  # fmt: skip


def _centre_in(thing: DetectedObject, group: FoundGroup) -> bool:
    x, y = (thing.bbox[0] + thing.bbox[2]) / 2, (thing.bbox[1] + thing.bbox[3]) / 2
    return group.bbox[0] <= x <= group.bbox[2] and group.bbox[1] <= y <= group.bbox[3]


def _trace(looks: Sequence[Look], holds: dict[str, set[str]], gap: float, inputs: Sequence[Sighting | Tick]) -> None:
    numbers = dangers_of(looks, gap)
    alert_of = {task: alert[:4] for alert, tasks in holds.items() for task in tasks}
    finals = {item.task_id: item for item in inputs if isinstance(item, Sighting) and item.kind is AlertBasis.FINAL}
    for look in looks:
        if look.dangers and look.task_id in finals:
            final = finals[look.task_id]
            mine = sorted({numbers[look.task_id, danger] for danger in look.dangers})
            print(
                f"  {look.at:5.1f} s danger {mine} {[sorted(who) for who, _ in look.dangers]} alert "
                f"{alert_of.get(look.task_id, '-'):4} {final.level:6} {','.join(final.risk_types)} "
                f"{[round(side) for side in final.bbox]}"
            )


def run(*, seeds: Sequence[int], answers: str, interval: float, settings: AlertsSettings, quick: bool) -> Score:
    """All scenarios and lights with these seeds."""
    total = Score()
    lifecycle = Lifecycle(settings)
    for scenario in Scenario:
        for light in (Light.DAY,) if quick else tuple(Light):
            for seed in seeds:
                total.add(
                    run_scene(SceneSpec(scenario, light, seed=seed), answers=answers, interval=interval,
                              lifecycle=lifecycle, seed=seed)
                )  # fmt: skip
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one light, two seeds")
    parser.add_argument("--seeds", type=int, default=6, help="of each scenario and light")
    parser.add_argument("--first-seed", type=int, default=90_000)
    parser.add_argument("--interval", type=float, default=1.8, help="s between frames")
    parser.add_argument("--trace", help="one scene, such as simulated:tailgating?seed=90001, look by look")
    parser.add_argument("--answers", choices=["truth", "llm"], help="with --trace")
    arguments = parser.parse_args()
    if arguments.trace:
        spec = SceneSpec.parse(arguments.trace)
        answers = arguments.answers or "truth"
        print(run_scene(spec, answers=answers, interval=arguments.interval, lifecycle=Lifecycle(AlertsSettings()),
                        seed=spec.seed, trace=True))  # fmt: skip
        return
    started = time.monotonic()
    seeds = range(arguments.first_seed, arguments.first_seed + (2 if arguments.quick else arguments.seeds))
    figures = []
    for answers in ("truth", "llm"):
        # for comparison: risk types compared by name, as models word them
        with mock.patch.object(lifecycle_module, "families_of", frozenset):
            by_name = run(seeds=seeds, answers=answers, interval=arguments.interval, settings=AlertsSettings(),
                          quick=arguments.quick)  # fmt: skip
        found = run(seeds=seeds, answers=answers, interval=arguments.interval, settings=AlertsSettings(),
                    quick=arguments.quick)  # fmt: skip
        print(f"{answers}: {found.dangers} dangers in sight, {found.found} with an alert, {found.alerts} alerts with a "
              f"danger, {found.without_danger} without, {found.withdrawn} withdrawn, {found.rings} rings, "
              f"{time.monotonic() - started:.0f} s")  # fmt: skip
        for line in found.worst:
            print(f"  {line}")
        figures += [
            Figure(f"split dangers, answers of {answers}", found.split_share, "share", baseline=by_name.split_share,
                   ratio=found.split_share / by_name.split_share if by_name.split_share else None, target="< 0.05",
                   met=found.split_share < AIM, note=f"{found.split} of {found.found}; baseline: types by name"),
            Figure(f"merged alerts, answers of {answers}", found.merged_share, "share", baseline=by_name.merged_share,
                   ratio=found.merged_share / by_name.merged_share if by_name.merged_share else None, target="< 0.05",
                   met=found.merged_share < AIM, note=f"{found.merged} of {found.alerts}; baseline: types by name"),
        ]  # fmt: skip
    tell("alerts", figures)


if __name__ == "__main__":
    main()
