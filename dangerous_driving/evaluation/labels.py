"""Labelled pictures: what is truly in them (pure data)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

Box = tuple[float, float, float, float]

#: Of a light or weather that the labels do not tell.
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class TrueObject:
    """One road user; ``bbox`` is x1, y1, x2, y2 in px.

    ``crowd``: an area in which detections are neither right nor wrong (COCO's ``iscrowd``), such as people in a mass or
    road users too small to be asked for.
    """

    class_name: str
    bbox: Box
    crowd: bool = False


@dataclass(frozen=True, slots=True)
class TrueGroup:
    """Road users that are near each other or endanger each other; ``members`` are indices of the picture's objects."""

    members: tuple[int, ...]
    risk_level: str
    risk_type: str | None

    @property
    def dangerous(self) -> bool:
        """Whether an operator should hear of it."""
        return self.risk_level in {"medium", "high"}


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """A picture's truth. ``width`` and ``height`` in px; ``groups``: none where only boxes are labelled."""

    name: str
    file: Path
    width: int
    height: int
    objects: tuple[TrueObject, ...]
    light: str = UNKNOWN
    weather: str = UNKNOWN
    groups: tuple[TrueGroup, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Pictures that belong together.

    Attributes:
        name: what people call it: the folder's name.
        pictures: at least one.
        classes: those that are labelled and wanted; a class that is not labelled here is not asked for.
        simulated: whether the pictures are rendered (the labels' ``info.simulated``).
        left_out: labels that say nothing here, by reason.
        fingerprint: SHA-256 of labels and pictures: equal for equal content, wherever it lies.
    """

    name: str
    pictures: tuple[LabelledPicture, ...]
    classes: tuple[str, ...]
    simulated: bool
    left_out: tuple[tuple[str, int], ...] = ()
    fingerprint: str = ""

    def lights(self) -> tuple[str, ...]:
        """The lights there are."""
        return _in_order((picture.light for picture in self.pictures), ("day", "dusk", "night"))

    def weathers(self) -> tuple[str, ...]:
        """The weathers there are."""
        return _in_order((picture.weather for picture in self.pictures), ("dry", "rain"))


def _in_order(values: Iterable[str], first: Sequence[str]) -> tuple[str, ...]:
    found = set(values)
    return (*(value for value in first if value in found), *sorted(found - set(first)))
