"""Whether two groups of one camera, seen at two times, are the same scene. Pure.

A group's index is only an index in one frame, and boxes hardly overlap after one frame interval (on a highway clip the
best IoU after 1.8 s had a median of 0.06), so scenes are joined by the distance of their centres, measured in group
sizes:

    distance(a, b) = |centre(a) - centre(b)| / ((diagonal(a) + diagonal(b)) / 2)
    near(a, b, dt) = distance(a, b) <= min(SLACK + SPEED x dt, REACH_MAX)

The constants come from the two road clips of the test data (one highway, one junction; YOLOv8n, sampled every 0.5 s and
0.75 s): the nearest group moved 0.15 diagonals in 0.5 s, 0.5 in 1 s and 0.6 in 2 s (medians; 90 % of them below 1.4 after
0.5 s and 2.2 after 2 s, changes of the group's members included), while two groups of one frame were at least 0.86
apart and 2.1 at the median. So SLACK keeps groups of one frame apart, and REACH_MAX keeps what is typically elsewhere.
"""

from __future__ import annotations

import math

from dangerous_driving.contracts import BBox

#: diagonals; two looks at the same frame or a standing scene
SLACK = 0.5
#: diagonals per second
SPEED = 0.5
#: diagonals
REACH_MAX = 2.0


def centre(box: BBox) -> tuple[float, float]:
    """Of the box, in pixels."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def distance(first: BBox, second: BBox) -> float:
    """Between the centres, in mean diagonals of the two boxes; infinite for two different boxes without extent."""
    apart = math.dist(centre(first), centre(second))
    size = (math.dist(first[:2], first[2:]) + math.dist(second[:2], second[2:])) / 2
    if size > 0:
        return apart / size
    return 0.0 if apart == 0 else math.inf


def reach(elapsed: float) -> float:
    """How far, in diagonals, a scene may have moved in `elapsed` s (either way in time)."""
    return min(SLACK + SPEED * abs(elapsed), REACH_MAX)
