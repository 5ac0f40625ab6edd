"""A client of the bridge for programs: alerts as they come, over every break of the connection.

::

    client = BridgeClient("http://127.0.0.1:8080", token="…", minimum_level=RiskLevel.HIGH)
    async for alert in client.alerts():
        print(alert.alert_id, alert.risk_level, alert.description)
        await client.acknowledge(alert.alert_id, by="night shift")

The connection is made again after each break, at any bridge that answers under the address, and resumes after the last
alert that was seen: each alert is given out once by its id (with ``changes=True``, once by id and version, in rising
versions). What was seen is `position`; kept somewhere and handed in again, a new process goes on where the last one ended.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any, ClassVar
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import httpx
import structlog
from pydantic import TypeAdapter, ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from dangerous_driving.contracts import Alert, Message, RiskLevel, iso_milliseconds
from dangerous_driving.errors import BridgeError, BridgeRefusedError
from dangerous_driving.realtime.envelopes import CameraStatus, ConnectionAck, ServerType, SubscriptionData

log = structlog.get_logger(__name__)

NOT_AUTHORISED = 4401
#: HTTP statuses of the handshake after which the same connection may succeed later
_LATER = frozenset({429, 500, 502, 503, 504})

_ENVELOPE: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


class BridgeClient:
    """One subscriber of a bridge.

    Args:
        url: the bridge's address, as a browser opens it (``http://`` or ``https://``).
        token: `realtime.token` or a signed token; None where access is open.
        cameras: ids of the cameras that matter; None for all.
        minimum_level: the lowest level an alert must have reached.
        position: where an earlier client ended (its `position`); None for what comes from now on.
    """

    OPEN_SECONDS = 10.0
    REQUEST_SECONDS = 15.0
    BACKOFF_INITIAL = 0.5
    BACKOFF_MAX = 15.0
    REMEMBERED = 50_000  # alerts; many times what one break can bring again

    #: Of the newest alerts, how many the ledger is asked for when a break was too long for the bridge to resume.
    PAGE: ClassVar[int] = 200
    #: The clocks of bridge and alerts service may differ, and a change is told a moment after its time.
    OVERLAP: ClassVar[timedelta] = timedelta(seconds=30)

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        cameras: Collection[str] | None = None,
        minimum_level: RiskLevel = RiskLevel.NONE,
        position: str | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BridgeRefusedError(
                f"{url!r} is no address of a bridge; write it as a browser opens it: http://HOST:PORT"
            )
        self._base = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
        self._socket = "ws" + self._base.removeprefix("http") + "/ws"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._wanted = SubscriptionData(
            cameras=tuple(cameras) if cameras is not None else None, minimum_level=minimum_level, types=()
        )
        self.position = position
        #: the greeting of the current connection
        self.greeting: ConnectionAck | None = None
        #: by the bridge's clock, all that was decided until then has been heard of
        self._complete_until: datetime | None = None
        self._versions: OrderedDict[str, int] = OrderedDict()

    async def alerts(self, *, changes: bool = False) -> AsyncGenerator[Alert]:
        """Alerts as they come, for ever; with `changes`, every version of each.

        Raises:
            BridgeRefusedError: the bridge does not accept the token, or the address is not a bridge's.
        """
        async with aclosing(self.messages()) as messages:
            async for message in messages:
                if isinstance(message, Alert):
                    known = self._versions.get(message.alert_id, 0)
                    if message.version <= known:
                        continue
                    self._remember(message)
                    if changes or not known:
                        yield message

    async def messages(self) -> AsyncGenerator[Message]:
        """Everything of interest as it comes: alerts (some twice), camera statuses, greetings. Raises as `alerts`."""
        backoff = self.BACKOFF_INITIAL
        while True:
            try:
                async with connect(
                    self._address(), additional_headers=self._headers, open_timeout=self.OPEN_SECONDS, max_size=2**22
                ) as connection:
                    await self._subscribe(connection)
                    async for message in self._read(connection):
                        backoff = self.BACKOFF_INITIAL
                        yield message
                reason = "the bridge ended the connection"
            except InvalidStatus as error:
                status = error.response.status_code
                if status not in _LATER:
                    raise BridgeRefusedError(
                        f"{self._base} refuses the connection (HTTP {status}); is it a bridge of this project?"
                    ) from error
                reason = f"HTTP {status}"
            except ConnectionClosed as error:
                if error.rcvd is not None and error.rcvd.code == NOT_AUTHORISED:
                    raise BridgeRefusedError(f"{self._base}: {error.rcvd.reason}") from error
                reason = str(error)
            except (OSError, TimeoutError, WebSocketException) as error:
                reason = str(error) or type(error).__name__
            except (BridgeError, httpx.HTTPError) as error:
                reason = str(error)
            log.info("bridge_connection_broken", reason=reason)
            # spread out, so that a thousand clients do not come back in the same moment
            await asyncio.sleep(backoff * (0.5 + random.random() / 2))  # noqa: S311 - no secret
            backoff = min(2 * backoff, self.BACKOFF_MAX)

    async def acknowledge(self, alert_id: str, *, note: str = "", by: str = "client") -> Alert:
        """Say that somebody takes care of it; `by` counts only where no signed token says who it is.

        Raises:
            BridgeRefusedError: there is no such alert, or the token may not do that.
            BridgeError: the bridge did not answer, or could not keep it; the call may be made again.
        """
        return await self._judge(alert_id, "acknowledge", note, by)

    async def reject(self, alert_id: str, *, note: str = "", by: str = "client") -> Alert:
        """Say that it is a false alarm. As `acknowledge`."""
        return await self._judge(alert_id, "reject", note, by)

    def _address(self) -> str:
        if self.position is not None:
            return f"{self._socket}?{urlencode({'last': self.position})}"
        if self._complete_until is not None:  # nothing was seen yet, but something may have been missed in a break
            return f"{self._socket}?{urlencode({'after': iso_milliseconds(self._complete_until)})}"
        return self._socket

    async def _subscribe(self, connection: ClientConnection) -> None:
        await connection.send(
            f'{{"type":"subscribe","data":{self._wanted.model_dump_json(by_alias=True, exclude_none=True)}}}'
        )

    async def _read(self, connection: ClientConnection) -> AsyncGenerator[Message]:
        outstanding = 0  # alerts that are still to be sent again
        async for text in connection:
            message = _message(text)
            if isinstance(message, ConnectionAck):
                self.greeting = message
                outstanding = message.resumed
                if message.truncated:
                    for alert in await self._from_ledger(message.server_time):
                        yield alert
            elif isinstance(message, Alert):
                outstanding -= 1
            if message is not None and (not isinstance(message, Alert) or self._wants(message)):
                yield message
            if outstanding <= 0 and self.greeting is not None:
                # the rest comes over this connection; after the next break, what came before need not be asked for
                self._complete_until = self.greeting.server_time

    async def _from_ledger(self, now: datetime) -> list[Alert]:
        """All that changed since the last change that was seen, the oldest alert first: the bridge could not resume it."""
        async with self._http() as http:
            since = await self._seen_last(http) or self._complete_until or now
            wanted = {"limit": str(self.PAGE), "changedSince": iso_milliseconds(since - self.OVERLAP)}
            if self._wanted.cameras is not None and len(self._wanted.cameras) == 1:
                wanted["camera"] = self._wanted.cameras[0]
            found: list[Alert] = []
            while True:
                page = _ok(await http.get("/api/alerts", params=wanted)).json()
                found += [Alert.model_validate(item) for item in page["items"]]
                if page["nextCursor"] is None:
                    break
                wanted["cursor"] = page["nextCursor"]
        return [alert for alert in reversed(found) if self._wants(alert)]

    async def _seen_last(self, http: httpx.AsyncClient) -> datetime | None:
        """When the change that was seen last was made; None if none was seen, or the ledger does not know it."""
        if self.position is None:
            return None
        alert_id, _, version = self.position.partition(":")
        seen = await http.get(f"/api/alerts/{quote(alert_id, safe='')}")
        if seen.status_code == httpx.codes.NOT_FOUND:
            log.warning("position_unknown", position=self.position)
            self.position = None
            return None
        changes = (Alert.model_validate(step["alert"]) for step in _ok(seen).json()["history"])
        return next((alert.updated_at for alert in changes if str(alert.version) == version), None)

    def _wants(self, alert: Alert) -> bool:
        # what is resumed comes before the subscription is known to the bridge
        cameras, level = self._wanted.cameras, self._wanted.minimum_level
        return (cameras is None or alert.camera_id in cameras) and (
            level is None or alert.peak_level.rank >= level.rank or alert.alert_id in self._versions
        )

    def _remember(self, alert: Alert) -> None:
        self._versions[alert.alert_id] = alert.version
        self._versions.move_to_end(alert.alert_id)
        if len(self._versions) > self.REMEMBERED:
            self._versions.popitem(last=False)
        self.position = f"{alert.alert_id}:{alert.version}"

    def _http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self._base, headers=self._headers, timeout=self.REQUEST_SECONDS)

    async def _judge(self, alert_id: str, act: str, note: str, by: str) -> Alert:
        async with self._http() as http:
            try:
                answer = await http.post(f"/api/alerts/{quote(alert_id, safe='')}/{act}", json={"note": note, "by": by})
            except httpx.HTTPError as error:
                raise BridgeError(f"{self._base} did not answer ({error}); try again") from error
        return Alert.model_validate(_ok(answer).json())


def _message(text: str | bytes) -> Message | None:
    try:
        value = _ENVELOPE.validate_json(text)
        model = _MODELS.get(value.get("type", ""))
        return model.model_validate(value.get("data")) if model else None
    except ValidationError as error:
        raise BridgeError(f"the bridge sent what is no message of this version ({error.errors()[0]['msg']})") from error


_MODELS: dict[str, type[Message]] = {
    ServerType.CONNECTION_ACK.value: ConnectionAck,
    ServerType.CAMERA_STATUS.value: CameraStatus,
    ServerType.ALERT.value: Alert,
}


def _ok(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = answer.reason_phrase
    problem = f"the bridge answered {answer.status_code}: {detail}"
    raise BridgeError(problem) if answer.status_code in _LATER else BridgeRefusedError(problem)
