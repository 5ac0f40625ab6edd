"""What an ONNX file must say of itself to be used as a YOLO detector (pure)."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dangerous_driving.errors import ConfigError
from dangerous_driving.settings import DetectionSettings

SETTING = "detection.weights (--weights)"
EXPORT_REMEDY = "name a YOLO detector as ultralytics exports it (yolo export model=… format=onnx)"

#: Of weights that leave height and width open and do not tell what they were trained at.
DEFAULT_INPUT_SIZE = 640
STRIDE = 32  # px; YOLO's coarsest grid, of which input sides are multiples

#: Columns of weights that suppress overlaps themselves: x1, y1, x2, y2, confidence, class.
END_TO_END_COLUMNS = 6
BOX_ROWS = 4  # of raw output: centre x, centre y, width, height

Shape = Sequence[int | str | None]
"""As ONNX Runtime tells it: a name or None stands for a free axis."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of the network; ``type`` in ONNX Runtime's words (``tensor(float)``)."""

    name: str
    shape: Shape
    type: str


@dataclass(frozen=True, slots=True)
class Layout:
    """How to feed the network and to read its answer.

    ``batch``: most pictures in one run, None for any number. ``end_to_end``: the network suppresses overlaps itself and
    answers batch x n x 6; else it answers batch x (4 + classes) x n. ``names`` are the classes by index. ``free``: height
    and width are the most that is used, a picture of another shape takes less.
    """

    input_name: str
    height: int
    width: int
    half: bool
    batch: int | None
    end_to_end: bool
    names: tuple[str, ...]
    free: bool = False


def require_file(weights: Path | None) -> Path:
    """The weights' path.

    Raises:
        ConfigError: none is set, or there is no such file.
    """
    if weights is None:
        raise ConfigError(SETTING, "no weights are set", EXPORT_REMEDY)
    if not weights.is_file():
        raise ConfigError(SETTING, f"there is no file {weights}", "check the path")
    if weights.stat().st_size == 0:
        raise ConfigError(SETTING, f"{weights} is empty", EXPORT_REMEDY)
    return weights


def read_layout(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], metadata: Mapping[str, str], settings: DetectionSettings
) -> Layout:
    """Read what the network takes and gives.

    Raises:
        ConfigError: it is no YOLO detector, or does not take the set input size.
    """
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[1] != 3:  # noqa: PLR2004 - N x RGB x H x W
        raise _refusal(f"takes {_shown(inputs)}, not one batch x 3 x height x width")
    if inputs[0].type not in {"tensor(float)", "tensor(float16)"}:
        raise _refusal(f"takes {inputs[0].type}, not floating-point pictures")
    if metadata.get("task", "detect") != "detect":
        raise _refusal(f"is trained to {metadata['task']}, not to detect")
    names = _names(metadata)
    end_to_end = _is_end_to_end(outputs, len(names))
    batch, _, height, width = inputs[0].shape
    default = _trained_size(metadata)
    return Layout(
        input_name=inputs[0].name,
        height=_side(height, default[0], settings.input_size),
        width=_side(width, default[1], settings.input_size),
        half=inputs[0].type == "tensor(float16)",
        batch=batch if isinstance(batch, int) else None,
        end_to_end=end_to_end,
        names=names,
        free=not isinstance(height, int) and not isinstance(width, int),
    )


def wanted_classes(names: Sequence[str], wanted: Sequence[str]) -> dict[int, str]:
    """Index and name of the classes to keep, matched by name whatever the weights' numbering.

    Raises:
        ConfigError: the weights have none of them.
    """
    by_name = {name.casefold(): name for name in wanted}
    kept = {index: by_name[name.casefold()] for index, name in enumerate(names) if name.casefold() in by_name}
    if not kept:
        raise ConfigError(
            SETTING,
            f"the weights know none of {', '.join(wanted)} (they know {', '.join(names[:8])}{', …' * (len(names) > 8)})",  # noqa: PLR2004
            "use weights trained on road users, or set detection.classes to names they know",
        )
    return kept


def _names(metadata: Mapping[str, str]) -> tuple[str, ...]:
    try:
        names = ast.literal_eval(metadata.get("names", ""))
    except (ValueError, SyntaxError) as error:
        raise _refusal("does not tell the names of its classes") from error
    if isinstance(names, (list, tuple)):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or sorted(names) != list(range(len(names))) or not names:
        raise _refusal("does not tell the names of its classes")
    return tuple(str(names[index]) for index in range(len(names)))


def _is_end_to_end(outputs: Sequence[Tensor], classes: int) -> bool:
    if len(outputs) == 1 and len(outputs[0].shape) == 3:  # noqa: PLR2004 - batch, and two of boxes
        _, rows, columns = outputs[0].shape
        if columns == END_TO_END_COLUMNS:
            return True
        if rows == BOX_ROWS + classes:
            return False
    raise _refusal(f"answers {_shown(outputs)}, not batch x {BOX_ROWS + classes} x boxes")


def _trained_size(metadata: Mapping[str, str]) -> tuple[int, int]:
    try:
        height, width = ast.literal_eval(metadata["imgsz"])
        return int(height), int(width)
    except (KeyError, ValueError, SyntaxError, TypeError):
        return DEFAULT_INPUT_SIZE, DEFAULT_INPUT_SIZE


def _side(of_weights: int | str | None, default: int, wanted: int | None) -> int:
    side = wanted if wanted is not None else default
    if isinstance(of_weights, int):
        if wanted is not None and wanted != of_weights:
            raise ConfigError(
                "detection.input_size",
                f"the weights are made for {of_weights} px, not {wanted}",
                "leave it out, or export the weights at that size (yolo export … imgsz=… or dynamic=True)",
            )
        return of_weights
    if side <= 0 or side % STRIDE:
        raise ConfigError("detection.input_size", f"{side} is no multiple of {STRIDE} px", "set one, such as 640")
    return side


def _shown(tensors: Sequence[Tensor]) -> str:
    return (
        ", ".join(f"{tensor.name} {' x '.join(str(side) for side in tensor.shape)}" for tensor in tensors) or "nothing"
    )


def _refusal(problem: str) -> ConfigError:
    return ConfigError(SETTING, f"the network {problem}", EXPORT_REMEDY)
