"""Pictures of frames, groups and alerts, for pages: looked up, never guessed from what a client writes."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Engine

from dangerous_driving.contracts import Alert
from dangerous_driving.errors import ContractError, ObjectNotFoundError
from dangerous_driving.ledger import overview
from dangerous_driving.objects import ObjectStore
from dangerous_driving.realtime.hub import Hub


class Pictures:
    """Reads pictures through the object store.

    Where a picture lies is what a message or the ledger says of that very frame or task; a client's words are only looked
    up. The key must then be one of that camera's pictures, whatever the message said.
    """

    def __init__(self, engine: Engine, store: ObjectStore, hub: Hub) -> None:
        self._engine = engine
        self._store = store
        self._hub = hub

    def frame(self, camera_id: str, message_id: str, captured_at: datetime | None) -> bytes:
        """The frame's JPEG. Without its capture time only recent frames are found.

        Raises:
            ObjectNotFoundError: no such frame is known, or it has no picture.
            ObjectStoreError, LedgerError: the store or the database did not answer.
        """
        url = self._hub.picture(camera_id, message_id)
        if url is None and captured_at is not None:
            url = overview.frame_url(self._engine, camera_id, message_id, captured_at)
        return self._read(camera_id, url, f"frame {message_id}")

    def group(self, camera_id: str, task_id: str, captured_at: datetime) -> bytes:
        """The JPEG of a task's group. Raises as `frame`."""
        return self._read(
            camera_id, overview.group_url(self._engine, camera_id, task_id, captured_at), f"group {task_id}"
        )

    def alert(self, alert: Alert) -> bytes:
        """The JPEG of the group that the alert saw last. Raises as `frame`."""
        return self._read(alert.camera_id, alert.group_image_url, f"alert {alert.alert_id}")

    def _read(self, camera_id: str, url: str | None, what: str) -> bytes:
        if url is None:
            raise ObjectNotFoundError(what)
        try:
            key = self._store.key(url)
        except ContractError as error:
            raise ObjectNotFoundError(what) from error  # it lies in another store, or nowhere
        if not key.startswith((f"frames/{camera_id}/", f"groups/{camera_id}/")) or not key.endswith(".jpg"):
            raise ObjectNotFoundError(what)
        return self._store.get(key)
