"""The messages on the WebSocket: ``{"type": …, "data": …}`` both ways, camelCase as on the topics."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from dangerous_driving.contracts import CameraId, Message, RiskLevel, Timestamp

#: bytes; the largest message a client may send
MAX_CLIENT_MESSAGE = 64 * 1024
#: cameras in one subscription
MAX_CAMERAS = 1000


class ServerType(StrEnum):
    """What the bridge sends."""

    CONNECTION_ACK = "connection_ack"
    CAMERA_STATUS = "camera_status"
    DETECTION_RESULT = "detection_result"
    RISK_ASSESSMENT = "risk_assessment"
    ALERT = "alert"
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


class ConnectionAck(Message):
    """The first message: the bridge's clock, and what the connection missed since ``after``."""

    server_time: Timestamp
    resumed: int = 0
    truncated: bool = False  # more was missed than is sent again: ask REST for the rest
    simulated_llm: bool = False
    demo: bool = False


class Problem(Message):
    """Why a message of the client was not understood or not carried out."""

    code: str
    message: str


class Pong(Message):
    """The answer to a ping."""

    server_time: Timestamp
    nonce: str | None = None


class PingData(Message):
    """Of a ping."""

    nonce: str | None = Field(default=None, max_length=64)


class SubscriptionData(Message):
    """Which cameras (None: all), and from which level on alerts and assessments."""

    cameras: tuple[CameraId, ...] | None = Field(default=None, max_length=MAX_CAMERAS)
    minimum_level: RiskLevel | None = None


class FeedbackData(Message):
    """A person's word on an alert."""

    alert_id: str = Field(min_length=1, max_length=64)
    note: str = Field(default="", max_length=2000)
    by: str = Field(default="operator", min_length=1, max_length=64)


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


ClientMessage = Ping | Subscribe | Unsubscribe | Feedback
_Discriminated = Annotated[Ping | Subscribe | Unsubscribe | Feedback, Field(discriminator="type")]
_CLIENT: TypeAdapter[ClientMessage] = TypeAdapter(_Discriminated)


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
        raise UnreadableError(Problem(code="bad_json", message="send text, not bytes"))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(Problem(code="bad_json", message="the message is not JSON")) from error
    try:
        return _CLIENT.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        if first["type"].startswith("union_tag"):
            message = "type must be one of ping, subscribe, unsubscribe, acknowledge, reject"
            raise UnreadableError(Problem(code="unknown_type", message=message)) from error
        where = ".".join(str(part) for part in first["loc"][1:])
        raise UnreadableError(Problem(code="bad_message", message=f"{where or 'message'}: {first['msg']}")) from error


def envelope(kind: ServerType, data: Message, *, exclude: dict[str, Any] | None = None) -> str:
    """The text of one message to clients, without the fields of `exclude` (as pydantic has it)."""
    return f'{{"type":"{kind}","data":{data.model_dump_json(by_alias=True, exclude=exclude)}}}'
