"""Detection with ultralytics (extra ``ultralytics``, AGPL-3.0): any weights that it loads, CPU or GPU."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from dangerous_driving.camera.frame import Image
from dangerous_driving.detection.engine import Detection
from dangerous_driving.detection.weights import SETTING, require_file, wanted_classes
from dangerous_driving.errors import ConfigError, InferenceError
from dangerous_driving.settings import DetectionSettings

log = structlog.get_logger(__name__)


class UltralyticsEngine:
    """YOLO through its own library, which picks the device: a GPU (in half precision) if there is one, else the CPU.

    With ``detection.tracker`` each camera has a tracker of its own, which numbers what it can follow from 1 on. Trackers
    match by overlap from frame to frame: they need frame intervals in which a road user moves by less than its own size.

    Raises:
        ConfigError: the extra is not installed, or ultralytics does not load the weights as a detector.
    """

    def __init__(self, settings: DetectionSettings) -> None:
        weights = require_file(settings.weights)
        # else it installs packages and asks its servers while it is imported
        os.environ.setdefault("YOLO_OFFLINE", "1")
        os.environ.setdefault("YOLO_AUTOINSTALL", "false")
        try:
            torch: Any = importlib.import_module("torch")
            from ultralytics import YOLO
        except ImportError as error:
            raise ConfigError(
                "detection.engine",
                "ultralytics is not installed",
                "install the extra (python -m pip install -e '.[ultralytics]' in the checkout; AGPL-3.0), or set it to cpu",
            ) from error
        try:
            self._model: Any = YOLO(str(weights), task="detect")
            task, names = self._model.task, dict(self._model.names)
        except Exception as error:  # whatever the loaders of a dozen formats raise means the same here
            raise ConfigError(
                SETTING, f"ultralytics cannot load {weights} ({error})", "name weights of a YOLO detector"
            ) from error
        if task != "detect":
            raise ConfigError(SETTING, f"{weights} is trained to {task}, not to detect", "name weights of a detector")
        self._classes = wanted_classes([str(names.get(index, "")) for index in range(max(names) + 1)], settings.classes)
        self._name = weights.stem
        self._options: dict[str, Any] = {
            "conf": settings.confidence,
            "iou": settings.iou,
            "max_det": settings.max_detections,
            "classes": sorted(self._classes),
            # exported weights with a named batch axis would be taken for free in height and width too: square input there
            "rect": weights.suffix == ".pt",
            "verbose": False,
        }
        if torch.cuda.is_available() and settings.device != "cpu":
            self._options["quantize"] = 16
        if settings.device is not None:
            self._options["device"] = settings.device
        if settings.input_size is not None:
            self._options["imgsz"] = settings.input_size
        self._trackers: dict[str, tuple[tuple[int, ...], Any]] = {}  # by camera: frame size, tracker
        self._new_tracker = _tracker_factory(settings.tracker) if settings.tracker != "none" else None
        torch.set_num_threads(settings.threads)
        log.info("weights_loaded", model=self._name, classes=sorted(self._classes.values()))

    @property
    def model_name(self) -> str:
        """File name of the weights, without suffix."""
        return self._name

    def detect(
        self,
        images: Sequence[Image],
        camera_ids: Sequence[str] = (),
    ) -> list[list[Detection]]:
        """See `Engine.detect`."""
        if not images:
            return []
        try:
            results = self._model.predict(list(images), **self._options)
        except (RuntimeError, ValueError) as error:  # torch's, and those of the exported formats' runtimes
            raise InferenceError(f"{self._name} failed on {len(images)} picture(s): {error}") from error
        cameras: Sequence[str | None] = camera_ids or [None] * len(images)
        return [
            self._detections(result.boxes, self._followed(camera_id, image, result.boxes))
            for camera_id, image, result in zip(cameras, images, results, strict=True)
        ]

    def _followed(self, camera_id: str | None, image: Image, boxes: Any) -> dict[int, int]:
        """Number of each box that its camera's tracker knows, by its index."""
        if self._new_tracker is None or camera_id is None:
            return {}
        size, tracker = self._trackers.get(camera_id, (image.shape, None))
        if tracker is None or size != image.shape:
            tracker = self._new_tracker()
            self._trackers[camera_id] = image.shape, tracker
        # rows end with: number, confidence, class, index of the box
        return {int(row[-1]): int(row[-4]) for row in tracker.update(boxes.cpu().numpy(), image)}

    def _detections(self, boxes: Any, tracks: Mapping[int, int]) -> list[Detection]:
        corners, confidences, classes = (part.cpu().tolist() for part in (boxes.xyxy, boxes.conf, boxes.cls))
        found = [
            Detection(self._classes[int(index)], min(1.0, float(confidence)), (x1, y1, x2, y2), tracks.get(number))
            for number, ((x1, y1, x2, y2), confidence, index) in enumerate(
                zip(corners, confidences, classes, strict=True)
            )
            if x2 > x1 and y2 > y1
        ]
        return sorted(found, key=lambda detection: -detection.confidence)


def _tracker_factory(name: str) -> Callable[[], Any]:
    """Makes trackers as ultralytics' own settings of that name have them."""
    from ultralytics.trackers.track import TRACKER_MAP
    from ultralytics.utils import YAML, IterableSimpleNamespace
    from ultralytics.utils.checks import check_yaml

    options = IterableSimpleNamespace(**YAML.load(check_yaml(f"{name}.yaml")))
    return lambda: TRACKER_MAP[name](args=options)
