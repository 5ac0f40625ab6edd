"""Outlines and colours of vehicles (pure data). Lengths in metres, colours as `mesh.Colour`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dangerous_driving.simulation.scenes.mesh import Colour, Material

RUBBER: Colour = (0.012, 0.012, 0.012)
RIM: Colour = (0.32, 0.32, 0.32)
DARK: Colour = (0.015, 0.015, 0.015)
TRIM: Colour = (0.03, 0.03, 0.03)
WINDOW: Colour = (0.014, 0.013, 0.012)
HEADLAMP: Colour = (0.85, 0.88, 0.9)
TAIL_LAMP: Colour = (0.02, 0.02, 0.55)
INDICATOR: Colour = (0.02, 0.3, 0.85)
NUMBER_PLATES: tuple[Colour, ...] = ((0.75, 0.75, 0.75), (0.08, 0.6, 0.8), (0.55, 0.2, 0.06))

#: Paints as they are on the roads: mostly white, grey, black, some red, blue and the rest (blue, green, red).
PAINTS: tuple[tuple[Colour, float], ...] = (
    ((0.72, 0.73, 0.73), 0.24),
    ((0.30, 0.30, 0.30), 0.16),
    ((0.11, 0.105, 0.10), 0.16),
    ((0.018, 0.018, 0.018), 0.15),
    ((0.03, 0.03, 0.32), 0.09),
    ((0.30, 0.09, 0.03), 0.09),
    ((0.10, 0.16, 0.04), 0.03),
    ((0.16, 0.30, 0.42), 0.04),
    ((0.03, 0.42, 0.62), 0.02),
    ((0.02, 0.16, 0.55), 0.02),
)


@dataclass(frozen=True)
class Profile:
    """A body from front to rear.

    ``stations``: share of the length from the front, height of the top (m), width factor, and what the top of the piece
    that begins there is: paint or glass. ``belt``: height of the lower edge of the side windows. ``roof_width``: of the
    body's. ``windows``: shares of the length between which the sides have glass. ``pillars``: where not.
    """

    length: float
    width: float
    floor: float
    belt: float
    stations: tuple[tuple[float, float, float, Material], ...]
    roof_width: float
    windows: tuple[float, float]
    pillars: tuple[float, ...]
    wheels: tuple[float, ...]
    wheel_radius: float


PAINT, GLASS = Material.PAINT, Material.GLASS

SALOON = Profile(
    4.6, 1.82, 0.22, 0.93,
    (
        (0.0, 0.58, 0.76, PAINT), (0.015, 0.68, 0.88, PAINT), (0.05, 0.76, 0.95, PAINT), (0.14, 0.86, 0.99, PAINT),
        (0.26, 0.95, 1.0, GLASS), (0.33, 1.20, 1.0, GLASS), (0.40, 1.40, 1.0, PAINT), (0.48, 1.455, 1.0, PAINT),
        (0.58, 1.46, 1.0, PAINT), (0.68, 1.42, 1.0, GLASS), (0.77, 1.24, 1.0, GLASS), (0.85, 1.04, 1.0, PAINT),
        (0.95, 1.01, 0.98, PAINT), (0.985, 0.95, 0.95, PAINT), (1.0, 0.80, 0.86, PAINT),
    ),
    0.72, (0.31, 0.80), (0.53,), (0.19, 0.80), 0.32,
)  # fmt: skip
HATCHBACK = Profile(
    4.0, 1.76, 0.22, 0.94,
    (
        (0.0, 0.60, 0.78, PAINT), (0.02, 0.72, 0.9, PAINT), (0.06, 0.80, 0.96, PAINT), (0.16, 0.90, 1.0, PAINT),
        (0.25, 0.98, 1.0, GLASS), (0.33, 1.24, 1.0, GLASS), (0.40, 1.43, 1.0, PAINT), (0.52, 1.50, 1.0, PAINT),
        (0.70, 1.50, 1.0, PAINT), (0.86, 1.45, 0.99, GLASS), (0.93, 1.22, 0.98, GLASS), (0.97, 1.0, 0.97, PAINT),
        (0.99, 0.92, 0.94, PAINT), (1.0, 0.78, 0.88, PAINT),
    ),
    0.74, (0.31, 0.92), (0.55, 0.80), (0.19, 0.81), 0.31,
)  # fmt: skip
ESTATE = replace(
    HATCHBACK,
    length=4.7,
    width=1.84,
    wheels=(0.18, 0.79),
    windows=(0.30, 0.94),
    pillars=(0.50, 0.74),
    wheel_radius=0.33,
)
SUV = Profile(
    4.6, 1.90, 0.28, 1.10,
    (
        (0.0, 0.78, 0.84, PAINT), (0.015, 0.92, 0.93, PAINT), (0.05, 1.0, 0.97, PAINT), (0.16, 1.07, 1.0, PAINT),
        (0.25, 1.13, 1.0, GLASS), (0.31, 1.40, 1.0, GLASS), (0.37, 1.62, 1.0, PAINT), (0.48, 1.71, 1.0, PAINT),
        (0.72, 1.71, 1.0, PAINT), (0.90, 1.65, 0.99, GLASS), (0.955, 1.35, 0.98, GLASS), (0.98, 1.12, 0.97, PAINT),
        (0.995, 1.0, 0.95, PAINT), (1.0, 0.85, 0.9, PAINT),
    ),
    0.78, (0.30, 0.93), (0.52, 0.77), (0.19, 0.81), 0.37,
)  # fmt: skip
PEOPLE_CARRIER = Profile(
    4.9, 1.95, 0.24, 1.10,
    (
        (0.0, 0.72, 0.84, PAINT), (0.02, 0.88, 0.93, PAINT), (0.07, 1.0, 0.98, PAINT), (0.13, 1.10, 1.0, GLASS),
        (0.21, 1.48, 1.0, GLASS), (0.29, 1.78, 1.0, PAINT), (0.40, 1.88, 1.0, PAINT), (0.88, 1.88, 1.0, PAINT),
        (0.955, 1.80, 0.99, GLASS), (0.98, 1.35, 0.98, GLASS), (0.99, 1.12, 0.97, PAINT), (1.0, 0.9, 0.93, PAINT),
    ),
    0.82, (0.24, 0.96), (0.42, 0.68), (0.17, 0.80), 0.34,
)  # fmt: skip
VAN = Profile(
    5.6, 2.02, 0.30, 1.20,
    (
        (0.0, 0.82, 0.86, PAINT), (0.015, 1.0, 0.94, PAINT), (0.06, 1.14, 0.98, PAINT), (0.12, 1.24, 1.0, GLASS),
        (0.19, 1.72, 1.0, GLASS), (0.25, 2.12, 1.0, PAINT), (0.33, 2.36, 1.0, PAINT), (0.6, 2.40, 1.0, PAINT),
        (0.97, 2.40, 1.0, PAINT), (0.99, 2.30, 0.99, PAINT), (1.0, 1.6, 0.98, PAINT),
    ),
    0.86, (0.20, 0.33), (), (0.16, 0.78), 0.35,
)  # fmt: skip
CAB = Profile(
    2.1, 2.25, 0.45, 1.45,
    (
        (0.0, 1.30, 0.93, PAINT), (0.03, 1.52, 0.97, GLASS), (0.12, 2.25, 0.98, PAINT), (0.22, 2.62, 0.99, PAINT),
        (0.6, 2.72, 1.0, PAINT), (0.97, 2.70, 1.0, PAINT), (1.0, 2.6, 1.0, PAINT),
    ),
    0.90, (0.14, 0.62), (), (0.5,), 0.48,
)  # fmt: skip
BUS = Profile(
    11.8, 2.55, 0.32, 1.25,
    (
        (0.0, 2.90, 0.97, PAINT), (0.006, 3.02, 1.0, PAINT), (0.03, 3.10, 1.0, PAINT), (0.2, 3.10, 1.0, PAINT),
        (0.4, 3.10, 1.0, PAINT), (0.6, 3.10, 1.0, PAINT), (0.8, 3.10, 1.0, PAINT), (0.98, 3.08, 1.0, PAINT),
        (1.0, 2.95, 0.98, PAINT),
    ),
    0.92, (0.015, 0.985), (0.12, 0.25, 0.38, 0.51, 0.64, 0.77, 0.90), (0.21, 0.71), 0.50,
)  # fmt: skip

CARS = ((SALOON, 0.28), (HATCHBACK, 0.27), (SUV, 0.25), (ESTATE, 0.1), (PEOPLE_CARRIER, 0.1))
