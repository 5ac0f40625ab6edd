"""Shapes of cars, vans, trucks, buses and two-wheelers (pure). Lengths in metres; many looks by a random generator."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dangerous_driving.simulation.scenes.bodies import (
    BUS,
    CAB,
    CARS,
    DARK,
    GLASS,
    HEADLAMP,
    INDICATOR,
    NUMBER_PLATES,
    PAINT,
    PAINTS,
    RIM,
    RUBBER,
    TAIL_LAMP,
    TRIM,
    VAN,
    WINDOW,
    Profile,
)
from dangerous_driving.simulation.scenes.mesh import (
    Colour,
    Material,
    Mesh,
    ball,
    between_rings,
    box,
    disc,
    faces,
    facing_away,
    fan,
    plate,
    tube,
)
from dangerous_driving.simulation.scenes.view import Floats

Random = np.random.Generator


@dataclass(frozen=True, eq=False)
class Shape:
    """A vehicle's mesh with its extent on the ground: half of its length and width, m."""

    mesh: Mesh
    half_length: float
    half_width: float
    height: float


def paint(random: Random) -> Colour:
    """The colour of a car, with a little of its own."""
    weights = np.array([weight for _, weight in PAINTS])
    base = np.array(PAINTS[random.choice(len(PAINTS), p=weights / weights.sum())][0])
    blue, green, red = np.clip(base * random.uniform(0.75, 1.25) * random.uniform(0.93, 1.07, 3), 0.01, 0.85)
    return float(blue), float(green), float(red)


def car(random: Random) -> Shape:
    """A passenger car of some body type."""
    weights = np.array([weight for _, weight in CARS])
    profile = CARS[random.choice(len(CARS), p=weights / weights.sum())][0]
    profile = replace(profile, length=profile.length * random.uniform(0.95, 1.06))
    return _vehicle(profile, paint(random), random)


def bus(random: Random) -> Shape:
    """A city bus or coach, often in a livery of two colours."""
    liveries: tuple[Colour, ...] = (
        (0.05, 0.06, 0.5),
        (0.6, 0.6, 0.6),
        (0.04, 0.45, 0.6),
        (0.45, 0.2, 0.05),
        (0.1, 0.35, 0.1),
    )
    colour = liveries[random.integers(len(liveries))]
    length = random.uniform(9.5, 12.2)
    profile = replace(BUS, length=length)
    shape = _vehicle(profile, colour, random)
    half, side = length / 2, profile.width / 2
    front = half + 0.02
    more = [
        plate([(front, -side * 0.9, 1.15), (front, side * 0.9, 1.15), (front - 0.02, side * 0.88, 2.5), (front - 0.02, -side * 0.88, 2.5)], WINDOW, GLASS, 2),
        plate([(front, -0.8, 2.6), (front, 0.8, 2.6), (front - 0.03, 0.8, 2.85), (front - 0.03, -0.8, 2.85)], (0.02, 0.25, 0.4), Material.LAMP, 2),
        plate([(-front, -side * 0.8, 1.5), (-front, side * 0.8, 1.5), (-front, side * 0.8, 2.5), (-front, -side * 0.8, 2.5)], WINDOW, GLASS, 2),
    ]  # fmt: skip
    for left in (1.0, -1.0):
        y = left * (side + 0.012)
        more.append(
            plate(
                [(half * 0.98, y, 0.42), (-half * 0.98, y, 0.42), (-half * 0.98, y, 0.62), (half * 0.98, y, 0.62)],
                tuple(np.array(colour) * 0.35),
                PAINT,
                1,
            )
        )
    for at in (0.80, 0.10):  # doors on the kerb side
        x, y = half - length * (1 - at), -(side + 0.014)
        more.append(
            plate([(x - 0.6, y, 0.4), (x + 0.6, y, 0.4), (x + 0.6, y, 2.4), (x - 0.6, y, 2.4)], WINDOW, GLASS, 2)
        )
    return Shape(Mesh.joined([shape.mesh, *more]), shape.half_length, shape.half_width, shape.height)


def van(random: Random) -> Shape:
    """A box-bodied delivery van; its class is truck."""
    colour = paint(random) if random.random() < 0.35 else (0.7, 0.7, 0.7)
    return _vehicle(replace(VAN, length=VAN.length * random.uniform(0.95, 1.1)), colour, random)


