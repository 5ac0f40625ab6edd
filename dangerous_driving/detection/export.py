"""Makes weights for the cpu engine out of weights of ultralytics (extra ``ultralytics``, AGPL-3.0)."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from dangerous_driving.errors import ConfigError

#: What ONNX Runtime, OpenVINO and OpenCV of the last years all read.
OPSET = 17

MODEL = "MODEL"


def export_onnx(model: str, out: Path | None, *, input_size: int, dynamic: bool) -> Path:
    """Write a detector as ONNX; returns the file.

    Args:
        model: a file (``best.pt``), or a name that ultralytics fetches from its own server (``yolo11n.pt``).
        out: where to; None: the model's name with ``.onnx`` in the current folder.
        input_size: px of the square input; with ``dynamic`` the one used by default.
        dynamic: leave batch, height and width open, so that the engine runs several cameras' pictures at once and takes
            less for wide ones.

    Raises:
        ConfigError: the extra is not installed, the model cannot be had, or it is no detector.
    """
    source = Path(model)
    target = (out or Path(f"{source.stem}.onnx")).absolute()
    if target.suffix != ".onnx":
        raise ConfigError("--out", f"{target.name} does not end in .onnx", "name a file such as weights.onnx")
    if not target.parent.is_dir():
        raise ConfigError("--out", f"there is no folder {target.parent}", "make it first")
    given = source.is_file()
    if given or len(source.parts) > 1:
        os.environ.setdefault("YOLO_OFFLINE", "1")  # a file of our own is nobody else's business
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    try:
        from ultralytics import YOLO
    except ImportError as error:
        raise ConfigError(
            "weights export",
            "ultralytics is not installed",
            "install the extra (python -m pip install -e '.[ultralytics]' in the checkout; AGPL-3.0)",
        ) from error
    if not given and len(source.parts) > 1:
        raise ConfigError(MODEL, f"there is no file {model}", "check the path")
    # it writes beside the model and into the current folder: both are ours here
    with tempfile.TemporaryDirectory() as folder:
        if given:
            shutil.copyfile(source, Path(folder, source.name))
        with contextlib.chdir(folder):
            try:
                network: Any = YOLO(source.name)
                task = network.task
                made = Path(
                    network.export(format="onnx", imgsz=input_size, dynamic=dynamic, simplify=True, opset=OPSET)
                    if task == "detect"
                    else ""
                ).absolute()
            except Exception as error:  # whatever its loaders and its downloader raise means the same here
                remedy = "name weights of a YOLO detector" if given else "name a file, or one that ultralytics offers"
                raise ConfigError(MODEL, f"ultralytics cannot export {model} ({error})", remedy) from error
        if task != "detect":
            raise ConfigError(MODEL, f"{model} is trained to {task}, not to detect", "name weights of a detector")
        draft = target.with_suffix(".onnx.new")
        shutil.copyfile(made, draft)
        draft.replace(target)
    return target
