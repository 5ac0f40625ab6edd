"""Which detector reads which camera. Pure.

Highest random weight ("rendezvous") hashing: D. G. Thaler and C. V. Ravishankar, "Using name-based mappings to increase hit
rates", IEEE/ACM Transactions on Networking 6 (1), 1998. Each detector works it out alone, from the same list, and all come
to the same answer; one that joins or leaves moves the cameras that go to it or were its, and no others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Detector:
    """A process that reads cameras: its name, which is its alone, its machine, and the ids of all cameras that it knows."""

    name: str
    node: str
    cameras: frozenset[str]


def owner_of(camera_id: str, detectors: Iterable[Detector]) -> Detector | None:
    """The one of these detectors that is to read the camera; None where none of them knows it."""
    return max(
        (detector for detector in detectors if camera_id in detector.cameras),
        key=lambda detector: (_weight(detector.name, camera_id), detector.name),
        default=None,
    )


def shown_names(detectors: Iterable[Detector]) -> dict[str, str]:
    """What a person calls each detector, by its name: its machine, where it is the only one there."""
    known = list(detectors)
    nodes = [detector.node for detector in known]
    return {detector.name: detector.node if nodes.count(detector.node) == 1 else detector.name for detector in known}


def _weight(name: str, camera_id: str) -> bytes:
    # lengths apart, so that no two pairs are one text; hash() differs from process to process
    return hashlib.blake2b(f"{len(name)} {name} {camera_id}".encode(), digest_size=8).digest()
