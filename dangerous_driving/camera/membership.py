"""A detector among the others: which of the cameras that it knows are its own, looked up again and again."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from dangerous_driving.camera.sharing import Detector, owner_of
from dangerous_driving.errors import DangerousDrivingError
from dangerous_driving.observability.metrics import DETECT_CAMERAS, DETECT_DETECTORS, DETECT_HEARD
from dangerous_driving.settings import CameraSpec

log = structlog.get_logger(__name__)

#: Looks at which those of before still count, after this detector was given up: where the ledger was away or slow so were
#: the others, and they have not all reported again yet.
GRACE_LOOKS = 2

#: s that signing off may take; where the ledger does not answer the others take over when time is up.
SIGN_OFF_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Attendance:
    """What the ledger answers a detector that reports.

    ``lapsed``: the others had given it up, or never knew it. ``namesake``: another process reports under its name.
    """

    detectors: tuple[Detector, ...]
    lapsed: bool = False
    namesake: bool = False


class Register(Protocol):
    """Where detectors report, and read who else did; its methods raise an error of this package when they cannot."""

    def report(self, cameras: Collection[str]) -> Attendance:
        """Say that this detector lives and knows these cameras; returns all that live, itself included."""

    def leave(self) -> None:
        """Be given up at once."""


class Membership:
    """Divides the cameras with the other detectors that know them; see `sharing`.

    Cameras go on without the ledger: while it cannot be read or written, the detectors that it named last divide the
    cameras, and nobody else at first. The others give this one up meanwhile, and read its cameras too until it is back.

    ``doubted``: another detector may have had the last word on how this one's cameras are. So it is at the look after some
    were taken over, and when the others had given this one up.

    Args:
        name: this detector's.
        node: its machine.
        register: the ledger.
    """

    def __init__(self, name: str, node: str, register: Register) -> None:
        self.name, self._node = name, node
        self._register = register
        self._lock = threading.Lock()  # no report after it has left
        self._others: tuple[Detector, ...] = ()
        self._grace = 0
        self._known: frozenset[str] = frozenset()
        self._own: frozenset[str] = frozenset()
        self._looked = self._namesake = self._took_over = self._lapsed = False
        self._leaving: threading.Thread | None = None
        self._leaving_lock = threading.Lock()
        self.away = self.left = self.doubted = False

    def own(self, cameras: Sequence[CameraSpec]) -> tuple[CameraSpec, ...]:
        """Report, and return those of the known cameras that this detector is to read."""
        known = frozenset(camera.id for camera in cameras)
        with self._lock:
            given_up = not self.left and self._report(known)
            self.doubted = given_up or self._took_over
            mine = Detector(self.name, self._node, known)
            detectors = (mine, *self._others)
            own = frozenset(camera_id for camera_id in known if owner_of(camera_id, detectors) is mine)
            self._took_over = bool((own - self._own) & self._known)
            self._log(known, own)
            self._known, self._own, self._looked = known, own, True
        return tuple(camera for camera in cameras if camera.id in own)

    def leave(self) -> None:
        """Let the others take the cameras over at their next look.

        What fails, or takes longer than `SIGN_OFF_SECONDS`, is logged: then they do when time is up.
        """
        with self._leaving_lock:
            if self._leaving is None:
                self.left = True
                self._leaving = threading.Thread(target=self._sign_off, name="detector-leaves", daemon=True)
                self._leaving.start()
            self._leaving.join(SIGN_OFF_SECONDS)
            if self._leaving.is_alive():  # a report that hangs, or a database
                log.warning("detector_not_signed_off", detector=self.name, reason="the ledger does not answer")

    def _sign_off(self) -> None:
        with self._lock:  # a look that is under way is the last
            if self.away or not self._looked:
                return
            try:
                self._register.leave()
            except DangerousDrivingError as error:
                log.warning("detector_not_signed_off", detector=self.name, reason=str(error))

    def _report(self, known: frozenset[str]) -> bool:
        """Returns whether the others had given this detector up."""
        try:
            attendance = self._register.report(known)
        except DangerousDrivingError as error:
            if not self.away:
                log.warning("detectors_unreadable", detector=self.name, reason=str(error), others=len(self._others))
            self.away = True
            DETECT_HEARD.set(0)
            return False
        if self.away:
            log.info("detectors_readable_again", detector=self.name, detectors=len(attendance.detectors))
        self.away = False
        DETECT_HEARD.set(not attendance.namesake)
        lapsed = attendance.lapsed and self._looked
        if lapsed and not self._lapsed:  # not anew while it goes on: a dead one has to be given up some time
            self._grace = GRACE_LOOKS
        self._lapsed = lapsed
        if attendance.namesake and not self._namesake:
            log.error(
                "detector_name_used_twice",
                detector=self.name,
                reason="another process reports under this name, and both read the same cameras: "
                "give each its own node or spool.folder",
            )
        self._namesake = attendance.namesake
        others = {detector.name: detector for detector in attendance.detectors if detector.name != self.name}
        if self._grace:
            self._grace -= 1
            others = {detector.name: detector for detector in self._others} | others
        self._others = tuple(others.values())
        return lapsed

    def _log(self, known: frozenset[str], own: frozenset[str]) -> None:
        DETECT_CAMERAS.set(len(own))
        DETECT_DETECTORS.set(1 + len(self._others))
        others = sorted(detector.name for detector in self._others)
        if not self._looked and others:
            log.info("cameras_shared", detector=self.name, others=others, own=len(own), known=len(known))
        # a camera that has just been added or removed is no matter between detectors
        for event, moved in (
            ("cameras_taken_over", sorted((own - self._own) & self._known)),
            ("cameras_given_away", sorted((self._own - own) & known)),
        ):
            if moved:
                log.info(event, detector=self.name, count=len(moved), camera_ids=moved, others=others)
