"""Simulated scenes as a folder of labelled pictures in COCO's form, with exact truth: what detectors are evaluated on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dangerous_driving.errors import ConfigError
from dangerous_driving.evaluation.coco_folder import ANNOTATIONS
from dangerous_driving.simulation.scenes import Light, Scenario, Scene, SceneFrame, SceneSpec, TrueObject, Weather

CLASSES = ("person", "bicycle", "car", "motorcycle", "bus", "truck")
#: Far from the seeds of the training, of its own held-out scenes, and of the demo.
FIRST_SEED = 90_000


def scene_specs(count: int, *, seed: int = FIRST_SEED, width: int = 1280, height: int = 720) -> list[SceneSpec]:
    """So many scenes: every scenario in every light and weather in turn, in an order that mixes them."""
    kinds = list(product(Scenario, Light, Weather))
    order = np.random.default_rng(seed).permutation(len(kinds))
    specs = []
    for number in range(count):
        scenario, light, weather = kinds[order[number % len(kinds)]]
        specs.append(SceneSpec(scenario, light, weather, seed + number, width, height))
    return specs


def write_labelled_scenes(folder: Path, specs: Sequence[SceneSpec], frames: int) -> Iterator[int]:
    """Render the scenes into a new folder; yields the number of pictures after each, and writes the labels at the end.

    Args:
        folder: it must not hold labels yet.
        specs: of the scenes.
        frames: of each, spread over its script.

    Raises:
        ConfigError: the folder holds labels already.
    """
    if (folder / ANNOTATIONS).exists():
        raise ConfigError("--out", f"{folder} holds labelled pictures already", "name another folder, or remove it")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    labels: dict[str, Any] = {
        "info": {"description": "rendered road scenes with exact truth", "simulated": True},
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)],
        "groups": [],
    }
    for spec in specs:
        scene = Scene(spec)
        # at times that differ by scene
        places = np.arange(frames) + np.random.default_rng(spec.seed).uniform(0, 1, frames)
        for number, at in enumerate(places * scene.period_of_script / frames):
            name = f"images/{spec.scenario}-{spec.light}-{spec.weather}-{spec.seed}-{number}.jpg"
            frame = scene.frame(float(at))
            cv2.imwrite(str(folder / name), frame.image, [cv2.IMWRITE_JPEG_QUALITY, 90])
            _label(labels, frame, spec, name)
            yield len(labels["images"])
    draft = folder / f"{ANNOTATIONS}.new"
    draft.write_text(json.dumps(labels), encoding="utf-8")
    draft.replace(folder / ANNOTATIONS)


def _label(labels: dict[str, Any], frame: SceneFrame, spec: SceneSpec, name: str) -> None:
    image_id = len(labels["images"]) + 1
    labels["images"].append(
        {
            "id": image_id,
            "file_name": name,
            "width": spec.width,
            "height": spec.height,
            "light": spec.light.value,
            "weather": spec.weather.value,
            "camera": f"{spec.scenario}-{spec.seed}",
        }
    )
    numbers: dict[int, int] = {}
    for crowd, things in ((0, frame.objects), (1, frame.faint)):
        for thing in things:
            number = len(labels["annotations"]) + 1
            if not crowd:
                numbers[thing.actor_id] = number
            labels["annotations"].append(_annotation(thing, number, image_id, crowd))
    labels["groups"] += [
        {
            "image_id": image_id,
            "annotation_ids": [numbers[actor] for actor in group.actor_ids],
            "risk_level": group.risk_level.value,
            "risk_type": group.risk_type,
        }
        for group in frame.groups
    ]


def _annotation(thing: TrueObject, number: int, image_id: int, crowd: int) -> dict[str, Any]:
    x1, y1, x2, y2 = thing.bbox
    return {
        "id": number,
        "image_id": image_id,
        "category_id": CLASSES.index(thing.class_name) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": crowd,
    }
