"""Trains the project's own small YOLO on the simulated scenes, and measures it on scenes that it has not seen.

    python -m dangerous_driving.simulation.training --out build/training        (or: make weights)

Needs the extra ``ultralytics`` (AGPL-3.0), which the weights therefore carry too. Made for a CPU and less than an hour.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import track

from dangerous_driving.camera.frame import Image
from dangerous_driving.simulation.scenes import Light, Scenario, Scene, SceneFrame, SceneSpec, Weather

Box = tuple[float, float, float, float]

CLASSES = ("person", "bicycle", "car", "motorcycle", "bus", "truck")

#: Seeds of the held-out scenes lie far from those of training, and from what the demo shows.
TRAINING_SEEDS, HELD_OUT_SEEDS = 10_000, 70_000

#: The network: YOLO11's layout with this share of its channels ("nano" has 0.25), so that a CPU carries many cameras.
DEPTH, WIDTH, MAX_CHANNELS = 0.5, 0.125, 1024

#: How much more often a cut is made around an object of a class; about the inverse of how often it is seen.
RARITY = {"person": 1.5, "bicycle": 8.0, "car": 1.0, "motorcycle": 8.0, "bus": 3.0, "truck": 1.5}
RARE = frozenset({"bicycle", "motorcycle", "bus"})
CHIP_SCALES = (1.0, 1.0, 1.0, 0.75)
LEFT_OF_CUT = 0.35


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a training depends on; printed, and kept beside the weights. Sizes in px."""

    scenes: int = 300
    frames_per_scene: int = 6
    chips_per_frame: int = 1
    more_chips_of_rare: int = 2
    held_out_scenes: int = 24
    held_out_frames: int = 8
    epochs: int = 22
    input_size: int = 640
    chip_size: int = 320
    batch: int = 16
    seed: int = 1
    width: int = 1280
    height: int = 720


def scene_specs(count: int, first_seed: int, recipe: Recipe) -> list[SceneSpec]:
    """So many scenes, all kinds in turn."""
    kinds = list(product(Scenario, Light, Weather))
    # day is what most cameras see most of the time
    kinds += [(scenario, Light.DAY, Weather.DRY) for scenario in Scenario]
    order = np.random.default_rng(first_seed).permutation(len(kinds))
    specs = []
    for number in range(count):
        scenario, light, weather = kinds[order[number % len(kinds)]]
        specs.append(SceneSpec(scenario, light, weather, first_seed + number, recipe.width, recipe.height))
    return specs


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture and what is in it: class name and box (x1, y1, x2, y2 in px) of each object."""

    image: Image
    objects: tuple[tuple[str, Box], ...]

    @classmethod
    def of(cls, frame: SceneFrame) -> Picture:
        """The whole frame."""
        return cls(frame.image, tuple((thing.class_name, thing.bbox) for thing in frame.objects))

    def scaled(self, factor: float) -> Picture:
        """Larger or smaller, the way an engine's letterbox does it."""
        image = np.asarray(cv2.resize(self.image, None, fx=factor, fy=factor), dtype=np.uint8)
        return Picture(image, tuple((name, _moved(box, factor, 0.0, 0.0)) for name, box in self.objects))

    def chip(self, left: int, top: int, side: int) -> Picture:
        """A square cut out of it; an object of which less than `LEFT_OF_CUT` remains is no object of it."""
        image = np.ascontiguousarray(self.image[top : top + side, left : left + side])
        height, width = image.shape[:2]
        objects = []
        for name, box in self.objects:
            x1, y1, x2, y2 = _moved(box, 1.0, float(left), float(top))
            cut = (max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2))
            if cut[2] <= cut[0] or cut[3] <= cut[1]:
                continue
            if (cut[2] - cut[0]) * (cut[3] - cut[1]) >= LEFT_OF_CUT * (x2 - x1) * (y2 - y1):
                objects.append((name, cut))
        return Picture(image, tuple(objects))

    def labels(self) -> str:
        """YOLO's text: class index, then centre, width and height as shares of the picture, an object a line."""
        height, width = self.image.shape[:2]
        return "".join(
            f"{CLASSES.index(name)} {(x1 + x2) / 2 / width:.6f} {(y1 + y2) / 2 / height:.6f}"
            f" {(x2 - x1) / width:.6f} {(y2 - y1) / height:.6f}\n"
            for name, (x1, y1, x2, y2) in self.objects
        )


