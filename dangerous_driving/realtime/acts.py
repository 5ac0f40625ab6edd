"""What people do through the bridge, by WebSocket or REST: each act is written to the audit, done, and its end written.

An act that cannot be written down is not done. One whose end cannot be written down stays ``started`` in the audit, and the
log says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from sqlalchemy import Engine

from dangerous_driving.contracts import Alert, Verdict
from dangerous_driving.errors import LedgerError
from dangerous_driving.ledger import audit, overview
from dangerous_driving.ledger.cameras import set_running
from dangerous_driving.realtime.access import Caller
from dangerous_driving.realtime.envelopes import CameraStatus
from dangerous_driving.realtime.feedback import FeedbackDesk
from dangerous_driving.realtime.hub import Hub

log = structlog.get_logger(__name__)

ValueT = TypeVar("ValueT")


class UnknownTargetError(Exception):
    """There is no such alert or camera."""


@dataclass(frozen=True)
class Actor:
    """Who acts, from where; ``said`` is the name that the client gave, which counts only where no token proves another."""

    caller: Caller
    address: str
    said: str = "operator"

    @property
    def name(self) -> str:
        """The name that is kept."""
        return self.caller.called(self.said)


class Acts:
    """Carries them out."""

    def __init__(self, engine: Engine, hub: Hub, desk: FeedbackDesk) -> None:
        self._engine = engine
        self._hub = hub
        self._desk = desk
        self._under_way: set[asyncio.Task[Any]] = set()  # else the loop alone knows them, and it forgets

    async def judge(self, actor: Actor, alert_id: str, verdict: Verdict, note: str) -> Alert:
        """Acknowledge an alert or reject it as a false alarm.

        Raises:
            UnknownTargetError: there is no such alert.
            LedgerError: it was not kept; the same call may be made again.
        """
        return await self.carry_out(
            actor,
            verdict.value,
            alert_id,
            {"note": note},
            lambda: self._desk.give(alert_id, verdict, by=actor.name, note=note),
        )

    async def switch_camera(self, actor: Actor, camera_id: str, *, running: bool) -> CameraStatus:
        """Start or stop watching a camera; detection services take it up within ``camera.refresh`` seconds.

        Raises:
            UnknownTargetError: there is no such camera.
            LedgerError: nothing was changed.
        """

        async def switch() -> CameraStatus | None:
            if not await asyncio.to_thread(set_running, self._engine, camera_id, running):
                return None
            return await self._look(camera_id)

        return await self.carry_out(actor, "start_stream" if running else "stop_stream", camera_id, {}, switch)

    async def check_camera(self, actor: Actor, camera_id: str) -> CameraStatus:
        """How the camera is now, read anew from the ledger; everybody who looks hears of it.

        Raises:
            UnknownTargetError: there is no such camera.
            LedgerError: it cannot be read now.
        """
        return await self.carry_out(actor, "check_camera", camera_id, {}, lambda: self._look(camera_id))

    async def _look(self, camera_id: str) -> CameraStatus | None:
        rows = await asyncio.to_thread(overview.list_cameras, self._engine, camera_id)
        statuses = [camera_status(row) for row in rows]
        self._hub.statuses(statuses)
        return statuses[0] if statuses else None

    async def carry_out(
        self, actor: Actor, act: str, target: str, detail: dict[str, Any], work: Callable[[], Awaitable[ValueT | None]]
    ) -> ValueT:
        """Do ``work`` between the two halves of its entry in the audit, to its end also where the caller goes away meanwhile.

        Raises:
            UnknownTargetError: it came to None: there is no such target.
            LedgerError: the act could not be written down, and is not done; or ``work`` failed.
        """
        task = asyncio.create_task(self._carried_out(actor, act, target, detail, work))
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it; the audit tells those who did not

    async def _carried_out(
        self, actor: Actor, act: str, target: str, detail: dict[str, Any], work: Callable[[], Awaitable[ValueT | None]]
    ) -> ValueT:
        caller = actor.caller
        entry = await asyncio.to_thread(
            audit.begin,
            self._engine,
            audit.Act(
                actor=actor.name,
                role=caller.role.value,
                proven=bool(caller.name),
                act=act,
                target=target,
                address=actor.address,
                detail=detail,
            ),
        )
        outcome = "failed"
        try:
            done = await work()
            outcome = "unknown_target" if done is None else "done"
        finally:
            await self._finish(entry, outcome)
        log.info("act", act=act, target=target, actor=actor.name, role=caller.role.value, outcome=outcome)
        if done is None:
            raise UnknownTargetError(target)
        return done

    async def _finish(self, entry: int, outcome: str) -> None:
        try:
            await asyncio.to_thread(audit.finish, self._engine, entry, outcome)
        except LedgerError as error:
            log.warning("audit_not_finished", entry=entry, outcome=outcome, reason=str(error))


def camera_status(row: overview.CameraRow) -> CameraStatus:
    """A camera's row as clients get it."""
    return CameraStatus(
        camera_id=row.camera_id,
        name=row.name or row.camera_id,
        kind=row.kind,
        frame_interval=row.frame_interval,
        status=row.status,
        reason=row.status_reason,
        at=row.status_at,
        running=row.enabled,
    )
