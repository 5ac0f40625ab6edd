"""Draws one object of the scene into the picture: projected, shaded, far faces first, smooth at its edges."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dangerous_driving.camera.frame import Image
from dangerous_driving.simulation.scenes.look import Atmosphere, display, shade
from dangerous_driving.simulation.scenes.mesh import Material, Mesh
from dangerous_driving.simulation.scenes.traffic import Pose
from dangerous_driving.simulation.scenes.view import NEAR, Floats, View

#: Oversampling within an object's rectangle, against jagged edges; large objects need none.
SCALE = 2
LARGE = 520  # px

#: Corners are given to OpenCV in quarters of a pixel.
SHIFT = 2

#: m by which what lies on a body (lamps, wheels) is drawn as if it were nearer than it is.
ON_TOP, PER_LAYER = 0.7, 0.05


@dataclass(frozen=True, eq=False)
class Patch:
    """An object as drawn: ``colours`` h x w x 3 already weighted by ``cover`` (h x w, 0 to 255), at ``left``, ``top``.

    ``glows``: pixel and radius (px) of each lamp that shines at the camera, and whether it is a white one.
    """

    left: int
    top: int
    colours: Image
    cover: NDArray[np.uint8]
    glows: tuple[tuple[float, float, float, bool], ...]


def in_world(mesh: Mesh, pose: Pose) -> Floats:
    """Corners of all faces (faces x 4 x 3) where the object is."""
    sin, cos = np.sin(pose.heading), np.cos(pose.heading)
    forward, left = np.array([-sin, cos, 0.0]), np.array([-cos, -sin, 0.0])
    matrix = np.stack([forward, left, np.array([0.0, 0.0, 1.0])])
    return np.asarray(mesh.corners @ matrix + (pose.x, pose.y, 0.0))


def draw(mesh: Mesh, corners: Floats, view: View, air: Atmosphere, lamp: float) -> Patch | None:
    """One object, or None when nothing of it is in the picture.

    Args:
        mesh: its colours and materials.
        corners: its faces in the world, see `in_world`.
        view: the camera.
        air: the light.
        lamp: light of street lamps where it stands.
    """
    normals = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    middle = corners.mean(axis=1)
    seen = ((middle - view.position) * normals).sum(axis=1) < 0
    pixels, depth = view.project(corners.reshape(-1, 3))
    pixels, depth = pixels.reshape(-1, 4, 2), depth.reshape(-1, 4)
    seen &= (depth > NEAR).all(axis=1)
    if not seen.any():
        return None
    low, high = pixels[seen].min(axis=(0, 1)), pixels[seen].max(axis=(0, 1))
    left, top = max(0, int(low[0]) - 1), max(0, int(low[1]) - 1)
    right, bottom = min(view.width, int(np.ceil(high[0])) + 1), min(view.height, int(np.ceil(high[1])) + 1)
    if right - left < 2 or bottom - top < 2:  # nothing to see
        return None
    order = np.flatnonzero(seen)
    layer = mesh.layer[order]
    near = depth[order].mean(axis=1) - np.where(layer > 0, ON_TOP, 0.0) - PER_LAYER * layer
    order = order[np.argsort(-near)]
    lights = air.dark
    colours = display(
        shade(
            corners[order], mesh.colours[order], mesh.materials[order], view.position, air, lamp=lamp, lights_on=lights
        )
    )
    scale = 1 if max(right - left, bottom - top) > LARGE else SCALE
    canvas = np.zeros(((bottom - top) * scale, (right - left) * scale, 4), np.uint8)
    shapes = np.round((pixels[order] - (left, top)) * scale * (1 << SHIFT)).astype(np.int32)
    for shape, (blue, green, red) in zip(shapes, colours.tolist(), strict=True):
        cv2.fillConvexPoly(canvas, shape, (blue, green, red, 255.0), cv2.LINE_8, SHIFT)
    if scale > 1:
        canvas = np.asarray(
            cv2.resize(canvas, (right - left, bottom - top), interpolation=cv2.INTER_AREA), dtype=np.uint8
        )
    glows = _glows(mesh, pixels, depth, seen, view) if lights else ()
    return Patch(left, top, canvas[..., :3], canvas[..., 3], glows)


def _glows(
    mesh: Mesh, pixels: Floats, depth: Floats, seen: NDArray[np.bool_], view: View
) -> tuple[tuple[float, float, float, bool], ...]:
    found = []
    for index in np.flatnonzero((mesh.materials == Material.LAMP) & seen):
        (x, y), far = pixels[index].mean(axis=0), float(depth[index].mean())
        white = mesh.colours[index, 0] > 0.5  # blue light is in white lamps only
        found.append((float(x), float(y), (0.55 if white else 0.28) * view.focal / far, bool(white)))
    return tuple(found)


def paste(picture: Image, patch: Patch) -> None:
    """Lay a patch over the picture."""
    height, width = patch.cover.shape
    place = picture[patch.top : patch.top + height, patch.left : patch.left + width]
    through = 255 - patch.cover.astype(np.uint16)[..., None]
    place[:] = ((place * through + 127) // 255 + patch.colours).clip(0, 255).astype(np.uint8)


def mirror(picture: Image, patch: Patch, wet: NDArray[np.float32]) -> None:
    """Its reflection on wet ground below it, blurred downwards."""
    height, width = patch.cover.shape
    begin = patch.top + height - 2
    rows = min(height, picture.shape[0] - begin)
    if rows <= 1:
        return
    colours = cv2.blur(patch.colours[::-1][:rows], (3, max(3, rows // 6 | 1)))
    cover = cv2.blur(patch.cover[::-1][:rows], (3, max(3, rows // 6 | 1))).astype(np.float32) / 255
    place = picture[begin : begin + rows, patch.left : patch.left + width]
    share = (wet[begin : begin + rows, patch.left : patch.left + width] * 0.9)[..., None]
    place[:] = (place * (1 - share * cover[..., None]) + colours * share).clip(0, 255).astype(np.uint8)


def glow(picture: Image, x: float, y: float, radius: float, *, white: bool) -> None:
    """Light that a lamp scatters in the lens."""
    reach = int(min(160, max(4, radius * 3)))
    left, top = int(x) - reach, int(y) - reach
    x0, y0, x1, y1 = (
        max(0, left),
        max(0, top),
        min(picture.shape[1], left + 2 * reach),
        min(picture.shape[0], top + 2 * reach),
    )
    if x1 <= x0 or y1 <= y0:
        return
    across = (np.arange(x0, x1) - x) / max(radius, 1.0)
    down = (np.arange(y0, y1) - y) / max(radius, 1.0)
    bright = np.exp(-np.minimum(np.hypot(across[None, :], down[:, None]) * 2.2, 30.0))
    colour = np.array([235.0, 245.0, 255.0]) if white else np.array([40.0, 40.0, 190.0])
    place = picture[y0:y1, x0:x1]
    place[:] = np.clip(place + bright[..., None] * colour * 0.8, 0, 255).astype(np.uint8)
