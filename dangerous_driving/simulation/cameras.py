"""Simulated cameras: rendered scenes where a real camera has its source. Their names say that they are simulated."""

from __future__ import annotations

from pydantic import SecretStr

from dangerous_driving.camera import source as real
from dangerous_driving.camera.frame import Image
from dangerous_driving.camera.source import Source
from dangerous_driving.errors import ConfigError, SourceError
from dangerous_driving.settings import CameraSettings, CameraSpec
from dangerous_driving.simulation.scenes import Light, Scenario, Scene, SceneSpec, Weather
from dangerous_driving.simulation.scenes.spec import PREFIX

#: Shown first, since they show best what the platform is for.
FIRST = (
    (Scenario.STEPPING_OUT, Light.DAY, Weather.DRY),
    (Scenario.TAILGATING, Light.DAY, Weather.DRY),
    (Scenario.RED_LIGHT, Light.DUSK, Weather.DRY),
    (Scenario.WRONG_WAY, Light.NIGHT, Weather.RAIN),
    (Scenario.PAVEMENT, Light.DAY, Weather.DRY),
    (Scenario.QUEUE, Light.DAY, Weather.RAIN),
    (Scenario.CUT_IN, Light.DUSK, Weather.DRY),
    (Scenario.FREE_FLOW, Light.NIGHT, Weather.DRY),
)


def open_source(spec: CameraSpec, settings: CameraSettings) -> Source:
    """Open a simulated scene, or any real source (see `camera.source.open_source`).

    Raises:
        SourceError: the source cannot be opened, or there is no such scene.
    """
    location = spec.source.get_secret_value()
    if spec.kind != "simulated":
        return real.open_source(spec, settings)
    try:
        return SimulatedSource(SceneSpec.parse(location))
    except ConfigError as error:
        raise SourceError(str(error)) from error


def simulated_cameras(count: int, *, seed: int = 1) -> tuple[CameraSpec, ...]:
    """So many cameras, each with another scene.

    Args:
        count: how many.
        seed: of the first; each has the next one.
    """
    cameras = []
    for number in range(count):
        scenario, light, weather = FIRST[number % len(FIRST)]
        scene = SceneSpec(scenario, light, weather, seed=seed + number)
        words = [scenario.replace("-", " "), light.value, *(["rain"] if weather is Weather.RAIN else [])]
        cameras.append(
            CameraSpec(
                id=f"sim-{number + 1:02d}",
                source=SecretStr(str(scene)),
                name=f"Simulated {number + 1}: {', '.join(words)}",
            )
        )
    return tuple(cameras)


class SimulatedSource:
    """An endless scene at its own pace. Pictures are rendered only when somebody wants one."""

    stills = False

    def __init__(self, spec: SceneSpec) -> None:
        self.period: float | None = 1 / spec.fps
        self.size: tuple[int, int] | None = (spec.width, spec.height)
        self._scene = Scene(spec)
        self._grabbed = 0

    def grab(self) -> bool:
        """Let one period pass in the scene."""
        self._grabbed += 1
        return True

    def retrieve(self) -> Image:
        """Render the picture of this moment."""
        assert self.period is not None  # noqa: S101  # set at the beginning
        return self._scene.frame(self._grabbed * self.period).image

    def close(self) -> None:
        """Nothing is held."""


__all__ = ["PREFIX", "SimulatedSource", "open_source", "simulated_cameras"]
