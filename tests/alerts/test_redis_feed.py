"""The big screens' feed, in a real Redis."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from dangerous_driving.alerts.redis_feed import RedisFeed, check, open_redis
from dangerous_driving.contracts import (
    AssessmentFailure,
    AssessmentMetadata,
    Message,
    RiskAssessment,
    RiskAssessmentResult,
    RiskLevel,
    Stage,
)
from dangerous_driving.errors import ConfigError, DeliveryError
from dangerous_driving.messaging import Received, Topic
from dangerous_driving.ports import free_port
from dangerous_driving.settings.notifications import RedisSettings
from tests.alerts.conftest import NOON
from tests.notifications.conftest import alert, program, running, wait_until

pytestmark = pytest.mark.integration

PREFIX = "dangerous-driving:"


class Server:
    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.log = folder / "redis.log"
        self.argv = [
            program("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder),
            "--requirepass", "s3cret",
        ]  # fmt: skip

    @property
    def settings(self) -> RedisSettings:
        return RedisSettings(url=SecretStr(f"redis://:s3cret@127.0.0.1:{self.port}/0"), timeout=2)

    def start(self) -> Any:
        return running(self.argv, self.port, self.log)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


@pytest.fixture
def redis(server: Server) -> Iterator[Any]:
    with server.start():
        client = open_redis(server.settings)
        yield client
        client.close()


def result(number: int = 0, camera: str = "crossing", **changes: Any) -> RiskAssessmentResult:
    captured = NOON + timedelta(seconds=number)
    return RiskAssessmentResult(
        message_id=f"result{number}", request_id=f"frame{number}", camera_id=camera, timestamp=captured,
        results=(RiskAssessment(group_index=1, risk_level=RiskLevel.LOW),), has_dangerous_driving=False,
        max_risk_level=RiskLevel.LOW, task_id=f"task{number}", captured_at=captured,
    ).model_copy(update=changes)  # fmt: skip


class Consumer:
    """Hands out batches; what was not committed is known."""

    def __init__(self, batches: Sequence[Sequence[Message]]) -> None:
        self.batches = list(batches)
        self.commits = 0
        self.paused = False

    def poll(self, timeout: float, max_records: int) -> list[Received[Any]]:
        if self.paused or not self.batches:
            time.sleep(min(timeout, 0.01))
            return []
        return [Received(Topic.ALERTS, 0, offset, None, message) for offset, message in enumerate(self.batches.pop(0))]

    def commit(self) -> bool:
        self.commits += 1
        return True

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def set_aside(self, item: Received[Any], reason: str, field: str = "") -> None:
        raise AssertionError(f"nothing here is unusable, and yet: {reason}")


def feed(server: Server, *messages: Message) -> None:
    client = open_redis(server.settings)
    for message in messages:
        RedisFeed(client, Consumer([]), server.settings).feed(message)
    client.close()


def latest(redis: Any, camera: str = "crossing") -> Any:
    text = redis.get(f"{PREFIX}latest:{camera}")
    return json.loads(text)["messageId"] if text else None


def high(redis: Any) -> list[tuple[str, int]]:
    listed = (json.loads(text) for text in redis.lrange(f"{PREFIX}high-alerts", 0, -1))
    return [(item["alertId"], item["version"]) for item in listed]


def test_the_newest_result_of_a_camera_is_there_for_five_minutes(server: Server, redis: Any) -> None:
    feed(server, result(3), result(1), result(0, camera="gate"))  # a late answer about an earlier frame
    assert (latest(redis), latest(redis, "gate")) == ("result3", "result0")
    assert 290 < redis.ttl(f"{PREFIX}latest:crossing") <= 300


@pytest.mark.parametrize(
    "changes",
    [{"stage": Stage.PROVISIONAL}, {"error": AssessmentFailure(code="timeout", message="")},
     {"metadata": AssessmentMetadata(run="backfill")}],
)  # fmt: skip
def test_what_is_no_final_live_answer_is_passed_over(server: Server, redis: Any, changes: dict[str, Any]) -> None:
    feed(server, result(1, **changes))
    assert latest(redis) is None


def test_high_alerts_stand_once_each_in_their_newest_version_the_newest_first(server: Server, redis: Any) -> None:
    feed(server, alert(1), alert(2), alert(1, version=3), alert(1, version=2), alert(9, peak_level=RiskLevel.MEDIUM))
    assert high(redis) == [("alert-2", 1), ("alert-1", 3)]
    feed(server, *(alert(number) for number in range(10, 130)))
    assert high(redis) == [(f"alert-{number}", 1) for number in range(129, 29, -1)]


def test_whatever_order_results_come_in_the_newest_stays(server: Server, redis: Any) -> None:
    order = [*range(20), *range(20)]
    random.Random(1).shuffle(order)  # noqa: S311
    feed(server, *(result(number) for number in order))
    assert latest(redis) == "result19"


def test_those_who_listen_to_a_camera_hear_results_and_alerts(server: Server, redis: Any) -> None:
    listener = redis.pubsub(ignore_subscribe_messages=True)
    listener.subscribe(f"{PREFIX}camera:crossing")
    wait_until(lambda: redis.pubsub_numsub(f"{PREFIX}camera:crossing")[0][1] == 1, "the subscription")
    feed(server, result(1), alert(2), result(3, camera="gate"))
    heard: list[Any] = []

    def listen() -> bool:
        message = listener.get_message(timeout=0.2)
        if message:
            heard.append(json.loads(message["data"]))
        return len(heard) == 2

    wait_until(listen, "two messages")
    assert [item["type"] for item in heard] == ["risk_assessment", "alert"]
    listener.close()


def test_while_redis_is_away_the_batch_is_kept_and_nothing_is_committed(server: Server) -> None:
    consumer = Consumer([[result(1), alert(1)], [result(2)]])
    service = RedisFeed(open_redis(server.settings), consumer, server.settings)
    service._batches.backoff = (0.05, 0.05)
    stop = threading.Event()
    thread = threading.Thread(target=service.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: consumer.paused, "the first failure")
        assert consumer.commits == 0
        with server.start():
            wait_until(lambda: consumer.commits == 2, "both batches")
            client = open_redis(server.settings)
            assert (latest(client), high(client)) == ("result2", [("alert-1", 1)])
            client.close()
    finally:
        stop.set()
        thread.join()


def test_what_is_wrong_is_told_without_the_password(server: Server) -> None:
    with pytest.raises(ConfigError, match=r"redis\.url"):
        open_redis(RedisSettings())
    with pytest.raises(ValidationError, match="redis://"):
        RedisSettings(url=SecretStr("http://s3cret@host"))
    with pytest.raises(DeliveryError) as error:
        check(server.settings)
    assert "s3cret" not in str(error.value)
    with server.start():
        assert check(server.settings) == "Redis answers"
        wrong = RedisSettings(url=SecretStr(f"redis://:wrong@127.0.0.1:{server.port}/0"))
        with pytest.raises(DeliveryError, match="AuthenticationError"):
            check(wrong)
