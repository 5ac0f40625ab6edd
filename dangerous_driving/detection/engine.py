"""The one seam to object detection: pictures in, detections out, whatever runs the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dangerous_driving.camera.frame import Image
from dangerous_driving.errors import ConfigError
from dangerous_driving.settings import DetectionSettings


@dataclass(frozen=True, slots=True)
class Detection:
    """One road user in a frame; ``bbox`` is x1, y1, x2, y2 in pixels of the original picture, within it.

    ``track_id`` is the same over the frames of a camera, where a tracker runs.
    """

    class_name: str
    confidence: float
    bbox: tuple[float, float, float, float]
    track_id: int | None = None


class Engine(Protocol):
    """Finds road users. Not for several threads at a time."""

    @property
    def model_name(self) -> str:
        """Name of the weights, as results carry it."""

    def detect(self, images: Sequence[Image], camera_ids: Sequence[str] = ()) -> list[list[Detection]]:
        """Detections of each picture (height x width x 3, BGR, any sizes), the most confident first.

        Args:
            images: the pictures.
            camera_ids: whose each is, for a tracker; a camera's pictures come in the order of capture.

        Raises:
            InferenceError: the runtime failed.
        """


def open_engine(settings: DetectionSettings) -> Engine:
    """Load ``detection.weights`` into the engine that ``detection.engine`` names.

    Raises:
        ConfigError: the weights are missing or no YOLO detector for it, or the engine is not installed.
    """
    # one import at a time: each engine draws in a large runtime
    if settings.tracker != "none" and settings.engine != "ultralytics":
        raise ConfigError(
            "detection.tracker",
            f"engine {settings.engine} has no tracker",
            "set detection.engine to ultralytics, or none",
        )
    if settings.engine == "ultralytics":
        from dangerous_driving.detection.ultralytics import UltralyticsEngine

        return UltralyticsEngine(settings)
    from dangerous_driving.detection.cpu import CpuEngine

    return CpuEngine(settings)
