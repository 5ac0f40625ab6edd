"""The part of a simulated picture that stands still: road, markings, houses, trees, sky. Drawn once per scene."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dangerous_driving.camera.frame import Image
from dangerous_driving.simulation.scenes.look import LAMP_COLOUR, Atmosphere, display
from dangerous_driving.simulation.scenes.road import KERB, LANE, Road
from dangerous_driving.simulation.scenes.view import Floats, View

#: Oversampling, against jagged edges.
SCALE = 1.5

#: px of the noise textures; they repeat.
TILE = 512

#: m; the ground beyond is haze.
HORIZON = 400.0


@dataclass(frozen=True, eq=False)
class Backdrop:
    """``image``: the still picture. ``albedo``: what light on the ground would show (for headlamps), both h x w x 3.

    ``wet``: share of light that the ground mirrors, h x w, 0 where it is dry.
    """

    image: Image
    albedo: Image
    wet: NDArray[np.float32]


def draw(view: View, road: Road, air: Atmosphere, random: np.random.Generator) -> Backdrop:
    """Draw everything that does not move."""
    # single precision takes half of the memory and of the time; the eye sees no difference
    rays = view.rays(SCALE).astype(np.float32)
    left, near, above = (float(value) for value in view.position)
    single = {
        name: getattr(air, name).astype(np.float32) for name in ("sun", "sun_colour", "zenith", "horizon", "ground")
    }
    air = dataclasses.replace(air, **single)
    tiles = [_noise_tile(random, octaves) for octaves in (2, 5, 8)]
    down = np.minimum(rays[..., 2], -1e-4)
    reach = np.where(rays[..., 2] < -1e-3, -above / down, np.inf)
    length = np.linalg.norm(rays, axis=-1)
    on_ground = reach * length < HORIZON
    reach = np.where(on_ground, reach, 0.0)
    x, y = left + rays[..., 0] * reach, near + rays[..., 1] * reach
    distance = np.maximum(reach * length, 1.0)
    albedo, mirror = _ground(x, y, distance, view, road, air, tiles)
    light = air.zenith * 0.75 + air.horizon * 0.35 + air.sun_colour * max(0.0, air.sun[2])
    lit = albedo * light
    if air.lamps:
        lamp = road.lamp_light(x, y)[..., None] * (0.35 if air.sun_colour.any() else 1.0)
        lit = lit + albedo * lamp * LAMP_COLOUR.astype(np.float32) * 1.9
    if air.wet:
        lit = lit * (1 - mirror[..., None]) + mirror[..., None] * air.horizon * 0.9
    veil = np.exp(-distance / air.haze)[..., None]
    lit = lit * veil + air.horizon * (1 - veil)
    sky = _sky(rays, air, tiles[1])
    picture = display(np.where(on_ground[..., None], lit, sky) * air.exposure).astype(np.uint8)
    canvas = np.ascontiguousarray(picture)
    plain = np.ascontiguousarray(display(np.where(on_ground[..., None], albedo, np.float32(0.0))).astype(np.uint8))
    _upright(canvas, view, road, air, random)
    size = (view.width, view.height)
    return Backdrop(
        np.asarray(cv2.resize(canvas, size, interpolation=cv2.INTER_AREA), dtype=np.uint8),
        np.asarray(cv2.resize(plain, size, interpolation=cv2.INTER_AREA), dtype=np.uint8),
        np.asarray(
            cv2.resize((mirror * on_ground * air.wet).astype(np.float32), size, interpolation=cv2.INTER_AREA),
            dtype=np.float32,
        ),
    )


def _noise_tile(random: np.random.Generator, octaves: int) -> NDArray[np.float32]:
    """Smooth noise of mean 0 and about -1 to 1 that repeats at its edges."""
    tile = np.zeros((TILE, TILE), np.float32)
    for octave in range(octaves):
        cells = 2 ** (octave + 2)
        grid = random.normal(0, 1, (cells, cells)).astype(np.float32)
        wrapped = np.pad(grid, 2, mode="wrap")
        step = TILE // cells
        large = cv2.resize(wrapped, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        tile += np.asarray(large, dtype=np.float32)[2 * step : -2 * step, 2 * step : -2 * step] / 1.6**octave
    return np.asarray(tile / max(float(tile.std()) * 2.0, 1e-6), dtype=np.float32)


def _sampled(tile: NDArray[np.float32], x: Floats, y: Floats, cell: float) -> Floats:
    """Noise at places, the tile being `cell` m wide."""
    column, row = (x / cell * TILE) % TILE, (y / cell * TILE) % TILE
    return np.asarray(
        cv2.remap(tile, column.astype(np.float32), row.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    )


def _ground(
    x: Floats, y: Floats, distance: Floats, view: View, road: Road, air: Atmosphere, tiles: list[NDArray[np.float32]]
) -> tuple[Floats, Floats]:
    """Albedo (h x w x 3) and mirroring share (h x w) of the ground."""
    # fine grain fades where a pixel covers more than a grain
    footprint = distance**2 / float(view.focal * view.position[2])
    coarse = _sampled(tiles[0], x, y, 60.0)
    middle = _sampled(tiles[1], x, y, 9.0) * np.clip(1.2 - footprint / 1.5, 0, 1)
    fine = _sampled(tiles[2], x, y, 1.6) * np.clip(1.2 - footprint / 0.12, 0, 1)
    beside = np.abs(x)
    crossing = np.zeros_like(x, dtype=bool)
    along = y
    if road.junction:
        begin, end = road.junction
        crossing = (y > begin) & (y < end)
        along = np.where(y < (begin + end) / 2, begin - y, y - end)
    carriageway = (beside < road.half) | crossing
    kerb = ~carriageway & ((beside < road.half + KERB) | (_near(along, 0.0, KERB) if road.junction else False))
    paved = beside < road.half + road.pavement
    if road.junction:
        paved |= (along > 0) & (along < road.pavement)
    grey = 0.105 + 0.018 * coarse + 0.022 * middle + 0.03 * fine
    # tyres polish two tracks per lane, oil darkens the middle between them
    across = np.mod(beside, LANE) - LANE / 2
    tracks = np.exp(-(((np.abs(across) - 0.85) / 0.35) ** 2))
    grey = grey * (1 + 0.10 * tracks - 0.10 * np.exp(-((across / 0.45) ** 2)))
    cracks = np.abs(_sampled(tiles[1], x + 3.0, y * 0.7, 23.0)) < 0.012 * np.clip(1.3 - footprint, 0, 1)
    grey = np.where(cracks, grey * 0.6, grey)
    albedo = grey[..., None] * np.array([1.0, 1.0, 0.985], np.float32)
    slabs = 0.27 + 0.03 * middle + 0.035 * fine + 0.02 * coarse
    joint = (np.mod(x, 0.6) < 0.03) | (np.mod(y, 0.6) < 0.03)
    slabs = np.where(joint & (footprint < 0.08), slabs * 0.72, slabs)
    grass = np.stack(
        [0.05 + 0.015 * fine, 0.15 + 0.04 * middle + 0.05 * fine, 0.10 + 0.03 * coarse + 0.04 * fine], axis=-1
    )
    park = np.isin(np.sign(x), road.park)[..., None]
    albedo = np.where((~carriageway & ~paved)[..., None], np.where(park, grass, slabs[..., None] * 0.9), albedo)
    albedo = np.where(
        (paved & ~carriageway)[..., None], slabs[..., None] * np.array([0.97, 1.0, 1.03], np.float32), albedo
    )
    albedo = np.where(kerb[..., None], (0.36 + 0.04 * middle)[..., None], albedo)
    painted = _markings(x, y, road) & carriageway
    worn = np.clip(0.9 + 0.5 * middle + 0.4 * fine, 0.25, 1.0)[..., None]
    albedo = np.where(painted[..., None], albedo * (1 - worn) + 0.62 * worn, albedo)
    shadow_line = (beside > road.half - 0.35) & (beside < road.half) & ~crossing
    albedo = np.where(shadow_line[..., None], albedo * 0.75, albedo)
    mirror = np.zeros_like(x)
    if air.wet:
        grazing = 1 - np.clip(float(view.position[2]) / distance, 0, 1)
        puddles = np.clip(0.5 + 0.9 * coarse + 0.3 * middle, 0.0, 1.0)
        mirror = np.where(carriageway | paved, (0.04 + 0.55 * grazing**4) * (0.45 + 0.55 * puddles), 0.02)
        albedo = albedo * np.where(carriageway | paved, 0.55, 0.8)[..., None]
    return np.clip(albedo, 0.01, 0.9), mirror


def _near(values: Floats, at: float, within: float) -> NDArray[np.bool_]:
    return np.asarray(np.abs(values - at) < within)


def _markings(x: Floats, y: Floats, road: Road) -> NDArray[np.bool_]:
    painted = _near(x, 0.0, 0.07) if road.lanes == 1 else _near(np.abs(x), 0.14, 0.06)
    for number in range(1, road.lanes):
        painted |= _near(np.abs(x), number * LANE, 0.06) & (np.mod(y, 9.0) < 3.0)
    painted |= _near(np.abs(x), road.half - 0.28, 0.06)
    if road.junction:
        begin, end = road.junction
        painted &= (y < begin - 5.0) | (y > end + 5.0)
        painted |= _near(y, begin - 5.6, 0.2) & (x > 0.2) & (x < road.half - 0.3)
        painted |= _near(y, end + 5.6, 0.2) & (x < -0.2) & (x > -road.half + 0.3)
        for edge in (begin - 2.6, end + 2.6):
            painted |= _near(y, edge, 1.5) & (np.mod(x, 1.0) < 0.5) & (np.abs(x) < road.half - 0.2)
        return painted
    if road.crossing is not None:
        painted &= ~_near(y, road.crossing, 2.3)
        painted |= _near(y, road.crossing, 1.7) & (np.mod(x, 1.0) < 0.5) & (np.abs(x) < road.half - 0.2)
    return painted


def _sky(rays: NDArray[np.floating], air: Atmosphere, tile: NDArray[np.float32]) -> Floats:
    flat = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    up = np.clip(flat[..., 2], 0.0, 1.0)
    sky = air.horizon + (air.zenith - air.horizon) * np.sqrt(up * 2.2).clip(0, 1)[..., None]
    over = np.maximum(flat[..., 2], 0.02)
    clouds = _sampled(tile, flat[..., 0] / over * 3.0, flat[..., 1] / over * 3.0, 30.0)
    cover = np.clip(clouds * 0.8, 0, 1)[..., None] * np.clip(up * 8, 0, 1)[..., None]
    return np.asarray(sky * (1 - 0.45 * cover) + 0.45 * cover * air.horizon * 1.15)


def _upright(canvas: Image, view: View, road: Road, air: Atmosphere, random: np.random.Generator) -> None:
    """Houses, trees, lamps and signals, the far ones first."""
    _far_end(canvas, view, air, random)
    for side in (-1, 1):
        if side not in road.park:
            _houses(canvas, view, road, air, random, side)
    trees = [
        (side * (road.half + road.pavement + random.uniform(1.0, 9.0)), float(random.uniform(10, 110)))
        for side in road.park
        for _ in range(16)
    ]
    for side in (-1, 1):
        if side not in road.park and random.random() < 0.5:
            trees += [
                (side * (road.half + road.pavement - 0.5), float(y))
                for y in np.arange(random.uniform(18, 30), 100, 17.0)
            ]
    things = [(y, "tree", x) for x, y in trees] + [(y, "lamp", x) for x, y in road.lamps]
    for y, what, x in sorted(things, reverse=True):
        if road.junction and road.junction[0] - 3 < y < road.junction[1] + 3:
            continue
        if what == "tree":
            _tree(canvas, view, air, random, x, y)
        else:
            _lamp(canvas, view, air, x, y)


def _colour(colour: Floats, view: View, air: Atmosphere, at: Floats, share: float) -> tuple[float, ...]:
    light = air.zenith * 0.55 + air.horizon * 0.3 + air.sun_colour * share
    veil = np.exp(-np.linalg.norm(at - view.position) / air.haze)
    lit = (colour * light * veil + air.horizon * (1 - veil)) * air.exposure
    return tuple(float(value) for value in display(lit))


def _houses(canvas: Image, view: View, road: Road, air: Atmosphere, random: np.random.Generator, side: int) -> None:
    x = side * (road.half + road.pavement + random.uniform(0.4, 3.0))
    # nothing may stand between the camera and the road
    x = side * max(abs(x), abs(view.position[0]) + 2.5 if np.sign(view.position[0]) == side else 0.0)
    edges = [9.0]
    while edges[-1] < 130:
        edges.append(edges[-1] + float(random.uniform(9, 22)))
    for begin, end in reversed(list(itertools.pairwise(edges))):
        height = float(random.uniform(6, 17))
        if road.junction and end > road.junction[0] - road.pavement and begin < road.junction[1] + road.pavement:
            continue
        wall = np.array(
            [[0.45, 0.55, 0.62], [0.3, 0.42, 0.55], [0.55, 0.56, 0.56], [0.2, 0.26, 0.42], [0.42, 0.5, 0.52]][
                random.integers(5)
            ]
        )
        facade = _facade(random, wall, air, (end - begin) / height)
        facing = max(0.0, -side * float(air.sun[0]))
        corners = np.array([[x, begin, height], [x, end, height], [x, end, 0.0], [x, begin, 0.0]])
        gable = np.array(
            [[x + side * 9, begin, height], [x, begin, height], [x, begin, 0.0], [x + side * 9, begin, 0.0]]
        )
        _paste(canvas, view, air, _facade(random, wall, air, 9 / height), gable, max(0.0, -float(air.sun[1])))
        _paste(canvas, view, air, facade, corners, facing)


def _facade(random: np.random.Generator, wall: Floats, air: Atmosphere, aspect: float) -> Floats:
    """A wall with windows: reflectance in linear light; lit windows exceed what the light allows."""
    height, width = 256, max(64, int(256 * aspect))
    wall_noise = cv2.resize(
        random.normal(0, 1, (16, 16)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    face = wall * (1 + 0.06 * np.asarray(wall_noise)[..., None])
    floors, columns = int(random.integers(2, 6)), max(2, int(width / random.uniform(38, 60)))
    step_y, step_x = height / floors, width / columns
    tall, wide = random.uniform(0.4, 0.62), random.uniform(0.4, 0.65)
    for floor in range(floors):
        for column in range(columns):
            top, left = int((floor + 0.5 - tall / 2) * step_y), int((column + 0.5 - wide / 2) * step_x)
            bottom, right = int(top + tall * step_y), int(left + wide * step_x)
            lit = air.lamps and random.random() < 0.25
            pane = (
                np.array([0.4, 0.75, 1.1]) * random.uniform(2.0, 6.0)
                if lit
                else np.array([0.06, 0.055, 0.05]) * random.uniform(0.6, 2.0)
            )
            face[top - 2 : bottom + 2, max(0, left - 2) : right + 2] = wall * 1.15
            face[top:bottom, left:right] = pane
    return np.asarray(face)


def _paste(canvas: Image, view: View, air: Atmosphere, face: Floats, corners: Floats, share: float) -> None:
    pixels, depth = view.project(corners)
    if (depth < 1.5).any() or (np.abs(pixels) > 20 * view.width).any():
        return
    light = air.zenith * 0.55 + air.horizon * 0.35 + air.sun_colour * share
    veil = float(np.exp(-np.linalg.norm(corners.mean(axis=0) - view.position) / air.haze))
    picture = display((face * light * veil + air.horizon * (1 - veil)) * air.exposure).astype(np.uint8)
    height, width = picture.shape[:2]
    source = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    matrix = cv2.getPerspectiveTransform(source, (pixels * SCALE).astype(np.float32))
    size = (canvas.shape[1], canvas.shape[0])
    warped = np.asarray(cv2.warpPerspective(picture, matrix, size, flags=cv2.INTER_AREA), dtype=np.uint8)
    mask = np.zeros(canvas.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, np.round(pixels * SCALE).astype(np.int32), 255)
    canvas[mask > 0] = warped[mask > 0]


def _far_end(canvas: Image, view: View, air: Atmosphere, random: np.random.Generator) -> None:
    """A dark line of houses and trees where the road ends."""
    for x in np.arange(-90, 90, 7.0):
        at = np.array([x, 150.0 + float(random.uniform(0, 30)), 0.0])
        top = at + (0.0, 0.0, float(random.uniform(4, 14)))
        if abs(x) < 7:
            top[2] = 4.0
        low, high = (view.project(point[None])[0][0] * SCALE for point in (at, top))
        half = 4.5 * view.focal / 150.0 * SCALE
        colour = _colour(np.array([0.10, 0.16, 0.13]) * float(random.uniform(0.7, 1.4)), view, air, at, 0.3)
        cv2.rectangle(canvas, (int(low[0] - half), int(high[1])), (int(low[0] + half), int(low[1])), colour, -1)


def _tree(canvas: Image, view: View, air: Atmosphere, random: np.random.Generator, x: float, y: float) -> None:
    height = float(random.uniform(5, 10))
    foot = np.array([x, y, 0.0])
    (pixel,), (depth,) = view.project(foot[None])
    if depth < 6:
        return
    unit = view.focal / depth * SCALE
    base = pixel * SCALE
    trunk = _colour(np.array([0.05, 0.08, 0.11]), view, air, foot, 0.3)
    width = max(1, int(0.28 * unit))
    cv2.line(canvas, tuple(int(v) for v in base), (int(base[0]), int(base[1] - height * 0.55 * unit)), trunk, width)
    green = np.array([0.05, 0.17, 0.11]) * float(random.uniform(0.6, 1.5)) * random.uniform(0.85, 1.15, 3)
    crown = height * 0.36
    for number in range(150):
        share = number / 150
        angle, out = float(random.uniform(0, 2 * np.pi)), float(np.sqrt(random.uniform(0, 1)))
        offset = np.array([np.cos(angle) * out * crown * 0.85, -height * 0.68 + np.sin(angle) * out * crown])
        colour = _colour(green * (0.35 + 0.9 * share) * (1.15 - 0.35 * np.sin(angle)), view, air, foot, 0.5)
        centre = base + offset * unit
        cv2.circle(
            canvas,
            (int(centre[0]), int(centre[1])),
            max(1, int(random.uniform(0.12, 0.34) * unit * (1.2 - 0.6 * share))),
            colour,
            -1,
            cv2.LINE_AA,
        )


def _lamp(canvas: Image, view: View, air: Atmosphere, x: float, y: float) -> None:
    points = np.array([[x, y, 0.0], [x, y, 8.0], [x - np.sign(x) * 1.8, y, 8.3]])
    pixels, depth = view.project(points)
    if (depth < 4).any():
        return
    unit = view.focal / float(depth[0]) * SCALE
    colour = _colour(np.array([0.14, 0.14, 0.14]), view, air, points[0], 0.4)
    ends = [tuple(int(value) for value in pixel * SCALE) for pixel in pixels]
    cv2.line(canvas, ends[0], ends[1], colour, max(1, int(0.16 * unit)), cv2.LINE_AA)
    cv2.line(canvas, ends[1], ends[2], colour, max(1, int(0.10 * unit)), cv2.LINE_AA)
    if air.lamps:
        cv2.circle(canvas, ends[2], max(2, int(0.28 * unit)), (225, 245, 255), -1, cv2.LINE_AA)
