"""Writes the dashboards' JSON from their declarations: ``make grafana``; ``--check`` says which files are stale instead.

The files are in Git, so that Grafana can be pointed at a checkout without Python; a test holds them against the
declarations.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

import infra.grafana.boards
from infra.grafana.declaration import Board

FOLDER = Path(__file__).with_name("dashboards")


def boards() -> list[Board]:
    """All dashboards, by the names of their modules."""
    names = sorted(module.name for module in pkgutil.iter_modules(infra.grafana.boards.__path__))
    return [importlib.import_module(f"infra.grafana.boards.{name}").BOARD for name in names]


def written(board: Board) -> str:
    """A dashboard as its file says it: read back by Grafana's own types, which add what a panel's options are by default."""
    register_default_plugins()
    built = Dashboard.from_json(json.loads(JSONEncoder().encode(board.build())))
    return JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False).encode(built) + "\n"


def main(arguments: list[str]) -> int:
    """Write all files, or check them."""
    wanted = {FOLDER / f"{board.uid}.json": written(board) for board in boards()}
    stale = [path for path, content in wanted.items() if not path.is_file() or path.read_text("utf-8") != content]
    forgotten = sorted(set(FOLDER.glob("*.json")) - set(wanted))
    if "--check" in arguments:
        for path in [*stale, *forgotten]:
            print(f"{path} is stale; run: make grafana")
        return 1 if stale or forgotten else 0
    FOLDER.mkdir(exist_ok=True)
    for path in forgotten:
        path.unlink()
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
