"""Shapes of people: walking, standing and riding (pure). Lengths in metres, body proportions of adults.

Segment lengths are shares of the body's height after Drillis and Contini (Body Segment Parameters, 1966): hip at 0.53,
knee at 0.285, shoulder at 0.82, upper arm 0.186, forearm 0.146.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dangerous_driving.simulation.scenes.mesh import Colour, Mesh, ball, box, tube
from dangerous_driving.simulation.scenes.vehicles import Random
from dangerous_driving.simulation.scenes.view import Floats

SKINS: tuple[Colour, ...] = ((0.30, 0.40, 0.62), (0.22, 0.31, 0.52), (0.13, 0.20, 0.36), (0.05, 0.08, 0.16))
HAIR: tuple[Colour, ...] = ((0.01, 0.01, 0.012), (0.02, 0.035, 0.06), (0.12, 0.2, 0.3), (0.25, 0.25, 0.25))
TOPS: tuple[Colour, ...] = (
    (0.02, 0.02, 0.02), (0.10, 0.05, 0.02), (0.04, 0.04, 0.35), (0.55, 0.55, 0.55), (0.25, 0.12, 0.04), (0.10, 0.22, 0.06),
    (0.05, 0.35, 0.6), (0.3, 0.2, 0.4), (0.12, 0.12, 0.12), (0.2, 0.3, 0.42),
)  # fmt: skip
TROUSERS: tuple[Colour, ...] = (
    (0.02, 0.02, 0.02), (0.16, 0.07, 0.035), (0.09, 0.04, 0.02), (0.08, 0.08, 0.08), (0.18, 0.26, 0.34), (0.05, 0.07, 0.09),
)  # fmt: skip
SHOES: Colour = (0.03, 0.03, 0.03)

#: Radians that a thigh swings to the front and back in a walk, and m that two steps take.
SWING = 0.42
STRIDE = 1.45


@dataclass(frozen=True)
class Person:
    """How somebody looks."""

    height: float
    build: float
    skin: Colour
    hair: Colour
    top: Colour
    trousers: Colour
    skirt: bool
    long_hair: bool
    bag: bool
    helmet: Colour | None

    @classmethod
    def of(cls, random: Random, *, rider: bool = False) -> Person:
        """Somebody."""

        def one(choices: tuple[Colour, ...]) -> Colour:
            blue, green, red = np.clip(
                np.array(choices[random.integers(len(choices))]) * random.uniform(0.8, 1.3), 0, 0.8
            )
            return float(blue), float(green), float(red)

        return cls(
            height=float(np.clip(random.normal(1.71, 0.09), 1.5, 1.95)),
            build=float(random.uniform(0.9, 1.18)),
            skin=one(SKINS),
            hair=one(HAIR),
            top=one(TOPS),
            trousers=one(TROUSERS),
            skirt=not rider and random.random() < 0.15,
            long_hair=bool(random.random() < 0.35),
            bag=bool(random.random() < 0.35),
            helmet=one(TOPS) if rider else None,
        )

    def walking(self, walked: float) -> Mesh:
        """In mid-walk, facing forward.

        Args:
            walked: m so far, which is the phase of the steps; a person that stands has walked the same as before.
        """
        phase = 2 * np.pi * walked / STRIDE
        tall = self.height
        hip = 0.52 * tall - 0.012 * np.cos(2 * phase) ** 2
        limbs = []
        for left, shift in ((1.0, 0.0), (-1.0, np.pi)):
            swing = SWING * np.sin(phase + shift)
            bend = 0.15 + 0.75 * max(0.0, np.cos(phase + shift)) ** 2
            limbs.append(self._leg(np.array([0.0, left * 0.085 * self.build, hip]), swing, swing - bend))
            arm = -0.55 * SWING * 1.4 * np.sin(phase + shift)
            limbs.append(
                self._arm(np.array([0.0, left * 0.185 * self.build, 0.795 * tall]), arm, arm + 0.35, left * 0.03)
            )
        parts = [
            *limbs,
            self._trunk(np.array([0.0, 0.0, hip]), lean=0.05),
            self._head(np.array([0.03, 0.0, 0.815 * tall])),
        ]
        if self.skirt:
            parts.append(
                tube(
                    np.array([(0, 0, hip + 0.06), (0, 0, hip - 0.12), (0, 0, hip - 0.30)]),
                    np.array([[0.12, 0.16], [0.16, 0.19], [0.20, 0.22]]) * self.build,
                    self.trousers,
                    sides=10,
                )
            )
        if self.bag:
            parts.append(box((-0.26, -0.15, 0.60 * tall), (-0.10, 0.15, 0.80 * tall), self.trousers))
        return Mesh.joined(parts)

    def riding(self, saddle: Floats, *, reach: float, pedalled: float) -> Mesh:
        """On a two-wheeler, in its axes.

        Args:
            saddle: m, where the hips are.
            reach: m from there to the handlebar.
            pedalled: phase of the pedals in radians (bicycles), or nan with both feet on the rests.
        """
        tall = self.height
        lean = 0.32 if np.isfinite(pedalled) else 0.18
        shoulder = saddle + np.array([np.sin(lean), 0.0, np.cos(lean)]) * 0.29 * tall
        parts = []
        for left, shift in ((1.0, 0.0), (-1.0, np.pi)):
            turn = pedalled + shift if np.isfinite(pedalled) else np.pi / 3
            foot = saddle + (
                (0.17 + 0.15 * np.cos(turn), left * 0.11, -0.62 + 0.15 * np.sin(turn))
                if np.isfinite(pedalled)
                else (0.28, left * 0.2, -0.46)
            )
            start = saddle + (0.0, left * 0.09, 0.0)
            knee = _joint(start, foot, 0.245 * tall, 0.25 * tall, forward=True)
            parts.append(self._limb([start, knee, foot], (0.085, 0.062, 0.045), self.trousers))
            parts.append(box(tuple(foot + (-0.08, -0.05, -0.06)), tuple(foot + (0.17, 0.05, 0.02)), SHOES))
            grip = saddle + (reach, left * 0.24, 0.20)
            arm = shoulder + (0.0, left * 0.18 * self.build, -0.03)
            elbow = _joint(arm, grip, 0.175 * tall, 0.17 * tall, forward=False)
            parts.append(self._limb([arm, elbow, grip], (0.055, 0.045, 0.035), self.top))
        parts += [self._trunk(saddle, lean=lean), self._head(shoulder + (0.04, 0, 0.0))]
        return Mesh.joined(parts)

    def _leg(self, hip: Floats, thigh: float, shank: float) -> Mesh:
        tall = self.height
        knee = hip + np.array([np.sin(thigh), 0.0, -np.cos(thigh)]) * 0.245 * tall
        ankle = knee + np.array([np.sin(shank), 0.0, -np.cos(shank)]) * 0.245 * tall
        ankle[2] = max(ankle[2], 0.06)
        below = self.skin if self.skirt else self.trousers
        return Mesh.joined(
            [
                self._limb([hip, knee], (0.088, 0.062), below),
                self._limb([knee, ankle], (0.062, 0.042), below),
                box(tuple(ankle + (-0.07, -0.045, -0.06)), tuple(ankle + (0.17, 0.045, 0.03)), SHOES),
            ]
        )

    def _arm(self, shoulder: Floats, upper: float, fore: float, out: float) -> Mesh:
        tall = self.height
        elbow = shoulder + np.array([np.sin(upper), out / 0.3, -np.cos(upper)]) * 0.175 * tall
        hand = elbow + np.array([np.sin(fore), 0.0, -np.cos(fore)]) * 0.155 * tall
        return Mesh.joined(
            [
                self._limb([shoulder, elbow], (0.055, 0.044), self.top),
                self._limb([elbow, hand], (0.044, 0.034), self.top),
                ball(tuple(hand + (0, 0, -0.05)), (0.035, 0.03, 0.06), self.skin, sides=6),
            ]
        )

    def _limb(self, joints: list[Floats], radii: tuple[float, ...], colour: Colour) -> Mesh:
        return tube(np.array(joints), np.array(radii) * self.build, colour, sides=7)

    def _trunk(self, hip: Floats, *, lean: float) -> Mesh:
        along = np.array([np.sin(lean), 0.0, np.cos(lean)]) * self.height
        shares = np.array([-0.04, 0.0, 0.05, 0.11, 0.17, 0.23, 0.265, 0.29, 0.315])
        deep = np.array([0.10, 0.115, 0.11, 0.11, 0.12, 0.122, 0.11, 0.085, 0.055]) * self.build
        wide = np.array([0.15, 0.165, 0.155, 0.15, 0.17, 0.195, 0.19, 0.145, 0.06]) * self.build
        colours = np.array([self.trousers, self.trousers, *[self.top] * 6])
        return tube(hip + shares[:, None] * along, np.stack([deep, wide], axis=1), colours, sides=12)

    def _head(self, neck: Floats) -> Mesh:
        tall = self.height
        centre = neck + (0.0, 0.0, 0.105 * tall)
        parts = [
            tube(np.array([neck, centre]), np.array([0.055, 0.05]), self.skin, sides=7),
            ball(tuple(centre), (0.098, 0.078, 0.122), self.skin, sides=10),
        ]
        if self.helmet:
            parts.append(ball(tuple(centre + (-0.01, 0, 0.045)), (0.135, 0.115, 0.115), self.helmet, sides=10))
        else:
            parts.append(ball(tuple(centre + (-0.022, 0, 0.032)), (0.100, 0.088, 0.112), self.hair, sides=10))
            if self.long_hair:
                parts.append(ball(tuple(centre + (-0.06, 0, -0.06)), (0.055, 0.085, 0.15), self.hair, sides=8))
        return Mesh.joined(parts)


def _joint(start: Floats, end: Floats, first: float, second: float, *, forward: bool) -> Floats:
    """Where a knee or an elbow is between two ends, bent in the plane of travel."""
    line = end - start
    distance = float(np.linalg.norm(line))
    along = line / max(distance, 1e-6)
    reach = min(distance, (first + second) * 0.999)
    share = (first**2 - second**2 + reach**2) / (2 * reach)
    aside = np.cross(along, np.array([0.0, 1.0, 0.0]))
    aside /= max(float(np.linalg.norm(aside)), 1e-6)
    if (aside[0] > 0) != forward:
        aside = -aside
    return np.asarray(start + along * share + aside * np.sqrt(max(0.0, first**2 - share**2)))
