"""Light, and what it makes of a surface (pure). Colours are blue, green, red in linear light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dangerous_driving.simulation.scenes.mesh import Material
from dangerous_driving.simulation.scenes.spec import Light, Weather
from dangerous_driving.simulation.scenes.view import Floats

GAMMA = 2.2


@dataclass(frozen=True, eq=False)
class Atmosphere:
    """The light of a scene. ``sun``: direction towards it; ``lamps``: street lamps burn; ``haze``: m to 1/e contrast."""

    sun: Floats
    sun_colour: Floats
    zenith: Floats
    horizon: Floats
    ground: Floats
    exposure: float
    haze: float
    lamps: bool
    shadow: float  # darkness of cast shadows, 0 to 1
    softness: float  # of shadow edges, m
    noise: float  # of the sensor, grey levels
    wet: float  # 0 to 1

    @classmethod
    def of(cls, light: Light, weather: Weather, random: np.random.Generator) -> Atmosphere:
        """The light of a time of day and weather, with some of the seed's own."""
        azimuth, rain = random.uniform(0, 2 * np.pi), weather is Weather.RAIN
        height = {Light.DAY: random.uniform(0.6, 1.15), Light.DUSK: random.uniform(0.12, 0.25), Light.NIGHT: 0.8}[light]
        sun = np.array([np.cos(azimuth) * np.cos(height), np.sin(azimuth) * np.cos(height), np.sin(height)])
        overcast = rain or (light is Light.DAY and random.random() < 0.4)
        if light is Light.DAY:
            return cls(
                sun=sun,
                sun_colour=np.array([0.78, 0.88, 0.95]) * (0.10 if overcast else 0.95),
                zenith=np.array([0.62, 0.60, 0.58]) if overcast else np.array([0.75, 0.50, 0.34]),
                horizon=np.array([0.74, 0.73, 0.72]) if overcast else np.array([0.85, 0.78, 0.70]),
                ground=np.array([0.14, 0.15, 0.15]),
                exposure=0.78 if rain else 1.0,
                haze=260.0 if rain else 900.0,
                lamps=False,
                shadow=0.30 if overcast else 0.62,
                softness=0.5 if overcast else 0.08,
                noise=3.0 if rain else 2.2,
                wet=1.0 if rain else 0.0,
            )
        if light is Light.DUSK:
            return cls(
                sun=sun,
                sun_colour=np.array([0.18, 0.32, 0.5]) * (0.3 if rain else 0.7),
                zenith=np.array([0.42, 0.30, 0.22]),
                horizon=np.array([0.42, 0.46, 0.58]) if not rain else np.array([0.40, 0.40, 0.42]),
                ground=np.array([0.08, 0.085, 0.09]),
                exposure=1.15,
                haze=240.0 if rain else 600.0,
                lamps=True,
                shadow=0.35,
                softness=0.4,
                noise=4.0,
                wet=1.0 if rain else 0.0,
            )
        return cls(
            sun=sun,
            sun_colour=np.zeros(3),
            zenith=np.array([0.07, 0.06, 0.055]),
            horizon=np.array([0.08, 0.08, 0.085]),
            ground=np.array([0.03, 0.032, 0.035]),
            exposure=1.25,
            haze=300.0 if rain else 800.0,
            lamps=True,
            shadow=0.45,
            softness=0.3,
            noise=5.0,
            wet=1.0 if rain else 0.0,
        )

    @property
    def dark(self) -> bool:
        """Whether vehicles have their lights on."""
        return self.lamps or self.wet > 0


#: Light of street lamps (sodium and white mixed), blue, green, red.
LAMP_COLOUR = np.array([0.52, 0.74, 0.95])


def display(colours: Floats) -> Floats:
    """Linear light in 0..1 as grey levels 0..255 (gamma 2.2, highlights compressed rather than cut)."""
    bright = np.asarray(np.maximum(colours, 0.0))
    high = bright > 0.8
    bright[high] = 1 - 0.2 * np.exp(-(bright[high] - 0.8) / 0.2)
    return np.asarray(255.0 * np.clip(bright, 0, 1) ** (1 / GAMMA))


def shade(
    corners: Floats,
    colours: Floats,
    materials: NDArray[np.intp],
    eye: Floats,
    air: Atmosphere,
    *,
    lamp: float,
    lights_on: bool,
) -> Floats:
    """Linear light that each face sends to the eye.

    Args:
        corners: faces x 4 x 3 in the world, m.
        colours: faces x 3.
        materials: faces.
        eye: where the camera is, m.
        air: the light.
        lamp: light of street lamps at the object, 0 to 1.
        lights_on: lamps of vehicles glow.

    The parts of the sum are Lambert's law for sun, sky and ground, Schlick's approximation of Fresnel's reflection
    (Schlick: An Inexpensive BRDF Model, 1994) of the surroundings in paint and glass, and a Phong highlight of the sun.
    """
    normals = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    middle = corners.mean(axis=1)
    sight = middle - eye
    distance = np.linalg.norm(sight, axis=1, keepdims=True)
    sight /= np.maximum(distance, 1e-9)
    up = normals[:, 2:3]
    sky = air.zenith * (0.5 + 0.5 * up) + air.ground * (0.5 - 0.5 * up) + air.horizon * 0.25 * (1 - np.abs(up))
    sun = air.sun_colour * np.maximum(0.0, normals @ air.sun)[:, None]
    # low parts are shaded by the object itself
    open_air = np.clip(0.55 + 0.45 * middle[:, 2:3] / 0.6, 0.4, 1.0)
    light = sky * open_air + sun
    if lamp > 0:
        light = light + LAMP_COLOUR * lamp * 1.5 * (
            0.35 + 0.65 * np.maximum(0.0, up * 0.8 + 0.35 * np.abs(normals[:, :1]))
        )
    out = colours * light
    shiny = (materials == Material.PAINT) | (materials == Material.GLASS)
    if shiny.any():
        facing = np.clip(-(normals * sight).sum(axis=1, keepdims=True), 0.0, 1.0)
        base = np.where(materials == Material.GLASS, 0.10, 0.045)[:, None]
        mirror = base + (0.75 - base) * (1 - facing) ** 5
        reflected = sight + 2 * facing * normals
        out = np.where(shiny[:, None], out * (1 - mirror) + mirror * _surroundings(reflected, air, lamp), out)
        highlight = np.maximum(0.0, reflected @ air.sun)[:, None] ** 50
        out = out + np.where(shiny[:, None], 0.9 * highlight * air.sun_colour, 0.0)
    if lights_on:
        glow = colours / np.maximum(colours.max(axis=1, keepdims=True), 1e-6)
        out = np.where((materials == Material.LAMP)[:, None], glow * 1.2 + out, out)
    veil = np.exp(-distance / air.haze)
    return np.asarray((out * veil + air.horizon * (1 - veil)) * air.exposure)


def _surroundings(directions: Floats, air: Atmosphere, lamp: float) -> Floats:
    """What a mirror would show: sky, a dark band of houses and trees, the ground."""
    up = directions[:, 2:3]
    sky = air.horizon + (air.zenith - air.horizon) * np.sqrt(np.clip(up, 0, 1))
    band = np.clip((up - 0.05) / 0.25, 0.0, 1.0)
    above = air.horizon * 0.28 * (1 - band) + sky * band
    below = air.ground * 0.9
    blend = np.clip((up + 0.08) / 0.12, 0.0, 1.0)
    return np.asarray(below * (1 - blend) + above * blend + LAMP_COLOUR * lamp * 0.25 * np.clip(up, 0, 1))
