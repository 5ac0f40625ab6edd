"""The road that a simulated camera looks at, and the camera's place (pure). Metres; traffic keeps to the right."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dangerous_driving.simulation.scenes.view import Floats, View

LANE = 3.5
KERB = 0.18

#: m along the road in which traffic runs; it appears and vanishes at the ends, out of sight or far away.
NEAR_END = -12.0
FAR_END = 128.0
LENGTH = FAR_END - NEAR_END


@dataclass(frozen=True)
class Road:
    """A straight road along y with `lanes` per direction; traffic with x > 0 drives away from the camera.

    ``pavement``: width of each, m. ``junction``: y where a crossing road begins and ends, or None. ``crossing``: y of a
    zebra crossing, or None. ``park``: sides (-1, 1) with grass and trees instead of houses.
    """

    lanes: int
    pavement: float
    junction: tuple[float, float] | None
    crossing: float | None
    park: tuple[int, ...]
    lamps: tuple[tuple[float, float], ...]  # x and y of their feet

    @classmethod
    def of(cls, random: np.random.Generator, *, junction: bool, crossing: bool) -> Road:
        """A road as the seed has it."""
        lanes = 2 if junction or random.random() < 0.65 else 1
        pavement = float(random.uniform(2.6, 4.2))
        half = lanes * LANE + 0.4
        begin = float(random.uniform(34, 40))
        start = float(random.uniform(4, 16))
        lamps = tuple(
            (side * (half + pavement * 0.85), start + 26.0 * number + (13.0 if side > 0 else 0.0))
            for side in (-1, 1)
            for number in range(5)
        )
        sides = [side for side in (-1, 1) if random.random() < 0.5]
        return cls(
            lanes,
            pavement,
            (begin, begin + 15.0) if junction else None,
            float(random.uniform(20, 28)) if crossing and not junction else begin - 4.0 if junction else None,
            tuple(sides),
            lamps,
        )

    @property
    def half(self) -> float:
        """M from the middle to the kerb."""
        return self.lanes * LANE + 0.4

    def lane(self, direction: int, number: int) -> float:
        """X of a lane's middle; direction 1 drives away, lane 0 is beside the middle of the road."""
        return direction * LANE * (min(number, self.lanes - 1) + 0.5)

    def lamp_light(self, x: Floats, y: Floats) -> Floats:
        """Light of the street lamps on the ground, about 0 to 1."""
        light = np.zeros(np.broadcast(x, y).shape, np.result_type(x, y, np.float32))
        for lamp_x, lamp_y in self.lamps:
            over = lamp_x - math.copysign(1.8, lamp_x)  # the arm reaches over the road
            light += 1 / (1 + ((x - over) ** 2 + (y - lamp_y) ** 2) / 45.0) ** 1.6
        return np.asarray(light)


def camera(random: np.random.Generator, road: Road, width: int, height: int) -> View:
    """A camera on a mast beside or over the road."""
    side = random.choice([-1.0, 1.0])
    position = np.array([side * random.uniform(0.0, road.half + 2.5), 0.0, random.uniform(5.0, 8.0)])
    target = np.array([random.uniform(-0.35, 0.35) * road.half, random.uniform(20, 30), 0.5])
    fov = np.radians(random.uniform(46, 64))
    return View.looking_at(position, target, float(fov), width, height, float(random.normal(0, 0.008)))
