"""All settings, as one typed tree. Nothing else in the package reads the environment.

Read from, in rising order of weight: the defaults below, a YAML file (``--config FILE`` or ``DD_CONFIG``), the
environment (``DD_KAFKA__BOOTSTRAP_SERVERS=a:9092`` sets ``kafka.bootstrap_servers``), arguments of the command.
An unknown name is an error. Secrets are ``SecretStr``: they are never printed.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from dangerous_driving.camera.address import is_misread, shown
from dangerous_driving.contracts import CAMERA_ID_PATTERN
from dangerous_driving.errors import ConfigError
from dangerous_driving.settings import remedies
from dangerous_driving.settings.alerts import AlertsSettings
from dangerous_driving.settings.assessment import (
    AssessmentSettings,
    CameraContext,
    FallbackSettings,
    KeysSettings,
    LlmSettings,
)
from dangerous_driving.settings.evaluation import EvaluationSettings
from dangerous_driving.settings.monitoring import MonitoringSettings
from dangerous_driving.settings.notifications import NotificationsSettings, RedisSettings
from dangerous_driving.settings.realtime import RealtimeSettings
from dangerous_driving.settings.schema import Part
from dangerous_driving.settings.section import Section
from dangerous_driving.settings.tasks import TasksSettings
from dangerous_driving.settings.windows import OperationsSettings, WindowsSettings

ENV_PREFIX = "DD_"

#: Sections that other modules hold; they are imported from here.
__all__ = [
    "AlertsSettings",
    "AssessmentSettings",
    "CameraContext",
    "EvaluationSettings",
    "FallbackSettings",
    "KeysSettings",
    "LlmSettings",
    "MonitoringSettings",
    "NotificationsSettings",
    "OperationsSettings",
    "RealtimeSettings",
    "RedisSettings",
    "Section",
    "TasksSettings",
    "WindowsSettings",
]


def _a_camera_id(value: str) -> str:
    if not CAMERA_ID_PATTERN.fullmatch(value):
        raise ValueError("a camera id is 1 to 64 letters, digits, '_' or '-'")
    return value


Point = tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]]
"""x and y as shares of the picture's width and height, so that a polygon outlives a change of resolution."""

Polygon = Annotated[tuple[Point, ...], Field(min_length=3)]
"""Corners in order; the last is joined to the first."""


class PrivacySpec(Section):
    """What is made unrecognisable before a picture leaves the site; nothing by default."""

    heads: bool = Field(default=False, description="blur the heads of persons, from the geometry of their boxes")
    plates: bool = Field(
        default=False, description="blur the plate regions of vehicles, from the geometry of their boxes"
    )
    polygons: tuple[Polygon, ...] = Field(
        default=(), description="areas that are blurred always; corners as shares of width and height"
    )

    @property
    def any(self) -> bool:
        """Whether there is anything to mask."""
        return self.heads or self.plates or bool(self.polygons)