def _moved(box: Box, factor: float, left: float, top: float) -> Box:
    x1, y1, x2, y2 = box
    return x1 * factor - left, y1 * factor - top, x2 * factor - left, y2 * factor - top


def chips(picture: Picture, recipe: Recipe, random: np.random.Generator) -> Iterator[Picture]:
    """Cuts of a frame at the scale that the network will see it at, around objects, the rare classes more often.

    Most of a road picture is empty road: trained on cuts around objects, after Singh, Najibi and Davis (SNIPER, 2018),
    the same hour of a CPU shows several times as many objects at their true size.
    """
    if not picture.objects:
        return
    weights = np.array([RARITY[name] for name, _ in picture.objects])
    rare = sum(name in RARE for name, _ in picture.objects)
    count = recipe.chips_per_frame + min(rare, recipe.more_chips_of_rare)
    for _ in range(count):
        factor = recipe.input_size / recipe.width * float(random.choice(CHIP_SCALES))
        small = picture.scaled(factor)
        x1, y1, x2, y2 = small.objects[random.choice(len(weights), p=weights / weights.sum())][1]
        height, width = small.image.shape[:2]
        side = recipe.chip_size
        left = int(np.clip((x1 + x2) / 2 - random.uniform(0.25, 0.75) * side, 0, max(0, width - side)))
        top = int(np.clip((y1 + y2) / 2 - random.uniform(0.25, 0.75) * side, 0, max(0, height - side)))
        yield small.chip(left, top, side)


def _write_scene(work: tuple[SceneSpec, Recipe, Path, str]) -> int:
    spec, recipe, folder, part = work
    training = part == "train"
    frames = recipe.frames_per_scene if training else recipe.held_out_frames
    random = np.random.default_rng([7, spec.seed])
    cv2.setNumThreads(1)
    scene = Scene(spec)
    # spread over the script, at times that differ by scene
    times = (
        (np.arange(frames) + np.random.default_rng(spec.seed).uniform(0, 1, frames)) * scene.period_of_script / frames
    )
    for number, at in enumerate(times):
        whole = Picture.of(scene.frame(float(at)))
        pictures = chips(whole, recipe, random) if training else [whole]
        for part_of_frame, picture in enumerate(pictures):
            name = f"{spec.scenario}_{spec.seed}_{number}_{part_of_frame}"
            cv2.imwrite(str(folder / "images" / part / f"{name}.jpg"), picture.image, [cv2.IMWRITE_JPEG_QUALITY, 90])
            (folder / "labels" / part / f"{name}.txt").write_text(picture.labels(), encoding="ascii")
    return frames


def write_data(folder: Path, recipe: Recipe) -> Path:
    """Render the data set; returns the file that describes it to ultralytics."""
    parts = {
        "train": scene_specs(recipe.scenes, TRAINING_SEEDS, recipe),
        "held_out": scene_specs(recipe.held_out_scenes, HELD_OUT_SEEDS, recipe),
    }
    work = []
    for part, specs in parts.items():
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
        work += [(spec, recipe, folder, part) for spec in specs]
    with multiprocessing.get_context("spawn").Pool(min(2, os.cpu_count() or 1)) as pool:
        for _ in track(pool.imap_unordered(_write_scene, work), total=len(work), description="rendering scenes"):
            pass
    description = folder / "data.yaml"
    names = "\n".join(f"  {index}: {name}" for index, name in enumerate(CLASSES))
    description.write_text(f"path: {folder.absolute()}\ntrain: images/train\nval: images/held_out\nnames:\n{names}\n")
    return description


