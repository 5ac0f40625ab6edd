"""Surfaces made of four-cornered faces, and the few ways to make them (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from dangerous_driving.simulation.scenes.view import Floats

Colour = tuple[float, float, float]
"""Blue, green, red in 0..1, linear light."""


class Material(IntEnum):
    """How a face answers light."""

    MATTE = 0
    PAINT = 1
    GLASS = 2
    LAMP = 3  # gives light when it is dark


@dataclass(frozen=True, eq=False)
class Mesh:
    """Faces of an object in its own axes: x forward, y left, z up, m; the origin is on the ground below its centre.

    ``corners``: faces x 4 x 3, counter-clockwise seen from outside (a triangle repeats its last corner). ``colours``:
    faces x 3. ``materials``: one `Material` each. ``layer``: faces of a higher layer are drawn over those of a lower one
    (lamps, wheels and windows lie on the body).
    """

    corners: Floats
    colours: Floats
    materials: NDArray[np.intp]
    layer: NDArray[np.intp]

    @classmethod
    def joined(cls, parts: Sequence[Mesh]) -> Mesh:
        """All parts in one."""
        return cls(
            np.concatenate([part.corners for part in parts]),
            np.concatenate([part.colours for part in parts]),
            np.concatenate([part.materials for part in parts]),
            np.concatenate([part.layer for part in parts]),
        )

    def moved(self, offset: Sequence[float]) -> Mesh:
        """The same elsewhere."""
        return Mesh(self.corners + np.asarray(offset), self.colours, self.materials, self.layer)

    def turned(self, angle: float, axis: int = 2, about: Sequence[float] = (0.0, 0.0, 0.0)) -> Mesh:
        """The same turned by radians about an axis through a point."""
        cos, sin = np.cos(angle), np.sin(angle)
        first, second = [other for other in range(3) if other != axis]
        matrix = np.eye(3)
        sign = -1.0 if axis == 1 else 1.0
        matrix[first, first] = matrix[second, second] = cos
        matrix[first, second], matrix[second, first] = -sin * sign, sin * sign
        centre = np.asarray(about)
        return Mesh((self.corners - centre) @ matrix.T + centre, self.colours, self.materials, self.layer)


def facing_away(corners: Floats, inside: Floats) -> Floats:
    """Faces (n x 4 x 3) turned so that they are seen from the side away from a point, or one point each (n x 3)."""
    normals = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    inward = np.einsum("fk,fk->f", normals, corners.mean(axis=1) - inside) < 0
    return np.asarray(np.where(inward[:, None, None], corners[:, ::-1], corners))


def faces(corners: Floats, colour: Colour | Floats, material: Material = Material.MATTE, layer: int = 0) -> Mesh:
    """Faces of one colour (or one each) and material; corners n x 4 x 3."""
    count = len(corners)
    return Mesh(
        np.asarray(corners, dtype=np.float64),
        np.broadcast_to(np.asarray(colour, dtype=np.float64), (count, 3)).copy(),
        np.full(count, int(material)),
        np.full(count, layer),
    )


def between_rings(rings: Floats, *, closed: bool) -> Floats:
    """Faces between neighbouring rings: (rings - 1) x bands x 4 x 3; rings: n x m x 3, m points each."""
    following = np.roll(rings, -1, axis=1) if closed else rings[:, 1:]
    start = rings if closed else rings[:, :-1]
    return np.stack([start[:-1], following[:-1], following[1:], start[1:]], axis=2)


def fan(ring: Floats) -> Floats:
    """A convex ring (m x 3) filled by triangles around its middle."""
    middle = np.broadcast_to(ring.mean(axis=0), ring.shape)
    return np.stack([ring, np.roll(ring, -1, axis=0), middle, middle], axis=1)


def tube(centres: Floats, radii: Floats, colour: Colour | Floats, *, sides: int = 8, layer: int = 0) -> Mesh:
    """A limb: round sections about a line.

    Args:
        centres: n x 3, m.
        radii: n, or n x 2 for sections that are wider (second axis, left) than deep (first).
        colour: one, or one per face.
        sides: corners of a section.
        layer: see `Mesh`.
    """
    radii = np.asarray(radii, dtype=np.float64)
    if radii.ndim == 1:
        radii = np.stack([radii, radii], axis=1)
    along = np.gradient(centres, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    left = np.broadcast_to(np.array([0.0, 1.0, 0.0]), along.shape).copy()
    left[np.abs(along[:, 1]) > 0.9] = (1.0, 0.0, 0.0)
    deep = np.cross(left, along)
    deep /= np.linalg.norm(deep, axis=1, keepdims=True)
    left = np.cross(along, deep)
    angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    rings = (
        centres[:, None]
        + np.cos(angles)[None, :, None] * (deep * radii[:, :1])[:, None]
        + np.sin(angles)[None, :, None] * (left * radii[:, 1:])[:, None]
    )
    skin = between_rings(rings, closed=True).reshape(-1, 4, 3)
    skin = facing_away(skin, np.repeat((centres[:-1] + centres[1:]) / 2, sides, axis=0))
    ends = np.concatenate([fan(rings[0]), fan(rings[-1])])
    ends = facing_away(ends, centres.mean(axis=0))
    if np.ndim(colour) == 1:
        return faces(np.concatenate([skin, ends]), colour, layer=layer)
    banded = np.repeat(np.asarray(colour), sides, axis=0)
    return faces(np.concatenate([skin, ends]), np.concatenate([banded, banded[: len(ends)]]), layer=layer)


def ball(centre: Sequence[float], radii: Sequence[float], colour: Colour, *, sides: int = 10, layer: int = 0) -> Mesh:
    """An ellipsoid."""
    heights = np.linspace(-1, 1, sides // 2 + 2)
    heights = np.sin(heights * np.pi / 2)
    widths = np.sqrt(np.maximum(0.0, 1 - heights**2)) + 1e-3
    angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    rings = np.stack(
        [
            widths[:, None] * np.cos(angles),
            widths[:, None] * np.sin(angles),
            np.broadcast_to(heights[:, None], (len(heights), sides)),
        ],
        axis=-1,
    )
    corners = between_rings(rings * np.asarray(radii) + np.asarray(centre), closed=True).reshape(-1, 4, 3)
    return faces(facing_away(corners, np.asarray(centre, dtype=np.float64)), colour, layer=layer)


def box(
    low: Sequence[float], high: Sequence[float], colour: Colour, material: Material = Material.MATTE, layer: int = 0
) -> Mesh:
    """A box between two corners, its walls divided so that far and near parts sort well."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    ring = np.array([[0, y0, z0], [0, y1, z0], [0, y1, z1], [0, y0, z1]], dtype=np.float64)
    count = max(2, round((x1 - x0) / 1.5) + 1)
    rings = np.repeat(ring[None], count, axis=0)
    rings[:, :, 0] = np.linspace(x0, x1, count)[:, None]
    skin = between_rings(rings, closed=True).reshape(-1, 4, 3)
    middle = (np.asarray(low, dtype=np.float64) + np.asarray(high, dtype=np.float64)) / 2
    return faces(facing_away(np.concatenate([skin, rings[[0, -1]]]), middle), colour, material, layer)


def disc(centre: Sequence[float], radius: float, side: float, colour: Colour, *, layer: int, sides: int = 16) -> Mesh:
    """A round plate that faces left (side 1) or right (side -1)."""
    angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    ring = np.stack([radius * np.cos(angles), np.zeros(sides), radius * np.sin(angles)], axis=1) + np.asarray(centre)
    # quarters of a disc instead of triangles: a quarter of the faces
    quads = [
        [ring[index], ring[(index + 1) % sides], ring[(index + 2) % sides], np.asarray(centre, dtype=np.float64)]
        for index in range(0, sides, 2)
    ]
    behind = np.asarray(centre, dtype=np.float64) - (0.0, side, 0.0)
    return faces(facing_away(np.array(quads), behind), colour, layer=layer)


def plate(corners: Sequence[Sequence[float]], colour: Colour, material: Material, layer: int) -> Mesh:
    """One four-cornered face on the outside of an object, so that it faces away from the object's middle."""
    at = np.array([corners], dtype=np.float64)
    middle = at.mean(axis=(0, 1)) * (0.5, 0.5, 1.0)
    return faces(facing_away(at, middle), colour, material, layer)