class CameraSpec(Section):
    """One camera."""

    id: Annotated[str, AfterValidator(_a_camera_id)] = Field(description="identity, [A-Za-z0-9_-]{1,64}")
    source: SecretStr = Field(
        description="a file, an image folder, an rtsp:// or http(s):// URL, a USB device number, or simulated:SCENARIO; "
        "${NAME} stands for the environment variable DD_SECRET_NAME or the file NAME in camera.secrets_folder"
    )
    name: str = Field(default="", description="what people call it")
    frame_interval: float | None = Field(
        default=None, gt=0, description="s between frames; default camera.frame_interval"
    )
    loop: bool = Field(default=True, description="a file starts again at its end")
    pace: Literal["real-time", "fast"] = Field(
        default="real-time", description="of a recording; fast: each frame as soon as the one before it was taken"
    )
    group_distance: float | None = Field(
        default=None, gt=0, description="px at 1920 px frame width; default detection.group_distance"
    )
    region_of_interest: tuple[Polygon, ...] = Field(
        default=(), description="only road users that stand in one of these count; default: the whole picture"
    )
    ignore: tuple[Polygon, ...] = Field(default=(), description="road users that stand in one of these do not count")
    motion_max_gap: float | None = Field(
        default=None, gt=0, description="s; an unchanged scene is passed over, at most so long; default: never"
    )
    privacy: PrivacySpec = Field(default=PrivacySpec(), description="what is made unrecognisable in its pictures")
    context: CameraContext = Field(default=CameraContext(), description="what the prompt says of the place")

    @field_validator("source")
    @classmethod
    def _an_address_that_can_be_shown(cls, source: SecretStr) -> SecretStr:
        if is_misread(source.get_secret_value()):
            # none of its text: what was taken for a port or a path may be a password
            raise ValueError(
                "not an address: write special characters of user and password percent-encoded (@ is %40, # is %23, "
                "/ is %2F), or write ${NAME} in their place"
            )
        return source

    @property
    def kind(self) -> Literal["live", "replay", "simulated"]:
        """``replay`` for a file or folder, ``simulated`` for rendered scenes, else ``live``: shown on every page."""
        source = self.source.get_secret_value()
        if source.startswith("simulated"):
            return "simulated"
        return "live" if "://" in source or source.isdecimal() else "replay"

    @property
    def shown_source(self) -> str:
        """The source without user, password, query and values in its path, for logs, tables and pages."""
        return shown(self.source.get_secret_value())


def camera_of_argument(source: str, argument: str, *, camera_id: str, name: str = "") -> CameraSpec:
    """A camera whose source was written on the command line.

    Raises:
        ConfigError: it is no address; names the argument, and shows nothing of the source: it may hold a password.
    """
    try:
        return CameraSpec(id=camera_id, source=SecretStr(source), name=name)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        problem, _, remedy = first["msg"].removeprefix("Value error, ").partition(": ")
        raise ConfigError(argument, problem, remedy or "mend it") from error


class CameraSettings(Section):
    """Cameras and how they are read."""

    cameras: tuple[CameraSpec, ...] = Field(default=(), description="the cameras; ids are unique")
    frame_interval: float = Field(default=1.8, gt=0, description="s between two frames of one camera")
    open_timeout: float = Field(default=10.0, gt=0, description="s until opening a stream counts as failed")
    read_timeout: float = Field(default=10.0, gt=0, description="s without a frame until the stream counts as lost")
    backoff_initial: float = Field(default=0.5, gt=0, description="s until the first attempt to reconnect")
    backoff_max: float = Field(default=30.0, gt=0, description="s between attempts at most")
    offline_after: float = Field(default=10.0, gt=0, description="s without a frame until a camera is offline")
    frozen_after: int = Field(
        default=5, gt=1, description="identical frames in a row until the picture counts as frozen"
    )
    blind_after: int = Field(
        default=5, gt=0, description="black or featureless frames in a row until the camera counts as blinded"
    )
    from_table: bool = Field(default=True, description="read cameras from the ledger's table too, beside the settings")
    refresh: float = Field(default=5.0, gt=0, description="s between looks for added, changed and removed cameras")
    takeover_after: float | None = Field(
        default=None,
        gt=0,
        description="s until others read a silent detect's cameras; default: 4 x refresh, at least 20",
    )
    secrets_folder: Path | None = Field(
        default=None, description="files whose contents replace ${NAME} in sources, such as a mounted secret"
    )

    @field_validator("cameras")
    @classmethod
    def _unique(cls, cameras: tuple[CameraSpec, ...]) -> tuple[CameraSpec, ...]:
        ids = [camera.id for camera in cameras]
        twice = sorted({camera_id for camera_id in ids if ids.count(camera_id) > 1})
        if twice:
            raise ValueError(f"camera id used twice: {', '.join(twice)}")
        return cameras

    @field_validator("takeover_after")
    @classmethod
    def _several_looks(cls, seconds: float | None, others: ValidationInfo) -> float | None:
        least = 3 * others.data.get("refresh", 0.0)  # one look may fail, and the next be late
        if seconds is not None and seconds < least:
            raise ValueError(f"less than 3 x camera.refresh: set it to {least:g} or more, or leave it out")
        return seconds

    @property
    def lease(self) -> float:
        """How long a detector is taken for living after it has reported, in s."""
        return self.takeover_after or max(20.0, 4 * self.refresh)