def truck(random: Random) -> Shape:
    """A rigid lorry: a cab and a box, a tarpaulin or a flat bed with a load."""
    length = random.uniform(6.8, 9.8)
    cab = _vehicle(CAB, paint(random), random)
    half = length / 2
    cab_at = half - CAB.length / 2
    width, height = 1.25, random.uniform(2.9, 3.7)
    back = half - CAB.length - 0.25
    body: Colour = [(0.65, 0.65, 0.65), (0.5, 0.32, 0.1), (0.12, 0.2, 0.45), (0.25, 0.3, 0.12), (0.4, 0.4, 0.42)][random.integers(5)]  # fmt: skip
    parts = [
        cab.mesh.moved((cab_at, 0, 0)),
        box((-half, -0.5, 0.55), (back, 0.5, 0.95), DARK),
    ]
    if random.random() < 0.75:
        parts.append(box((-half, -width, 1.0), (back, width, height), body))
        for left in (1.0, -1.0):  # a stripe, and the frame's edge
            y = left * (width + 0.01)
            stripe = tuple(np.clip(np.array(body) * random.uniform(0.3, 1.5), 0, 0.8))
            parts.append(
                plate([(-half, y, 1.0), (back, y, 1.0), (back, y, 1.16), (-half, y, 1.16)], TRIM, Material.MATTE, 1)
            )
            parts.append(
                plate(
                    [(-half * 0.6, y, 1.7), (back * 0.6, y, 1.7), (back * 0.6, y, 2.3), (-half * 0.6, y, 2.3)],
                    stripe,
                    Material.MATTE,
                    1,
                )
            )
        x = -half - 0.012
        parts.append(
            plate(
                [(x, -0.015, 1.1), (x, 0.015, 1.1), (x, 0.015, height - 0.1), (x, -0.015, height - 0.1)],
                TRIM,
                Material.MATTE,
                1,
            )
        )
    else:
        height = 2.0
        parts.append(box((-half, -width, 1.0), (back, width, 1.45), body))
        parts.append(box((-half + 0.6, -width * 0.8, 1.45), (back - 0.5, width * 0.8, height), (0.12, 0.18, 0.25)))
    for left in (1.0, -1.0):
        for at in (-half + 1.1, -half + 2.2)[: 1 + int(length > 8)]:
            parts.append(_wheel(at, left * width, 0.48, left))
    for left in (1.0, -1.0):
        parts.append(
            plate(
                [
                    (-half - 0.01, left * 0.95, 0.75),
                    (-half - 0.01, left * 1.2, 0.75),
                    (-half - 0.01, left * 1.2, 0.92),
                    (-half - 0.01, left * 0.95, 0.92),
                ],
                TAIL_LAMP,
                Material.LAMP,
                2,
            )
        )
    return Shape(Mesh.joined(parts), half, width, max(height, 2.72))


def bicycle(random: Random) -> Shape:
    """A bicycle without its rider."""
    colour = paint(random)
    radius = 0.34
    rear, front, pedals, seat, head = (
        np.array(point) for point in ((-0.52, 0, radius), (0.53, 0, radius), (-0.05, 0, 0.28), (-0.20, 0, 0.92), (0.38, 0, 0.92))
    )  # fmt: skip
    tubes = ((rear, pedals), (rear, seat), (pedals, seat), (pedals, head), (seat, head), (head, front))
    parts = [tube(np.array(ends), np.array([0.022, 0.022]), colour, sides=5) for ends in tubes]
    parts += [_ring(rear, radius), _ring(front, radius)]
    parts.append(
        tube(
            np.array([head + (0.02, 0.27, 0.12), head + (0, 0, 0.1), head + (0.02, -0.27, 0.12)]),
            np.array([0.02] * 3),
            DARK,
            sides=5,
        )
    )
    parts.append(box((-0.34, -0.07, 0.92), (-0.06, 0.07, 0.98), DARK))
    return Shape(Mesh.joined(parts), 0.87, 0.28, 1.05)


