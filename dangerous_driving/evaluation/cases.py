"""Cases: a group's picture with what is known to be true of it. Truth, disagreement and the split; pure.

A person's rejection says that a scene was no alert, not whether it was ``none`` or ``low``: the truth of a case is an
interval of levels. A confirmation, a simulated scene and a labelled picture usually name one level: an interval of one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from dangerous_driving.contracts import AssessmentTask, RiskLevel

LEVELS = tuple(RiskLevel)


class CaseSource(StrEnum):
    """Where a case comes from."""

    OPERATOR = "operator"  # a verdict on an alert
    SIMULATED = "simulated"  # a rendered scene, whose truth is exact
    IMPORTED = "imported"  # a labelled folder


class Split(StrEnum):
    """``train`` is for those who write prompts; the gate judges by ``held_out`` alone."""

    TRAIN = "train"
    HELD_OUT = "held_out"


@dataclass(frozen=True)
class Label:
    """What one person (or the simulation) says of a case: its level lies in ``[lowest, highest]``.

    ``risk_types`` is None where nothing was said of them.
    """

    by: str
    lowest: RiskLevel
    highest: RiskLevel
    at: datetime
    risk_types: tuple[str, ...] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.lowest.rank > self.highest.rank:
            raise ValueError(f"the lowest level {self.lowest} is above the highest {self.highest}")


@dataclass(frozen=True)
class Truth:
    """What the labels of a case agree on."""

    lowest: RiskLevel
    highest: RiskLevel
    risk_types: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Case:
    """One group's picture and all that a prompt needs of it, whatever retention does to its frame.

    Attributes:
        case_id: derived from its origin, so that the same one is never added twice.
        source: where it comes from.
        origin: the alert, scene or file, in words.
        task: as the platform would assess it; its picture is ``picture_key``.
        picture_key: in the object store, under ``evaluation/cases/``.
        cluster: cases of one cluster resemble each other; see `cluster_of`.
    """

    case_id: str
    source: CaseSource
    origin: str
    task: AssessmentTask
    picture_key: str
    cluster: str


@dataclass(frozen=True)
class SetCase:
    """A case as a member of a set: its truth and its side, as they were when the set was made."""

    case: Case
    split: Split
    truth: Truth | None  # None: the labels contradict each other


def case_id_of(source: CaseSource, origin: str) -> str:
    """The id of the case with this origin; the same every time."""
    return f"case_{hashlib.sha256(f'{source}:{origin}'.encode()).hexdigest()[:20]}"


def picture_key_of(case_id: str) -> str:
    """Where the case's own copy of the picture lies."""
    return f"evaluation/cases/{case_id[5:7]}/{case_id}.jpg"


def cluster_of(camera_id: str, captured_at: datetime) -> str:
    """Camera and UTC day: frames of one scene resemble each other, and so do the answers to them."""
    return f"{camera_id}/{captured_at:%Y-%m-%d}"


def split_of(cluster: str, *, held_out_share: float) -> Split:
    """The side of a cluster: by its hash, so that it never changes as the set grows, and no two near frames are parted."""
    draw = int.from_bytes(hashlib.sha256(f"split:{cluster}".encode()).digest()[:8]) / 2**64
    return Split.HELD_OUT if draw < held_out_share else Split.TRAIN


def latest_by_person(labels: Iterable[Label]) -> list[Label]:
    """What each person said last, in the order in which they said it."""
    last: dict[str, Label] = {}
    for label in sorted(labels, key=lambda item: item.at):
        last.pop(label.by, None)
        last[label.by] = label
    return list(last.values())


def truth_of(labels: Iterable[Label]) -> Truth | None:
    """What the labels agree on; None where two persons contradict each other.

    Whoever changed their mind counts with their last word. Types are those of the newest label that names any.
    """
    kept = latest_by_person(labels)
    if not kept:
        return None
    lowest = max((label.lowest for label in kept), key=lambda level: level.rank)
    highest = min((label.highest for label in kept), key=lambda level: level.rank)
    if lowest.rank > highest.rank:
        return None
    types = next((label.risk_types for label in reversed(kept) if label.risk_types is not None), None)
    return Truth(lowest, highest, types)


def below(level: RiskLevel) -> RiskLevel:
    """The level under this one.

    Raises:
        ValueError: there is none under ``none``.
    """
    if level is RiskLevel.NONE:
        raise ValueError("there is no level below none")
    return LEVELS[level.rank - 1]