class DetectionSettings(Section):
    """Inference, grouping and crops."""

    engine: Literal["cpu", "ultralytics"] = Field(default="cpu", description="cpu: without torch, the small install")
    weights: Path | None = Field(default=None, description="YOLO weights; the cpu engine takes .onnx")
    input_size: int | None = Field(default=None, description="pixels of the square input; default: the weights' own")
    confidence: float = Field(default=0.35, ge=0, le=1, description="detections below are dropped")
    iou: float = Field(default=0.5, gt=0, le=1, description="of non-maximum suppression, per class")
    max_detections: int = Field(default=200, gt=0, description="per frame, the most confident first")
    classes: tuple[str, ...] = Field(
        default=("person", "bicycle", "car", "motorcycle", "bus", "truck"), description="kept, by the weights' names"
    )
    threads: int = Field(default=2, gt=0, description="of the inference runtime")
    device: str | None = Field(
        default=None, description="of engine ultralytics: cpu, 0 (first GPU), …; default: a GPU if there is one"
    )
    tracker: Literal["none", "bytetrack", "botsort"] = Field(
        default="none", description="of engine ultralytics: numbers road users over a camera's frames (trackId)"
    )
    batch_size: int = Field(default=8, gt=0, description="frames of several cameras in one inference at most")
    batch_delay: float = Field(
        default=0.2, gt=0, description="s one inference may take: where more frames take longer, fewer go into it"
    )
    group_distance: float = Field(default=150.0, gt=0, description="px between box centres at 1920 px frame width")
    crop_margin: int = Field(default=12, ge=0, description="px around a group's union box")
    jpeg_quality: int = Field(default=85, ge=1, le=100, description="of frames and crops")
    publish_images: bool = Field(
        default=False, description="send groupImageBase64 too, for receivers without the store"
    )


class SpoolSettings(Section):
    """Where a camera site keeps results and pictures while broker or store are away."""

    folder: Path | None = Field(default=None, description="default: none, what cannot be stored is lost and counted")
    max_bytes: int = Field(
        default=1024**3, gt=0, description="bytes; when full, the oldest of the lowest priority goes first"
    )
    retry: float = Field(default=3.0, gt=0, description="s between attempts while broker or store are away")


class KafkaSettings(Section):
    """The message log."""

    bootstrap_servers: str = Field(default="127.0.0.1:9092", description="host:port, comma-separated")
    api_version: tuple[int, ...] | None = Field(
        default=None, description="[2, 3] for the embedded broker, else found out"
    )
    partitions: int = Field(default=16, gt=0, description="of each topic but dead-letter")
    replication: int = Field(default=3, gt=0, description="copies of each topic, on as many brokers")
    min_insync_replicas: int = Field(
        default=2, gt=0, description="copies that must be up for a message to be taken; at most replication"
    )
    linger: float = Field(default=0.010, ge=0, description="s a producer waits to fill a batch")
    batch_bytes: int = Field(default=32 * 1024, gt=0, description="bytes of a full batch, which is sent without linger")
    compression: Literal["none", "gzip", "lz4", "snappy", "zstd"] = Field(
        default="lz4", description="of batches; snappy and zstd need a Python package of their own"
    )
    delivery_timeout: float = Field(default=30.0, gt=0, description="s until an unacknowledged message is an error")
    request_timeout: float = Field(
        default=10.0,
        gt=0,
        description="s for one request to a broker; one that hangs costs up to three of them",
    )
    session_timeout: float = Field(default=10.0, gt=0, description="s until a silent consumer loses its partitions")
    fetch_wait: float = Field(default=0.5, gt=0, description="s a broker may hold a fetch while there are no messages")
    assignment_delay: float = Field(
        default=0.0, ge=0, description="s a group's leader waits before it hands out partitions: embedded broker only"
    )
    max_unacknowledged: int = Field(
        default=10_000, gt=0, description="messages in one producer; further ones are refused"
    )
    lag_interval: float = Field(default=5.0, gt=0, description="s between two measurements of the group's lag")
    group_prefix: str = Field(default="dangerous-driving", description="consumer groups are PREFIX.SERVICE")
    idempotent: bool = Field(default=True, description="false only for brokers without idempotent producers")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="SSL: encrypted, SASL: with user and password"
    )
    sasl_mechanism: str | None = Field(default=None, description="such as PLAIN or SCRAM-SHA-512; needed with SASL")
    sasl_username: str | None = Field(default=None, description="needed with SASL")
    sasl_password: SecretStr | None = Field(default=None, description="needed with SASL")
    ssl_cafile: Path | None = Field(default=None, description="certificates to trust in place of the system's")


