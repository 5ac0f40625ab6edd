"""Dagster as parts of the demo: its instance folder, its processes and their environment."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from dangerous_driving.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]

#: A run is a process that needs about a core for some seconds.
MAX_CONCURRENT_RUNS = 2


def prepare(home: Path) -> None:
    """Put the instance file into the folder that is to be DAGSTER_HOME.

    Raises:
        ConfigError: the file is not part of this installation.
    """
    candidates = (PACKAGE.parent / "dagster_home", PACKAGE / "_dagster_home")
    for candidate in candidates:
        if (candidate / "dagster.yaml").is_file():
            shutil.copyfile(candidate / "dagster.yaml", home / "dagster.yaml")
            return
    raise ConfigError(
        "dagster_home",
        f"no dagster.yaml in {' or '.join(map(str, candidates))}",
        "install the package whole, or use --no-dagster",
    )


def environment(home: Path, database_url: str) -> dict[str, str]:
    """What `dagster.yaml` reads."""
    return {
        "DAGSTER_HOME": str(home),
        "DAGSTER_POSTGRES_URL": database_url,
        "DAGSTER_MAX_CONCURRENT_RUNS": str(MAX_CONCURRENT_RUNS),
        "DO_NOT_TRACK": "1",
    }


def commands(port: int) -> dict[str, list[str]]:
    """The two processes: page and daemon. Both load the definitions by the module's name."""
    module = ["--module-name", "dangerous_driving.definitions"]
    return {
        "dagster-webserver": [
            sys.executable, "-m", "dagster_webserver", "--host", "127.0.0.1", "--port", str(port), *module,
        ],
        "dagster-daemon": [sys.executable, "-m", "dagster._daemon", "run", *module],
    }  # fmt: skip
