"""The messages between the parts, typed: what lies on the Kafka topics, exactly.

JSON with camelCase names. Unknown fields are left out without an error; a missing or ill-typed field raises
:class:`~dangerous_driving.errors.ContractError`, which names the field. Times are ISO 8601 in UTC with
milliseconds, boxes are ``[x1, y1, x2, y2]`` in pixels of the frame, latencies are seconds.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import uuid
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel

from dangerous_driving.errors import ContractError

SCHEMA_VERSION = 1

#: Name space of every derived id (uuid5), so that a replay of the same input writes the same ids.
ID_NAMESPACE = uuid.UUID("6f1c1c1e-6a43-5d0b-9d7a-5b1d8f6a2c10")

#: ``\\u0000`` in JSON, unless the backslash itself is escaped.
ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")

#: Whole numbers that tables hold.
MAX_INTEGER = 2**31 - 1

#: Capture times outside are a broken clock; tables get a partition per day.
YEARS = range(2000, 2100)

#: In one frame. A detector gives at most `detection.max_detections` (200) objects; more is a defect of the sender, and
#: ten thousand groups would be ten thousand calls to the LLM.
MAX_OBJECTS = 5000
MAX_GROUPS = 1000

CAMERA_ID_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}")


class RiskLevel(StrEnum):
    """How dangerous a scene is, in rising order."""

    NONE = "none"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"

    @property
    def rank(self) -> int:
        """0 for ``none`` to 3 for ``high``."""
        return _RANKS[self]


_RANKS = {RiskLevel.NONE: 0, RiskLevel.LOW: 1, RiskLevel.MEDIUM: 2, RiskLevel.HIGH: 3}


class Lane(StrEnum):
    """The way on which a group reaches the LLM."""

    REALTIME = "realtime"
    WINDOW = "window"
    INLINE = "inline"
    EVALUATION = "evaluation"


class Stage(StrEnum):
    """Of a result: the level alone, read from the stream, or the whole answer."""

    PROVISIONAL = "provisional"
    FINAL = "final"


#: The run of live traffic; every other value is the id of a backfill or an evaluation.
LIVE_RUN = "live"


def _camera_id(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not CAMERA_ID_PATTERN.fullmatch(value):
        raise ValueError("a camera id is an integer or 1 to 64 letters, digits, '_' or '-'")
    return value


def _camera_id_on_the_wire(value: str) -> int | str:
    # "007" stays text, since 7 would read back as another camera
    return int(value) if value.isdecimal() and str(int(value)) == value else value


CameraId = Annotated[str, BeforeValidator(_camera_id), PlainSerializer(_camera_id_on_the_wire, when_used="json")]


def _base64(value: str) -> str:
    try:
        base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(
            f"not base64 ({error}); the encoded picture alone, without 'data:' before it or line breaks"
        ) from error
    return value


#: An encoded picture inside a message, for receivers (or from senders) without the object store.
Base64Picture = Annotated[str, AfterValidator(_base64)]


def in_utc_milliseconds(value: datetime) -> datetime:
    """The instant in UTC, cut to whole milliseconds (what messages carry and ids derive from)."""
    value = value.astimezone(UTC)
    return value.replace(microsecond=value.microsecond // 1000 * 1000)


def iso_milliseconds(value: datetime) -> str:
    """``2025-10-20T10:30:45.123Z``."""
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plausible(value: datetime) -> datetime:
    if value.year not in YEARS:
        raise ValueError(f"a time from {YEARS.start} to {YEARS.stop - 1}; is the sender's clock right?")
    return value


def _written_as_date(value: Any) -> Any:
    if isinstance(value, datetime):
        return value
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):  # a number, too: it could be seconds or milliseconds
        raise ValueError("a time in ISO 8601 is needed, such as 2025-10-20T10:30:45.123Z") from None


Timestamp = Annotated[
    AwareDatetime,
    BeforeValidator(_written_as_date),
    AfterValidator(_plausible),
    AfterValidator(in_utc_milliseconds),
    PlainSerializer(iso_milliseconds, when_used="json"),
]


def _number(value: float) -> int | float:
    # the contracts show whole pixels as integers
    return int(value) if value == math.floor(value) else value


def _box_order(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    if box[2] < box[0] or box[3] < box[1]:
        raise ValueError("a box is [x1, y1, x2, y2] with x1 <= x2 and y1 <= y2")
    return box


_Coordinate = Annotated[float, Field(allow_inf_nan=False)]
BBox = Annotated[
    tuple[_Coordinate, _Coordinate, _Coordinate, _Coordinate],
    AfterValidator(_box_order),
    PlainSerializer(lambda box: [_number(side) for side in box], when_used="json"),
]


def _known_version(value: int) -> int:
    if value != SCHEMA_VERSION:
        raise ValueError(
            f"version {value} is not read here, only {SCHEMA_VERSION}; bring sender and receiver to the same release"
        )
    return value


SchemaVersion = Annotated[int, AfterValidator(_known_version)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Message(BaseModel):
    """Base of all that is sent: camelCase on the wire, immutable in memory, unknown fields left out."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        """Read one message.

        Raises:
            ContractError: names the first field that is missing or ill-typed.
        """
        raw = data.encode() if isinstance(data, str) else data
        if b"\0" in raw or ESCAPED_NUL.search(raw):
            raise ContractError(cls.__name__, "", "a NUL character, which no table can hold")
        try:
            # strict: what is meant as a number is no text, or the sender and this platform read it differently one day
            return cls.model_validate_json(raw, strict=True, by_alias=True, by_name=False)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise ContractError(cls.__name__, _path(first["loc"]), first["msg"]) from error

    def to_json(self) -> bytes:
        """The message as UTF-8 JSON, as it lies on a topic."""
        return self.model_dump_json(by_alias=True).encode()


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


class DetectedObject(Message):
    """One road user in a frame; ``object_id`` counts from 1 within its frame.

    ``track_id`` is the same over the frames of a camera; it is there only where a tracker runs.
    """

    object_id: int = Field(ge=1, le=MAX_INTEGER)
    class_name: str = Field(alias="class", min_length=1)
    confidence: Probability
    bbox: BBox
    track_id: int | None = Field(default=None, ge=1, le=MAX_INTEGER, exclude_if=lambda value: value is None)


class TrafficGroup(Message):
    """Objects close to each other; ``group_index`` counts from 1 within its frame and is no identity beyond it."""

    group_index: int = Field(ge=1, le=MAX_INTEGER)
    object_count: int = Field(ge=0, le=MAX_INTEGER)
    bbox: BBox
    classes: tuple[str, ...]
    group_image_url: str | None = None
    group_image_base64: Base64Picture | None = None
    priority: Probability = 0.0


_BoxedT = TypeVar("_BoxedT", DetectedObject, TrafficGroup)


class DetectionMetadata(Message):
    """How a detection result came about."""

    detection_latency: Seconds | None = None
    yolo_model: str | None = None
    processing_node: str | None = None


class DetectionResult(Message):
    """All that was found in one frame (topic ``detection-results``).

    Boxes that reach beyond the picture are cut at its borders; one that lies wholly outside is an error.
    """

    schema_version: SchemaVersion = SCHEMA_VERSION
    message_id: str = Field(min_length=1, max_length=128)
    camera_id: CameraId
    timestamp: Timestamp  # of capture
    image_width: int = Field(gt=0, le=MAX_INTEGER)
    image_height: int = Field(gt=0, le=MAX_INTEGER)
    raw_frame_url: str | None = None
    detected_objects: Annotated[tuple[DetectedObject, ...], Field(max_length=MAX_OBJECTS)]
    traffic_groups: Annotated[tuple[TrafficGroup, ...], Field(max_length=MAX_GROUPS)]
    metadata: DetectionMetadata = DetectionMetadata()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        indices = {group.group_index for group in self.traffic_groups}
        if len(indices) != len(self.traffic_groups):
            raise ContractError("DetectionResult", "trafficGroups", "groupIndex must be unique within a frame")
        objects = self._within_picture("detectedObjects", self.detected_objects)
        groups = self._within_picture("trafficGroups", self.traffic_groups)
        if objects is not None:
            object.__setattr__(self, "detected_objects", objects)
        if groups is not None:
            object.__setattr__(self, "traffic_groups", groups)
        return self

    def _within_picture(self, field: str, items: tuple[_BoxedT, ...]) -> tuple[_BoxedT, ...] | None:
        # None: all of them are, as nearly always
        width, height = self.image_width, self.image_height
        changed: list[_BoxedT] | None = None
        for index, item in enumerate(items):
            x1, y1, x2, y2 = item.bbox
            if x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height:
                continue
            if x2 < 0 or y2 < 0 or x1 > width or y1 > height:
                raise ContractError(
                    "DetectionResult", f"{field}[{index}].bbox", f"lies outside the picture of {width} x {height} px"
                )
            changed = changed or list(items)
            box = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
            changed[index] = item.model_copy(update={"bbox": box})
        return None if changed is None else tuple(changed)


class GroupMetadata(Message):
    """Of the group that a task is about."""

    object_count: int = Field(ge=0, le=MAX_INTEGER)
    classes: tuple[str, ...]
    bbox: BBox


class AssessmentTask(Message):
    """One group to assess (topic ``assessment-tasks``)."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    task_id: str = Field(min_length=1, max_length=160)
    request_id: str = Field(min_length=1, max_length=128)  # messageId of the detection result
    camera_id: CameraId
    timestamp: Timestamp  # of capture
    group_index: int = Field(ge=1, le=MAX_INTEGER)
    group_image_url: str | None = None
    group_image_base64: Base64Picture | None = None
    detected_objects: tuple[DetectedObject, ...]
    group_metadata: GroupMetadata
    priority: Probability = 0.0