class ObjectsSettings(Section):
    """Where pictures and detection results lie."""

    kind: Literal["folder", "s3"] = Field(default="folder", description="s3: MinIO or any S3")
    folder: Path = Field(default=Path("data/objects"), description="of kind folder")
    endpoint: str = Field(default="127.0.0.1:9000", description="host:port of kind s3")
    bucket: str = Field(default="traffic", description="of kind s3; made when missing")
    region: str | None = Field(default=None, description="of kind s3; default: what the server says")
    secure: bool = Field(default=False, description="TLS to the endpoint")
    ssl_cafile: Path | None = Field(
        default=None, description="certificates to trust in place of the public authorities'"
    )
    access_key: SecretStr | None = Field(default=None, description="of kind s3; both keys, or none: without signature")
    secret_key: SecretStr | None = Field(default=None, description="of kind s3, beside access_key")
    timeout: float = Field(default=10.0, gt=0, description="s to connect and to read")


class DatabaseSettings(Section):
    """The ledger."""

    url: SecretStr = Field(
        default=SecretStr("postgresql://postgres@127.0.0.1:5432/dangerous_driving"),
        description="PostgreSQL 14 or newer",
    )
    pool_size: int = Field(default=8, gt=0, description="connections of one process at most")
    connect_timeout: int = Field(default=5, gt=0, description="s to connect")
    statement_timeout: float = Field(default=30.0, gt=0, description="s a statement may take")

    @field_validator("url")
    @classmethod
    def _postgres(cls, url: SecretStr) -> SecretStr:
        if not re.match(r"postgres(ql)?(\+\w+)?://", url.get_secret_value()):
            raise ValueError("the ledger needs PostgreSQL: postgresql://user:password@host:port/database")
        return url


class ObservabilitySettings(Section):
    """Each service's own port for /metrics, /healthz and /readyz."""

    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0: all of this machine")
    port: int = Field(default=0, ge=0, le=65535, description="0: any free one (it is logged)")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="what is less than that is not logged"
    )
    targets_folder: Path | None = Field(
        default=None, description="where each service writes its address for Prometheus (file_sd_configs)"
    )
    exporter_interval: float = Field(
        default=10.0, gt=0, description="s between two looks of `exporter` at ledger and brokers"
    )
    trace_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the frames whose way is traced with OpenTelemetry (extra `tracing`); 0: off",
    )


class DemoSettings(Section):
    """`dangerous-driving demo`."""

    data_dir: Path = Field(default=Path("data/demo"), description="all that the demo keeps")
    keys: int = Field(default=10, gt=0, description="simulated API keys")
    drain_timeout: float = Field(default=300.0, gt=0, description="s after the capture until the rest is given up")
    max_restarts: int = Field(default=5, ge=0, description="of one part, then the demo ends")


