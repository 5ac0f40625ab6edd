"""A folder that belongs to one process, until it ends: killed or not, the system lets go of it."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from dangerous_driving.errors import ConfigError


def own_folder(folder: Path, setting: str) -> IO[str]:
    """Make the folder and keep other processes out of it; closing what is returned lets them in.

    Args:
        folder: made when it is missing.
        setting: names it, for who has to mend it.

    Raises:
        ConfigError: the folder cannot be written or locked, or another process uses it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        owned = (folder / "lock").open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(setting, f"{folder} cannot be written ({error.strerror})", "name another") from error
    try:
        fcntl.flock(owned, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owned.close()
        raise ConfigError(setting, f"another process uses {folder}", "give each its own") from error
    except OSError as error:
        owned.close()
        raise ConfigError(setting, f"{folder} cannot be locked ({error.strerror})", "name another") from error
    return owned
