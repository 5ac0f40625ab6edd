"""What is known of each camera's place, from the settings and the ledger's table."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import structlog
from sqlalchemy import Engine

from dangerous_driving.errors import LedgerError
from dangerous_driving.ledger.cameras import table_cameras
from dangerous_driving.settings import CameraContext, CameraSettings

log = structlog.get_logger(__name__)

NOTHING = CameraContext()


class CameraContexts:
    """Looked up anew every few seconds while somebody asks; those of the table win, as they can be changed while running.

    Args:
        cameras: of the settings.
        engine: of the ledger; None: the settings alone.
    """

    def __init__(self, cameras: CameraSettings, engine: Engine | None) -> None:
        self._settings = {camera.id: camera.context for camera in cameras.cameras}
        self._refresh = cameras.refresh
        self._engine = engine
        self._known: Mapping[str, CameraContext] = self._settings
        self._looked_at = -cameras.refresh
        self._looking: asyncio.Task[None] | None = None

    async def of(self, camera_id: str) -> CameraContext:
        """The camera's context as last seen; nobody waits for a look."""
        due = time.monotonic() - self._looked_at >= self._refresh
        if self._engine is not None and due and (self._looking is None or self._looking.done()):
            self._looked_at = time.monotonic()
            self._looking = asyncio.create_task(self._look(self._engine), name="camera-contexts")
        return self._known.get(camera_id, NOTHING)

    async def _look(self, engine: Engine) -> None:
        try:
            cameras = await asyncio.to_thread(table_cameras, engine)
        except LedgerError as error:
            log.warning("camera_contexts_not_read", reason=str(error))
        else:
            self._known = {**self._settings, **{camera.id: camera.context for camera in cameras}}