class Settings(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=remedies.NESTED,
        env_parse_none_str="null",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    node: str = Field(
        default_factory=socket.gethostname,
        description="this machine's name in messages and tables; default: its host name",
    )
    camera: CameraSettings = CameraSettings()
    detection: DetectionSettings = DetectionSettings()
    spool: SpoolSettings = SpoolSettings()
    kafka: KafkaSettings = KafkaSettings()
    tasks: TasksSettings = TasksSettings()
    objects: ObjectsSettings = ObjectsSettings()
    database: DatabaseSettings = DatabaseSettings()
    llm: LlmSettings = LlmSettings()
    keys: KeysSettings = KeysSettings()
    assessment: AssessmentSettings = AssessmentSettings()
    windows: WindowsSettings = WindowsSettings()
    operations: OperationsSettings = OperationsSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    alerts: AlertsSettings = AlertsSettings()
    notifications: NotificationsSettings = NotificationsSettings()
    redis: RedisSettings = RedisSettings()
    realtime: RealtimeSettings = RealtimeSettings()
    observability: ObservabilitySettings = ObservabilitySettings()
    demo: DemoSettings = DemoSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment above the YAML file, which `load` hands in as init arguments."""
        return env_settings, init_settings

    @model_validator(mode="after")
    def _insync_within_replication(self) -> Self:
        if self.kafka.min_insync_replicas > self.kafka.replication:
            raise ValueError("kafka.min_insync_replicas is larger than kafka.replication")
        return self

    @model_validator(mode="after")
    def _pictures_have_addresses(self) -> Self:
        if self.llm.images == "url" and self.objects.kind == "folder":
            raise ValueError(
                "llm.images is url, and no endpoint can read from a folder: set it to base64, or objects.kind to s3"
            )
        return self


CONFIG_VARIABLE = ENV_PREFIX + "CONFIG"


def config_file() -> Path | None:
    """The YAML file that ``DD_CONFIG`` names."""
    named = os.environ.get(CONFIG_VARIABLE)
    return Path(named) if named else None


SECRET_PREFIX = ENV_PREFIX + "SECRET_"


def secret_of_environment(name: str) -> str | None:
    """A secret that is no setting: ``DD_SECRET_NAME``, if it is there."""
    return os.environ.get(SECRET_PREFIX + name)


def load(path: Path | None = None) -> Settings:
    """Read the settings from `path` (default: the file that ``DD_CONFIG`` names, if any) and the environment.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, or a value is unknown or out of range; names the setting.
    """
    named = path or config_file()
    values = _yaml_mapping(named) if named else {}
    _refuse_unknown_variables()
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise remedies.refused(error, Part.whole(Settings), ENV_PREFIX) from error
    except SettingsError as error:
        raise remedies.no_json(os.environ, Part.whole(Settings), ENV_PREFIX) from error
    if (settings.keys.secrets or settings.keys.file) and "base_url" not in settings.llm.model_fields_set:
        # neither keys nor pictures of streets go to an endpoint that nobody has named
        raise ConfigError(
            "llm.base_url",
            "there are keys, but it is not said whose",
            f"name the endpoint in the YAML file or as {ENV_PREFIX}LLM__BASE_URL, and its llm.model",
        )
    return settings


def _yaml_mapping(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("--config", f"{path} cannot be read ({error.strerror})", "name a readable file") from error
    except UnicodeDecodeError as error:
        raise ConfigError("--config", f"{path} is no UTF-8 text", "save it as UTF-8") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: the 30th of February
        raise ConfigError("--config", f"{path} is not valid YAML ({error})", "mend the file") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError("--config", f"{path} holds no mapping", "write sections such as 'kafka:' at its top level")
    return {str(name): value for name, value in values.items()}  # YAML reads 5 and yes as no text


def _refuse_unknown_variables() -> None:
    # pydantic-settings passes over top-level variables that it does not know: a typo would go unnoticed
    known = [ENV_PREFIX + name.upper() for name in Settings.model_fields]
    for variable in os.environ:
        ours = variable.startswith(ENV_PREFIX) and variable != CONFIG_VARIABLE
        named = variable.split(remedies.NESTED)[0].upper()
        if ours and not variable.startswith(SECRET_PREFIX) and named not in known:
            names = remedies.names_remedy(named, known, section="")
            raise ConfigError(variable, "unknown setting", f"{names} (with {remedies.NESTED} and a name)")
