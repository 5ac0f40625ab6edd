"""Which cameras there are now: those of several origins together, looked at again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import structlog

from dangerous_driving import settings as settings_module
from dangerous_driving.errors import ConfigError, DangerousDrivingError
from dangerous_driving.settings import CameraSpec

log = structlog.get_logger(__name__)

Origin = Callable[[], Sequence[CameraSpec]]
"""Reads the cameras of one place; raises an error of this package when it cannot."""


class SettingsFile:
    """The cameras of a YAML settings file, read again when it changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: bytes | None = None
        self._cameras: Sequence[CameraSpec] = ()

    def __call__(self) -> Sequence[CameraSpec]:
        """The cameras.

        Raises:
            ConfigError: the file is missing or wrong.
        """
        content = self._content()
        if content is None or content != self._read:
            self._cameras = settings_module.load(self._path).camera.cameras
            self._read = content
        return self._cameras

    def _content(self) -> bytes | None:
        """None when it cannot be read: `settings.load` says then why."""
        try:
            content = self._path.read_bytes()
            content.decode("utf-8")
        except OSError:
            return None
        except UnicodeDecodeError as error:
            raise ConfigError("--config", f"{self._path} is no UTF-8 text", "save it as UTF-8") from error
        return content


class Switched:
    """The cameras of an origin without those that an operator has stopped.

    Cameras go on without the ledger: while `stopped` cannot be read, what it said last counts, nothing at first.
    """

    def __init__(self, origin: Origin, stopped: Callable[[], frozenset[str]]) -> None:
        self._origin = origin
        self._look = stopped
        self._stopped: frozenset[str] = frozenset()
        self._away = False

    def __call__(self) -> Sequence[CameraSpec]:
        """The cameras that are to be watched; raises what the origin raises."""
        cameras = self._origin()
        try:
            self._stopped = self._look()
            self._away = False
        except DangerousDrivingError as error:
            if not self._away:
                log.warning("stopped_cameras_unreadable", reason=str(error), kept=len(self._stopped))
            self._away = True
        return [camera for camera in cameras if camera.id not in self._stopped]


class Registration:
    """Has the cameras written down where they are looked up by name, at each look again until it worked.

    Args:
        write: raises an error of this package when it cannot.
    """

    def __init__(self, write: Callable[[Sequence[CameraSpec]], None]) -> None:
        self._write = write
        self._written: Sequence[CameraSpec] | None = None
        self._away = False

    def __call__(self, cameras: Sequence[CameraSpec]) -> None:
        """Write them, unless that is done; what fails is logged once."""
        if cameras == self._written:
            return
        try:
            self._write(cameras)
        except DangerousDrivingError as error:
            if not self._away:
                log.warning("cameras_not_registered", reason=str(error))
            self._away = True
            return
        self._written = cameras
        if self._away:
            log.info("cameras_registered", cameras=len(cameras))
        self._away = False


class CameraInventory:
    """Merges the cameras of all origins.

    An origin that cannot be read (a file with a slip, a database that is away) keeps the cameras that it had, and the
    log says why, once. A camera that two origins have is taken from the later one.

    Args:
        origins: by name, in rising order of weight.
    """

    def __init__(self, origins: Mapping[str, Origin]) -> None:
        self._origins = dict(origins)
        self._known: dict[str, Sequence[CameraSpec]] = dict.fromkeys(origins, ())
        self._troubles: dict[str, str] = {}
        self._shadowed: set[tuple[str, str]] = set()

    def look(self) -> tuple[CameraSpec, ...]:
        """The cameras now, in the order of their ids."""
        merged: dict[str, CameraSpec] = {}
        shadowed: set[tuple[str, str]] = set()
        for name, origin in self._origins.items():
            self._read(name, origin)
            for spec in self._known[name]:
                if spec.id in merged:
                    shadowed.add((name, spec.id))
                merged[spec.id] = spec
        for name, camera_id in sorted(shadowed - self._shadowed):
            log.warning("camera_defined_twice", camera_id=camera_id, taken_from=name)
        self._shadowed = shadowed
        return tuple(merged[camera_id] for camera_id in sorted(merged))

    def follow(
        self,
        on_change: Callable[[tuple[CameraSpec, ...]], None],
        refresh: float,
        stop: threading.Event,
        *,
        on_look: Callable[[tuple[CameraSpec, ...]], None] = lambda _: None,
        own: Callable[[tuple[CameraSpec, ...]], tuple[CameraSpec, ...]] = lambda cameras: cameras,
    ) -> None:
        """Look every `refresh` s until `stop` is set, and tell each change; the first look is told in any case.

        `on_look` is told of every look, before; `own` picks at every look those that are told.
        """
        told: tuple[CameraSpec, ...] | None = None
        while not stop.is_set():
            cameras = self.look()
            on_look(cameras)
            mine = own(cameras)
            if mine != told:
                on_change(mine)
                told = mine
            stop.wait(refresh)

    def _read(self, name: str, origin: Origin) -> None:
        try:
            self._known[name] = origin()
        except DangerousDrivingError as error:
            if self._troubles.get(name) != str(error):
                log.warning("cameras_unreadable", origin=name, reason=str(error), kept=len(self._known[name]))
            self._troubles[name] = str(error)
            return
        if self._troubles.pop(name, None) is not None:
            log.info("cameras_readable_again", origin=name, cameras=len(self._known[name]))
