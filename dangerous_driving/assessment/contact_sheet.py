"""A contact sheet: the riskiest crops of a window in one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from sqlalchemy import Engine, text

from dangerous_driving.assessment.windows import Window
from dangerous_driving.contracts import LIVE_RUN
from dangerous_driving.errors import ContractError, ObjectStoreError
from dangerous_driving.ledger.database import transaction
from dangerous_driving.objects import ObjectStore

#: px of one crop on the sheet, its caption included, and of the caption.
WIDTH, HEIGHT, CAPTION = 200, 150, 18
COLUMNS = 3
JPEG_QUALITY = 70
GREY, INK = 32, (235, 235, 235)


@dataclass(frozen=True)
class Crop:
    """One answer with the address of its picture."""

    level: str
    url: str | None
    caption: str


def riskiest(engine: Engine, window: Window, *, run: str = LIVE_RUN, limit: int) -> list[Crop]:
    """The answers of the highest levels above ``none`` (then by confidence), current ones or those of a backfill."""
    parameters = {
        "camera": window.camera_id, "start": window.start, "end": window.end, "run": run, "limit": limit,
        "live": run == LIVE_RUN,
    }  # fmt: skip
    with transaction(engine) as connection:
        rows = connection.execute(text(_RISKIEST), parameters).all()
    return [
        Crop(
            row.risk_level, row.group_image_url, f"{row.risk_level} {row.captured_at:%H:%M:%S} {row.kind or ''}".strip()
        )
        for row in rows
    ]


def contact_sheet(crops: Sequence[Crop], store: ObjectStore) -> bytes | None:
    """A JPEG with these crops; a picture that is gone or damaged leaves its place empty. None without crops."""
    if not crops:
        return None
    rows = math.ceil(len(crops) / COLUMNS)
    columns = min(COLUMNS, len(crops))
    sheet = np.full((rows * HEIGHT, columns * WIDTH, 3), GREY, np.uint8)
    for number, crop in enumerate(crops):
        top, left = number // COLUMNS * HEIGHT, number % COLUMNS * WIDTH
        picture = _picture(crop, store)
        if picture is not None:
            room = HEIGHT - CAPTION
            scale = min((WIDTH - 4) / picture.shape[1], (room - 4) / picture.shape[0])
            size = max(1, int(picture.shape[1] * scale)), max(1, int(picture.shape[0] * scale))
            small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
            y, x = top + (room - size[1]) // 2, left + (WIDTH - size[0]) // 2
            sheet[y : y + size[1], x : x + size[0]] = small
        place = (left + 4, top + HEIGHT - 5)
        cv2.putText(sheet, crop.caption, place, cv2.FONT_HERSHEY_SIMPLEX, 0.38, INK, 1, cv2.LINE_AA)
    done, encoded = cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return bytes(encoded) if done else None


def _picture(crop: Crop, store: ObjectStore) -> np.ndarray | None:
    if crop.url is None:
        return None
    try:
        data = store.get(store.key(crop.url))
    except (ObjectStoreError, ContractError):
        return None  # the sheet is for looking; that the picture is missing is a check's matter
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return None if found is None else np.asarray(found)


_RISKIEST = """
SELECT r.risk_level, r.captured_at, r.risk_types[1] AS kind, t.group_image_url
FROM risk_assessment r JOIN assessment_task t ON t.captured_at = r.captured_at AND t.task_id = r.task_id
WHERE r.camera_id = :camera AND r.captured_at >= :start AND r.captured_at < :end AND r.risk_level <> 'none'
  AND (CASE WHEN :live THEN r.is_current ELSE r.run = :run END)
ORDER BY array_position(ARRAY['high', 'medium', 'low'], r.risk_level), r.confidence DESC NULLS LAST, r.captured_at
LIMIT :limit
"""
