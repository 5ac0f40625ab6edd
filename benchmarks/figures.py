"""How benchmarks tell what they measured: one table on the screen, one JSON file under ``benchmarks/results``."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Figure:
    """One measured figure. ``ratio``: value to baseline, both of the same run; ``met``: whether the target is reached."""

    figure: str
    value: float | None
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    target: str = ""
    met: bool | None = None
    note: str = ""


def machine() -> dict[str, str | int]:
    """What the figures were taken on."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # not Linux
    return {
        "cpu": model,
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def tell(name: str, figures: list[Figure], **accelerator: str) -> Path:
    """Print the table and write the file; returns its path. ``accelerator``: what the machine has besides, as in gpu="…"."""
    taken_on = machine() | accelerator
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(f"\n{name} · commit {commit or 'unknown'} · {', '.join(f'{key} {value}' for key, value in taken_on.items())}")
    width = max(len(figure.figure) for figure in figures)
    print(f"{'figure':{width}}  {'value':>10} {'unit':10} {'baseline':>10} {'ratio':>7}  {'target':10} met")
    for figure in figures:
        value, baseline, ratio = (
            "-" if number is None else f"{number:.4g}" for number in (figure.value, figure.baseline, figure.ratio)
        )
        met = {None: "", True: "yes", False: "no"}[figure.met]
        print(
            f"{figure.figure:{width}}  {value:>10} {figure.unit:10} {baseline:>10} {ratio:>7}  {figure.target:10} {met:4}{figure.note}"
        )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {
        "commit": commit, "at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": taken_on,
        "figures": [asdict(figure) for figure in figures],
    }  # fmt: skip
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path
