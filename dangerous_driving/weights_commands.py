"""`dangerous-driving weights …`: what a detector's file is, and how it comes to be one that the cpu engine takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(help="Weights of the detector.")
out = Console(soft_wrap=True)


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
