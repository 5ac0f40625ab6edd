"""Which scene a simulated camera shows, as it is written in a source: ``simulated:tailgating?light=night&seed=3``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar
from urllib.parse import parse_qsl

from dangerous_driving.errors import ConfigError

PREFIX = "simulated"

#: px; smaller pictures show nothing, larger ones no camera sends.
SIDES = (160, 3840)
FPS = (0.1, 60.0)


class Scenario(StrEnum):
    """What happens in a scene."""

    FREE_FLOW = "free-flow"
    QUEUE = "queue"
    TAILGATING = "tailgating"
    CUT_IN = "cut-in"
    WRONG_WAY = "wrong-way"
    STEPPING_OUT = "stepping-out"
    PAVEMENT = "pavement"
    RED_LIGHT = "red-light"


class Light(StrEnum):
    """Time of day."""

    DAY = "day"
    DUSK = "dusk"
    NIGHT = "night"


class Weather(StrEnum):
    """Weather."""

    DRY = "dry"
    RAIN = "rain"


Choice = TypeVar("Choice", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class SceneSpec:
    """All that a scene depends on; equal specs give equal pictures, byte for byte.

    ``seed`` decides camera pose, road, traffic and looks. ``width`` and ``height`` are px, ``fps`` frames per second.
    """

    scenario: Scenario = Scenario.FREE_FLOW
    light: Light = Light.DAY
    weather: Weather = Weather.DRY
    seed: int = 0
    width: int = 1280
    height: int = 720
    fps: float = 5.0

    def __str__(self) -> str:
        """The source that `parse` reads back."""
        return (
            f"{PREFIX}:{self.scenario}?light={self.light}&weather={self.weather}&seed={self.seed}"
            f"&size={self.width}x{self.height}&fps={self.fps:g}"
        )

    @classmethod
    def parse(cls, source: str) -> SceneSpec:
        """Read a source such as ``simulated:queue?light=dusk&weather=rain&seed=3&size=1280x720&fps=5``.

        What is left out has its default; scenario ``any`` stands for one by the seed.

        Raises:
            ConfigError: a part is unknown or out of range; names it.
        """
        scheme, _, rest = source.partition(":")
        if scheme != PREFIX:
            raise ConfigError(source, "is no simulated scene", f"write {PREFIX}:SCENARIO")
        name, _, query = rest.partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        unknown = sorted(set(options) - {"light", "weather", "seed", "size", "fps"})
        if unknown:
            raise _wrong(source, f"{unknown[0]!r} is no option", "use light, weather, seed, size, fps")
        seed = _seed(source, options.get("seed", "0"))
        scenarios = list(Scenario)
        scenario = (
            scenarios[seed % len(scenarios)] if name == "any" else _choice(source, Scenario, name or Scenario.FREE_FLOW)
        )
        width, height = _size(source, options.get("size", "1280x720"))
        return cls(
            scenario,
            _choice(source, Light, options.get("light", Light.DAY)),
            _choice(source, Weather, options.get("weather", Weather.DRY)),
            seed,
            width,
            height,
            _fps(source, options.get("fps", "5")),
        )


def _choice(source: str, choices: type[Choice], value: str) -> Choice:
    try:
        return choices(value)
    except ValueError as error:
        known = ", ".join(choices) + (", any" if choices is Scenario else "")
        raise _wrong(source, f"{value!r} is no {choices.__name__.lower()}", f"use one of {known}") from error


def _seed(source: str, value: str) -> int:
    if not re.fullmatch(r"\d{1,9}", value):
        raise _wrong(source, f"seed {value!r} is no number", "use 0 to 999999999")
    return int(value)


def _size(source: str, value: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", value)
    sides = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(SIDES[0] <= side <= SIDES[1] for side in sides):
        raise _wrong(source, f"size {value!r} cannot be drawn", f"write WIDTHxHEIGHT of {SIDES[0]} to {SIDES[1]} px")
    return sides


def _fps(source: str, value: str) -> float:
    try:
        fps = float(value)
    except ValueError:
        fps = 0.0
    if not FPS[0] <= fps <= FPS[1]:
        raise _wrong(source, f"fps {value!r} is out of range", f"use {FPS[0]} to {FPS[1]:g}")
    return fps


def _wrong(source: str, problem: str, remedy: str) -> ConfigError:
    return ConfigError(f"source {source}", problem, remedy)
