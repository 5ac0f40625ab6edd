"""Who listens, to what, and what waits for them. Lives on one event loop; nothing here waits for a client.

Each client has a bounded queue. When it is full, its oldest detection results and assessments go first: the next ones
are newer. An alert never goes: a client for whom only alerts wait and one more comes is disconnected, and gets what
it missed from the ledger when it connects again (:mod:`~dangerous_driving.realtime.socket`).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

from dangerous_driving.contracts import (
    LIVE_RUN,
    Alert,
    DetectionResult,
    Message,
    RiskAssessmentResult,
    RiskLevel,
)
from dangerous_driving.observability.metrics import (
    WEBSOCKET_CLIENTS,
    WEBSOCKET_DROPPED,
    WEBSOCKET_TOO_SLOW,
)
from dangerous_driving.observability.stages import Stage, alert_reached, frame_pushed
from dangerous_driving.realtime.envelopes import (
    MAX_CAMERAS,
    CameraStatus,
    ServerType,
    StreamStopped,
    SubscriptionData,
    envelope,
)

#: What a slow client does without; everything else is kept for it.
EXPENDABLE = frozenset({ServerType.DETECTION_RESULT, ServerType.RISK_ASSESSMENT, ServerType.PONG, ServerType.ERROR})
#: s that one message may take on its way, then its client is gone
SEND_SECONDS = 20.0
#: Alerts and pictures that the hub remembers, the newest.
REMEMBERED_ALERTS = 5_000
REMEMBERED_PICTURES = 5_000

#: Pictures in base64 stay out: a page gets pictures over HTTP.
_WITHOUT_PICTURES = {"traffic_groups": {"__all__": {"group_image_base64"}}}

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")


class Remembered(Generic[KeyT, ValueT]):
    """The newest entries, up to a number."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: OrderedDict[KeyT, ValueT] = OrderedDict()

    def put(self, key: KeyT, value: ValueT) -> None:
        """Add an entry, or make it the newest again."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._most:
            self._entries.popitem(last=False)

    def get(self, key: KeyT) -> ValueT | None:
        """The entry, if it is still remembered."""
        return self._entries.get(key)


@dataclass
class Subscription:
    """What one client wants: all cameras but `without`, or only `cameras`; from `minimum_level` on; all types or some."""

    cameras: set[str] | None = None
    without: set[str] | None = None
    minimum_level: RiskLevel = RiskLevel.NONE
    types: frozenset[str] = frozenset({ServerType.DETECTION_RESULT, ServerType.RISK_ASSESSMENT})

    def add(self, wanted: SubscriptionData) -> bool:
        """More: with cameras named, those (only those, if it was all); without, all again.

        Returns:
            Whether it is taken: not if it would name more than MAX_CAMERAS, and then nothing changes.
        """
        if len((self.cameras or set()) | set(wanted.cameras or ())) > MAX_CAMERAS:
            return False
        if wanted.minimum_level is not None:
            self.minimum_level = wanted.minimum_level
        if wanted.types is not None:
            self.types = frozenset(wanted.types)
        if wanted.cameras is None:
            # a subscription that only changes the level or the types leaves the cameras as they are
            if wanted.minimum_level is None and wanted.types is None:
                self.cameras, self.without = None, None
            return True
        self.cameras = (self.cameras or set()) | set(wanted.cameras)
        self.without = None
        return True

    def remove(self, unwanted: SubscriptionData) -> bool:
        """Fewer: without the named cameras; none at all if none is named. Returns as `add`."""
        if self.cameras is None and len((self.without or set()) | set(unwanted.cameras or ())) > MAX_CAMERAS:
            return False
        if unwanted.cameras is None:
            self.cameras, self.without = set(), None
        elif self.cameras is None:
            self.without = (self.without or set()) | set(unwanted.cameras)
        else:
            self.cameras -= set(unwanted.cameras)
        return True

    def wants_camera(self, camera_id: str) -> bool:
        """Whether messages of this camera are wanted."""
        if self.cameras is not None:
            return camera_id in self.cameras
        return camera_id not in (self.without or ())

    def wants_level(self, level: RiskLevel) -> bool:
        """Whether messages of this level are wanted."""
        return level.rank >= self.minimum_level.rank


class Client:
    """One connection's queue and wishes."""

    def __init__(self, most: int) -> None:
        self.subscription = Subscription()
        self.too_slow = asyncio.Event()
        #: monotonic s at which the message that is being sent began; None between two
        self.sending_since: float | None = None
        self._most = most
        self._waiting: OrderedDict[int, tuple[ServerType, str]] = OrderedDict()
        self._expendable: deque[int] = deque()  # numbers in order; some may have been sent meanwhile
        self._next_number = 0
        self._filled = asyncio.Event()
        # an alert that was shown goes on being shown when it falls below the wanted level
        self._shown: Remembered[str, bool] = Remembered(1000)

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, kind: ServerType, text: str) -> None:
        """Queue one message; room is made as the module says."""
        if len(self._waiting) >= self._most and not self._drop_oldest():
            if kind in EXPENDABLE:
                WEBSOCKET_DROPPED.labels(type=kind.value).inc()
            else:
                self.too_slow.set()
            return
        number = self._next_number
        self._next_number += 1
        self._waiting[number] = (kind, text)
        if kind in EXPENDABLE:
            self._expendable.append(number)
        self._filled.set()

    def _drop_oldest(self) -> bool:
        while self._expendable:
            item = self._waiting.pop(self._expendable.popleft(), None)
            if item is not None:
                WEBSOCKET_DROPPED.labels(type=item[0].value).inc()
                return True
        return False

    async def next(self) -> str:
        """The next message, once there is one."""
        while not self._waiting:
            self._filled.clear()
            await self._filled.wait()
        _, (kind, text) = self._waiting.popitem(last=False)
        if kind in EXPENDABLE and self._expendable:
            self._expendable.popleft()
        return text

    def wants_alert(self, alert: Alert) -> bool:
        """Whether this alert is for this client; from its first showing on, all its versions are."""
        if not self.subscription.wants_camera(alert.camera_id):
            return False
        if self.subscription.wants_level(alert.peak_level):
            self._shown.put(alert.alert_id, True)
            return True
        return self._shown.get(alert.alert_id) is not None


