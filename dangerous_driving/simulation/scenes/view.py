"""The simulated camera: where a point of the world is in the picture (pure).

World axes in metres: x across the road (right), y along it (away from the camera), z up; the ground is z = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

#: m; nearer than this nothing is drawn.
NEAR = 1.0


@dataclass(frozen=True, eq=False)
class View:
    """A pinhole camera. ``rotation``: world to camera (right, down, forward), 3 x 3; ``focal`` in px."""

    position: Floats
    rotation: Floats
    focal: float
    width: int
    height: int

    @classmethod
    def looking_at(cls, position: Floats, target: Floats, fov: float, width: int, height: int, roll: float) -> View:
        """From a position towards a target.

        Args:
            position: m.
            target: m.
            fov: horizontal field of view, radians.
            width: px.
            height: px.
            roll: radians, of a mast that is not quite upright.
        """
        forward = target - position
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right = right / np.linalg.norm(right)
        down = np.cross(forward, right)
        cos, sin = np.cos(roll), np.sin(roll)
        rotation = np.stack([cos * right + sin * down, cos * down - sin * right, forward])
        return cls(position, rotation, width / 2 / np.tan(fov / 2), width, height)

    def project(self, points: Floats) -> tuple[Floats, Floats]:
        """Pixels (n x 2) and depth (n, m along the view) of world points (n x 3); depth below `NEAR` is out of view."""
        local = (points - self.position) @ self.rotation.T
        depth = local[:, 2]
        scale = self.focal / np.maximum(depth, NEAR)
        return np.stack([local[:, 0] * scale + self.width / 2, local[:, 1] * scale + self.height / 2], axis=1), depth

    def rays(self, scale: float) -> Floats:
        """World directions through the pixel centres of a picture `scale` times as large: h x w x 3, not normalised."""
        width, height = round(self.width * scale), round(self.height * scale)
        x = ((np.arange(width) + 0.5) / scale - self.width / 2) / self.focal
        y = ((np.arange(height) + 0.5) / scale - self.height / 2) / self.focal
        local = np.stack(np.broadcast_arrays(x[None, :], y[:, None], 1.0), axis=-1)
        return np.asarray(local @ self.rotation)
