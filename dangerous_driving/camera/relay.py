"""Tells cameras' states to something slow (a database) without making a camera wait."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from dangerous_driving.camera.status import CameraStatus
from dangerous_driving.errors import DangerousDrivingError

log = structlog.get_logger(__name__)


#: s until a state that could not be told is tried again.
RETRY = 5.0


class StatusRelay:
    """Calls ``on_status`` from a thread of its own. Of each camera only the latest state waits, so it never grows.

    A state that cannot be told now waits on, until it is told or a newer one of its camera takes its place: states are
    told on change only, so nobody would say it again. What can never be told (an error that is not ``retriable``) is
    dropped and logged.

    ``error`` is what ended the thread, if ``on_status`` raised something other than an error of this package.

    Args:
        on_status: takes a state; it may take its time.
        retry: s without an attempt after one that failed: what failed is a database, and it is all cameras'.
    """

    def __init__(self, on_status: Callable[[CameraStatus], None], *, retry: float = RETRY) -> None:
        self.error: Exception | None = None
        self._on_status, self._retry = on_status, retry
        self._changed = threading.Condition()
        self._waiting: dict[str, CameraStatus] = {}
        self._closed = False
        self._away = False
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
        """Tell what waits, each once, and end, at most so many s."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)
        if self._thread.is_alive():
            log.warning("camera_statuses_not_told", count=len(self._waiting))

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._away:
                    self._changed.wait_for(lambda: self._closed, self._retry)
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                camera_id = next(iter(self._waiting))
                status = self._waiting.pop(camera_id)
            try:
                self._on_status(status)
            except DangerousDrivingError as error:
                self._failed(status, error)
            except Exception as error:
                self.error = error
                raise
            else:
                if self._away:
                    log.info("camera_statuses_told_again")
                self._away = False

    def _failed(self, status: CameraStatus, error: DangerousDrivingError) -> None:
        with self._changed:
            again = error.retriable and not self._closed
            if again:
                self._waiting.setdefault(status.camera_id, status)  # a newer one stays
        if not again:
            log.warning("camera_status_not_told", camera_id=status.camera_id, reason=str(error))
        elif not self._away:
            log.warning("camera_statuses_wait", camera_id=status.camera_id, retry=self._retry, reason=str(error))
        self._away = again
