"""Whether the traffic groups that matter become a question to the LLM at all (pure).

A road user that the detector misses may cost a whole group, and what makes no group is never assessed. A group is found
when one detected group shows at least two of its members: their centres lie in its box, as for a task's objects. Two
figures:

``group``: groups as the platform's own rule makes them of the true boxes. What is lost here is lost by the detector alone.

``danger``: groups that the labels call dangerous (medium or high). Here a grouping distance that is too short counts too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

from dangerous_driving.detection.engine import Detection
from dangerous_driving.detection.scene import scene_of
from dangerous_driving.evaluation.detection_scores import ALL
from dangerous_driving.evaluation.labels import Box, LabelledPicture, LabelledSet
from dangerous_driving.settings import DetectionSettings

GROUP, DANGER = "group", "danger"
#: Members of a danger that one picture has to show: with one of them alone there is no conflict to be seen.
SHOWN = 2
#: Two-sided 95 % of the normal distribution.
Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class GroupRecall:
    """How many groups of a kind were found; ``low`` to ``high`` is Wilson's 95 % interval of the recall.

    ``precision``: share of the detected groups that show two members of a true one; of kind ``group`` only.
    """

    kind: str
    risk_type: str
    light: str
    weather: str
    groups: int
    found: int
    precision: float | None = None

    @property
    def recall(self) -> float | None:
        """Share; None of nothing."""
        return self.found / self.groups if self.groups else None

    @property
    def low(self) -> float | None:
        """Lower bound."""
        return wilson(self.found, self.groups)[0] if self.groups else None

    @property
    def high(self) -> float | None:
        """Upper bound."""
        return wilson(self.found, self.groups)[1] if self.groups else None


def wilson(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, Probable Inference, 1927); `count` is at least 1."""
    share, spread = hits / count, Z * Z / count
    centre = (share + spread / 2) / (1 + spread)
    half = Z * sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def group_recalls(
    labelled: LabelledSet, found: Sequence[Sequence[Detection]], settings: DetectionSettings
) -> list[GroupRecall]:
    """Both figures, for all pictures, by light, by weather and (of dangers) by type.

    Args:
        labelled: the truth.
        found: of each picture, the most confident first; what lies below ``settings.confidence`` is passed over.
        settings: the detector's.
    """
    seen = [
        _Seen.of(picture, [thing for thing in things if thing.confidence >= settings.confidence], settings)
        for picture, things in zip(labelled.pictures, found, strict=True)
    ]
    types = sorted({kind for one in seen for kind, _ in one.dangers})
    recalls = []
    for light, weather in _circumstances(labelled):
        mine = [
            one
            for picture, one in zip(labelled.pictures, seen, strict=True)
            if light in {ALL, picture.light} and weather in {ALL, picture.weather}
        ]
        groups, hits, made, right = (
            sum(getattr(one, name) for one in mine) for name in ("groups", "hits", "made", "right")
        )
        recalls.append(GroupRecall(GROUP, ALL, light, weather, groups, hits, right / made if made else None))
        for risk_type in (ALL, *types):
            shown = [hit for one in mine for kind, hit in one.dangers if risk_type in {ALL, kind}]
            if shown:
                recalls.append(GroupRecall(DANGER, risk_type, light, weather, len(shown), sum(shown)))
    return recalls


def _circumstances(labelled: LabelledSet) -> Iterator[tuple[str, str]]:
    yield ALL, ALL
    for light in labelled.lights():
        yield light, ALL
    for weather in labelled.weathers():
        yield ALL, weather


@dataclass(frozen=True, slots=True)
class _Seen:
    """Of one picture: true groups and how many are found, detected groups and how many are right, dangers by type."""

    groups: int
    hits: int
    made: int
    right: int
    dangers: tuple[tuple[str, bool], ...]

    @classmethod
    def of(cls, picture: LabelledPicture, found: Sequence[Detection], settings: DetectionSettings) -> _Seen:
        true = [Detection(thing.class_name, 1.0, thing.bbox) for thing in picture.objects if not thing.crowd]
        wanted = [
            [centre for centre in map(_centre, (thing.bbox for thing in true)) if _within(centre, group.bbox)]
            for group in scene_of(true, picture.width, picture.height, settings).groups
        ]
        made = [group.bbox for group in scene_of(found, picture.width, picture.height, settings).groups]
        dangers = tuple(
            (group.risk_type or "other", [_centre(picture.objects[member].bbox) for member in group.members])
            for group in picture.groups
            if group.dangerous
        )
        return cls(
            len(wanted),
            sum(any(_shows(box, members) for box in made) for members in wanted),
            len(made),
            sum(any(_shows(box, members) for members in wanted) for box in made),
            tuple((risk_type, any(_shows(box, members) for box in made)) for risk_type, members in dangers),
        )


Point = tuple[float, float]


def _shows(box: Box, members: Sequence[Point]) -> bool:
    return sum(_within(member, box) for member in members) >= min(SHOWN, len(members))


def _within(point: Point, box: Box) -> bool:
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def _centre(box: Box) -> Point:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
