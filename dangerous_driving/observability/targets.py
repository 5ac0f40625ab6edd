"""Where this process can be scraped, told in a file that Prometheus watches (``file_sd_configs``)."""

from __future__ import annotations

import json
from pathlib import Path

import structlog

from dangerous_driving.errors import ConfigError

log = structlog.get_logger(__name__)

#: Addresses to listen on that are none to ask at.
EVERYWHERE = frozenset({"0.0.0.0", "::", ""})  # noqa: S104  # told apart, not bound


class Target:
    """One file: ``FOLDER/SERVICE.json``, so a folder holds one process of each service (each node has its own).

    The file goes with a clean end. After a kill it stays, and Prometheus tells that the service is down.

    Args:
        folder: as in ``observability.targets_folder``; made when missing.
        service: name of the process, the label ``service``.
        node: name of the machine, the label ``node``, and what is asked where the process listens everywhere.
    """

    def __init__(self, folder: Path, service: str, node: str) -> None:
        self._file = folder / f"{service}.json"
        self._labels = {"service": service, "node": node}

    def write(self, host: str, port: int) -> None:
        """Tell the address.

        Raises:
            ConfigError: the folder cannot be written.
        """
        host = self._labels["node"] if host in EVERYWHERE else f"[{host}]" if ":" in host else host
        content = [{"targets": [f"{host}:{port}"], "labels": self._labels}]
        draft = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(content), encoding="utf-8")
            draft.replace(self._file)  # whole: Prometheus reads it at any moment
        except OSError as error:
            raise ConfigError(
                "observability.targets_folder", f"{self._file} cannot be written ({error.strerror})", "name another"
            ) from error

    def remove(self) -> None:
        """The process has ended as it should."""
        try:
            self._file.unlink(missing_ok=True)
        except OSError as error:
            log.warning("target_not_removed", file=str(self._file), reason=str(error))
