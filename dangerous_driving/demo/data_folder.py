"""The folder in which a demo keeps everything: database, pictures, keys, settings, logs."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, time
from enum import Enum
from pathlib import Path
from typing import IO, Any

import yaml
from pydantic import BaseModel, SecretStr

from dangerous_driving.errors import ConfigError
from dangerous_driving.ledger.embedded import EmbeddedPostgres
from dangerous_driving.settings import Settings

#: Raised when the layout changes in a way that older code cannot read.
FORMAT = 1

LEDGER_DATABASE = "dangerous_driving"
DAGSTER_DATABASE = "dagster"


class DataFolder:
    """Paths within the folder, its format version, and the lock that keeps a second demo out."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.version_file = self.path / "demo.json"
        self.postgres = self.path / "postgres"
        self.objects = self.path / "objects"
        self.dagster_home = self.path / "dagster"
        self.logs = self.path / "logs"
        self.spool = self.path / "spool"
        self.inline = self.path / "inline"
        self.switch_file = self.path / "switch.json"
        self.settings_file = self.path / "settings.yaml"
        self.keys_file = self.path / "api_keys.yaml"
        self.broker_file = self.path / "broker.address"
        self.targets = self.path / "targets"
        self._lock: IO[str] | None = None

    def check(self) -> None:
        """Refuse a folder that is no demo's, or another version's.

        Raises:
            ConfigError: names --data-dir.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError("--data-dir", f"{self.path} is a file", "name a folder")
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        try:
            found = json.loads(self.version_file.read_text(encoding="utf-8"))["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                "--data-dir", f"{self.path} is not empty and not a demo's folder", "name an empty or new folder"
            ) from error
        if found != FORMAT:
            raise ConfigError(
                "--data-dir",
                f"{self.path} was made by another version (format {found}, this is {FORMAT})",
                "use another folder, or the version that made it",
            )

    def open(self) -> dict[str, Any]:
        """Make the folder if it is new and lock it; returns what its version file says.

        Raises:
            ConfigError: another demo uses it.
        """
        self.check()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.version_file.exists():  # before anything else: a kill from here on leaves a demo's folder
                write_private(
                    self.version_file, json.dumps({"format": FORMAT, "created_at": datetime.now(UTC).isoformat()})
                )
            for folder in (self.objects, self.dagster_home, self.logs):
                folder.mkdir(exist_ok=True)
            locked = self.try_lock()
        except OSError as error:
            raise ConfigError(
                "--data-dir", f"{self.path} cannot be written ({error.strerror})", "name another folder"
            ) from error
        if not locked:
            raise ConfigError("--data-dir", f"another demo is running in {self.path}", "stop it, or name another")
        content: dict[str, Any] = json.loads(self.version_file.read_text(encoding="utf-8"))
        return content

    def try_lock(self) -> bool:
        """Lock the folder; False when somebody else has it."""
        lock = (self.path / "lock").open("w", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return False
        self._lock = lock
        return True

    def close(self) -> None:
        """Unlock the folder."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def write_settings(self, settings: Settings) -> None:
        """Write what the services read. The file holds sources with their credentials: nobody else may read it."""
        write_private(self.settings_file, yaml.safe_dump(plain(settings), sort_keys=False, allow_unicode=True))


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, in one step."""
    draft = path.with_suffix(path.suffix + ".new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    draft.replace(path)


def plain(value: Any) -> Any:
    """The settings as YAML can hold them, secrets in clear."""
    if isinstance(value, BaseModel):
        return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    for kind, convert in PLAIN.items():
        if isinstance(value, kind):
            return convert(value)
    return value


#: How the types that settings have and YAML has not are written.
PLAIN: dict[type, Callable[[Any], Any]] = {
    SecretStr: SecretStr.get_secret_value,
    Enum: lambda value: value.value,
    Path: str,
    datetime: datetime.isoformat,
    time: lambda value: f"{value:%H:%M}",
}


@contextmanager
def opened_settings(settings: Settings, data_dir: Path | None) -> Iterator[Settings]:
    """The settings of a demo's folder, with its database running within the block; without a folder, `settings` itself.

    Raises:
        ConfigError: the folder is no demo's.
    """
    if data_dir is None:
        yield settings
        return
    folder = DataFolder(data_dir)
    if not folder.settings_file.exists():
        raise ConfigError("--data-dir", f"{folder.path} holds no demo", "name the folder that the demo was given")
    folder.check()
    from dangerous_driving import settings as settings_module

    demo = settings_module.load(folder.settings_file)
    # whoever has the lock starts and stops the database; others only use it
    ours = folder.try_lock()
    database = EmbeddedPostgres(folder.postgres)
    try:
        url = SecretStr(database.url(LEDGER_DATABASE))
        yield demo.model_copy(update={"database": demo.database.model_copy(update={"url": url})})
    finally:
        if ours:
            database.close()
        folder.close()
