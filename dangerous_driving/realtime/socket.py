"""One client on the WebSocket, from its handshake to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from fastapi import WebSocket, WebSocketDisconnect
from pydantic import AwareDatetime, TypeAdapter, ValidationError
from sqlalchemy import Engine

from dangerous_driving.contracts import Alert, Verdict
from dangerous_driving.errors import LedgerError
from dangerous_driving.ledger import alerts as ledger
from dangerous_driving.realtime.access import SUBPROTOCOL, Access
from dangerous_driving.realtime.envelopes import (
    ConnectionAck,
    Feedback,
    Ping,
    Pong,
    Problem,
    ServerType,
    Subscribe,
    UnreadableError,
    Unsubscribe,
    envelope,
    read,
)
from dangerous_driving.realtime.feedback import FeedbackDesk
from dangerous_driving.realtime.hub import Client, Hub

log = structlog.get_logger(__name__)

#: Why the bridge ends a connection (WebSocket close codes; 4000-4999 are the application's own).
NOT_AUTHORISED = 4401
TOO_SLOW = 4408
TOO_MANY_PROBLEMS = 1008

#: Alerts that a connection gets again at most.
RESUME_LIMIT = 500
#: An alert is stamped when it is decided and seen once it is committed and sent, so a client may have seen a younger one before.
RESUME_OVERLAP = timedelta(seconds=30)

_TIME: TypeAdapter[datetime] = TypeAdapter(AwareDatetime)


class SocketEndpoint:
    """Serves clients of ``/ws``.

    ``/ws?after=TIME`` resumes: the alerts that changed since are sent again (a little more than that: a client tells by id
    and version). ``?token=`` or a subprotocol carries the token (:mod:`~dangerous_driving.realtime.access`).
    """

    SEND_SECONDS = 20.0  # one message may take this long, then the client is gone
    CLOSE_SECONDS = 5.0  # a slow client gets as long to hear why it is disconnected
    MOST_PROBLEMS = 20  # unreadable messages in a row

    def __init__(
        self,
        hub: Hub,
        engine: Engine,
        desk: FeedbackDesk,
        access: Access,
        greeting: Callable[[], ConnectionAck],
    ) -> None:
        self._hub = hub
        self._engine = engine
        self._desk = desk
        self._access = access
        self._greeting = greeting

    async def serve(self, websocket: WebSocket) -> None:
        """One connection."""
        headers = websocket.headers
        if not (
            self._access.allows_host(headers.get("host"))
            and self._access.allows_origin(headers.get("origin"), headers.get("host"))
        ):
            await websocket.close()  # before it is accepted: HTTP 403
            return
        offered = [name.strip() for name in headers.get("sec-websocket-protocol", "").split(",")]
        await websocket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in offered else None)
        known = self._access.knows(
            authorization=headers.get("authorization"), protocols=offered, query=websocket.query_params.get("token")
        )
        if not known:
            # accepted first, since a browser cannot see why a handshake was refused
            await websocket.close(NOT_AUTHORISED, "a token is needed")
            return
        client, first = self._hub.connect()
        try:
            await self._talk(websocket, client, first)
        finally:
            self._hub.disconnect(client)

    async def _talk(self, websocket: WebSocket, client: Client, first: list[str]) -> None:
        async def to_client() -> None:
            for text in [*await self._greet(websocket.query_params.get("after")), *first]:
                await self._send(websocket, text)
            while True:
                await self._send(websocket, await client.next())

        async def from_client() -> None:
            problems = 0
            while problems <= self.MOST_PROBLEMS:
                received = await websocket.receive()
                if received["type"] == "websocket.disconnect":
                    return
                problems = 0 if await self._take(client, received.get("text")) else problems + 1
            await websocket.close(TOO_MANY_PROBLEMS, "too many unreadable messages")

        async def until_too_slow() -> None:
            await client.too_slow.wait()
            self._hub.disconnect(client)
            async with asyncio.timeout(self.CLOSE_SECONDS):  # what was sent before is still in its way
                await websocket.close(TOO_SLOW, "too slow: connect again and resume")

        await _first_of(to_client(), from_client(), until_too_slow())

    async def _greet(self, after: str | None) -> list[str]:
        ack = self._greeting()
        if after is None:
            return [envelope(ServerType.CONNECTION_ACK, ack)]
        try:
            since = _TIME.validate_python(after) - RESUME_OVERLAP
            missed = await asyncio.to_thread(ledger.changed_since, self._engine, since, limit=RESUME_LIMIT + 1)
        except ValidationError:
            problem = Problem(code="bad_message", message="after: a time in ISO 8601 with its zone is needed")
        except LedgerError as error:
            log.warning("connection_not_resumed", reason=str(error))
            problem = Problem(code="unavailable", message="what was missed cannot be read now: ask again")
        else:
            return [envelope(ServerType.CONNECTION_ACK, _resumed(ack, missed)), *_in_order(missed[:RESUME_LIMIT])]
        return [
            envelope(ServerType.CONNECTION_ACK, ack.model_copy(update={"truncated": True})),
            envelope(ServerType.ERROR, problem),
        ]

    async def _take(self, client: Client, text: str | None) -> bool:
        """Do what the client asks; whether it could be understood."""
        try:
            message = read(text)
        except UnreadableError as error:
            client.put(ServerType.ERROR, envelope(ServerType.ERROR, error.problem))
            return False
        match message:
            case Ping(data=data):
                pong = Pong(server_time=datetime.now(UTC), nonce=data.nonce)
                client.put(ServerType.PONG, envelope(ServerType.PONG, pong))
            case Subscribe(data=data):
                client.subscription.add(data)
            case Unsubscribe(data=data):
                client.subscription.remove(data)
            case Feedback():
                await self._judge(client, message)
        return True

    async def _judge(self, client: Client, message: Feedback) -> None:
        verdict = Verdict.ACKNOWLEDGED if message.type == "acknowledge" else Verdict.REJECTED
        data = message.data
        try:
            alert = await self._desk.give(data.alert_id, verdict, by=data.by, note=data.note)
        except LedgerError as error:
            log.warning("verdict_not_kept", alert_id=data.alert_id, reason=str(error))
            problem = Problem(code="unavailable", message="the verdict could not be kept: try again")
        else:
            if alert is not None:
                return
            problem = Problem(code="unknown_alert", message="there is no such alert")
        client.put(ServerType.ERROR, envelope(ServerType.ERROR, problem))

    async def _send(self, websocket: WebSocket, text: str) -> None:
        async with asyncio.timeout(self.SEND_SECONDS):
            await websocket.send_text(text)


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
