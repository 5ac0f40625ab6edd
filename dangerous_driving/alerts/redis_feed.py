"""The feed of the old system's big screens: the newest result of each camera, a channel per camera, the last high alerts.

===========================  ==========================================================================================
``PREFIX`` + ``latest:ID``   string, JSON of the newest final result (topic ``risk-assessment-results``), for 300 s
``PREFIX`` + ``camera:ID``   channel, ``{"type": "risk_assessment" | "alert", "data": {…}}`` as it comes
``PREFIX`` + ``high-alerts`` list of JSON alerts whose peak is high, the newest first, at most 100, each once
===========================  ==========================================================================================

The names are settings. Redis is a window, not a store: it holds what can be had from the ledger. Offsets are committed
after Redis has a batch, so a crash shows some messages twice and loses none; an older result or version never takes the
place of a newer one. While Redis is away the service waits.
"""

from __future__ import annotations

import json
import threading
from typing import Any, Protocol

import structlog

from dangerous_driving.contracts import LIVE_RUN, Alert, Message, RiskAssessmentResult, RiskLevel, Stage
from dangerous_driving.errors import ConfigError, DeliveryError
from dangerous_driving.messaging import Received
from dangerous_driving.messaging.in_hand import BatchesInHand
from dangerous_driving.messaging.seam import GroupMember
from dangerous_driving.observability.metrics import REDIS_FED
from dangerous_driving.settings.notifications import RedisSettings

log = structlog.get_logger(__name__)

#: KEYS: the camera's key. ARGV: JSON, its time, s to live. Keeps the newer one of two.
LATEST = """
local before = redis.call('GET', KEYS[1])
if before then
  local time = cjson.decode(before)['capturedAt']
  if type(time) == 'string' and time > ARGV[2] then return 0 end
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[3])
return 1
"""

#: KEYS: the list. ARGV: JSON, alert id, version, length. An alert stands in it once, in its newest version.
HIGH = """
for index, text in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
  local alert = cjson.decode(text)
  if alert['alertId'] == ARGV[2] then
    if alert['version'] >= tonumber(ARGV[3]) then return 0 end
    redis.call('LSET', KEYS[1], index - 1, ARGV[1])
    return 1
  end
end
redis.call('LPUSH', KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], 0, ARGV[4] - 1)
return 1
"""


class RedisServer(Protocol):
    """What is asked of Redis."""

    def eval(self, script: str, numkeys: int, *keys_and_args: Any) -> Any:
        """Run a script."""

    def publish(self, channel: str, message: bytes) -> Any:
        """Tell those who listen now."""


class RedisFeed:
    """Brings results and alerts into Redis until it is stopped."""

    def __init__(self, server: RedisServer, consumer: GroupMember, settings: RedisSettings) -> None:
        self._server = server
        self._batches = BatchesInHand(consumer, away=(DeliveryError,))
        self._settings = settings

    def run(self, stop: threading.Event) -> None:
        """Work until `stop`. A batch in hand is written first, unless Redis stays away; then it comes again."""
        while not stop.is_set():
            received = self._batches.receive(stop)
            if not received:
                continue
            if not self._batches.keep(received, self._write, stop):
                return
            self._batches.commit()

    def feed(self, message: Message) -> None:
        """Write one message.

        Raises:
            DeliveryError: Redis did not take it.
        """
        if isinstance(message, RiskAssessmentResult):
            self._result(message)
        elif isinstance(message, Alert):
            self._alert(message)

    def _result(self, result: RiskAssessmentResult) -> None:
        if result.stage is not Stage.FINAL or result.error is not None or result.metadata.run != LIVE_RUN:
            return
        # messages from before `capturedAt`: the answer's own time is the nearest that is known
        known = result if result.captured_at else result.model_copy(update={"captured_at": result.timestamp})
        content = known.model_dump(mode="json", by_alias=True)
        key = self._name(self._settings.latest_key, result.camera_id)
        self._run(LATEST, key, _json(content), content["capturedAt"], self._settings.latest_ttl)
        self._tell(result.camera_id, "risk_assessment", content)

    def _alert(self, alert: Alert) -> None:
        content = alert.model_dump(mode="json", by_alias=True)
        if alert.peak_level is RiskLevel.HIGH:
            key = self._name(self._settings.high_alerts_key, alert.camera_id)
            self._run(HIGH, key, _json(content), alert.alert_id, alert.version, self._settings.high_alerts)
        self._tell(alert.camera_id, "alert", content)

    def _tell(self, camera_id: str, kind: str, content: dict[str, Any]) -> None:
        channel = self._name(self._settings.channel, camera_id)
        try:
            self._server.publish(channel, _json({"type": kind, "data": content}))
        except _errors() as error:
            raise _away(error) from error
        REDIS_FED.labels(type=kind).inc()

    def _run(self, script: str, key: str, *arguments: Any) -> None:
        try:
            self._server.eval(script, 1, key, *arguments)
        except _errors() as error:
            raise _away(error) from error

    def _name(self, template: str, camera_id: str) -> str:
        return self._settings.prefix + template.replace("{camera_id}", camera_id)

    def _write(self, in_hand: list[Received[Any]]) -> None:
        while in_hand:
            self.feed(in_hand[0].message)
            del in_hand[0]


def open_redis(settings: RedisSettings) -> Any:
    """A client; it connects at its first use.

    Raises:
        ConfigError: no address is set, or the extra is not installed.
    """
    if settings.url is None:
        raise ConfigError(
            "redis.url", "none is set, so there is nothing to feed", "set DD_REDIS__URL=redis://host:6379/0"
        )
    try:
        import redis
    except ImportError as error:
        raise ConfigError(
            "redis.url",
            "the client is not installed",
            "install the extra: python -m pip install -e '.[redis]' in the checkout",
        ) from error
    try:
        return redis.Redis.from_url(
            settings.url.get_secret_value(),
            socket_timeout=settings.timeout,
            socket_connect_timeout=settings.timeout,
        )
    except ValueError as error:
        raise ConfigError("redis.url", "no usable address", "write redis://host:6379/0") from error


def check(settings: RedisSettings) -> str:
    """Ask the server whether it is there.

    Raises:
        ConfigError: see `open_redis`.
        DeliveryError: it does not answer.
    """
    server = open_redis(settings)
    try:
        server.ping()
    except _errors() as error:
        raise _away(error) from error
    finally:
        server.close()
    return "Redis answers"


def _errors() -> type[Exception]:
    import redis

    return redis.RedisError


def _away(error: Exception) -> DeliveryError:
    # its text may hold the address with its password
    return DeliveryError(f"Redis did not take it ({type(error).__name__}); check redis.url")


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
