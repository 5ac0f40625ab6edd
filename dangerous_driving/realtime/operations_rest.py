"""REST for who runs the platform: requests to the endpoint, keys by hash, and the switch of lanes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import AwareDatetime
from sqlalchemy import Engine, select

from dangerous_driving.assessment.switch import Entry, Positions
from dangerous_driving.contracts import CAMERA_ID_PATTERN, Lane, Message, Timestamp
from dangerous_driving.ledger.calls import CallFilter, list_calls
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.spending import key_spending
from dangerous_driving.ledger.switches import read_switch, write_switch
from dangerous_driving.ledger.tables import ApiKey
from dangerous_driving.realtime.acts import Acts
from dangerous_driving.realtime.envelopes import NO_NUL, PersonName
from dangerous_driving.realtime.guard import Guard, actor_of
from dangerous_driving.realtime.parameters import REFUSALS

#: Of calls, where no time is given.
DEFAULT_SPAN = timedelta(hours=24)

#: ``*`` stands for all cameras without an entry of their own.
SwitchParameter = Annotated[str, Path(pattern=rf"^({CAMERA_ID_PATTERN.pattern}|\*)$")]
Chosen = Annotated[str | None, Query(max_length=160, pattern=NO_NUL)]


class CallEntry(Message):
    """One request to the endpoint; latencies in seconds since it left, ``cost`` in money.

    ``sharedWith``: other tasks of the frame that it asked about too.
    """

    call_id: str
    task_id: str
    shared_with: tuple[str, ...]
    camera_id: str
    captured_at: Timestamp
    run: str
    lane: str
    key_hash: str
    model: str
    prompt_version: str
    status: str
    http_status: int | None
    started_at: Timestamp
    first_token_latency: float | None
    latency: float | None
    input_tokens: int | None
    output_tokens: int | None
    cost: float | None
    error: str | None


class CallPage(Message):
    """The newest first; ``nextBefore`` and ``nextBeforeId`` together ask for the page after, None where there is none."""

    items: tuple[CallEntry, ...]
    next_before: datetime | None
    next_before_id: str | None


class KeyEntry(Message):
    """A key by its hash: limits in force, state, and its calls of the last hour."""

    key_hash: str
    label: str
    qps_limit: int
    rpm_limit: int
    learned_qps: int | None
    learned_rpm: int | None
    state: str
    reason: str
    cooling_until: Timestamp | None
    calls: int
    ok: int
    rate_limited: int
    failed: int
    cost: float
    p95: float | None


class SwitchEntry(Message):
    """The lane of a camera (``*``: of all others); None: its entry was taken back."""

    camera_id: str
    lane: Lane | None
    changed_at: Timestamp


class SwitchBody(Message):
    """The lane to take; None lets the camera follow the others again."""

    lane: Literal["realtime", "window", "inline"] | None
    by: PersonName = "operator"


class OperationsRest:
    """The routes.

    Args:
        engine: of the ledger.
        acts: writes down who moves the switch.
    """

    def __init__(self, engine: Engine, acts: Acts) -> None:
        self._engine, self._acts = engine, acts

    def router(self, guard: Guard) -> APIRouter:
        """The routes; ``guard`` refuses whoever may not use one."""
        api = APIRouter(prefix="/api", dependencies=[Depends(guard)], responses=REFUSALS)
        api.get("/calls")(self.calls)
        api.get("/keys")(self.keys)
        api.get("/switch")(self.switch)
        api.put("/switch/{camera_id}", dependencies=[Depends(guard.admin)])(self.set_switch)
        return api

    def calls(
        self,
        since: Annotated[AwareDatetime | None, Query(description="default: 24 h ago")] = None,
        before: Annotated[AwareDatetime | None, Query(description="nextBefore of the page before")] = None,
        before_id: Annotated[
            str | None,
            Query(alias="beforeId", max_length=200, pattern=NO_NUL, description="nextBeforeId of the page before"),
        ] = None,
        camera: Chosen = None,
        task: Chosen = None,
        key: Chosen = None,
        lane: Chosen = None,
        status: Chosen = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> CallPage:
        """Requests to the endpoint, failed and cancelled ones too, the newest first."""
        wanted = CallFilter(
            since=since or datetime.now(UTC) - DEFAULT_SPAN,
            before=before, before_id=before_id, camera_id=camera, task_id=task, key_hash=key, lane=lane, status=status,
        )  # fmt: skip
        found = list_calls(self._engine, wanted, limit=limit + 1)
        items = tuple(
            CallEntry(
                call_id=call.call_id, task_id=call.task_id, shared_with=tuple(call.shared_with),
                camera_id=call.camera_id, captured_at=call.captured_at,
                run=call.run, lane=call.lane, key_hash=call.key_hash, model=call.model,
                prompt_version=call.prompt_version, status=call.status, http_status=call.http_status,
                started_at=call.started_at, first_token_latency=_seconds(call.started_at, call.first_token_at),
                latency=_seconds(call.started_at, call.finished_at), input_tokens=call.input_tokens,
                output_tokens=call.output_tokens, cost=call.cost, error=call.error,
            )
            for call in found[:limit]
        )  # fmt: skip
        last = found[limit - 1] if len(found) > limit else None
        return CallPage(
            items=items,
            next_before=None if last is None else last.started_at,
            next_before_id=None if last is None else last.call_id,
        )

    def keys(self) -> list[KeyEntry]:
        """All keys, by hash."""
        spent = {entry.key_hash: entry for entry in key_spending(self._engine, hours=1)}
        with transaction(self._engine) as connection:
            rows = connection.execute(select(*ApiKey.__table__.columns).order_by(ApiKey.key_hash)).all()
        entries = []
        for row in rows:
            usage = spent.get(row.key_hash)
            entries.append(
                KeyEntry(
                    key_hash=row.key_hash, label=row.label, qps_limit=row.qps_limit, rpm_limit=row.rpm_limit,
                    learned_qps=row.learned_qps, learned_rpm=row.learned_rpm, state=row.state,
                    reason=row.state_reason, cooling_until=row.cooling_until,
                    calls=usage.calls if usage else 0, ok=usage.ok if usage else 0,
                    rate_limited=usage.rate_limited if usage else 0, failed=usage.failed if usage else 0,
                    cost=usage.cost if usage else 0.0, p95=usage.p95 if usage else None,
                )
            )  # fmt: skip
        return entries

    def switch(self) -> list[SwitchEntry]:
        """The lanes as they are switched; a camera without an entry follows ``*``, and that is realtime by default."""
        entries = read_switch(self._engine).entries
        return [
            SwitchEntry(camera_id=name, lane=entry.lane, changed_at=entry.changed_at)
            for name, entry in sorted(entries.items())
        ]

    async def set_switch(self, camera_id: SwitchParameter, body: SwitchBody, request: Request) -> SwitchEntry:
        """Move the switch; running services follow within 5 s. For admins."""
        entry = Entry(None if body.lane is None else Lane(body.lane), datetime.now(UTC))

        async def move() -> SwitchEntry:
            await asyncio.to_thread(write_switch, self._engine, Positions({camera_id: entry}))
            return SwitchEntry(camera_id=camera_id, lane=entry.lane, changed_at=entry.changed_at)

        return await self._acts.carry_out(actor_of(request, body.by), "switch", camera_id, {"lane": body.lane}, move)


def _seconds(begun: datetime, ended: datetime | None) -> float | None:
    return None if ended is None else round((ended - begun).total_seconds(), 3)