class Hub:
    """All clients of this bridge, and the newest of what they ask for first."""

    def __init__(self, *, client_queue: int, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._client_queue = client_queue
        self._clock = clock
        self._clients: set[Client] = set()
        self._statuses: dict[str, CameraStatus] = {}
        self._newest_frames: dict[str, tuple[DetectionResult, str]] = {}
        self._alerts: Remembered[str, Alert] = Remembered(REMEMBERED_ALERTS)
        self._pictures: Remembered[tuple[str, str], str] = Remembered(REMEMBERED_PICTURES)

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    def connect(self) -> tuple[Client, list[str]]:
        """A new client, that wants everything, and what it is to be sent first: all statuses and newest frames."""
        client = Client(self._client_queue)
        self._clients.add(client)
        WEBSOCKET_CLIENTS.set(len(self._clients))
        statuses = [envelope(ServerType.CAMERA_STATUS, status) for status in self._statuses.values()]
        return client, statuses + [text for _, text in self._newest_frames.values()]

    def disconnect(self, client: Client) -> None:
        """Forget the client."""
        self._clients.discard(client)
        WEBSOCKET_CLIENTS.set(len(self._clients))

    def give_up_stuck(self, now: float) -> None:
        """Disconnect clients that have not taken one message for SEND_SECONDS; `now` is monotonic."""
        for client in self._clients:
            since = client.sending_since
            if since is not None and now - since > SEND_SECONDS and not client.too_slow.is_set():
                client.too_slow.set()
                WEBSOCKET_TOO_SLOW.inc()

    def receive(self, messages: Iterable[Message]) -> None:
        """Hand messages from the topics to whom they are for."""
        for message in messages:
            if isinstance(message, Alert):
                if self.alert(message):
                    alert_reached(Stage.PUSH, message, at=self._clock())
            elif isinstance(message, DetectionResult):
                self._detection(message)
            elif isinstance(message, RiskAssessmentResult):
                self._assessment(message)

    def alert(self, alert: Alert) -> bool:
        """Hand on an alert; a version that was handed on already, or an older one, is passed over.

        Returns:
            Whether the alert reached a new stage with it.
        """
        before = self._alerts.get(alert.alert_id)
        if before is not None and before.version >= alert.version:
            return False
        self._alerts.put(alert.alert_id, alert)
        text = envelope(ServerType.ALERT, alert)
        for client in self._clients:
            if client.wants_alert(alert):
                self._put(client, ServerType.ALERT, text)
        return before is None or before.basis is not alert.basis

    def fill(self, missed: Sequence[Alert]) -> None:
        """Hand on alerts that the topic brought while nobody read it; `missed` has those changed last first."""
        for alert in reversed(missed):
            self.alert(alert)

    def statuses(self, statuses: Iterable[CameraStatus]) -> None:
        """Hand on what has changed since the last time."""
        for status in statuses:
            before = self._statuses.get(status.camera_id)
            if before == status:
                continue
            self._statuses[status.camera_id] = status
            self._spread(status.camera_id, ServerType.CAMERA_STATUS, envelope(ServerType.CAMERA_STATUS, status))
            if before is not None and before.running and not status.running:
                stopped = StreamStopped(camera_id=status.camera_id, at=self._clock())
                self._spread(status.camera_id, ServerType.STREAM_STOPPED, envelope(ServerType.STREAM_STOPPED, stopped))

    def picture(self, camera_id: str, name: str) -> str | None:
        """Where the picture of a frame (by message id) or group (by task id) of this camera lies, if it is recent."""
        return self._pictures.get((camera_id, name))

    def _detection(self, result: DetectionResult) -> None:
        newest = self._newest_frames.get(result.camera_id)
        if newest is not None and newest[0].timestamp > result.timestamp:
            return  # came late: the wall shows a newer one
        if result.raw_frame_url:
            self._pictures.put((result.camera_id, result.message_id), result.raw_frame_url)
        text = envelope(ServerType.DETECTION_RESULT, result, exclude=_WITHOUT_PICTURES)
        self._newest_frames[result.camera_id] = (result, text)
        frame_pushed(result, at=self._clock())
        for client in self._clients:
            wants = client.subscription
            if ServerType.DETECTION_RESULT in wants.types and wants.wants_camera(result.camera_id):
                self._put(client, ServerType.DETECTION_RESULT, text)

    def _assessment(self, result: RiskAssessmentResult) -> None:
        if result.metadata.run != LIVE_RUN:
            return
        text = envelope(ServerType.RISK_ASSESSMENT, result)
        for client in self._clients:
            wants = client.subscription
            if (
                ServerType.RISK_ASSESSMENT in wants.types
                and wants.wants_camera(result.camera_id)
                and wants.wants_level(result.max_risk_level)
            ):
                self._put(client, ServerType.RISK_ASSESSMENT, text)

    def _spread(self, camera_id: str, kind: ServerType, text: str) -> None:
        for client in self._clients:
            if client.subscription.wants_camera(camera_id):
                self._put(client, kind, text)

    @staticmethod
    def _put(client: Client, kind: ServerType, text: str) -> None:
        if client.too_slow.is_set():
            return  # on its way out
        client.put(kind, text)
        if client.too_slow.is_set():
            WEBSOCKET_TOO_SLOW.inc()
