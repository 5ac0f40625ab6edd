"""Who rides what: a rider and his two-wheeler are one road user (pure).

A rider's box stands on the two-wheeler's: it begins above it and ends within it, at the pedals or foot rests, and its
middle is over it. Somebody who stands before a parked two-wheeler has his feet below its wheels in the picture, since he
is nearer to the camera; beside it his middle is not over it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dangerous_driving.detection.grouping import Boxes

TWO_WHEELERS = frozenset({"bicycle", "motorcycle"})

#: In heights of the two-wheeler's box: how far above its upper edge a rider's box may end (detectors cut at the seat),
#: and how far below its lower edge (boxes are not exact). A wheel's foot rest is at about a tenth of its height, so that
#: feet further down stand on the ground before it.
ABOVE, BELOW = 0.10, 0.05

#: In widths of the two-wheeler's box: how far the rider's middle may be beyond its sides. Seen from the front or the
#: back a two-wheeler is a third as wide as its rider, and both boxes err.
BESIDE = 0.15

#: Heights of a rider's box per height of the two-wheeler's: seated people on bicycles and motorcycles are 1.1 to 1.7
#: times as high as them; half and twice that allow for hidden parts.
HEIGHTS = (0.55, 3.0)

#: A driver and a passenger.
MOST_RIDERS = 2


def riders(boxes: Boxes, class_names: Sequence[str]) -> dict[int, int]:
    """Index of each rider, with the index of what he rides.

    Args:
        boxes: n x 4, px.
        class_names: of each.

    Returns:
        Nobody rides two things, and nothing carries more than `MOST_RIDERS`; where there is a choice, the pair with the
        nearest middles is taken first.
    """
    people = [index for index, name in enumerate(class_names) if name == "person"]
    machines = [index for index, name in enumerate(class_names) if name in TWO_WHEELERS]
    if not people or not machines:
        return {}
    person, machine = boxes[people][:, None], boxes[machines][None]  # p x 1 x 4, 1 x m x 4
    tall = machine[..., 3] - machine[..., 1]
    wide = machine[..., 2] - machine[..., 0]
    middle = (person[..., 0] + person[..., 2]) / 2
    off = np.abs(middle - (machine[..., 0] + machine[..., 2]) / 2)
    size = (person[..., 3] - person[..., 1]) / np.maximum(tall, 1e-9)
    rides = (
        (off <= wide * (0.5 + BESIDE))
        & (person[..., 3] >= machine[..., 1] - ABOVE * tall)
        & (person[..., 3] <= machine[..., 3] + BELOW * tall)
        & (person[..., 1] < (machine[..., 1] + machine[..., 3]) / 2)
        & (size >= HEIGHTS[0])
        & (size <= HEIGHTS[1])
    )
    pairs = np.argwhere(rides)
    order = np.argsort((off / np.maximum(wide, 1e-9))[rides], kind="stable")
    found: dict[int, int] = {}
    carried = [0] * len(machines)
    for who, what in pairs[order].tolist():
        if people[who] not in found and carried[what] < MOST_RIDERS:
            found[people[who]] = machines[what]
            carried[what] += 1
    return found
