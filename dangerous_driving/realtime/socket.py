"""One client on the WebSocket, from its handshake to its end."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from fastapi import WebSocket, WebSocketDisconnect
from pydantic import AwareDatetime, TypeAdapter, ValidationError
from sqlalchemy import Engine
from starlette.responses import JSONResponse

from dangerous_driving.contracts import Alert, Verdict
from dangerous_driving.errors import LedgerError
from dangerous_driving.ledger import alerts as ledger
from dangerous_driving.ledger.history import time_of_version
from dangerous_driving.observability.metrics import WEBSOCKET_REFUSED
from dangerous_driving.realtime.access import SUBPROTOCOL, Access, Caller, NotAuthorisedError, Role
from dangerous_driving.realtime.acts import Actor, Acts, UnknownTargetError
from dangerous_driving.realtime.envelopes import (
    MAX_CAMERAS,
    CameraAct,
    ConnectionAck,
    Feedback,
    Ping,
    Pong,
    Problem,
    ProblemCode,
    ServerType,
    Subscribe,
    UnreadableError,
    Unsubscribe,
    envelope,
    read,
)
from dangerous_driving.realtime.hub import Client, Hub
from dangerous_driving.realtime.rates import Bucket, Rates
from dangerous_driving.settings import RealtimeSettings

log = structlog.get_logger(__name__)

#: Why the bridge ends a connection (WebSocket close codes; 4000-4999 are the application's own).
NOT_AUTHORISED = 4401
TOO_SLOW = 4408
TOO_MANY_PROBLEMS = 1008

#: Alerts that a connection gets again at most.
RESUME_LIMIT = 500
#: An alert is stamped when it is decided and seen once it is committed and sent, so a client may have seen a younger one before.
RESUME_OVERLAP = timedelta(seconds=30)

_LAST = re.compile(r"([A-Za-z0-9_-]{1,64})(?::([0-9]{1,9}))?")
_TIME: TypeAdapter[datetime] = TypeAdapter(AwareDatetime)


class SocketEndpoint:
    """Serves clients of ``/ws``.

    ``/ws?last=ALERT`` resumes after the last alert that was seen (``ALERT:VERSION`` more exactly), ``/ws?after=TIME`` after
    a time: the alerts that changed since are sent again (a little more than that: a client tells by id and version).
    ``?token=`` or a subprotocol carries the token (:mod:`~dangerous_driving.realtime.access`).
    """

    CLOSE_SECONDS = 5.0  # a slow client gets as long to hear why it is disconnected
    MOST_PROBLEMS = 20  # unreadable or too many messages in a row

    def __init__(
        self,
        settings: RealtimeSettings,
        hub: Hub,
        engine: Engine,
        acts: Acts,
        access: Access,
        greeting: Callable[[], ConnectionAck],
    ) -> None:
        self._settings = settings
        self._hub = hub
        self._engine = engine
        self._acts = acts
        self._access = access
        self._greeting = greeting
        self._connects = Rates(settings.connect_rate, settings.connect_burst, time.monotonic)

    async def serve(self, websocket: WebSocket) -> None:
        """One connection."""
        refusal = self._refusal(websocket)
        if refusal is not None:
            await websocket.send_denial_response(refusal)  # before it is accepted
            return
        headers = websocket.headers
        offered = [name.strip() for name in headers.get("sec-websocket-protocol", "").split(",")]
        await websocket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in offered else None)
        try:
            caller = self._access.identify(
                authorization=headers.get("authorization"), protocols=offered, query=websocket.query_params.get("token")
            )
        except NotAuthorisedError as error:
            # accepted first, since a browser cannot see why a handshake was refused
            await websocket.close(NOT_AUTHORISED, str(error))
            return
        client, first = self._hub.connect()
        try:
            await self._talk(websocket, Actor(caller, _address(websocket)), client, first)
        finally:
            self._hub.disconnect(client)

    def _refusal(self, websocket: WebSocket) -> JSONResponse | None:
        headers = websocket.headers
        wait = self._connects.take(_address(websocket))
        if wait > 0:
            WEBSOCKET_REFUSED.labels(reason="rate").inc()
            return _refused(429, "this address connects too often: wait", {"Retry-After": str(math.ceil(wait))})
        if self._hub.clients >= self._settings.max_clients:
            WEBSOCKET_REFUSED.labels(reason="full").inc()
            return _refused(503, "this bridge has as many clients as it takes", {"Retry-After": "5"})
        if not (
            self._access.allows_host(headers.get("host"))
            and self._access.allows_origin(headers.get("origin"), headers.get("host"))
        ):
            WEBSOCKET_REFUSED.labels(reason="origin").inc()
            return _refused(403, "this page may not connect; see realtime.allowed_origins", {})
        return None

    async def _talk(self, websocket: WebSocket, actor: Actor, client: Client, first: list[str]) -> None:
        async def to_client() -> None:
            for text in [*await self._greet(websocket, actor.caller), *first]:
                client.sending_since = time.monotonic()
                await websocket.send_text(text)
            while True:
                client.sending_since = None
                text = await client.next()
                client.sending_since = time.monotonic()
                await websocket.send_text(text)

        async def until_too_slow() -> None:
            await client.too_slow.wait()
            self._hub.disconnect(client)
            async with asyncio.timeout(self.CLOSE_SECONDS):  # what was sent before is still in its way
                await websocket.close(TOO_SLOW, "too slow: connect again and resume")

        parts = [to_client(), self._listen(websocket, actor, client), until_too_slow()]
        if actor.caller.expires_at is not None:
            parts.append(_until_expired(websocket, actor.caller))
        await _first_of(*parts)

    async def _listen(self, websocket: WebSocket, actor: Actor, client: Client) -> None:
        problems = 0
        allowance = Bucket(self._settings.message_rate, self._settings.message_burst, time.monotonic)
        while problems <= self.MOST_PROBLEMS:
            received = await websocket.receive()
            if received["type"] == "websocket.disconnect":
                return
            if allowance.take() > 0:
                _tell(client, ProblemCode.RATE_LIMITED, f"at most {self._settings.message_rate:g} messages a second")
                understood = False
            else:
                understood = await self._take(client, actor, received.get("text"))
            problems = 0 if understood else problems + 1
        await self._until_told(client)
        await websocket.close(TOO_MANY_PROBLEMS, "too many messages, or too many that make no sense")

    async def _until_told(self, client: Client) -> None:
        """Until what waits for the client is sent, at most `CLOSE_SECONDS`: it hears what was wrong before it is closed."""
        deadline = time.monotonic() + self.CLOSE_SECONDS
        while (len(client) or client.sending_since is not None) and time.monotonic() < deadline:  # noqa: ASYNC110  # for a moment
            await asyncio.sleep(0.01)

    async def _greet(self, websocket: WebSocket, caller: Caller) -> list[str]:
        ack = self._greeting().model_copy(
            update={"role": caller.role, "name": caller.name, "expires_at": caller.expires_at}
        )
        last, after = websocket.query_params.get("last"), websocket.query_params.get("after")
        if last is None and after is None:
            return [envelope(ServerType.CONNECTION_ACK, ack)]
        try:
            since = await self._last_seen(last) if last is not None else _TIME.validate_python(after)
            missed = await asyncio.to_thread(
                ledger.changed_since, self._engine, since - RESUME_OVERLAP, limit=RESUME_LIMIT + 1
            )
        except UnknownTargetError:
            problem = Problem(code=ProblemCode.UNKNOWN_ALERT, message="last: there is no such alert")
        except (ValidationError, OverflowError):
            problem = Problem(code=ProblemCode.BAD_MESSAGE, message="after: a time in ISO 8601 with its zone is needed")
        except LedgerError as error:
            log.warning("connection_not_resumed", reason=str(error))
            problem = Problem(code=ProblemCode.UNAVAILABLE, message="what was missed cannot be read now: ask again")
        else:
            return [envelope(ServerType.CONNECTION_ACK, _resumed(ack, missed)), *_in_order(missed[:RESUME_LIMIT])]
        return [
            envelope(ServerType.CONNECTION_ACK, ack.model_copy(update={"truncated": True})),
            envelope(ServerType.ERROR, problem),
        ]

    async def _last_seen(self, last: str) -> datetime:
        match = _LAST.fullmatch(last)
        if match is None:
            raise UnknownTargetError(last)
        # without its version, from the alert's beginning on: rather too much than too little
        alert_id, version = match[1], int(match[2] or 1)
        found = await asyncio.to_thread(time_of_version, self._engine, alert_id, version)
        if found is None:
            raise UnknownTargetError(alert_id)
        return found

    async def _take(self, client: Client, actor: Actor, text: str | None) -> bool:
        """Do what the client asks; whether it could be understood."""
        try:
            message = read(text)
        except UnreadableError as error:
            client.put(ServerType.ERROR, envelope(ServerType.ERROR, error.problem))
            return False
        taken = True
        match message:
            case Ping(data=data):
                pong = Pong(server_time=datetime.now(UTC), nonce=data.nonce)
                client.put(ServerType.PONG, envelope(ServerType.PONG, pong))
            case Subscribe(data=data):
                taken = client.subscription.add(data)
            case Unsubscribe(data=data):
                taken = client.subscription.remove(data)
            case Feedback() | CameraAct():
                await self._act(client, actor, message)
        if not taken:
            _tell(client, ProblemCode.TOO_MANY_CAMERAS, f"at most {MAX_CAMERAS} cameras can be named")
        return taken

    async def _act(self, client: Client, actor: Actor, message: Feedback | CameraAct) -> None:
        if not actor.caller.role.covers(Role.OPERATOR):
            log.warning("act_refused", actor=actor.name, role=actor.caller.role.value, act=message.type)
            _tell(
                client, ProblemCode.FORBIDDEN, f"the role {Role.OPERATOR} is needed; this token has {actor.caller.role}"
            )
            return
        actor = replace(actor, said=message.data.by)
        try:
            match message:
                case Feedback(data=data):
                    verdict = Verdict.ACKNOWLEDGED if message.type == "acknowledge" else Verdict.REJECTED
                    await self._acts.judge(actor, data.alert_id, verdict, data.note)
                case CameraAct(type="check_camera", data=camera):
                    status = await self._acts.check_camera(actor, camera.camera_id)
                    client.put(ServerType.CAMERA_STATUS, envelope(ServerType.CAMERA_STATUS, status))
                case CameraAct(data=camera):
                    await self._acts.switch_camera(actor, camera.camera_id, running=message.type == "start_stream")
        except UnknownTargetError:
            known = "alert" if isinstance(message, Feedback) else "camera"
            code = ProblemCode.UNKNOWN_ALERT if known == "alert" else ProblemCode.UNKNOWN_CAMERA
            _tell(client, code, f"there is no such {known}")
        except LedgerError as error:
            log.warning("act_not_kept", act=message.type, reason=str(error))
            _tell(client, ProblemCode.UNAVAILABLE, "it could not be kept: try again")


async def _until_expired(websocket: WebSocket, caller: Caller) -> None:
    while caller.expires_at is not None and not caller.expired(now := datetime.now(UTC)):  # noqa: ASYNC110 - a clock
        # in steps, since the wall clock may be put right meanwhile
        await asyncio.sleep(min(60.0, (caller.expires_at - now).total_seconds() + 0.01))
    await websocket.close(NOT_AUTHORISED, "the token has expired: ask for a new one")


def _address(websocket: WebSocket) -> str:
    return websocket.client.host if websocket.client else ""


def _refused(status: int, detail: str, headers: dict[str, str]) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers)


def _tell(client: Client, code: ProblemCode, message: str) -> None:
    client.put(ServerType.ERROR, envelope(ServerType.ERROR, Problem(code=code, message=message)))


def _resumed(ack: ConnectionAck, missed: list[Alert]) -> ConnectionAck:
    return ack.model_copy(update={"resumed": min(len(missed), RESUME_LIMIT), "truncated": len(missed) > RESUME_LIMIT})


def _in_order(missed: list[Alert]) -> list[str]:
    return [envelope(ServerType.ALERT, alert) for alert in reversed(missed)]


async def _first_of(*parts: Coroutine[Any, Any, None]) -> None:
    """Run all until one ends, then end the others; a connection that is gone, or takes nothing, is no error."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, WebSocketDisconnect | TimeoutError | asyncio.CancelledError | None):
            continue
        raise outcome
