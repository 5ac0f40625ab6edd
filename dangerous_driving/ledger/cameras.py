"""Cameras, their states, and those that an operator keeps in the table: with placeholders in the place of secrets."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import structlog
from pydantic import ValidationError
from sqlalchemy import Engine, func, select, update
from sqlalchemy.dialects.postgresql import insert

from dangerous_driving.camera.address import parameters
from dangerous_driving.camera.secrets import placeholders
from dangerous_driving.errors import ConfigError
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.detectors import speaks_for
from dangerous_driving.ledger.tables import Camera, CameraWindow
from dangerous_driving.settings import CameraSpec

log = structlog.get_logger(__name__)

#: Parameters of an address that are secrets by their names.
_SECRET_PARAMETER = re.compile(r"pass|pwd|token|secret|auth|sig|key", re.IGNORECASE)


def register_cameras(engine: Engine, cameras: Iterable[CameraSpec], *, frame_interval: float) -> None:
    """Write the configured cameras; their status stays as it is."""
    rows = [
        {
            "id": camera.id,
            "name": camera.name or camera.id,
            "kind": camera.kind,
            "source": camera.shown_source,
            "frame_interval": camera.frame_interval or frame_interval,
        }
        for camera in cameras
    ]
    if not rows:
        return
    statement = insert(Camera).values(rows)
    with transaction(engine) as connection:
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["id"],
                set_={name: statement.excluded[name] for name in ("name", "kind", "source", "frame_interval")},
            )
        )


def set_camera_status(
    engine: Engine, camera_id: str, status: str, reason: str, at: datetime, *, by: str | None = None
) -> None:
    """Keep the camera's newest status; a camera not seen before gets its row.

    `by` names the detector that says so: nothing is written where another one reads the camera. It tells its states in order,
    and its clock is not that of the detector which read the camera before: so what it says counts whatever the time.

    Raises:
        LedgerError: the database is away, or the others have given the detector up and it is to report first.
    """
    values = {"status": status, "status_reason": reason, "status_at": at}
    with transaction(engine) as connection:
        if by is not None and not speaks_for(connection, by, camera_id):
            return
        connection.execute(
            insert(Camera)
            .values(id=camera_id, name=camera_id, **values)
            .on_conflict_do_update(
                index_elements=["id"], set_=values, where=Camera.status_at <= at if by is None else None
            )
        )


def put_camera(engine: Engine, spec: CameraSpec, *, frame_interval: float, enable: bool = True) -> None:
    """Add a camera, or change it.

    Args:
        engine: the ledger.
        spec: the camera.
        frame_interval: s, of cameras that have none of their own.
        enable: switch it on; else a camera that is there stays on or off.

    Raises:
        ConfigError: the source holds a password.
        LedgerError: the database is away.
    """
    require_no_secret(spec)
    values: dict[str, Any] = {
        "name": spec.name or spec.id,
        "kind": spec.kind,
        "source": spec.shown_source,
        "frame_interval": spec.frame_interval or frame_interval,
        "spec": spec.model_dump(mode="json") | {"source": spec.source.get_secret_value()},
    }
    if enable:
        values["enabled"] = True
    with transaction(engine) as connection:
        connection.execute(
            insert(Camera).values(id=spec.id, **values).on_conflict_do_update(index_elements=["id"], set_=values)
        )


def kept_values(engine: Engine, camera_id: str) -> dict[str, Any]:
    """The fields of a camera of the table, as they were put.

    Raises:
        ConfigError: the table has no such camera.
        LedgerError: the database is away.
    """
    with transaction(engine) as connection:
        values = connection.execute(select(Camera.spec).where(Camera.id == camera_id)).scalar()
    if not isinstance(values, dict):
        raise _no_such_camera(camera_id)
    return dict(values)


def set_enabled(engine: Engine, camera_id: str, enabled: bool) -> None:  # what it is set to
    """Switch a camera of the table off or on.

    Raises:
        ConfigError: the table has no such camera.
        LedgerError: the database is away.
    """
    _change(engine, camera_id, enabled=enabled)


def set_running(engine: Engine, camera_id: str, running: bool) -> bool:  # what it is set to
    """Watch any known camera, or stop watching it, wherever it is kept; returns whether there is one.

    Raises:
        LedgerError: the database is away.
    """
    statement = update(Camera).where(Camera.id == camera_id).values(enabled=running).returning(Camera.id)
    with transaction(engine) as connection:
        return connection.execute(statement).scalar() is not None


def stopped_cameras(engine: Engine) -> frozenset[str]:
    """The cameras that nobody is to watch now, wherever they are kept.

    Raises:
        LedgerError: the database is away.
    """
    with transaction(engine) as connection:
        return frozenset(connection.scalars(select(Camera.id).where(Camera.enabled.is_(False))))


def remove_camera(engine: Engine, camera_id: str) -> None:
    """Watch a camera no more. Its row stays, since its frames and alerts refer to it.

    Raises:
        ConfigError: the table has no such camera.
        LedgerError: the database is away.
    """
    _change(engine, camera_id, spec=None, enabled=True)


def table_cameras(engine: Engine) -> tuple[CameraSpec, ...]:
    """The enabled cameras of the table. A row that cannot be read is passed over and logged: it concerns itself alone.

    Raises:
        LedgerError: the database is away.
    """
    query = select(Camera.id, Camera.spec).where(Camera.spec.is_not(None), Camera.enabled).order_by(Camera.id)
    with transaction(engine) as connection:
        rows = connection.execute(query).all()
    found = []
    for camera_id, values in rows:
        try:
            found.append(CameraSpec.model_validate(values | {"id": camera_id} if isinstance(values, dict) else values))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            log.warning("camera_row_unreadable", camera_id=camera_id, field=field, reason=first["msg"])
    return tuple(found)


def require_no_secret(spec: CameraSpec) -> None:
    """Refuse a source with a password or token in it, as a user's, in its query or in its path: tables are read by many, and kept in backups.

    Raises:
        ConfigError: names the remedy, not the password.
    """
    source = spec.source.get_secret_value()
    if "://" not in source:
        return
    parts = urlsplit(source)
    named = {f"${{{name}}}" for name in placeholders(source)}
    # what follows a placeholder in a path, as in /token=${T}/live, is no secret
    pairs = [
        (name, re.split("[/&;,]", value)[0]) for name, value in [*parameters(parts.path), *parameters(parts.query)]
    ]
    given = [*parse_qsl(parts.query), *pairs]
    secrets = [value for name, value in given if _SECRET_PARAMETER.search(name)]
    if not {value for value in (parts.password, *secrets) if value} <= named:
        raise ConfigError(
            "source",
            f"the source of camera {spec.id} holds a password or token, and would be kept in a table",
            "write ${NAME} in its place, and give it as DD_SECRET_NAME or as a file in camera.secrets_folder",
        )


def _change(engine: Engine, camera_id: str, **values: Any) -> None:
    statement = update(Camera).where(Camera.id == camera_id, Camera.spec.is_not(None)).values(**values)
    with transaction(engine) as connection:
        changed = connection.execute(statement.returning(Camera.id)).all()
    if not changed:
        raise _no_such_camera(camera_id)


def _no_such_camera(camera_id: str) -> ConfigError:
    return ConfigError(
        "camera",
        f"the table has no camera {camera_id}",
        "see: dangerous-driving cameras list (others are in the settings)",
    )


def known_cameras(engine: Engine, camera_ids: Collection[str]) -> set[str]:
    """Those of `camera_ids` that the ledger has ever seen."""
    with transaction(engine) as connection:
        return set(connection.scalars(select(Camera.id).where(Camera.id.in_(camera_ids))))


@dataclass(frozen=True)
class CameraState:
    """A camera as the ledger knows it."""

    id: str
    kind: str
    status: str
    status_reason: str
    frame_interval: float
    enabled: bool
    newest_window: datetime | None


def camera_states(engine: Engine) -> list[CameraState]:
    """All cameras ever seen, by id."""
    newest = select(func.max(CameraWindow.window_start)).where(CameraWindow.camera_id == Camera.id).scalar_subquery()
    statement = select(
        Camera.id, Camera.kind, Camera.status, Camera.status_reason, Camera.frame_interval, Camera.enabled, newest
    ).order_by(Camera.id)
    with transaction(engine) as connection:
        return [CameraState(*row) for row in connection.execute(statement)]
