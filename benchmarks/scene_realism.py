"""Are the simulated scenes cartoons? The share of their cars and persons that weights of real pictures find.

python -m benchmarks.scene_realism WEIGHTS.onnx [--frames 96]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from itertools import product
from pathlib import Path

import numpy as np

from dangerous_driving.detection.agreement import iou
from dangerous_driving.detection.cpu import CpuEngine
from dangerous_driving.detection.engine import Detection
from dangerous_driving.settings import DetectionSettings
from dangerous_driving.simulation.scenes import Light, Scenario, Scene, SceneFrame, SceneSpec, Weather

CONFIDENCE = 0.25
MATCH = 0.5  # IoU
LEAST_HEIGHT, LEAST_VISIBLE = 30.0, 0.5  # px, share; see MIN_HEIGHT of the scenes

#: COCO calls a van a car or a truck, as it comes.
ALIKE = {"car": {"car", "truck"}, "truck": {"car", "truck", "bus"}, "bus": {"bus", "truck"}}


def found_in(frame: SceneFrame, detections: list[Detection]) -> list[tuple[str, bool, bool]]:
    """Class, whether it was found as that class, whether as one that looks alike, of each object large enough."""
    rows = []
    for thing in frame.objects:
        if thing.bbox[3] - thing.bbox[1] < LEAST_HEIGHT or thing.visible < LEAST_VISIBLE:
            continue
        there = {found.class_name for found in detections if iou(thing.bbox, found.bbox) >= MATCH}
        rows.append(
            (thing.class_name, thing.class_name in there, bool(there & ALIKE.get(thing.class_name, {thing.class_name})))
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--frames", type=int, default=96)
    arguments = parser.parse_args()
    engine = CpuEngine(DetectionSettings(weights=arguments.weights, confidence=CONFIDENCE))
    counts: dict[tuple[str, str], list[tuple[bool, bool]]] = defaultdict(list)
    kinds = list(product(Light, Weather, Scenario))
    chance = np.random.default_rng(7)
    for number in range(arguments.frames):
        light, weather, scenario = kinds[(number * 7) % len(kinds)]
        frame = Scene(SceneSpec(scenario, light, weather, seed=90_000 + number)).frame(float(chance.uniform(0, 40)))
        for name, same, alike in found_in(frame, engine.detect([frame.image])[0]):
            counts[name, light].append((same, alike))
        print(f"\r{number + 1} of {arguments.frames} frames", end="", flush=True)
    print(
        f"\n{arguments.weights.name} at confidence {CONFIDENCE}, IoU {MATCH}, objects of {LEAST_HEIGHT:.0f} px and more"
    )
    print(f"{'class':12}{'light':8}{'objects':>8}{'found':>8}{'alike':>8}")
    for name in sorted({name for name, _ in counts}):
        everything = [row for (kind, _), rows in counts.items() if kind == name for row in rows]
        for label, rows in [
            *((light, counts[name, light]) for light in Light if (name, light) in counts),
            ("all", everything),
        ]:
            print(
                f"{name:12}{label:8}{len(rows):8}{np.mean([row[0] for row in rows]):8.2f}{np.mean([row[1] for row in rows]):8.2f}"
            )


if __name__ == "__main__":
    main()