def network_description(folder: Path) -> Path:
    """The network as ultralytics reads it: YOLO11 at our width."""
    import ultralytics
    import yaml

    plain = Path(ultralytics.__file__).parent / "cfg/models/11/yolo11.yaml"
    layout = yaml.safe_load(plain.read_text(encoding="utf-8"))
    layout["nc"] = len(CLASSES)
    layout["scales"] = {"n": [DEPTH, WIDTH, MAX_CHANNELS]}
    ours = folder / "yolo11n.yaml"  # the letter names the scale
    ours.write_text(yaml.safe_dump(layout, sort_keys=False), encoding="utf-8")
    return ours


def go_on_from(weights: Path, folder: Path, data: Path) -> Path:
    """A network to train that answers as exported weights do; returns its file.

    The export folds each batch normalisation into its convolution. It is put back from the mean and variance that the
    convolution's output has on training pictures, so that the network answers as before and can be trained as any other.
    """
    import onnx
    import torch
    from onnx import numpy_helper
    from ultralytics import YOLO
    from ultralytics.nn.modules import Conv

    network: Any = YOLO(str(network_description(folder)), task="detect").model
    given = {item.name: numpy_helper.to_array(item) for item in onnx.load(weights).graph.initializer}
    parts = {name: part for name, part in network.named_modules() if isinstance(part, Conv)}
    seen: dict[str, list[tuple[Any, Any]]] = {name: [] for name in parts}
    hooks: list[Any] = []
    folded = {f"{name}.{kind}" for name in parts for kind in ("conv.weight", "conv.bias")}
    plain = {name: value for name, value in network.state_dict().items() if name in given and name not in folded}
    with torch.no_grad():
        for name, value in plain.items():
            value.copy_(torch.from_numpy(given[name].copy()))
        for name, part in parts.items():
            part.conv.weight.copy_(torch.from_numpy(given[f"{name}.conv.weight"].copy()))
            part.bn.weight.fill_((1.0 + part.bn.eps) ** 0.5)
            part.bn.bias.copy_(torch.from_numpy(given[f"{name}.conv.bias"].copy()))
            hooks.append(
                part.conv.register_forward_hook(
                    lambda _, __, out, name=name: seen[name].append((out.mean((0, 2, 3)), (out**2).mean((0, 2, 3))))
                )
            )
        network.eval()
        for file in sorted((data.parent / "images/train").glob("*.jpg"))[::40]:
            cut: Any = cv2.imread(str(file))
            cut = cut[: cut.shape[0] // 32 * 32, : cut.shape[1] // 32 * 32, ::-1]  # the network's coarsest grid
            network(torch.from_numpy(np.ascontiguousarray(cut.transpose(2, 0, 1)))[None].float() / 255)
        for hook in hooks:
            hook.remove()
        for name, part in parts.items():
            mean = torch.stack([pair[0] for pair in seen[name]]).mean(0)
            variance = (torch.stack([pair[1] for pair in seen[name]]).mean(0) - mean**2).clamp(min=1e-6)
            part.bn.bias.add_(mean)
            part.bn.weight.copy_((variance + part.bn.eps).sqrt())
            part.bn.running_mean.copy_(mean)
            part.bn.running_var.copy_(variance)
    network.names = dict(enumerate(CLASSES))
    file = folder / "start.pt"
    torch.save({"model": network}, file)
    return file


def train(folder: Path, data: Path, recipe: Recipe, start: Path | None) -> Path:
    """Train, from ``start`` where it is given; returns the last weights."""
    import torch
    from ultralytics import YOLO

    model: Any = YOLO(str(start or network_description(folder)), task="detect")
    last = folder / "run/weights/last.pt"
    options: dict[str, Any] = {"resume": True} if last.exists() else {}
    if options:
        model = YOLO(str(last))
    # the order of memory in which a CPU's convolutions are fastest: a fourth more pictures a second
    model.add_callback("on_train_start", lambda trainer: trainer.model.to(memory_format=torch.channels_last))
    model.train(
        data=str(data), epochs=recipe.epochs, imgsz=recipe.chip_size, batch=recipe.batch, seed=recipe.seed,
        device="cpu", workers=2, cache="ram", project=str(folder), name="run", exist_ok=True, pretrained=start is not None,
        optimizer="AdamW", lr0=0.001 if start else 0.0015, cos_lr=True, warmup_epochs=0.5 if start else 1.5,
        warmup_bias_lr=0.0, close_mosaic=5, mosaic=0.5, scale=0.25, plots=False,
        amp=False, val=False, patience=0, deterministic=True, save_period=-1, **options,
    )  # fmt: skip
    return last


def export(weights: Path, out: Path, recipe: Recipe) -> Path:
    """ONNX with free batch, height and width; its metadata say what it is for and under which licence."""
    import onnx
    from ultralytics import YOLO

    model: Any = YOLO(str(weights))
    made = Path(model.export(format="onnx", imgsz=recipe.input_size, dynamic=True, simplify=True, opset=17))
    network = onnx.load(made)
    said = {entry.key: entry for entry in network.metadata_props}
    for key, value in {
        "description": "YOLO of simulated road scenes only",
        "license": "AGPL-3.0",
        "author": "dangerous-driving",
    }.items():
        entry = said.get(key) or network.metadata_props.add()
        entry.key, entry.value = key, value
    draft = out.with_suffix(".new")
    onnx.save(network, draft)
    draft.replace(out)
    return out


def evaluate(weights: Path, data: Path, input_size: int) -> dict[str, float]:
    """AP50 by class, and their mean, of an ONNX file on the held-out scenes, by ultralytics' own implementation."""
    from ultralytics import YOLO

    model: Any = YOLO(str(weights), task="detect")
    found = model.val(
        data=str(data), imgsz=input_size, batch=1, device="cpu", rect=False, plots=False, verbose=False, workers=0
    )
    table = {
        CLASSES[int(index)]: float(value) for index, value in zip(found.box.ap_class_index, found.box.ap50, strict=True)
    }
    return {"mAP50": float(found.box.map50), "mAP50-95": float(found.box.map), **table}


def main(arguments: Sequence[str] | None = None) -> None:
    """Render, train, export, evaluate; each step is skipped where its result lies in the folder already."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/training"))
    for field, value in asdict(Recipe()).items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--start", type=Path, help="ONNX weights of this network to go on from; else it starts anew")
    given = vars(parser.parse_args(arguments))
    folder, before = given.pop("out").absolute(), given.pop("start")
    recipe = Recipe(**given)
    for name, value in _quiet(folder):
        os.environ.setdefault(name, value)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    data = folder / "data/data.yaml"
    if not data.exists():
        data = write_data(folder / "data", recipe)
    print(f"scenes rendered after {time.monotonic() - began:.0f} s", flush=True)  # noqa: T201  # a command's output
    start = None if before is None else go_on_from(before.absolute(), folder, data)
    last = train(folder, data, recipe, start)
    seconds = time.monotonic() - began
    print(f"trained after {seconds:.0f} s", flush=True)  # noqa: T201
    out = export(last, folder / "simulated-scenes.onnx", recipe)
    result = {"recipe": asdict(recipe), "seconds": round(seconds)}
    for size in (416, 512, recipe.input_size):
        result[f"held out at {size} px"] = evaluate(out, data, size)
    (folder / "result.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    print(json.dumps(result, indent=2))  # noqa: T201
    from dangerous_driving.simulation import OWN_WEIGHTS

    OWN_WEIGHTS.parent.mkdir(exist_ok=True)
    shutil.copyfile(out, OWN_WEIGHTS)


def _quiet(folder: Path) -> Iterator[tuple[str, str]]:
    # else it installs packages by itself, asks its servers and writes into the home
    yield "YOLO_OFFLINE", "1"
    yield "YOLO_AUTOINSTALL", "false"
    yield "YOLO_CONFIG_DIR", str(folder)


if __name__ == "__main__":
    main()
