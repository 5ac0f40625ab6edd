"""A simulated scene: pictures of a road camera with exact ground truth, the same for the same spec and time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from dangerous_driving.camera.frame import Image
from dangerous_driving.contracts import RiskLevel
from dangerous_driving.simulation.scenes import backdrop, pencil, truth
from dangerous_driving.simulation.scenes.backdrop import Backdrop
from dangerous_driving.simulation.scenes.look import Atmosphere
from dangerous_driving.simulation.scenes.pencil import Patch
from dangerous_driving.simulation.scenes.road import camera
from dangerous_driving.simulation.scenes.scripts import RED, play
from dangerous_driving.simulation.scenes.spec import SceneSpec, Weather
from dangerous_driving.simulation.scenes.traffic import PERIOD, Actor, Pose
from dangerous_driving.simulation.scenes.view import NEAR, Floats

Box = tuple[float, float, float, float]

#: What shows less of itself is no object of the ground truth: px of its own height at 1280 px width, share in sight.
#: 30 px is where "medium" begins in the Caltech benchmark; below, people find pedestrians no longer surely (Dollár et
#: al., Pedestrian Detection: An Evaluation of the State of the Art, 2012).
MIN_HEIGHT = 30.0
MIN_VISIBLE = 0.25
REFERENCE_WIDTH = 1280

#: px of a cell in which an outline tells who hides whom.
GRID = 4

#: m from the camera; beyond, nobody is drawn: he would be a few pixels high.
SIGHT = 105.0


@dataclass(frozen=True, slots=True)
class TrueObject:
    """One road user as it is in the picture.

    ``bbox``: the smallest box around its visible pixels. ``visible``: share of its pixels that nothing hides, 0 to 1.
    ``rider_of``: the two-wheeler that a person rides.
    """

    actor_id: int
    class_name: str
    bbox: Box
    visible: float
    rider_of: int | None


@dataclass(frozen=True, slots=True)
class TrueGroup:
    """Road users near each other, or endangering each other; ``bbox`` is around those of them that are in sight."""

    actor_ids: tuple[int, ...]
    bbox: Box
    risk_level: RiskLevel
    risk_type: str | None

    @property
    def dangerous(self) -> bool:
        """Whether an operator should hear of it."""
        return self.risk_level.rank >= RiskLevel.MEDIUM.rank


@dataclass(frozen=True, slots=True)
class SceneFrame:
    """One picture with its truth. ``image``: height x width x 3, BGR; ``at``: s of scene time.

    ``faint``: road users in the picture that are too small or too hidden to be asked for; finding one is no mistake.
    """

    image: Image
    at: float
    objects: tuple[TrueObject, ...]
    groups: tuple[TrueGroup, ...]
    faint: tuple[TrueObject, ...] = ()


@dataclass(frozen=True, slots=True)
class SceneOutline:
    """What is where, without a picture: a thousandth of the work.

    ``objects`` are those of the picture to within some pixels (their outlines are hulls, what hides them is told by a
    grid). ``dangers`` are all in sight, each with the road users concerned that are in sight.
    """

    at: float
    objects: tuple[TrueObject, ...]
    dangers: tuple[truth.Danger, ...]


class Scene:
    """Draws the pictures of one spec. Not for several threads at a time."""

    def __init__(self, spec: SceneSpec) -> None:
        self.spec = spec
        words = [spec.seed, *(ord(letter) for letter in spec.scenario)]
        # looks of another light or weather are the same scene in another light: one generator each
        self._play = play(spec.scenario, np.random.default_rng([1, *words]))
        self._view = camera(np.random.default_rng([2, *words]), self._play.road, spec.width, spec.height)
        self._air = Atmosphere.of(spec.light, spec.weather, np.random.default_rng([3, *words]))

    @property
    def period_of_script(self) -> float:
        """S after which everything repeats but the noise."""
        return PERIOD

    @cached_property
    def _backdrop(self) -> Backdrop:
        words = [self.spec.seed, *(ord(letter) for letter in self.spec.scenario)]
        return backdrop.draw(self._view, self._play.road, self._air, np.random.default_rng([4, *words]))

    @cached_property
    def _grain(self) -> NDArray[np.int16]:
        """Noise of the sensor, larger than the picture, so that each frame takes another part."""
        random = np.random.default_rng([5, self.spec.seed])
        shape = (self.spec.height + 97, self.spec.width + 101, 3)
        coarse = random.normal(0, 1, shape).astype(np.float32)
        soft = np.asarray(cv2.GaussianBlur(coarse, (0, 0), 0.8)) * 1.7
        return np.asarray(np.round(soft * self._air.noise), dtype=np.int16)

    @cached_property
    def _vignette(self) -> Image:
        x, y = np.linspace(-1, 1, self.spec.width), np.linspace(-1, 1, self.spec.height)
        dark = 1 - 0.16 * (x[None, :] ** 2 + y[:, None] ** 2) ** 1.5 / 2
        return np.repeat((dark * 255).astype(np.uint8)[..., None], 3, axis=2)

    def frame(self, at: float) -> SceneFrame:
        """The picture at a time in s; equal for equal times, in whatever order they are asked for."""
        actors, poses = self._there(at % PERIOD)
        picture = self._backdrop.image.copy()
        surfaces = {
            actor.number: pencil.in_world(actor.mesh(poses[actor.number]), poses[actor.number]) for actor in actors
        }
        if self._air.lamps:
            self._beams(picture, actors, poses)
        self._shadows(picture, list(surfaces.values()))
        self._signals(picture, at % PERIOD)
        shown, owners = self._draw(picture, actors, poses, surfaces)
        self._lens(picture, at)
        objects, faint = self._objects(actors, shown, owners)
        return SceneFrame(picture, at, objects, self._groups(actors, poses, objects, at), faint)

    def outline(self, at: float) -> SceneOutline:
        """Boxes and dangers at a time in s, from geometry alone; equal for equal times, whatever light and weather are."""
        actors, poses = self._there(at % PERIOD)
        owners = np.zeros((self.spec.height // GRID, self.spec.width // GRID), np.int16)
        shown: dict[int, int] = {}
        for actor in actors:  # the farthest first
            pixels, depth = self._view.project(
                pencil.in_world(actor.mesh(poses[actor.number]), poses[actor.number]).reshape(-1, 3)
            )
            if (depth < NEAR).any():
                continue
            hull = cv2.convexHull((pixels / GRID).astype(np.float32)).round().astype(np.int32).clip(-4000, 4000)
            mask = np.zeros_like(owners, dtype=np.uint8)
            cv2.fillConvexPoly(mask, hull, 1)
            if mask.any():
                owners[mask > 0] = actor.number
                shown[actor.number] = int(mask.sum())
        objects, _ = self._objects(actors, shown, owners, scale=GRID)
        seen = {thing.actor_id for thing in objects}
        dangers = []
        for danger in truth.dangers(actors, poses, self._play.road, at):
            members = tuple(number for number in danger.actor_ids if number in seen)
            if len(members) == len(danger.actor_ids[:2]) or len(members) > 1:
                dangers.append(replace(danger, actor_ids=members))
        return SceneOutline(at, objects, tuple(dangers))

    def _there(self, at: float) -> tuple[list[Actor], dict[int, Pose]]:
        """Who is in sight, the farthest first, a rider after his machine."""
        poses = {}
        for actor in self._play.actors:
            pose = actor.path(at)
            if pose is not None:
                poses[actor.number] = pose
        eye = self._view.position
        distances = {number: float(np.hypot(pose.x - eye[0], pose.y - eye[1])) for number, pose in poses.items()}
        there = [
            actor
            for actor in self._play.actors
            if actor.number in poses and distances[actor.number] < SIGHT and poses[actor.number].y > -actor.half_length
        ]
        there.sort(key=lambda actor: (-distances[actor.rider_of or actor.number], actor.number))
        return there, poses

    def _draw(
        self, picture: Image, actors: list[Actor], poses: dict[int, Pose], surfaces: dict[int, Floats]
    ) -> tuple[dict[int, int], NDArray[np.int16]]:
        """Draw everybody; returns how many pixels each would show if nothing hid it, and whose each pixel is."""
        owners = np.zeros(picture.shape[:2], np.int16)
        shown: dict[int, int] = {}
        glowing: list[tuple[int, Patch]] = []
        for actor in actors:
            pose = poses[actor.number]
            lamp = float(self._play.road.lamp_light(np.array(pose.x), np.array(pose.y))) if self._air.lamps else 0.0
            patch = pencil.draw(actor.mesh(pose), surfaces[actor.number], self._view, self._air, lamp)
            if patch is None:
                continue
            if self._air.wet:
                pencil.mirror(picture, patch, self._backdrop.wet)
            pencil.paste(picture, patch)
            solid = patch.cover > 127  # more than half of a pixel
            height, width = solid.shape
            owners[patch.top : patch.top + height, patch.left : patch.left + width][solid] = actor.number
            shown[actor.number] = int(solid.sum())
            if patch.glows:
                glowing.append((actor.number, patch))
        for number, patch in glowing:
            for x, y, radius, white in patch.glows:
                column, row = int(x), int(y)
                inside = 0 <= column < self.spec.width and 0 <= row < self.spec.height
                if inside and owners[row, column] == number:
                    pencil.glow(picture, x, y, radius, white=white)
        return shown, owners

    def _objects(
        self, actors: list[Actor], shown: dict[int, int], owners: NDArray[np.int16], *, scale: int = 1
    ) -> tuple[tuple[TrueObject, ...], tuple[TrueObject, ...]]:
        """What is asked for, and what shows too little of itself for that."""
        least = MIN_HEIGHT * self.spec.width / REFERENCE_WIDTH
        found: list[TrueObject] = []
        faint: list[TrueObject] = []
        for actor in actors:
            if not shown.get(actor.number):
                continue
            own = owners == actor.number
            rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
            if not rows.size:
                continue
            bbox = (
                float(columns[0] * scale),
                float(rows[0] * scale),
                float((columns[-1] + 1) * scale),
                float((rows[-1] + 1) * scale),
            )
            visible = float(own.sum()) / shown[actor.number]
            kind = faint if bbox[3] - bbox[1] < least or visible < MIN_VISIBLE else found
            kind.append(TrueObject(actor.number, actor.class_name, bbox, visible, actor.rider_of))
        return tuple(found), tuple(faint)

    def _groups(
        self, actors: list[Actor], poses: dict[int, Pose], objects: tuple[TrueObject, ...], at: float
    ) -> tuple[TrueGroup, ...]:
        boxes = {thing.actor_id: thing.bbox for thing in objects}
        groups = []
        dangerous: set[int] = set()
        for danger in truth.dangers(actors, poses, self._play.road, at):
            members = tuple(number for number in danger.actor_ids if number in boxes)
            if len(members) == len(danger.actor_ids[:2]) or len(members) > 1:
                groups.append(
                    TrueGroup(
                        members, _around([boxes[number] for number in members]), danger.risk_level, danger.risk_type
                    )
                )
                dangerous |= set(members)
        users = [actor.number for actor in actors if actor.number in boxes and actor.rider_of is None]
        for members in truth.clusters(users, poses):
            if not dangerous & set(members):
                groups.append(TrueGroup(members, _around([boxes[number] for number in members]), RiskLevel.NONE, None))
        return tuple(groups)

    def _beams(self, picture: Image, actors: list[Actor], poses: dict[int, Pose]) -> None:
        """What headlamps light up of the road before them."""
        quarter = (self.spec.width // 4, self.spec.height // 4)
        light = np.zeros((quarter[1], quarter[0]), np.float32)
        for actor in actors:
            if actor.class_name not in {"car", "truck", "bus", "motorcycle"}:
                continue
            pose = poses[actor.number]
            forward = np.array([-np.sin(pose.heading), np.cos(pose.heading), 0.0])
            left = np.array([-np.cos(pose.heading), -np.sin(pose.heading), 0.0])
            for reach, width, bright in ((16.0, 4.2, 0.10), (11.0, 3.0, 0.14), (6.5, 2.2, 0.2)):
                front = np.array([pose.x, pose.y, 0.0]) + forward * actor.half_length
                corners = np.stack(
                    [
                        front + left * 0.7,
                        front + forward * reach + left * width / 2,
                        front + forward * reach - left * width / 2,
                        front - left * 0.7,
                    ]
                )
                pixels, depth = self._view.project(corners)
                if (depth > 1.5).all():  # in front of the lens
                    cv2.fillConvexPoly(mask := np.zeros_like(light), np.round(pixels / 4).astype(np.int32), bright)
                    light += mask
        if light.any():
            soft = cv2.GaussianBlur(light, (0, 0), 4)
            large = np.asarray(cv2.resize(soft, (self.spec.width, self.spec.height), interpolation=cv2.INTER_LINEAR))
            picture[:] = cv2.add(
                picture, (self._backdrop.albedo * np.minimum(large, 0.8)[..., None] * 1.3).astype(np.uint8)
            )

    def _shadows(self, picture: Image, surfaces: list[Floats]) -> None:
        half = (self.spec.width // 2, self.spec.height // 2)
        mask = np.zeros((half[1], half[0]), np.uint8)
        sun = self._air.sun
        slope = (
            np.clip(sun[:2] / max(sun[2], 0.25), -2.5, 2.5) if self._air.sun_colour.max() > 0.3 else np.zeros(2)
        )  # else diffuse
        for corners in surfaces:
            points = corners.reshape(-1, 3)
            ground = points.copy()
            ground[:, :2] -= slope * points[:, 2:3]
            ground[:, 2] = 0.0
            pixels, depth = self._view.project(ground)
            if (depth < 2).any():  # too near to the lens to be projected as a whole
                continue
            hull = cv2.convexHull(np.round(pixels / 2).astype(np.int32).clip(-4000, 4000))
            cv2.fillConvexPoly(mask, hull, 255)
        soft = cv2.GaussianBlur(mask, (0, 0), 1.0 + 6.0 * self._air.softness)
        large = cv2.resize(soft, (self.spec.width, self.spec.height), interpolation=cv2.INTER_LINEAR)
        left = (255 - np.asarray(large).astype(np.float32) * self._air.shadow).astype(np.uint8)
        cv2.multiply(picture, cv2.merge([left, left, left]), picture, 1 / 255)

    def _signals(self, picture: Image, at: float) -> None:
        junction = self._play.road.junction
        if junction is None:
            return
        red = RED[0] <= at < RED[1]
        half = self._play.road.half
        for x, y in ((half + 0.5, junction[0] - 5.5), (-half - 0.5, junction[1] + 5.5)):
            pixels, depth = self._view.project(np.array([[x, y, 0.0], [x, y, 3.6], [x, y, 2.6]]))
            unit = self._view.focal / float(depth[0])
            foot, top, low = ((int(px), int(py)) for px, py in pixels)
            cv2.line(picture, foot, top, (40, 42, 42), max(1, int(0.12 * unit)), cv2.LINE_AA)
            half_wide = max(2, int(0.17 * unit))
            cv2.rectangle(picture, (top[0] - half_wide, top[1]), (top[0] + half_wide, low[1]), (22, 24, 24), -1)
            for place, colour, on in (
                (0.2, (40, 40, 235), red),
                (0.5, (30, 160, 230), False),
                (0.8, (90, 220, 60), not red),
            ):
                centre = (top[0], int(top[1] + (low[1] - top[1]) * place))
                cv2.circle(picture, centre, max(1, int(0.12 * unit)), colour if on else (30, 34, 36), -1, cv2.LINE_AA)

    def _lens(self, picture: Image, at: float) -> None:
        """What a camera adds: rain before it, softness, darker corners, noise, and the words that it is simulated."""
        moment = round(at * 1000)
        if self.spec.weather is Weather.RAIN:
            random = np.random.default_rng([6, self.spec.seed, moment])
            streaks = np.zeros_like(picture)
            for x, y, length in random.uniform((0, 0, 6), (self.spec.width, self.spec.height, 26), (220, 3)):
                cv2.line(
                    streaks, (int(x), int(y)), (int(x + length * 0.12), int(y + length)), (60, 60, 60), 1, cv2.LINE_AA
                )
            cv2.add(picture, cv2.GaussianBlur(streaks, (0, 0), 0.7), picture)
        cv2.GaussianBlur(picture, (0, 0), 0.62 if self.spec.weather is Weather.DRY else 0.8, picture)
        cv2.multiply(picture, self._vignette, picture, 1 / 255)
        down, right = moment * 31 % 97, moment * 57 % 101
        grain = self._grain[down : down + self.spec.height, right : right + self.spec.width]
        cv2.add(picture, grain, picture, dtype=cv2.CV_8U)
        size = max(0.35, 0.5 * self.spec.width / REFERENCE_WIDTH)
        text = f"SIMULATED  {self.spec.scenario}  {self.spec.light}  {int(at // 60):02d}:{at % 60:04.1f}"
        (wide, tall), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
        strip = picture[: tall + base + 8, : wide + 12]
        strip[:] = strip // 3
        cv2.putText(picture, text, (6, tall + 5), cv2.FONT_HERSHEY_SIMPLEX, size, (235, 235, 235), 1, cv2.LINE_AA)


def _around(boxes: list[Box]) -> Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)
