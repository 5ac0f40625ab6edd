"""The messages on the WebSocket: ``{"type": …, "data": …}`` both ways, camelCase as on the topics."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from dangerous_driving.contracts import (
    Alert,
    CameraId,
    DetectionResult,
    Message,
    RiskAssessmentResult,
    RiskLevel,
    Timestamp,
)
from dangerous_driving.realtime.access import Role

#: bytes; the largest message a client may send
MAX_CLIENT_MESSAGE = 64 * 1024
#: What PostgreSQL's text can hold.
NO_NUL = r"^[^\x00]*$"
PersonName = Annotated[str, Field(min_length=1, max_length=64, pattern=NO_NUL)]
Note = Annotated[str, Field(max_length=2000, pattern=NO_NUL)]
#: cameras in one subscription
MAX_CAMERAS = 1000


class ServerType(StrEnum):
    """What the bridge sends."""

    CONNECTION_ACK = "connection_ack"
    CAMERA_STATUS = "camera_status"
    DETECTION_RESULT = "detection_result"
    RISK_ASSESSMENT = "risk_assessment"
    ALERT = "alert"
    STREAM_STOPPED = "stream_stopped"
    ERROR = "error"
    PONG = "pong"


class CameraStatus(Message):
    """A camera and how it is."""

    camera_id: CameraId
    name: str
    kind: str
    frame_interval: float
    status: str
    reason: str
    at: Timestamp
    running: bool = True  # False: an operator stopped it


class StreamStopped(Message):
    """An operator stopped a camera: no frame of it comes until it is started again."""

    camera_id: CameraId
    at: Timestamp


class ConnectionAck(Message):
    """The first message: the bridge's clock, who the client is, and what the connection missed since it was last there."""

    server_time: Timestamp
    role: Role = Role.VIEWER
    name: str = ""  # of a signed token
    expires_at: Timestamp | None = None  # of the token: the connection ends then
    resumed: int = 0
    truncated: bool = False  # more was missed than is sent again: ask REST for the rest
    simulated_llm: bool = False
    demo: bool = False


class ProblemCode(StrEnum):
    """Why, for programs."""

    BAD_JSON = "bad_json"
    UNKNOWN_TYPE = "unknown_type"
    BAD_MESSAGE = "bad_message"
    TOO_MANY_CAMERAS = "too_many_cameras"
    RATE_LIMITED = "rate_limited"
    FORBIDDEN = "forbidden"
    UNKNOWN_ALERT = "unknown_alert"
    UNKNOWN_CAMERA = "unknown_camera"
    UNAVAILABLE = "unavailable"


class Problem(Message):
    """Why a message of the client was not understood or not carried out."""

    code: ProblemCode
    message: str


class Pong(Message):
    """The answer to a ping."""

    server_time: Timestamp
    nonce: str | None = None


class PingData(Message):
    """Of a ping."""

    nonce: str | None = Field(default=None, max_length=64)


class SubscriptionData(Message):
    """Which cameras (None: all), from which level on alerts and assessments, and what besides alerts and statuses.

    None leaves as it is what was asked for before.
    """

    cameras: tuple[CameraId, ...] | None = Field(default=None, max_length=MAX_CAMERAS)
    minimum_level: RiskLevel | None = None
    types: tuple[Literal["detection_result", "risk_assessment"], ...] | None = Field(default=None, max_length=2)


class FeedbackData(Message):
    """A person's word on an alert."""

    alert_id: str = Field(min_length=1, max_length=64, pattern=NO_NUL)
    note: Note = ""
    by: PersonName = "operator"


class CameraData(Message):
    """One camera."""

    camera_id: CameraId
    by: PersonName = "operator"


class Ping(Message):
    """Asks for a pong."""

    type: Literal["ping"]
    data: PingData = PingData()


class Subscribe(Message):
    """More cameras, or another level."""

    type: Literal["subscribe"]
    data: SubscriptionData = SubscriptionData()


class Unsubscribe(Message):
    """Fewer cameras."""

    type: Literal["unsubscribe"]
    data: SubscriptionData = SubscriptionData()


class Feedback(Message):
    """Acknowledges an alert, or rejects it as a false alarm."""

    type: Literal["acknowledge", "reject"]
    data: FeedbackData


class CameraAct(Message):
    """Starts or stops watching a camera, or looks how it is."""

    type: Literal["start_stream", "stop_stream", "check_camera"]
    data: CameraData


ClientMessage = Ping | Subscribe | Unsubscribe | Feedback | CameraAct
_Discriminated = Annotated[Ping | Subscribe | Unsubscribe | Feedback | CameraAct, Field(discriminator="type")]
_CLIENT: TypeAdapter[ClientMessage] = TypeAdapter(_Discriminated)

#: What a client may send, and the model of each.
CLIENT_MESSAGES: dict[str, type[Message]] = {
    "ping": PingData,
    "subscribe": SubscriptionData,
    "unsubscribe": SubscriptionData,
    "acknowledge": FeedbackData,
    "reject": FeedbackData,
    "start_stream": CameraData,
    "stop_stream": CameraData,
    "check_camera": CameraData,
}
#: What the bridge sends, and the model of each.
SERVER_MESSAGES: dict[ServerType, type[Message]] = {
    ServerType.CONNECTION_ACK: ConnectionAck,
    ServerType.CAMERA_STATUS: CameraStatus,
    ServerType.DETECTION_RESULT: DetectionResult,
    ServerType.RISK_ASSESSMENT: RiskAssessmentResult,
    ServerType.ALERT: Alert,
    ServerType.STREAM_STOPPED: StreamStopped,
    ServerType.ERROR: Problem,
    ServerType.PONG: Pong,
}


class UnreadableError(ValueError):
    """A client's message cannot be understood; ``problem`` is what it is told."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(problem.message)


def read(text: str | None) -> ClientMessage:
    """One message of a client; None stands for bytes.

    Raises:
        UnreadableError: it is no JSON, of no known type, or a field is missing or wrong.
    """
    if text is None:
        raise UnreadableError(Problem(code=ProblemCode.BAD_JSON, message="send text, not bytes"))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(Problem(code=ProblemCode.BAD_JSON, message="the message is not JSON")) from error
    try:
        return _CLIENT.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        if first["type"].startswith("union_tag"):
            message = f"type must be one of {', '.join(CLIENT_MESSAGES)}"
            raise UnreadableError(Problem(code=ProblemCode.UNKNOWN_TYPE, message=message)) from error
        where = ".".join(str(part) for part in first["loc"][1:])
        raise UnreadableError(
            Problem(code=ProblemCode.BAD_MESSAGE, message=f"{where or 'message'}: {first['msg']}")
        ) from error


def envelope(kind: ServerType, data: Message, *, exclude: dict[str, Any] | None = None) -> str:
    """The text of one message to clients, without the fields of `exclude` (as pydantic has it)."""
    return f'{{"type":"{kind}","data":{data.model_dump_json(by_alias=True, exclude=exclude)}}}'
