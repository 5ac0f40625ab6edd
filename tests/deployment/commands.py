"""The project's commands and variables, as deployment files name them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import typer.main

from dangerous_driving.cli import app
from tests.conftest import REPOSITORY

VERSION: str = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def _services() -> frozenset[str]:
    """The first column of the table in docs/install.md, part 9."""
    text = (REPOSITORY / "docs" / "install.md").read_text(encoding="utf-8")
    table = text.partition("## 9. Services")[2].partition("\n## ")[0]
    found = re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE)
    assert len(found) >= 8, "the table of services was not found"
    return frozenset(found)


#: Those that a site runs.
SERVICES = _services()
#: Programs of Dagster, in the environment beside ours.
DAGSTERS = ("dagster", "dagster-daemon", "dagster-webserver")


def refused(command: list[str]) -> str | None:
    """Why a container's command does not exist; None: it does."""
    if command[0] == "/bin/sh":
        names = re.findall(r"dangerous-driving ((?:[a-z-]+ ?)+)", command[-1])
        problems = [refused(["dangerous-driving", *name.split()]) for name in names] or ["no command of the project"]
        return next(filter(None, problems), None)
    if command[0] in DAGSTERS:
        return None
    if command[0] != "dangerous-driving":
        return f"{command[0]} is not in the image"
    found = typer.main.get_command(app)
    for word in command[1:]:
        if word.startswith("-"):
            break
        commands = getattr(found, "commands", {})
        if word not in commands:
            return f"no command {' '.join(command)}"
        found = commands[word]
    whole = not getattr(found, "commands", None) or getattr(found, "invoke_without_command", False)
    return None if whole else f"{' '.join(command)} is no whole command"


#: What no file of the repository may hold.
SECRET = re.compile(r"\bsk-[A-Za-z0-9]{8}|whsec_[A-Za-z0-9]|BEGIN [A-Z ]*PRIVATE|://[^/\s:$]+:[^@\s$/]+@")


def variables_of(document: Path) -> set[str]:
    """The project's and Dagster's variables that a document sets (``NAME=…``)."""
    return set(re.findall(r"\b((?:DD|DAGSTER)_[A-Z][A-Z_]*)=", document.read_text(encoding="utf-8")))