def motorcycle(random: Random) -> Shape:
    """A motorcycle or scooter without its rider."""
    colour = paint(random)
    radius = 0.30
    rear, front = np.array((-0.68, 0.0, radius)), np.array((0.70, 0.0, radius))
    parts = [
        _ring(rear, radius, thickness=0.075),
        _ring(front, radius, thickness=0.065),
        tube(np.array([front, (0.42, 0, 0.98)]), np.array([0.05, 0.05]), (0.2, 0.2, 0.2), sides=6),
        ball((0.18, 0, 0.74), (0.34, 0.17, 0.16), colour, sides=10),
        box((-0.35, -0.16, 0.30), (0.30, 0.16, 0.62), (0.05, 0.05, 0.05)),
        ball((-0.35, 0, 0.76), (0.45, 0.14, 0.09), DARK, sides=10),
        ball((-0.72, 0, 0.72), (0.25, 0.11, 0.10), colour, sides=8),
        ball((0.50, 0, 0.85), (0.16, 0.18, 0.17), colour, sides=8),
        tube(
            np.array([(0.36, 0.36, 1.02), (0.42, 0, 0.98), (0.36, -0.36, 1.02)]), np.array([0.025] * 3), DARK, sides=5
        ),
        plate(
            [(0.66, -0.09, 0.8), (0.66, 0.09, 0.8), (0.62, 0.09, 0.95), (0.62, -0.09, 0.95)], HEADLAMP, Material.LAMP, 2
        ),
        plate(
            [(-0.97, -0.08, 0.68), (-0.97, 0.08, 0.68), (-0.95, 0.08, 0.78), (-0.95, -0.08, 0.78)],
            TAIL_LAMP,
            Material.LAMP,
            2,
        ),
    ]
    return Shape(Mesh.joined(parts), 1.0, 0.36, 1.1)


def _ring(centre: Floats, radius: float, *, thickness: float = 0.028) -> Mesh:
    """A wheel of a two-wheeler: a thin tyre, and a hint of spokes."""
    angles = np.linspace(0, 2 * np.pi, 19)
    around = centre + radius * np.stack([np.cos(angles), np.zeros(19), np.sin(angles)], axis=1) * (
        1 - thickness / radius
    )
    tyre = tube(around, np.full(19, thickness), RUBBER, sides=5)
    hub = [
        tube(np.stack([centre, around[index]]), np.array([0.008, 0.008]), (0.25, 0.25, 0.25), sides=3)
        for index in range(0, 18, 3)
    ]
    return Mesh.joined([tyre, *hub])


def _vehicle(profile: Profile, colour: Colour, random: Random) -> Shape:
    half, side = profile.length / 2, profile.width / 2
    top = max(height for _, height, _, _ in profile.stations)
    parts = [_body(profile, colour)]
    for share in profile.wheels:
        for left in (1.0, -1.0):
            parts.append(_wheel(half - share * profile.length, left * side * 0.985, profile.wheel_radius, left))
    parts += _ends(profile, random)
    parts += _sides(profile)
    return Shape(Mesh.joined(parts), half, side, top)


def _section(profile: Profile, x: float, top: float, factor: float) -> Floats:
    """One ring of the body: from the left sill over the roof to the right sill."""
    wide = profile.width / 2 * factor
    belt = min(profile.belt, top - 0.04)
    roof = wide * (profile.roof_width + (0.97 - profile.roof_width) * (1 - min(1.0, (top - belt) / 0.35)))
    floor = profile.floor
    left = [
        (wide * 0.80, floor), (wide * 0.955, floor + 0.10), (wide, floor + (belt - floor) * 0.45),
        (wide * 0.99, floor + (belt - floor) * 0.75), (wide * 0.955, belt), (wide * 0.945, belt + 0.01),
        (wide * 0.945 * 0.45 + roof * 0.55, belt + (top - belt) * 0.55), (roof, top - min(0.08, (top - belt) * 0.3)),
        (roof * 0.80, top - 0.018), (0.0, top),
    ]  # fmt: skip
    ring = [(x, y, z) for y, z in left] + [(x, -y, z) for y, z in reversed(left[:-1])]
    return np.array(ring)


