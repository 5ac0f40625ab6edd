"""What a demo will run, checked before anything is started."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from dangerous_driving.assessment.keys import load_keys
from dangerous_driving.camera.source import probe
from dangerous_driving.demo.data_folder import DataFolder
from dangerous_driving.detection.engine import open_engine
from dangerous_driving.doctor import rejected_keys
from dangerous_driving.errors import ConfigError
from dangerous_driving.ports import free_port
from dangerous_driving.services import open_camera, own_weights, simulated_cameras
from dangerous_driving.settings import CameraSpec, Settings, camera_of_argument

#: Windows of one minute, so that a short demo closes some; frames may come this many seconds late.
WINDOW_SECONDS = 60
LATENESS = 5.0
SENSOR_SECONDS = 5
RETRY_SECONDS = 3.0

SIMULATED_MODEL = "simulated-vl"
SIMULATED_SOURCE = "simulated"

#: Without any argument.
SIMULATED_CAMERAS = 4
#: px; above what the project's weights were trained at, since distant road users are small (see their model card).
OWN_INPUT_SIZE = 640


@dataclass(frozen=True)
class Plan:
    """A checked demo. ``settings`` lack what is known only once broker and database run."""

    settings: Settings
    folder: DataFolder
    seconds: float | None
    dagster_port: int | None
    llm_port: int | None  # of the simulated LLM; None with a real endpoint

    @property
    def page(self) -> str:
        """Address of the operator page."""
        return f"http://{self.settings.realtime.host}:{self.settings.realtime.port}/"


def make(
    settings: Settings,
    *,
    sources: Sequence[str],
    weights: Path | None,
    cameras: int | None,
    seconds: float | None,
    data_dir: Path | None,
    port: int | None,
    dagster_port: int | None,
) -> Plan:
    """Check everything a user can get wrong and settle the settings.

    Raises:
        ConfigError: names the argument and the remedy; nothing was started or written.
    """
    specs = camera_specs(settings, sources, cameras)
    for spec in specs:
        probe(spec, settings.camera, source_opener=open_camera)
    chosen = weights_for(specs, weights, settings)
    detection = settings.detection.model_copy(update={"weights": chosen})
    if chosen == own_weights() and detection.input_size is None:
        detection = detection.model_copy(update={"input_size": OWN_INPUT_SIZE})
    open_engine(detection)
    folder = DataFolder(data_dir or settings.demo.data_dir)
    folder.check()
    realtime_port = settings.realtime.port if port is None else port
    require_free(settings.realtime.host, realtime_port, "--port")
    if dagster_port is not None:
        if dagster_port == realtime_port:
            raise ConfigError("--dagster-port", f"{dagster_port} is the page's port too", "name another one")
        require_free("127.0.0.1", dagster_port, "--dagster-port")
    simulated = not (settings.keys.secrets or settings.keys.file)
    if not simulated:
        require_accepted(settings)
    llm_port = free_port() if simulated else None
    changed: dict[str, Any] = {
        "camera": settings.camera.model_copy(update={"cameras": tuple(specs)}),
        "detection": detection,
        "objects": settings.objects.model_copy(update={"kind": "folder", "folder": folder.objects}),
        "spool": settings.spool.model_copy(update={"folder": folder.spool}),
        "assessment": settings.assessment.model_copy(
            update={"inline_folder": folder.inline, "switch_file": folder.switch_file}
        ),
        "windows": settings.windows.model_copy(
            update={
                "length": WINDOW_SECONDS,
                "lateness": LATENESS,
                "sensor_interval": SENSOR_SECONDS,
                "retry_delay": RETRY_SECONDS,
                "start": first_window(folder),
                "marts_cron": "*/2 * * * *",
            }
        ),
        "realtime": settings.realtime.model_copy(
            update={"port": realtime_port, "open_access": True, "demo_banner": True}
        ),
        # every part has one: any free port each, told in a folder that Prometheus can watch
        "observability": settings.observability.model_copy(update={"port": 0, "targets_folder": folder.targets}),
    }
    if simulated:
        changed["llm"] = settings.llm.model_copy(
            update={"base_url": f"http://127.0.0.1:{llm_port}/v1", "model": SIMULATED_MODEL}
        )
        changed["keys"] = settings.keys.model_copy(update={"file": folder.keys_file})
    return Plan(settings.model_copy(update=changed), folder, seconds, dagster_port, llm_port)


def weights_for(specs: Sequence[CameraSpec], weights: Path | None, settings: Settings) -> Path:
    """The named weights, else the ones that come with the project if all cameras are simulated: they know no others.

    Raises:
        ConfigError: a real camera needs weights of real pictures, and none are named.
    """
    named = weights or settings.detection.weights
    if named is not None:
        return named.absolute()
    real = [spec.shown_source for spec in specs if spec.kind != "simulated"]
    if real:
        raise ConfigError(
            "--weights",
            f"no weights are given for {real[0]} (those that come with the demo know simulated scenes only)",
            "name a YOLO model in ONNX format: --weights yolo11n.onnx",
        )
    return own_weights()


def camera_specs(settings: Settings, sources: Sequence[str], cameras: int | None) -> list[CameraSpec]:
    """The demo's cameras: `cameras` in all with the sources in rotation, the configured ones, or simulated ones.

    Raises:
        ConfigError: a source is no address.
    """
    if not sources:
        configured = list(settings.camera.cameras)
        if not configured:
            return list(simulated_cameras(cameras or SIMULATED_CAMERAS))
        return configured[:cameras]
    count = cameras or len(sources)
    specs = []
    for index in range(count):
        source = sources[index % len(sources)]
        # a path is kept absolute, so that the folder's settings mean the same from anywhere
        named = "://" in source or source.isdecimal() or source.startswith(SIMULATED_SOURCE)
        located = source if named else str(Path(source).absolute())
        camera_id, name = f"cam-{index + 1:02d}", _name(source, index)
        specs.append(camera_of_argument(located, "--source", camera_id=camera_id, name=name))
    return specs


def _name(source: str, index: int) -> str:
    if source.startswith(SIMULATED_SOURCE):
        return f"Simulated camera {index + 1}"
    stem = (
        Path(source).stem.replace("_", " ") if "://" not in source and not source.isdecimal() else f"camera {index + 1}"
    )
    return f"{stem} ({index + 1})"


def first_window(folder: DataFolder) -> datetime:
    """The first window of the folder: kept when it is used again, since partition keys count from it."""
    import json

    try:
        created = datetime.fromisoformat(json.loads(folder.version_file.read_text(encoding="utf-8"))["created_at"])
    except (OSError, ValueError, KeyError):
        created = datetime.now(UTC)
    return created.astimezone(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)


def require_accepted(settings: Settings) -> None:
    """Refuse an endpoint that does not answer, or that accepts none of the keys.

    One bad key among others does not stop the demo: the pool disables it at its first use, and the page shows it.

    Raises:
        ConfigError: names llm.base_url or the keys by their hash.
    """
    keys = load_keys(settings.keys)
    rejected = rejected_keys(settings.llm, keys)
    if len(rejected) == len(keys):
        given = "keys.file" if settings.keys.file else "keys.secrets"
        names = ", ".join(sorted(rejected))
        raise ConfigError(given, f"{settings.llm.base_url} does not accept {names}", "replace or remove what is wrong")


def require_free(host: str, port: int, argument: str) -> None:
    """Refuse a port that somebody listens on.

    Raises:
        ConfigError: names the argument.
    """
    with socket.socket() as probe_socket:
        probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe_socket.bind((host, port))
        except OSError as error:
            raise ConfigError(
                argument, f"port {port} of {host} cannot be used ({error.strerror})", "name a free one"
            ) from error
