"""What detection costs, and how well its engines agree, side by side in one run.

python -m benchmarks.detection [--quick] [--weights yolov8n.onnx --clips FOLDER [--tflite yolov8n_int8.tflite]]
                               [--ultralytics-python PATH]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import structlog
from pydantic import SecretStr

from benchmarks.figures import Figure, tell
from dangerous_driving.camera.frame import Image
from dangerous_driving.detection.agreement import f1_of
from dangerous_driving.detection.cpu import CpuEngine, letterbox_of
from dangerous_driving.detection.delivery import ResultDelivery
from dangerous_driving.detection.engine import Detection, Engine
from dangerous_driving.detection.grouping import group_boxes
from dangerous_driving.detection.priority import RoadUsers, priorities
from dangerous_driving.detection.quantize import quantize_onnx
from dangerous_driving.detection.service import DetectionService
from dangerous_driving.errors import ConfigError
from dangerous_driving.objects import open_store
from dangerous_driving.observability.metrics import FRAMES_DETECTED, FRAMES_SKIPPED
from dangerous_driving.settings import CameraSettings, CameraSpec, DetectionSettings, ObjectsSettings
from dangerous_driving.simulation import OWN_WEIGHTS
from dangerous_driving.simulation.scenes import Light, Scenario, Scene, SceneSpec

SIZES = (320, 416, 512, 640)
Found = list[list[Detection]]


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def simulated_pictures(count: int) -> list[Image]:
    scenes = [Scene(SceneSpec(scenario, light, seed=80_000 + index)) for index, (scenario, light) in enumerate(
        (scenario, light) for light in (Light.DAY, Light.DUSK) for scenario in (Scenario.FREE_FLOW, Scenario.QUEUE)
    )]  # fmt: skip
    return [scenes[number % len(scenes)].frame(1.8 * number).image for number in range(count)]


def clip_pictures(folder: Path, count: int) -> list[Image]:
    pictures: list[Image] = []
    clips = sorted(folder.glob("*.mp4"))
    for clip in clips:
        capture = cv2.VideoCapture(str(clip))
        step = max(1, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) * len(clips) // count)
        while capture.grab():
            if int(capture.get(cv2.CAP_PROP_POS_FRAMES)) % step == 0:
                picture = capture.retrieve()[1]
                pictures.append(np.asarray(cv2.resize(picture, (1280, 720)), np.uint8))
    return pictures[:count]


class Loop:
    """A plain per-frame loop with ultralytics, in its own environment."""

    def __init__(self, python: Path, weights: Path, pictures: list[Image], size: int, folder: Path) -> None:
        data = folder / f"{weights.stem}.npy"
        np.save(data, np.stack(pictures))
        script = Path(__file__).with_name("ultralytics_loop.py")
        self._process = subprocess.Popen(
            [python, script, weights, data, str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        while self._line() != "ready":
            pass  # what ultralytics prints at its start

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the ultralytics loop ended; its reason stands above")
        return line.strip()

    def run(self) -> tuple[float, Found]:
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        line = self._line()
        while not line.startswith("{"):
            line = self._line()
        said: dict[str, Any] = json.loads(line)
        wanted = set(DetectionSettings().classes)
        found: Found = []
        for boxes, classes, _ in said["found"]:
            named = [
                Detection(said["names"][str(int(kind))], 0.0, tuple(box))
                for box, kind in zip(boxes, classes, strict=True)
            ]
            found.append([thing for thing in named if thing.class_name in wanted])
        return said["seconds"], found

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def against_the_loop(
    name: str, weights: Path, pictures: list[Image], size: int, python: Path, rounds: int, folder: Path
) -> list[Figure]:
    """(a) the cpu engine, batched, against the plain loop; rounds in turn."""
    engine = CpuEngine(DetectionSettings(weights=weights, input_size=None if weights != OWN_WEIGHTS else size))
    engine.detect(pictures[:4])
    loop = Loop(python, weights, pictures, size, folder)
    ours, theirs = [], []
    for number in range(rounds):
        say(f"{name}: round {number + 1} of {rounds}")
        begun = time.perf_counter()
        found = [
            things for start in range(0, len(pictures), 4) for things in engine.detect(pictures[start : start + 4])
        ]
        ours.append(len(pictures) / (time.perf_counter() - begun))
        seconds, truth = loop.run()
        theirs.append(len(pictures) / seconds)
    loop.close()
    value, baseline = statistics.median(ours), statistics.median(theirs)
    agreement = f1_of(found, truth)
    return [
        Figure(f"{name}: cpu engine against ultralytics loop, {size} px", value, "frames/s", baseline, value / baseline, ">= 3", value >= 3 * baseline),
        Figure(f"{name}: F1 of its boxes", agreement, "", target=">= 0.97", met=agreement >= 0.97),
    ]  # fmt: skip


def onnxruntime_of(weights: Path) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    session = ort.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: np.asarray(session.run(None, {name: batch})[0])


def openvino_of(weights: Path) -> Callable[[np.ndarray], np.ndarray]:
    import openvino

    model = openvino.Core().compile_model(str(weights), "CPU", {"INFERENCE_NUM_THREADS": 2})
    return lambda batch: np.asarray(model(batch)[0])


def litert_of(weights: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Of a .tflite file as ultralytics exports it: pictures last axis colour, boxes in shares of the input's side."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(weights), num_threads=2)
    interpreter.allocate_tensors()
    into, out = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(batch: np.ndarray) -> np.ndarray:
        answers = []
        for picture in batch:
            interpreter.set_tensor(into, np.ascontiguousarray(picture.transpose(1, 2, 0))[None])
            interpreter.invoke()
            answer = np.array(interpreter.get_tensor(out)[0])
            answer[:4] *= batch.shape[-1]
            answers.append(answer)
        return np.stack(answers)

    return run


RUNTIMES = {"onnxruntime": onnxruntime_of, "openvino": openvino_of}


class OtherRuntime(CpuEngine):
    """The cpu engine with its letterbox and reading of answers around another runtime or other weights."""

    def __init__(self, settings: DetectionSettings, run: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(settings)
        self._session: Any = SimpleNamespace(run=lambda _, inputs: [run(*inputs.values())])


def int8(
    name: str, weights: Path, pictures: list[Image], tflite: Path | None, repeats: int, folder: Path
) -> list[Figure]:
    """(b2) the same network in int8: quantised by `weights quantize` on half of the pictures, looked at with the rest.

    ``tflite``: the network as a file for LiteRT, which makes int8 of the activations while it runs.
    """
    say(f"int8 of {name}")
    settings = DetectionSettings(weights=weights, input_size=None if weights != OWN_WEIGHTS else 640)
    plain = CpuEngine(settings)
    engines: dict[str, CpuEngine] = {"onnxruntime fp32": plain}
    figures = []
    try:
        made = quantize_onnx(plain, weights, pictures[::2], folder / f"{weights.stem}-int8.onnx")
        engines["onnxruntime static int8"] = CpuEngine(settings.model_copy(update={"weights": made}))
    except ConfigError as error:
        figures.append(Figure(f"{name}: onnxruntime static int8", None, "ms", note=f"  {error}"))
    if tflite is not None:
        try:
            engines["LiteRT int8"] = OtherRuntime(settings, litert_of(tflite))
        except ImportError:
            figures.append(
                Figure(f"{name}: LiteRT int8", None, "ms", note="  not installed (pip install ai-edge-litert)")
            )
    try:
        engines["openvino fp32"] = OtherRuntime(settings, openvino_of(weights))
    except ImportError:
        figures.append(Figure(f"{name}: openvino fp32", None, "ms", note="  not installed (pip install openvino)"))
    unseen = pictures[1::2]
    truth = plain.detect(unseen)
    times: dict[str, list[float]] = {kind: [] for kind in engines}
    for number in range(repeats):
        for kind, engine in engines.items():
            begun = time.perf_counter()
            engine.detect([unseen[number % len(unseen)]])
            times[kind].append((time.perf_counter() - begun) * 1000)
    base = statistics.median(times["onnxruntime fp32"])
    for kind, engine in engines.items():
        value = statistics.median(times[kind])
        score = f1_of(engine.detect(unseen), truth)
        figures.append(
            Figure(
                f"{name}: {kind}, picture to boxes",
                value,
                "ms",
                base,
                value / base,
                note=f"  F1 {score:.3f} of the fp32 boxes, best {min(times[kind]):.1f} ms",
            )
        )
    return figures


def runtimes(pictures: list[Image], repeats: int) -> list[Figure]:
    """(b) ms per picture of each runtime and input size, our own weights (their axes are free); answers compared."""
    figures = []
    truth = CpuEngine(DetectionSettings(weights=OWN_WEIGHTS, input_size=640)).detect(pictures)
    for size in SIZES:
        say(f"runtimes at {size} px")
        engine = CpuEngine(DetectionSettings(weights=OWN_WEIGHTS, input_size=size))
        score = f1_of(engine.detect(pictures), truth)
        box = letterbox_of(1280, 720, size, size)
        batch = np.random.default_rng(0).random((1, 3, -(-box.height // 32) * 32, size), dtype=np.float32)
        runs: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
        for name, make in RUNTIMES.items():
            try:
                runs[name] = make(OWN_WEIGHTS)
            except ImportError:
                figures.append(Figure(f"{name} {size} px", None, "ms", note=f"not installed (pip install {name})"))
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(repeats):
            for name, run in runs.items():  # in turn, so that a busy moment meets all
                begun = time.perf_counter()
                run(batch)
                times[name].append((time.perf_counter() - begun) * 1000)
        base = statistics.median(times["onnxruntime"])
        for name, taken in times.items():
            value = statistics.median(taken)
            figures.append(
                Figure(
                    f"{name} {size} px",
                    value,
                    "ms",
                    base,
                    value / base,
                    note=f"  F1 {score:.3f} of the boxes at 640 px",
                )
            )
    return figures


def carried(
    cameras: int, seconds: float, clips: list[Path], settings: DetectionSettings, engine: Engine, folder: Path
) -> list[Figure]:
    """(c) so many cameras at 1.8 s through the real service, read from clips in real time."""
    size = settings.input_size
    say(f"{cameras} cameras at {size} px")
    specs = tuple(
        CameraSpec(id=f"bench-{size}-{cameras}-{number}", source=SecretStr(str(clips[number % len(clips)])))
        for number in range(cameras)
    )
    ages: list[float] = []
    store = open_store(ObjectsSettings(folder=folder / "objects"))
    service = DetectionService(
        CameraSettings(cameras=specs), settings, engine,
        ResultDelivery(settings, store, lambda result: ages.append(time.time() - result.timestamp.timestamp()), model="own"),
    )  # fmt: skip
    stop = threading.Event()
    thread = threading.Thread(target=service.run, args=(stop,))
    used = time.process_time()
    begun = time.monotonic()
    thread.start()
    time.sleep(seconds)
    stop.set()
    thread.join()
    took = time.monotonic() - begun
    used = time.process_time() - used
    done = sum(FRAMES_DETECTED.labels(camera_id=spec.id)._value.get() for spec in specs)
    skipped = sum(FRAMES_SKIPPED.labels(camera_id=spec.id, reason="behind")._value.get() for spec in specs)
    name = f"{cameras} cameras, {size} px"
    wanted = cameras * took / 1.8
    return [
        Figure(f"{name}: frames detected", done / took, "frames/s", wanted / took, done / wanted, ">= 0.95", done >= 0.95 * wanted, f"  {skipped:.0f} skipped"),
        Figure(f"{name}: processor time per frame", 1000 * used / max(1, done), "ms", note=f"  {used / took:.2f} cores, readers included"),
        Figure(f"{name}: age of a frame when sent, P95", float(np.percentile(ages, 95)) if ages else None, "s"),
    ]  # fmt: skip


def grouping() -> Figure:
    """(d) groups and priorities of 200 boxes."""
    random = np.random.default_rng(0)
    centres, sides = random.uniform((0, 0), (1920, 1080), (200, 2)), random.uniform(20, 120, (200, 2))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    users = RoadUsers.of(boxes, list(random.choice(["person", "car", "bus", "truck", "bicycle"], 200)))
    taken = []
    for _ in range(300):
        begun = time.process_time()
        priorities(users, group_boxes(boxes, 1920, 150.0), users)
        taken.append((time.process_time() - begun) * 1000)
    value = statistics.median(taken)
    return Figure(
        "grouping and priority of 200 boxes", value, "ms", target="< 1", met=value < 1, note=f"  best {min(taken):.3f}"
    )


def write_clips(folder: Path, count: int) -> tuple[list[Path], float]:
    """Scenes as clips of 1280 x 720 at 5 frames/s; returns them and the seconds that rendering a frame took."""
    paths, spent, frames = [], 0.0, 0
    for number in range(count):
        scene = Scene(SceneSpec(list(Scenario)[number % len(Scenario)], seed=85_000 + number))
        scene.frame(0.0)
        path = folder / f"scene{number}.mp4"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 5.0, (1280, 720))
        begun = time.perf_counter()
        for index in range(60):
            writer.write(scene.frame(index * 0.2).image)
        spent, frames = spent + time.perf_counter() - begun, frames + 60
        writer.release()
        paths.append(path)
    return paths, spent / frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under three minutes")
    parser.add_argument("--weights", type=Path, help="weights of real pictures, ONNX")
    parser.add_argument("--clips", type=Path, help="folder with clips for them")
    parser.add_argument("--tflite", type=Path, help="the same weights for LiteRT")
    parser.add_argument("--ultralytics-python", type=Path, default=Path(".venv-ultralytics/bin/python"))
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("error"))
    count, rounds, seconds = (16, 2, 12.0) if arguments.quick else (48, 5, 45.0)
    figures = [grouping()]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        say("rendering pictures")
        pictures = simulated_pictures(count)
        if not arguments.ultralytics_python.exists():
            say(
                f"no {arguments.ultralytics_python}: the comparison with ultralytics is left out (make weights builds it)"
            )
        else:
            figures += against_the_loop(
                "own weights, simulated scenes",
                OWN_WEIGHTS,
                pictures,
                640,
                arguments.ultralytics_python,
                rounds,
                folder,
            )
            if arguments.weights and arguments.clips:
                real = clip_pictures(arguments.clips, count)
                figures += against_the_loop(
                    f"{arguments.weights.stem}, clips",
                    arguments.weights,
                    real,
                    640,
                    arguments.ultralytics_python,
                    rounds,
                    folder,
                )
        figures += runtimes(pictures, 10 if arguments.quick else 40)
        figures += int8("own weights", OWN_WEIGHTS, pictures, None, 10 if arguments.quick else 40, folder)
        if arguments.weights and arguments.clips:
            real = clip_pictures(arguments.clips, count)
            repeats = 10 if arguments.quick else 40
            figures += int8(arguments.weights.stem, arguments.weights, real, arguments.tflite, repeats, folder)
        say("rendering clips")
        clips, rendering = write_clips(folder, 2 if arguments.quick else 6)
        figures.append(Figure("rendering a simulated frame of 1280 x 720", 1000 * rendering, "ms"))
        for size in (416, 640):
            for cameras in (1, 50) if arguments.quick else (1, 50, 200):
                settings = DetectionSettings(weights=OWN_WEIGHTS, input_size=size)
                figures += carried(cameras, seconds, clips, settings, CpuEngine(settings), folder)
    print(f"written to {tell('detection', figures)}")


if __name__ == "__main__":
    main()