def _body(profile: Profile, colour: Colour) -> Mesh:
    half = profile.length / 2
    shares = sorted({share for share, *_ in profile.stations} | {*_edges(profile)})
    known = np.array([[share, height, width] for share, height, width, _ in profile.stations])
    heights = np.interp(shares, known[:, 0], known[:, 1])
    widths = np.interp(shares, known[:, 0], known[:, 2])
    rings = np.stack(
        [
            _section(profile, half - share * profile.length, height, width)
            for share, height, width in zip(shares, heights, widths, strict=True)
        ]
    )
    between = between_rings(rings, closed=False)
    pieces, bands = between.shape[:2]
    inside = (rings[:-1].mean(axis=1) + rings[1:].mean(axis=1)) / 2
    corners = facing_away(between.reshape(-1, 4, 3), np.repeat(inside, bands, axis=0))
    colours = np.broadcast_to(np.array(colour), (pieces, bands, 3)).copy()
    materials = np.full((pieces, bands), int(PAINT))
    for piece in range(pieces):
        middle = (shares[piece] + shares[piece + 1]) / 2
        if _glazed(profile, middle) and max(heights[piece], heights[piece + 1]) - profile.belt > 0.25:
            for band in (5, 6, bands - 7, bands - 6):
                colours[piece, band], materials[piece, band] = WINDOW, int(GLASS)
        begun = max(index for index, station in enumerate(profile.stations) if station[0] <= middle)
        if profile.stations[begun][3] is GLASS:
            for band in (7, 8, 9, 10):
                if band < bands:
                    colours[piece, band], materials[piece, band] = WINDOW, int(GLASS)
        for band in (0, bands - 1):
            colours[piece, band], materials[piece, band] = TRIM, int(Material.MATTE)
    ends = np.concatenate([fan(rings[0]), fan(rings[-1])])
    ends = facing_away(ends, np.array([0.0, 0.0, profile.belt * 0.7]))
    bottom = np.array(
        [[(half * 0.98, -0.8, 0.2), (half * 0.98, 0.8, 0.2), (-half * 0.98, 0.8, 0.2), (-half * 0.98, -0.8, 0.2)]]
    )
    return Mesh.joined(
        [
            Mesh(corners, colours.reshape(-1, 3), materials.reshape(-1), np.zeros(pieces * bands, dtype=np.intp)),
            faces(ends, colour, PAINT),
            faces(facing_away(bottom, np.array([0.0, 0.0, 1.0])), DARK),
        ]
    )


def _edges(profile: Profile) -> list[float]:
    """Further stations where windows begin, end and are parted, and some for a smooth surface."""
    first, last = profile.windows
    edges = [first, last]
    for pillar in profile.pillars:
        edges += [pillar - 0.012, pillar + 0.012]
    smooth = np.linspace(0.05, 0.95, 13 if profile.length < 7 else 9)
    return edges + [float(share) for share in smooth if all(abs(share - edge) > 0.015 for edge in edges)]


def _glazed(profile: Profile, share: float) -> bool:
    first, last = profile.windows
    return first < share < last and all(abs(share - pillar) > 0.012 for pillar in profile.pillars)


def _wheel(x: float, y: float, radius: float, left: float) -> Mesh:
    """Arch, tyre and rim on the outside, and the tread that is seen from the front."""
    angles = np.linspace(0, 2 * np.pi, 13)
    rings = np.stack(
        [
            np.stack([x + radius * np.cos(angles), np.full(13, depth), radius + radius * np.sin(angles)], axis=1)
            for depth in (y - left * 0.22, y)
        ]
    )
    tread = between_rings(rings, closed=False).reshape(-1, 4, 3)
    tread = facing_away(tread, np.array([x, y, radius]))
    spokes = [
        plate(
            [
                (x + 0.18 * radius * np.cos(angle - 0.3), y + left * 0.022, radius + 0.18 * radius * np.sin(angle - 0.3)),
                (x + 0.58 * radius * np.cos(angle - 0.22), y + left * 0.022, radius + 0.58 * radius * np.sin(angle - 0.22)),
                (x + 0.58 * radius * np.cos(angle + 0.22), y + left * 0.022, radius + 0.58 * radius * np.sin(angle + 0.22)),
                (x + 0.18 * radius * np.cos(angle + 0.3), y + left * 0.022, radius + 0.18 * radius * np.sin(angle + 0.3)),
            ],
            (0.05, 0.05, 0.05), Material.MATTE, 4,
        )
        for angle in np.arange(5) * 2 * np.pi / 5
    ]  # fmt: skip
    return Mesh.joined(
        [
            faces(tread, RUBBER),
            disc((x, y + left * 0.008, radius), radius * 1.16, left, DARK, layer=1),
            disc((x, y + left * 0.014, radius), radius, left, RUBBER, layer=2),
            disc((x, y + left * 0.018, radius), radius * 0.64, left, RIM, layer=3),
            *spokes,
        ]
    )