class RiskAssessment(Message):
    """The answer for one group. In a provisional result only the level is known."""

    group_index: int = Field(ge=1, le=MAX_INTEGER)
    risk_level: RiskLevel
    confidence: Probability | None = None
    risk_types: tuple[str, ...] = ()
    description: str = ""
    trigger_object_ids: tuple[int, ...] = ()
    danger_object_count: int | None = Field(default=None, ge=0)
    group_bbox: BBox | None = None


class AssessmentMetadata(Message):
    """How an assessment came about."""

    llm_latency: Seconds | None = None
    llm_model: str | None = None
    api_key: str | None = None  # the key's hash, never the key
    retry_count: int = Field(default=0, ge=0)
    processing_node: str | None = None
    lane: Lane = Lane.REALTIME
    run: str = LIVE_RUN
    prompt_version: str | None = None
    reused_from: str | None = None


class AssessmentFailure(Message):
    """Why a task has no answer."""

    code: str
    message: str


class RiskAssessmentResult(Message):
    """The outcome of one task at one stage (topic ``risk-assessment-results``)."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    message_id: str = Field(min_length=1)
    request_id: str = Field(min_length=1)
    camera_id: CameraId
    timestamp: Timestamp  # of this result
    results: tuple[RiskAssessment, ...]
    has_dangerous_driving: bool
    max_risk_level: RiskLevel
    metadata: AssessmentMetadata = AssessmentMetadata()
    error: AssessmentFailure | None = None
    task_id: str | None = None
    stage: Stage = Stage.FINAL
    captured_at: Timestamp | None = None


class AlertState(StrEnum):
    """Where an alert is in its life; what a person says of it is its verdict, not its state."""

    PROVISIONAL = "provisional"
    OPEN = "open"
    CLOSED = "closed"
    WITHDRAWN = "withdrawn"


class Verdict(StrEnum):
    """What a person said of an alert; ``rejected`` means a false alarm."""

    ACKNOWLEDGED = "acknowledged"
    REJECTED = "rejected"


class AlertBasis(StrEnum):
    """What the alert's level rests on."""

    GEOMETRY = "geometry"
    PROVISIONAL = "provisional"
    FINAL = "final"


