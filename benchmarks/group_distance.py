"""What `detection.group_distance` means for finding danger: how many dangers become a group, and what larger groups cost.

python -m benchmarks.group_distance [--seeds 40]

Simulated scenes of every scenario, their true boxes every 1.8 s over the whole script, no detector and no pictures: what is lost
here, no detector brings back. A danger is found when two of those concerned are in one group; an episode (the same danger of the
same road users over several frames) when it is found in one of its frames.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from benchmarks.figures import Figure, tell
from dangerous_driving.detection.grouping import MIN_OBJECTS, REFERENCE_WIDTH, as_boxes, group_boxes, union_box
from dangerous_driving.settings import DetectionSettings
from dangerous_driving.simulation.scenes import Scenario, Scene, SceneSpec

DISTANCES = (100, 150, 200, 250, 300, 400)
INTERVAL = 1.8  # s; `camera.frame_interval`
FIRST_SEED = 70_000  # no training and no test uses these
DEFAULT = DetectionSettings().group_distance

Episode = tuple[int, str, tuple[int, ...]]


@dataclass
class Counts:
    """Of one distance."""

    frames: int = 0
    groups: int = 0
    members: list[int] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)  # of the picture that a group's box covers
    dangers: int = 0
    found: int = 0
    episodes: dict[Episode, bool] = field(default_factory=lambda: defaultdict(bool))


def look(scene: Scene, number: int, counts: dict[int, Counts], alone: dict[Episode, bool]) -> None:
    """Take one scene over its whole script into the counts."""
    width, height = scene.spec.width, scene.spec.height
    for at in np.arange(0.0, scene.period_of_script, INTERVAL):
        outline = scene.outline(float(at))
        riders = {thing.actor_id for thing in outline.objects if thing.rider_of is not None}
        users = [thing for thing in outline.objects if thing.actor_id not in riders]  # one road user with the machine
        boxes = as_boxes([thing.bbox for thing in users])
        place = {thing.actor_id: index for index, thing in enumerate(users)}
        for distance, count in counts.items():
            groups = group_boxes(boxes, width, distance)
            count.frames += 1
            count.groups += len(groups)
            for group in groups:
                x1, y1, x2, y2 = union_box(boxes[group])
                count.members.append(len(group))
                count.shares.append((x2 - x1) * (y2 - y1) / (width * height))
            for danger in outline.dangers:
                concerned = {place[actor] for actor in danger.actor_ids if actor in place}
                episode = (number, danger.risk_type, danger.actor_ids)
                if len(concerned) < MIN_OBJECTS:
                    alone[episode] = True
                    continue
                together = any(len(concerned.intersection(group.tolist())) >= MIN_OBJECTS for group in groups)
                count.dangers += 1
                count.found += together
                count.episodes[episode] = count.episodes[episode] or together


def figures_of(counts: dict[int, Counts], alone: int) -> list[Figure]:
    base = counts[int(DEFAULT)]
    figures = []
    for distance, count in counts.items():
        name = f"{distance} px at {REFERENCE_WIDTH}" + (" (default)" if distance == DEFAULT else "")
        found = sum(count.episodes.values())
        figures += [
            Figure(f"{name}: dangers in a group, by frame", count.found / count.dangers, "", base.found / base.dangers, None, note=f"  of {count.dangers}"),
            Figure(f"{name}: episodes found in one of their frames", found / len(count.episodes), "", sum(base.episodes.values()) / len(base.episodes), None, note=f"  of {len(count.episodes)}"),
            Figure(f"{name}: groups per frame", count.groups / count.frames, "", base.groups / base.frames, count.groups / count.frames / (base.groups / base.frames)),
            Figure(f"{name}: road users in a group, mean and P95", float(np.mean(count.members)), "", note=f"  {np.percentile(count.members, 95):.0f}"),
            Figure(f"{name}: share of the picture that a group covers, mean", float(np.mean(count.shares)), "", note=f"  P95 {np.percentile(count.shares, 95):.2f}"),
        ]  # fmt: skip
        for risk_type in sorted({kind for _, kind, _ in count.episodes}):
            of_type = [found for (_, kind, _), found in count.episodes.items() if kind == risk_type]
            figures.append(Figure(f"{name}: episodes found, {risk_type}", sum(of_type) / len(of_type), "", note=f"  of {len(of_type)}"))  # fmt: skip
    figures.append(Figure("episodes with one road user in sight, which no distance makes a group", alone, ""))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40, help="scenes of each scenario")
    seeds = parser.parse_args().seeds
    counts = {distance: Counts() for distance in DISTANCES}
    alone: dict[Episode, bool] = {}
    total = len(Scenario) * seeds
    for number in range(total):
        scenario = list(Scenario)[number % len(Scenario)]
        look(Scene(SceneSpec(scenario, seed=FIRST_SEED + number)), number, counts, alone)
        print(f"\r{number + 1} of {total} scenes", end="", flush=True)
    print(f"\nwritten to {tell('group_distance', figures_of(counts, len(alone)))}")


if __name__ == "__main__":
    main()
