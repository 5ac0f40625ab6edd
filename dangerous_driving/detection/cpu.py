"""Detection on the CPU with ONNX Runtime: no torch, so the install stays small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import onnxruntime as ort
import structlog
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from dangerous_driving.camera.frame import Image
from dangerous_driving.detection.engine import Detection
from dangerous_driving.detection.weights import (
    BOX_ROWS,
    EXPORT_REMEDY,
    SETTING,
    STRIDE,
    Tensor,
    read_layout,
    require_file,
    wanted_classes,
)
from dangerous_driving.errors import ConfigError, InferenceError
from dangerous_driving.settings import DetectionSettings

log = structlog.get_logger(__name__)

#: Grey of the bars around a letterboxed picture, as YOLO is trained with.
PADDING = 114

_ORT_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Letterbox:
    """A picture's place in the network's input: ``x_input = x_picture * scale + left``."""

    scale: float
    left: int
    top: int
    width: int  # px of the scaled picture
    height: int


def letterbox_of(width: int, height: int, input_width: int, input_height: int) -> Letterbox:
    """Fit a picture into the input with its aspect kept, centred (as ultralytics does, to the pixel)."""
    scale = min(input_width / width, input_height / height)
    scaled_width, scaled_height = max(1, round(width * scale)), max(1, round(height * scale))
    left = round((input_width - scaled_width) / 2 - 0.1)
    top = round((input_height - scaled_height) / 2 - 0.1)
    return Letterbox(scale, left, top, scaled_width, scaled_height)


class CpuEngine:
    """YOLO (v8 and newer, as ultralytics exports it) on ONNX Runtime, batched where the weights' batch axis is free.

    Raises:
        ConfigError: the weights are missing, no ONNX file, no YOLO detector, or know none of the wanted classes.
    """

    def __init__(self, settings: DetectionSettings) -> None:
        weights = require_file(settings.weights)
        options = ort.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.inter_op_num_threads = 1
        # threads that spin while they wait win 3 % here and take the cores from readers and writers
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # errors come as exceptions
        try:
            self._session = ort.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
        except _ORT_ERRORS as error:
            raise ConfigError(SETTING, f"{weights} is not an ONNX network", EXPORT_REMEDY) from error
        #: What the file says of itself.
        self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.layout = read_layout(
            _tensors(self._session.get_inputs()), _tensors(self._session.get_outputs()), self.metadata, settings
        )
        #: Index in the network's answer, and name, of what is looked for.
        self.classes = wanted_classes(self.layout.names, settings.classes)
        self._settings = settings
        self._name = weights.stem
        missing = sorted(set(settings.classes) - set(self.classes.values()))
        log.info(
            "weights_loaded",
            model=self._name,
            input=f"{self.layout.width}x{self.layout.height}",
            batch=self.layout.batch or "any",
            classes=sorted(self.classes.values()),
            classes_unknown_to_weights=missing,
        )

    @property
    def model_name(self) -> str:
        """File name of the weights, without suffix."""
        return self._name

    def detect(
        self,
        images: Sequence[Image],
        camera_ids: Sequence[str] = (),  # noqa: ARG002  # nothing is tracked here
    ) -> list[list[Detection]]:
        """See `Engine.detect`."""
        # pictures of one shape go together, so that what is found in one does not depend on its neighbours
        together: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            together.setdefault(self._input_of(image), []).append(index)
        found: list[list[Detection]] = [[] for _ in images]
        for (width, height), indices in together.items():
            step = self.layout.batch or len(indices)
            for start in range(0, len(indices), step):
                batch = indices[start : start + step]
                answers = self._detect_batch([images[index] for index in batch], width, height)
                for index, detections in zip(batch, answers, strict=True):
                    found[index] = detections
        return found

    def _input_of(self, image: Image) -> tuple[int, int]:
        """Width and height of the input for a picture: no more grey bars than the network's grid needs.

        A 16:9 picture at 640 px then takes 640 x 384 instead of 640 x 640, which is 40 % less work.
        """
        layout = self.layout
        if not layout.free:
            return layout.width, layout.height
        box = letterbox_of(image.shape[1], image.shape[0], layout.width, layout.height)
        return -(-box.width // STRIDE) * STRIDE, -(-box.height // STRIDE) * STRIDE

    def _detect_batch(self, images: Sequence[Image], width: int, height: int) -> list[list[Detection]]:
        layout = self.layout
        batch, boxes = self._batch(images, width, height)
        try:
            (output,) = self._session.run(None, {layout.input_name: batch})
        except _ORT_ERRORS as error:
            raise InferenceError(f"{self._name} failed on {len(images)} picture(s): {error}") from error
        read = self._read_end_to_end if layout.end_to_end else self._read_raw
        return [
            self._detections(*read(np.asarray(answer, dtype=np.float32)), box, image)
            for answer, box, image in zip(output, boxes, images, strict=False)
        ]

    def input_of(self, image: Image) -> NDArray[np.floating]:
        """What the network is fed for one picture: batch x 3 x height x width."""
        return self._batch([image], *self._input_of(image))[0]

    def _batch(self, images: Sequence[Image], width: int, height: int) -> tuple[NDArray[np.floating], list[Letterbox]]:
        layout = self.layout
        boxes = [letterbox_of(image.shape[1], image.shape[0], width, height) for image in images]
        # weights with a fixed batch above one are fed in full; what the spare places find is not looked at
        places = layout.batch or len(images)
        batch = np.full((places, 3, height, width), PADDING / 255, dtype=np.float32)
        for picture, image, box in zip(batch, images, boxes, strict=False):
            _fill(picture, image, box)
        return (batch.astype(np.float16) if layout.half else batch), boxes

    def _read_raw(self, answer: Floats) -> tuple[Floats, Floats, NDArray[np.intp]]:
        """Corners in input pixels (n x 4), confidences and classes of what is left of (4 + classes) x n."""
        scores = answer[BOX_ROWS:]
        candidates = np.flatnonzero(scores[list(self.classes)].max(axis=0) > self._settings.confidence)
        if not candidates.size:
            return np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.intp)
        # a box is what it most looks like of all classes: what is rather a train is no doubtful bus
        classes = scores[:, candidates].argmax(axis=0)
        wanted = np.isin(classes, list(self.classes))
        candidates, classes = candidates[wanted], classes[wanted]
        confidences = scores[classes, candidates]
        centre, size = answer[:2, candidates].T, answer[2:BOX_ROWS, candidates].T
        top_left = centre - size / 2
        kept = cv2.dnn.NMSBoxesBatched(
            np.concatenate([top_left, size], axis=1).astype(np.float64),  # type: ignore[arg-type]
            confidences,
            classes.astype(np.int32),
            0.0,
            self._settings.iou,
        )
        index = np.asarray(kept, dtype=np.intp).ravel()
        return np.concatenate([top_left, top_left + size], axis=1)[index], confidences[index], classes[index]

    def _read_end_to_end(self, answer: Floats) -> tuple[Floats, Floats, NDArray[np.intp]]:
        """The same of n x 6 (overlaps are suppressed already, ``detection.iou`` has no effect)."""
        classes = answer[:, 5].astype(np.intp)
        kept = (answer[:, 4] > self._settings.confidence) & np.isin(classes, list(self.classes))
        return answer[kept, :4], answer[kept, 4], classes[kept]

    def _detections(
        self, corners: Floats, confidences: Floats, classes: NDArray[np.intp], box: Letterbox, image: Image
    ) -> list[Detection]:
        height, width = image.shape[:2]
        bars = np.array([box.left, box.top, box.left, box.top], dtype=np.float32)
        limits = np.array([width, height, width, height], dtype=np.float32)
        corners = np.clip((corners - bars) / box.scale, 0, limits)
        seen = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
        order = np.argsort(-confidences, kind="stable")
        order = order[seen[order]][: self._settings.max_detections]
        return [
            Detection(self.classes[int(classes[index])], min(1.0, float(confidences[index])), (x1, y1, x2, y2))
            for index, (x1, y1, x2, y2) in zip(order, corners[order].tolist(), strict=True)
        ]


def _fill(picture: Floats, image: Image, box: Letterbox) -> None:
    """Write an image into its place of the input, RGB in 0..1 (3 x height x width; the bars are there)."""
    if image.shape[:2] != (box.height, box.width):
        image = np.asarray(cv2.resize(image, (box.width, box.height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    place = picture[:, box.top : box.top + box.height, box.left : box.left + box.width]
    for channel, plane in zip(place, reversed(cv2.split(image)), strict=True):
        np.multiply(plane, np.float32(1 / 255), out=channel)


def _tensors(arguments: Sequence[ort.NodeArg]) -> list[Tensor]:
    return [Tensor(argument.name, tuple(argument.shape), argument.type) for argument in arguments]
