"""What may stand in a path or a query."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

from dangerous_driving.contracts import CAMERA_ID_PATTERN

CameraParameter = Annotated[str, Path(pattern=f"^{CAMERA_ID_PATTERN.pattern}$")]
IdParameter = Annotated[str, Path(pattern=r"^[A-Za-z0-9._:-]{1,160}$")]
