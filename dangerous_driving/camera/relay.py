"""Tells cameras' states to something slow (a database) without making a camera wait."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from dangerous_driving.camera.status import CameraStatus
from dangerous_driving.errors import DangerousDrivingError

log = structlog.get_logger(__name__)


class StatusRelay:
    """Calls ``on_status`` from a thread of its own. Of each camera only the latest state waits, so it never grows.

    ``error`` is what ended the thread, if ``on_status`` raised something other than an error of this package.
    """

    def __init__(self, on_status: Callable[[CameraStatus], None]) -> None:
        self.error: Exception | None = None
        self._on_status = on_status
        self._changed = threading.Condition()
        self._waiting: dict[str, CameraStatus] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="camera-status", daemon=True)

    def start(self) -> None:
        """Begin to tell."""
        self._thread.start()

    def tell(self, status: CameraStatus) -> None:
        """Have a state told; does not wait."""
        with self._changed:
            self._waiting.pop(status.camera_id, None)  # the latest goes to the end
            self._waiting[status.camera_id] = status
            self._changed.notify()

    def close(self, timeout: float) -> None:
        """Tell what waits and end, at most so many s."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)
        if self._thread.is_alive():
            log.warning("camera_statuses_not_told", count=len(self._waiting))

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                camera_id = next(iter(self._waiting))
                status = self._waiting.pop(camera_id)
            try:
                self._on_status(status)
            except DangerousDrivingError as error:
                log.warning("camera_status_not_told", camera_id=camera_id, reason=str(error))
            except Exception as error:
                self.error = error
                raise
