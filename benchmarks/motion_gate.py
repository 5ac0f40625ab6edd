"""What the motion gate saves, and what it costs: frames that are passed over, by how much goes on before the camera.

python -m benchmarks.motion_gate [--clips FOLDER] [--gap 30]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from benchmarks.figures import Figure, tell
from dangerous_driving.camera.frame import Image
from dangerous_driving.detection.cpu import CpuEngine
from dangerous_driving.detection.motion import MotionGate
from dangerous_driving.settings import DetectionSettings
from dangerous_driving.simulation import OWN_WEIGHTS
from dangerous_driving.simulation.scenes import Light, Scenario, Scene, SceneSpec

INTERVAL = 1.8  # s
SCENES = {
    "busy, day": SceneSpec(Scenario.QUEUE, Light.DAY, seed=88_000),
    "ordinary, day": SceneSpec(Scenario.FREE_FLOW, Light.DAY, seed=88_001),
    "ordinary, night": SceneSpec(Scenario.FREE_FLOW, Light.NIGHT, seed=88_001),
}

Timed = tuple[float, Image, bool]
"""s, the picture, and whether a dangerous group is in it (False where nobody knows)."""


def of_scene(spec: SceneSpec, count: int) -> Iterator[Timed]:
    scene = Scene(spec)
    for number in range(count):
        frame = scene.frame(number * INTERVAL)
        yield frame.at, frame.image, any(group.dangerous for group in frame.groups)


def empty_road(spec: SceneSpec, count: int) -> Iterator[Timed]:
    """The same view with the sensor's noise and nobody in it."""
    scene = Scene(spec)
    scene._play = type(scene._play)(scene._play.road, ())
    for number in range(count):
        frame = scene.frame(number * INTERVAL)
        yield frame.at, frame.image, False


def of_clip(path: Path) -> Iterator[Timed]:
    capture = cv2.VideoCapture(str(path))
    step = max(1, round(capture.get(cv2.CAP_PROP_FPS) * INTERVAL))
    number = 0
    while capture.grab():
        if number % step == 0:
            yield number / step * INTERVAL, np.asarray(capture.retrieve()[1], np.uint8), False
        number += 1


def saving(name: str, frames: Iterator[Timed], gap: float) -> list[Figure]:
    gate = MotionGate(gap)
    passed: list[bool] = []
    missed = 0
    for at, image, dangerous in frames:
        passed.append(gate.passes(image, at))
        missed += dangerous and not passed[-1]
    share = 1 - sum(passed) / len(passed)
    return [
        Figure(
            f"{name}: frames passed over", share, "share", note=f"  of {len(passed)}; {missed} with a dangerous group"
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=Path, help="folder with clips")
    parser.add_argument("--gap", type=float, default=30.0, help="s between two frames at most (motion_max_gap)")
    parser.add_argument("--frames", type=int, default=100, help="of each scene")
    arguments = parser.parse_args()
    night = SCENES["ordinary, night"]
    figures = saving("empty road, night", empty_road(night, arguments.frames), arguments.gap)
    for name, spec in SCENES.items():
        print(name, flush=True)
        figures += saving(name, of_scene(spec, arguments.frames), arguments.gap)
    for clip in sorted(arguments.clips.glob("*.mp4")) if arguments.clips else []:
        figures += saving(clip.stem, of_clip(clip), arguments.gap)
    image = Scene(night).frame(0.0).image
    engine, gate = CpuEngine(DetectionSettings(weights=OWN_WEIGHTS)), MotionGate(0.0)
    costs: dict[str, list[float]] = {"gate": [], "engine": []}
    for _ in range(30):
        begun = time.perf_counter()
        gate.passes(image, 0.0)
        between = time.perf_counter()
        engine.detect([image])
        costs["gate"].append((between - begun) * 1000)
        costs["engine"].append((time.perf_counter() - between) * 1000)
    cost, whole = statistics.median(costs["gate"]), statistics.median(costs["engine"])
    figures.append(Figure("a look by the gate, against one by the engine", cost, "ms", whole, cost / whole))
    tell("motion_gate", figures)


if __name__ == "__main__":
    main()
