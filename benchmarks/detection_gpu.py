"""What a GPU gives: the engine ultralytics in half precision beside a plain loop on the same GPU and beside the cpu engine.

python -m benchmarks.detection_gpu WEIGHTS.pt SAME_WEIGHTS.onnx [--clips FOLDER] [--cameras 50,200,400] [--quick]

Needs the extra ultralytics. Without a GPU it runs on the CPU and says so: a check of the benchmark, no figure.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import structlog
import torch
from ultralytics import YOLO

from benchmarks.detection import Found, carried, clip_pictures, say, simulated_pictures, write_clips
from benchmarks.figures import Figure, tell
from dangerous_driving.camera.frame import Image
from dangerous_driving.detection.agreement import f1_of
from dangerous_driving.detection.cpu import CpuEngine
from dangerous_driving.detection.engine import Engine
from dangerous_driving.detection.ultralytics import UltralyticsEngine
from dangerous_driving.settings import DetectionSettings

BATCHES = (1, 4, 8, 16, 32, 64)
SIZE = 640


def plain_loop(weights: Path, settings: DetectionSettings) -> Callable[[list[Image]], None]:
    """What a first script does: one picture after the other, full precision."""
    model = YOLO(str(weights), task="detect")
    options = {
        "conf": settings.confidence, "iou": settings.iou, "max_det": settings.max_detections, "imgsz": SIZE,
        "device": 0 if torch.cuda.is_available() else "cpu", "verbose": False,
    }  # fmt: skip

    def run(pictures: list[Image]) -> None:
        for picture in pictures:
            boxes = model.predict(picture, **options)[0].boxes
            boxes.xyxy.tolist(), boxes.cls.tolist(), boxes.conf.tolist()

    return run


def batched(engine: Engine, batch: int) -> Callable[[list[Image]], Found]:
    def run(pictures: list[Image]) -> Found:
        return [
            things
            for start in range(0, len(pictures), batch)
            for things in engine.detect(pictures[start : start + batch])
        ]

    return run


def speeds(weights: Path, reference: Path, pictures: list[Image], rounds: int) -> list[Figure]:
    """Frames/s of each way in turn, so that a busy moment meets all; boxes against those of the cpu engine."""
    settings = DetectionSettings(weights=weights, input_size=SIZE)
    on_cpu = CpuEngine(DetectionSettings(weights=reference, input_size=SIZE))
    on_gpu = UltralyticsEngine(settings)
    truth = batched(on_cpu, 4)(pictures)
    score = f1_of(batched(on_gpu, 8)(pictures), truth)
    ways: dict[str, Callable[[list[Image]], object]] = {
        "plain loop": plain_loop(weights, settings),
        "cpu engine, 2 threads": batched(on_cpu, 4),
        **{f"engine ultralytics, batches of {batch}": batched(on_gpu, batch) for batch in BATCHES},
    }
    for name, way in ways.items():
        say(f"warming up: {name}")
        way(pictures)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for name, way in ways.items():
            begun = time.perf_counter()
            way(pictures)
            rates[name].append(len(pictures) / (time.perf_counter() - begun))
    base = statistics.median(rates["plain loop"])
    figures = [
        Figure(f"{weights.stem}: {name}", value := statistics.median(taken), "frames/s", base, value / base)
        for name, taken in rates.items()
    ]
    figures.append(Figure(f"{weights.stem}: F1 of engine ultralytics' boxes against the cpu engine's", score, ""))
    return figures


def stages(weights: Path, pictures: list[Image]) -> list[Figure]:
    """Where the time of one batch of 8 goes, as ultralytics tells it: ms per picture."""
    engine = UltralyticsEngine(DetectionSettings(weights=weights, input_size=SIZE))
    spent: dict[str, list[float]] = {}
    for _ in range(20):
        engine.detect(pictures[:8])
        results = engine._model.predictor.results
        for stage, milliseconds in results[0].speed.items():
            spent.setdefault(stage, []).append(milliseconds)
    return [
        Figure(f"{weights.stem}: {stage}, per picture of a batch of 8", statistics.median(taken), "ms")
        for stage, taken in spent.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="weights for ultralytics, .pt")
    parser.add_argument("reference", type=Path, help="the same weights for the cpu engine, .onnx")
    parser.add_argument("--clips", type=Path, help="folder with clips of real roads; default: simulated pictures")
    parser.add_argument("--cameras", default="50,200,400", help="through the service, one after the other; '' for none")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("error"))
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    say(gpu or "no GPU is there: this only checks that the benchmark runs")
    count, rounds, seconds = (16, 1, 6.0) if arguments.quick else (64, 5, 45.0)
    pictures = clip_pictures(arguments.clips, count) if arguments.clips else simulated_pictures(count)
    figures = speeds(arguments.weights, arguments.reference, pictures, rounds)
    figures += stages(arguments.weights, pictures)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wanted = [int(cameras) for cameras in arguments.cameras.split(",") if cameras]
        if wanted:
            say("rendering clips")
            clips, _ = write_clips(folder, 2 if arguments.quick else 6)
        for cameras in wanted:
            settings = DetectionSettings(weights=arguments.weights, input_size=SIZE)
            figures += carried(cameras, seconds, clips, settings, UltralyticsEngine(settings), folder)
            gc.collect()
    print(f"written to {tell(f'detection_gpu_{arguments.weights.stem}', figures, gpu=gpu or 'none')}")


if __name__ == "__main__":
    main()
