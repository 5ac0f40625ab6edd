"""Keeps whoever reads cameras at those that are its own, while cameras and other detectors come and go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import structlog

from dangerous_driving.camera.inventory import CameraInventory
from dangerous_driving.camera.membership import Membership
from dangerous_driving.settings import CameraSpec

log = structlog.get_logger(__name__)


class CameraUser(Protocol):
    """Reads cameras; `detection.service.DetectionService` is the real one."""

    def apply(self, cameras: tuple[CameraSpec, ...]) -> None:
        """Read these from now on."""

    def tell_again(self) -> None:
        """Say again how each camera is."""

    def idle_for(self) -> float:
        """S since it last looked for what is due."""


class CameraFollower:
    """Looks for changed cameras and for other detectors every few s, in a thread of its own.

    Args:
        inventory: all cameras that this detector knows.
        membership: which of them are its own.
        user: is told which to read.
        register: is told of all known ones at each look.
        refresh: s between two looks.
        lease: s after which one that does not report is given up.
    """

    def __init__(
        self,
        inventory: CameraInventory,
        membership: Membership,
        user: CameraUser,
        *,
        register: Callable[[tuple[CameraSpec, ...]], None],
        refresh: float,
        lease: float,
    ) -> None:
        self._inventory, self._membership, self._user = inventory, membership, user
        self._register, self._refresh, self._lease = register, refresh, lease
        self._own: tuple[CameraSpec, ...] = ()
        self._error: Exception | None = None
        self._hangs = False

    def start(self, own: tuple[CameraSpec, ...], stop: threading.Event) -> None:
        """Begin, until `stop` is set; the cameras in `own` are read already."""
        self._own = own
        threading.Thread(target=self._run, args=(stop,), name="camera-inventory", daemon=True).start()

    def check(self) -> None:
        """Raise what ended the thread before its time."""
        if self._error is not None:
            raise self._error

    def _run(self, stop: threading.Event) -> None:
        try:
            self._inventory.follow(self._user.apply, self._refresh, stop, on_look=self._register, own=self._share)
        except Exception as error:
            # an error of ours: who reads on unheard has its cameras read by others as well
            log.exception("cameras_not_followed")
            self._error = error
            stop.set()
        self._membership.leave()  # at once, while what was detected is still being sent

    def _share(self, cameras: tuple[CameraSpec, ...]) -> tuple[CameraSpec, ...]:
        idle = self._user.idle_for()
        if idle >= self._lease:
            if not self._hangs:
                log.error("detection_hangs", seconds=round(idle), cameras=len(self._own))
            self._hangs = True
            return self._own  # unheard, so that others take over
        self._hangs = False
        self._own = self._membership.own(cameras)
        if self._membership.doubted:
            self._user.tell_again()
        return self._own