class Alert(Message):
    """A dangerous scene over time (topic ``alerts``): the whole alert after each change, ``version`` rising by one."""

    schema_version: int = SCHEMA_VERSION
    alert_id: str
    version: int = Field(ge=1)
    camera_id: CameraId
    state: AlertState
    basis: AlertBasis
    risk_level: RiskLevel
    peak_level: RiskLevel
    risk_types: tuple[str, ...] = ()
    description: str = ""
    group_bbox: BBox
    opened_at: Timestamp  # capture time of the first frame
    last_seen_at: Timestamp  # capture time of the last frame
    closed_at: Timestamp | None = None
    updated_at: Timestamp
    first_task_id: str
    last_task_id: str
    last_request_id: str  # messageId of the last frame
    group_image_url: str | None = None
    notify: bool = False  # this change is to ring: live, fresh and at the notification level, or an escalation
    # this change is the first that reaches this level and is to be told (receivers have minimum levels of their own) …
    reached_level: RiskLevel | None = None
    # … but not before then: quiet hours, or the camera is snoozed
    held_reason: Literal["quiet_hours", "snooze"] | None = None
    held_until: Timestamp | None = None
    escalation: int = 0  # nobody has judged it: this change rings for the n-th further time
    simulated: bool = False
    verdict: Verdict | None = None
    verdict_by: str | None = None
    verdict_note: str | None = None
    verdict_at: Timestamp | None = None


class DeadLetter(Message):
    """A message that could not be used, whole, with the reason (topic ``dead-letter``)."""

    schema_version: int = SCHEMA_VERSION
    source_topic: str
    source_partition: int
    source_offset: int
    consumer_group: str
    reason: str
    field: str = ""
    failed_at: Timestamp
    key_base64: str | None = None
    value_base64: str
    value_bytes: int | None = None  # of the whole message, where only its beginning is kept
    value_encoding: Literal["base64"] = "base64"


MessageT = TypeVar("MessageT", bound=Message)


def message_id_of(camera_id: str, captured_at: datetime) -> str:
    """Derived id of the frame that a camera captured at that millisecond."""
    return str(uuid.uuid5(ID_NAMESPACE, f"frame:{camera_id}:{iso_milliseconds(captured_at)}"))


def task_id_of(message_id: str, group_index: int) -> str:
    """Derived id of the task for one group of a frame."""
    return f"{message_id}_group{group_index}"


def result_id_of(task_id: str, run: str, stage: Stage) -> str:
    """Derived id of the result message of one task, run and stage."""
    return str(uuid.uuid5(ID_NAMESPACE, f"result:{task_id}:{run}:{stage}"))


def alert_id_of(task_id: str) -> str:
    """Derived id of the alert that this task's result opened."""
    return str(uuid.uuid5(ID_NAMESPACE, f"alert:{task_id}"))


def require_key(message: Message, key: str | None) -> None:
    """Hold a message's key on the topic against its camera: order is kept per key only.

    Without a key a message is taken; its place among the camera's others is then that in which it came.

    Raises:
        ContractError: it lies under another camera's key.
    """
    camera_id = getattr(message, "camera_id", None)
    if key is not None and camera_id is not None and key != camera_id:
        raise ContractError(
            type(message).__name__,
            "cameraId",
            f"{camera_id!r} is not the message's key {key[:64]!r}; send it with the cameraId as its key",
        )