def _ends(profile: Profile, random: Random) -> list[Mesh]:
    """Lamps, grille, bumpers and number plates."""
    half, side, belt, floor = profile.length / 2, profile.width / 2, profile.belt, profile.floor
    low, high = floor + (belt - floor) * 0.42, floor + (belt - floor) * 0.68
    front, back = half + 0.012, -half - 0.012
    number_plate = NUMBER_PLATES[random.integers(len(NUMBER_PLATES))]
    parts = []
    for left in (1.0, -1.0):
        outer, inner = left * side * 0.93, left * side * 0.52
        set_back = 0.10 if profile.length < 7 else 0.02
        parts.append(
            plate(
                [
                    (front - 0.02, inner, low + 0.04),
                    (front - set_back, outer, low + 0.06),
                    (front - set_back - 0.12, outer, high),
                    (front - 0.05, inner, high),
                ],
                HEADLAMP,
                Material.LAMP,
                3,
            )
        )
        parts.append(
            plate(
                [
                    (front - set_back, outer, low),
                    (front - set_back - 0.25, outer * 1.06, low + 0.04),
                    (front - set_back - 0.3, outer * 1.06, high),
                    (front - set_back - 0.1, outer, high),
                ],
                INDICATOR,
                Material.MATTE,
                3,
            )
        )
        tail_low, tail_high = low + 0.06, min(belt, high + 0.16)
        parts.append(
            plate(
                [
                    (back + 0.02, left * side * 0.60, tail_low),
                    (back + 0.05, left * side * 0.92, tail_low),
                    (back + 0.05, left * side * 0.92, tail_high),
                    (back + 0.02, left * side * 0.60, tail_high),
                ],
                TAIL_LAMP,
                Material.LAMP,
                3,
            )
        )
    parts.append(
        plate(
            [
                (front, -side * 0.45, low),
                (front, side * 0.45, low),
                (front - 0.03, side * 0.5, high - 0.02),
                (front - 0.03, -side * 0.5, high - 0.02),
            ],
            DARK,
            Material.MATTE,
            2,
        )
    )
    parts.append(
        plate(
            [
                (front - 0.01, -side * 0.78, floor + 0.02),
                (front - 0.01, side * 0.78, floor + 0.02),
                (front, side * 0.7, low - 0.14),
                (front, -side * 0.7, low - 0.14),
            ],
            TRIM,
            Material.MATTE,
            2,
        )
    )
    parts.append(
        plate(
            [
                (back, -side * 0.78, floor + 0.02),
                (back, side * 0.78, floor + 0.02),
                (back, side * 0.8, low - 0.12),
                (back, -side * 0.8, low - 0.12),
            ],
            TRIM,
            Material.MATTE,
            2,
        )
    )
    for x, z in ((front + 0.01, low - 0.10), (back - 0.01, low + 0.02)):
        parts.append(
            plate(
                [(x, -0.26, z), (x, 0.26, z), (x, 0.26, z + 0.12), (x, -0.26, z + 0.12)],
                number_plate,
                Material.MATTE,
                4,
            )
        )
    return parts


def _sides(profile: Profile) -> list[Mesh]:
    """Door lines, handles and mirrors."""
    half, side, belt, floor = profile.length / 2, profile.width / 2, profile.belt, profile.floor
    parts = []
    if profile.length < 7:
        mirror = half - (profile.windows[0] + 0.015) * profile.length
        for left in (1.0, -1.0):
            y0, y1 = sorted((left * side * 0.97, left * (side + 0.17)))
            parts.append(box((mirror - 0.10, y0, belt - 0.02), (mirror + 0.08, y1, belt + 0.14), TRIM))
            for share in (profile.windows[0] + 0.02, *profile.pillars[:1], profile.windows[1] - 0.08):
                x, y = half - share * profile.length, left * (side + 0.006)
                parts.append(
                    plate(
                        [
                            (x - 0.012, y, floor + 0.15),
                            (x + 0.012, y, floor + 0.15),
                            (x + 0.012, y, belt - 0.02),
                            (x - 0.012, y, belt - 0.02),
                        ],
                        DARK,
                        Material.MATTE,
                        1,
                    )
                )
    return parts
