"""What may stand in a path or a query, and how a request is refused."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path

from dangerous_driving.contracts import CAMERA_ID_PATTERN, Message

CameraParameter = Annotated[str, Path(pattern=f"^{CAMERA_ID_PATTERN.pattern}$")]
IdParameter = Annotated[str, Path(pattern=r"^[A-Za-z0-9._:-]{1,160}$")]


class Refusal(Message):
    """Why a request was not carried out."""

    detail: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": Refusal, "description": "No token, or one that is not accepted or has expired"},
    403: {"model": Refusal, "description": "The role of the token, or the page that asks, may not do that"},
    404: {"model": Refusal, "description": "There is no such thing"},
    411: {"model": Refusal, "description": "The length of the body is not said"},
    413: {"model": Refusal, "description": "The body is too large"},
    421: {"model": Refusal, "description": "With open access: a foreign name for this machine"},
    429: {"model": Refusal, "description": "Too many requests; Retry-After says how long to wait"},
    503: {"model": Refusal, "description": "The database or the object store does not answer; Retry-After"},
}
