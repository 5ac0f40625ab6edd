"""`dangerous-driving weights …`: what a detector's file is, and how it comes to be one that the cpu engine takes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

app = typer.Typer(help="Weights of the detector.")
out = Console(soft_wrap=True)
err = Console(stderr=True)


@app.command("export")
def export_(
    model: Annotated[str, typer.Argument(help="A file, or a name that ultralytics fetches, such as yolo11n.pt.")],
    target: Annotated[Path | None, typer.Option("--out", help="Default: MODEL.onnx in this folder.")] = None,
    input_size: Annotated[int, typer.Option(min=32, max=2048, help="px; a multiple of 32.")] = 640,
    fixed: Annotated[bool, typer.Option("--fixed", help="One picture of that size at a time.")] = False,
) -> None:
    """Make ONNX weights for the cpu engine, through ultralytics (extra, AGPL-3.0: so are the weights it publishes)."""
    from dangerous_driving.detection.export import export_onnx

    made = export_onnx(model, target, input_size=input_size, dynamic=not fixed)
    show(made)


@app.command()
def quantize(
    weights: Annotated[Path, typer.Argument(help="fp32 weights, an ONNX file.")],
    pictures: Annotated[Path, typer.Option("--pictures", help="A folder of pictures of your cameras (.jpg, .png).")],
    target: Annotated[Path | None, typer.Option("--out", help="Default: WEIGHTS-int8.onnx.")] = None,
) -> None:
    """Make int8 weights, and tell what they gain and cost: speed and F1 against the fp32 ones, on a third of the pictures."""
    import time

    import cv2

    from dangerous_driving.detection.agreement import f1_of
    from dangerous_driving.detection.cpu import CpuEngine
    from dangerous_driving.detection.quantize import quantize_onnx
    from dangerous_driving.settings import DetectionSettings

    files = sorted(path for path in pictures.glob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    images: list[Any] = [image for image in (cv2.imread(str(path)) for path in files) if image is not None]
    engine = CpuEngine(DetectionSettings(weights=weights))
    # every third one is kept back, so that the agreement is of pictures that no scale was fitted to
    kept_back = images[::3]
    fitted = [image for number, image in enumerate(images) if number % 3]
    out.print(f"scales from {len(fitted)} pictures …")
    made = quantize_onnx(engine, weights, fitted, target or weights.with_name(f"{weights.stem}-int8.onnx"))
    small = CpuEngine(DetectionSettings(weights=made))
    found: dict[CpuEngine, list[Any]] = {engine: [], small: []}
    taken = dict.fromkeys(found, 0.0)
    for image in kept_back:
        for one in found:  # in turn, so that a busy moment meets both
            begun = time.perf_counter()
            found[one] += one.detect([image])
            taken[one] += time.perf_counter() - begun
    ratio, agreement = taken[engine] / taken[small], f1_of(found[small], found[engine])
    show(made)
    out.print(
        f"on {len(kept_back)} pictures kept back: {ratio:.2f} times as fast, F1 {agreement:.3f} of the fp32 boxes"
    )


@app.command()
def show(weights: Annotated[Path, typer.Argument(help="An ONNX file.")]) -> None:
    """What the cpu engine reads in a file: its input, and which road users it finds."""
    from dangerous_driving.detection.cpu import CpuEngine
    from dangerous_driving.settings import DetectionSettings

    engine = CpuEngine(DetectionSettings(weights=weights))
    layout, metadata = engine.layout, engine.metadata
    used = sorted(engine.classes.values())
    others = len(layout.names) - len(used)
    table = Table(show_header=False, box=None)
    table.add_row("file", f"{weights} ({weights.stat().st_size / 1e6:.1f} MB)")
    table.add_row("input", f"{layout.width} x {layout.height} px" + (", any multiple of 32" if layout.free else ""))
    table.add_row("batch", "any" if layout.batch is None else str(layout.batch))
    table.add_row("finds", ", ".join(used) + (f" (and {others} other classes, not used)" if others else ""))
    for name in ("description", "author", "license", "version", "date"):
        if metadata.get(name):
            table.add_row(name, metadata[name])
    out.print(table)


@app.command()
def evaluate(
    folders: Annotated[list[Path], typer.Argument(help="Folders of labelled pictures in COCO's form.")],
    weights: Annotated[
        list[Path] | None,
        typer.Option("--weights", help="Files to evaluate (repeat for more); default: detection.weights."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the result in the ledger, for the dashboard.")] = False,
    config: Annotated[Path | None, typer.Option("--config", help="YAML settings file (default: $DD_CONFIG).")] = None,
) -> None:
    """Say how good weights are on labelled pictures: average precision by class, size and light, recall of groups.

    `dangerous-driving simulate scenes` makes such a folder, with exact truth.
    """
    from rich.markdown import Markdown

    from dangerous_driving import settings as settings_module
    from dangerous_driving.detection.weights import require_file
    from dangerous_driving.evaluation.coco_folder import read_labelled
    from dangerous_driving.evaluation.detector import evaluate_detector, markdown
    from dangerous_driving.ledger.database import open_engine
    from dangerous_driving.ledger.detector_quality import keep_report

    settings = settings_module.load(config)
    files = weights or [require_file(settings.detection.weights)]
    reports = []
    for folder in folders:
        labelled = read_labelled(folder, settings.detection.classes)
        for reason, count in labelled.left_out:
            out.print(f"{folder}: {count} labels left out, {reason}", highlight=False)
        for file in files:
            detection = settings.detection.model_copy(update={"weights": file})
            with Progress(console=err) as progress:
                bar = progress.add_task(f"{file.name} on {labelled.name}", total=len(labelled.pictures))
                told = partial(_tell, progress, bar)
                report = evaluate_detector(labelled, detection, on_progress=told)
            out.print(Markdown(markdown(report)))
            reports.append(report)
    if keep:
        engine = open_engine(settings.database, application="weights evaluate")
        for report in reports:
            keep_report(engine, report)
        engine.dispose()
        out.print(f"{len(reports)} evaluations are kept")


def _tell(progress: Progress, bar: TaskID, done: int) -> None:
    progress.update(bar, completed=done)
