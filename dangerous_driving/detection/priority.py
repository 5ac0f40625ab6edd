r"""How urgently a group should be looked at, from geometry alone (pure). It orders work; it is no verdict.

For two road users :math:`i, j` with box centres :math:`c` and box diagonals :math:`s` (px)

.. math::
    d_{ij} = \frac{2 \lVert c_i - c_j \rVert}{s_i + s_j}, \qquad
    p_{ij} = w_{ij} \, 2^{-d_{ij}^2}

and for a group with :math:`k` kinds of road user and growth of overlap :math:`g`

.. math::
    priority = 1 - (1 - \max_{ij} p_{ij}) \, (1 - 0.5 g) \, (1 - 0.1 \tfrac{k - 1}{3})

*Closeness* :math:`2^{-d^2}` is 1 for coinciding centres, 0.71 for equal boxes side by side, 0.5 one object size apart,
and 0.06 at two. Distance is taken relative to object size because under perspective an object's size in the picture
is inversely proportional to its distance from the camera, so that the ratio approximates a distance on the ground in
object lengths wherever in the picture it is (Hoiem, Efros, Hebert: Putting Objects in Perspective, IJCV 80, 2008).
Nearness in space, and its change over time, is what conflict techniques grade severity by (Hydén: The Development of
a Method for Traffic Safety Evaluation: the Swedish Traffic Conflicts Technique, Lund 1987).

*Weights* :math:`w` follow who comes to harm: more than half of all road deaths are pedestrians, cyclists and riders
of powered two-wheelers (WHO: Global Status Report on Road Safety 2023), mostly struck by a car or something heavier.
Their order is from there, their values are ours. A person beside a two-wheeler is mostly its own rider, hence low.

*Growth of overlap* :math:`g` in 0..1 is how much more of its smaller box the most overlapping pair shares than the
most overlapping pair at the same place one frame before; without a frame before it is 0. Objects are not tracked for
this: at 1.8 s between frames most have moved by more than their own length.

Every term rises with closeness: if all centres of a group come nearer to each other, and sizes, kinds and growth stay,
the priority never falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from dangerous_driving.detection.grouping import Boxes, areas, overlapping, union_box

GROWTH_WEIGHT = 0.5
MIX_WEIGHT = 0.1


class Kind(IntEnum):
    """Kinds of road user by how they meet each other; the value is the row in the table of weights."""

    PERSON = 0
    BICYCLE = 1
    MOTORCYCLE = 2
    CAR = 3
    HEAVY = 4  # bus, truck


_KINDS = {
    "person": Kind.PERSON,
    "bicycle": Kind.BICYCLE,
    "motorcycle": Kind.MOTORCYCLE,
    "car": Kind.CAR,
    "bus": Kind.HEAVY,
    "truck": Kind.HEAVY,
}

#: w of two kinds, symmetric: person, bicycle, motorcycle, car, heavy.
WEIGHTS = np.array(
    [
        [0.10, 0.25, 0.35, 1.00, 1.00],
        [0.25, 0.25, 0.60, 0.95, 1.00],
        [0.35, 0.60, 0.45, 0.80, 0.85],
        [1.00, 0.95, 0.80, 0.55, 0.60],
        [1.00, 1.00, 0.85, 0.60, 0.60],
    ]
)

_LOG_WEIGHTS = np.log2(WEIGHTS)
_ONE_OF = np.eye(len(Kind))

#: Numbers of 8 bytes in a block of a table of pairs.
BLOCK = 10_000

#: Kinds that mix: persons, two-wheelers, cars, heavy vehicles.
_MIXING = np.array([0, 1, 1, 2, 3])
_MIXABLE = 4


@dataclass(frozen=True, slots=True)
class RoadUsers:
    """The objects of one frame as arrays: ``boxes`` n x 4 in px, ``kinds`` n values of `Kind`."""

    boxes: Boxes
    kinds: NDArray[np.intp]

    @classmethod
    def of(cls, boxes: Boxes, class_names: Sequence[str]) -> RoadUsers:
        """From class names; one that is not in the table counts as a car, the middle of the scale."""
        return cls(boxes, np.array([_KINDS.get(name, Kind.CAR) for name in class_names], dtype=np.intp))

    def __getitem__(self, members: NDArray[np.intp] | NDArray[np.bool_]) -> RoadUsers:
        return RoadUsers(self.boxes[members], self.kinds[members])

    def __len__(self) -> int:
        return len(self.boxes)


def priority_of(group: RoadUsers, previous: RoadUsers | None = None) -> float:
    """Priority of one group.

    Args:
        group: its objects (at least two).
        previous: all objects of the same camera's frame before, if there was one.

    Returns:
        0 (look at it last) to 1 (first), by the formula above.
    """
    return priorities(group, [np.arange(len(group))], previous)[0]


def priorities(users: RoadUsers, groups: Sequence[NDArray[np.intp]], previous: RoadUsers | None = None) -> list[float]:
    """Priority of each group of a frame; see `priority_of`.

    Args:
        users: everybody in the frame.
        groups: indices of the members of each (at least two); nobody is in two.
        previous: all objects of the same camera's frame before, if there was one.
    """
    now = _Overlaps.of(users.boxes) if previous is not None else None
    before = _Overlaps.of(previous.boxes) if previous is not None else None
    found = []
    for members in groups:
        group = users[members]
        growth = 0.0
        if previous is not None and now is not None and before is not None:
            of_group = np.zeros(len(users), dtype=bool)
            of_group[members] = True
            growth = max(0.0, now.largest(of_group) - before.largest(_at_the_place_of(group.boxes, previous.boxes)))
        mix = (len(set(_MIXING[group.kinds].tolist())) - 1) / (_MIXABLE - 1)
        found.append(1 - (1 - _nearest(group)) * (1 - GROWTH_WEIGHT * growth) * (1 - MIX_WEIGHT * mix))
    return found


def _nearest(group: RoadUsers) -> float:
    """Largest weighted closeness of a pair. The largest exponent is the largest power: only that one is raised."""
    x, y = ((group.boxes[:, axis] + group.boxes[:, axis + 2]) / 2 for axis in (0, 1))
    halves = np.hypot(group.boxes[:, 2] - group.boxes[:, 0], group.boxes[:, 3] - group.boxes[:, 1]) / 2
    # the table's entry of each pair, as a product with ones and zeros: several times faster than by index
    kinds = _ONE_OF[group.kinds]
    weights = _LOG_WEIGHTS @ kinds.T
    best = -np.inf
    # rows in blocks, each from its first row's column on (the rest is symmetric): pieces of less than 128 KiB, since
    # larger ones come fresh from the system each time, and its page faults take longer than the arithmetic
    step = max(1, BLOCK // len(group))
    for start in range(0, len(group), step):
        rows = slice(start, start + step)
        across, down = np.subtract.outer(x[rows], x[start:]), np.subtract.outer(y[rows], y[start:])
        across *= across
        down *= down
        across += down
        scale = np.add.outer(halves[rows], halves[start:])
        scale *= scale
        # boxes without extent are infinitely far apart in their own terms
        across /= np.maximum(scale, 1e-9, out=scale)
        exponents = np.subtract(kinds[rows] @ weights[:, start:], across, out=across)
        np.fill_diagonal(exponents, -np.inf)
        best = max(best, float(exponents.max()))
    return float(np.exp2(best))


@dataclass(frozen=True, slots=True)
class _Overlaps:
    """Pairs of boxes that overlap, and the share of its smaller box that each has in common."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    shares: NDArray[np.float64]

    @classmethod
    def of(cls, boxes: Boxes) -> _Overlaps:
        first, second, shared = overlapping(boxes)
        sizes = np.maximum(areas(boxes), 1e-9)
        return cls(first, second, shared / np.minimum(sizes[first], sizes[second]))

    def largest(self, among: NDArray[np.bool_]) -> float:
        """Of the pairs of which both are among these; 0 without one."""
        shares = self.shares[among[self.first] & among[self.second]]
        return min(1.0, float(shares.max())) if shares.size else 0.0


def _at_the_place_of(group: Boxes, others: Boxes) -> NDArray[np.bool_]:
    x1, y1, x2, y2 = union_box(group)
    centres = (others[:, :2] + others[:, 2:]) / 2
    return np.asarray(((centres >= (x1, y1)) & (centres <= (x2, y2))).all(axis=1))
