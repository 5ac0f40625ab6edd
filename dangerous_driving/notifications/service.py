"""The service `notify`: what alerts tell -> messages to receivers.

It is a service of its own, not a part of `alerts`: a mail server that hangs must not delay the next alert, only this
process knows the receivers' passwords and needs a way out of the network, and it may be restarted for a new receiver.

It reads the ledger alone. Planning and its mark are one transaction, and a sent message is marked after the receiver has
taken it; so a process that dies anywhere loses nothing, and what it had in hand is sent again under the same id. Each
receiver has a thread: a slow one keeps back no other.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import structlog
from sqlalchemy import Engine

from dangerous_driving.contracts import Alert, RiskLevel
from dangerous_driving.errors import (
    ConfigError,
    ContractError,
    DeliveryError,
    LedgerError,
    ObjectNotFoundError,
    ObjectStoreError,
    RefusedError,
)
from dangerous_driving.ledger import notifications as ledger
from dangerous_driving.ledger.notifications import Claimed
from dangerous_driving.notifications.mail import PICTURE_ID
from dangerous_driving.notifications.pacing import Step, Waiting, pace
from dangerous_driving.notifications.plan import Held, Planned, planned
from dangerous_driving.notifications.rendering import Item, Rendered, Renderer
from dangerous_driving.objects import ObjectStore
from dangerous_driving.observability.metrics import (
    NOTIFICATION_FAILURES,
    NOTIFICATION_SECONDS,
    NOTIFICATIONS_PLANNED,
    NOTIFICATIONS_SENT,
    NOTIFICATIONS_WAITING,
)
from dangerous_driving.settings.notifications import AnyReceiver, NotificationsSettings

log = structlog.get_logger(__name__)

Clock = Callable[[], datetime]


class Channel(Protocol):
    """One receiver's way, whatever it is."""

    def deliver(self, item: Item, rendered: Rendered, picture: bytes | None = None) -> None:
        """Send one message; returns once the receiver has it.

        Raises:
            RefusedError: it does not take this one.
            DeliveryError: it takes none now.
        """

    def check(self) -> str:
        """Reach the receiver without a message; says what was seen.

        Raises:
            DeliveryError: it cannot be reached.
        """

    def close(self) -> None:
        """End connections."""


def now_utc() -> datetime:
    """The clock of a running service."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Post:
    """A receiver with its way and its words."""

    receiver: AnyReceiver
    channel: Channel
    renderer: Renderer


class Dispatcher:
    """Sends to one receiver what is due."""

    def __init__(
        self,
        engine: Engine,
        post: Post,
        settings: NotificationsSettings,
        *,
        store: ObjectStore | None = None,
        clock: Clock = now_utc,
        chance: random.Random | None = None,
    ) -> None:
        self._engine = engine
        self._post = post
        self._settings = settings
        self._store = store
        self._clock = clock
        self._chance = chance or random.Random()  # noqa: S311  # spreads attempts, keeps no secret
        self._failures = 0  # of the receiver, in a row

    def step(self) -> datetime | None:
        """Send what is due; returns when to look again if that is known.

        Raises:
            LedgerError: the database is away; what was in hand is sent again.
        """
        receiver = self._post.receiver
        now = self._clock()
        claimed, look_again = ledger.claim(
            self._engine,
            receiver.name,
            self._choose,
            now=now,
            window=timedelta(seconds=receiver.rate_window),
            lease=timedelta(seconds=self._settings.claim_timeout),
        )
        for number, message in enumerate(claimed):
            if self._clock() - now > timedelta(seconds=self._settings.claim_timeout / 2):
                # the rest waits too long in hand: another process might take it over in the middle
                self._give_back(claimed[number:], self._clock(), "")
                return None
            pause = self._send(message)
            if pause is not None:
                until = self._clock() + timedelta(seconds=pause)
                self._give_back(claimed[number + 1 :], until, "the receiver does not take messages now")
                return until
        return look_again

    def _choose(self, waiting: Sequence[Waiting], sent: Sequence[datetime]) -> Step:
        receiver = self._post.receiver
        window = timedelta(seconds=receiver.rate_window)
        return pace(waiting, sent, now=self._clock(), limit=receiver.rate_limit, window=window)

    def _send(self, message: Claimed) -> float | None:
        """Send one; returns s to wait before the next if the receiver takes none now."""
        name, item = self._post.receiver.name, message.item
        try:
            picture = self._picture(item)
            rendered = self._post.renderer.render(
                item, at=self._clock(), members=message.members, picture_id=PICTURE_ID if picture else None
            )
            self._post.channel.deliver(item, rendered, picture)
        except (DeliveryError, ConfigError) as error:
            return self._failed(message, error)
        at = self._clock()
        ledger.finish(self._engine, item.notification_id, at=at)
        self._failures = 0
        NOTIFICATIONS_SENT.labels(receiver=name, kind=item.kind).inc()
        NOTIFICATION_SECONDS.labels(receiver=name).observe(max((at - message.created_at).total_seconds(), 0.0))
        log.info(
            "notified",
            receiver=name,
            kind=item.kind,
            notification_id=item.notification_id,
            alert_id=item.alert.alert_id if item.alert else None,
            alerts=len(message.members) or 1,
            attempts=message.attempts,
        )
        return None

    def _failed(self, message: Claimed, error: DeliveryError | ConfigError) -> float | None:
        name, item, now = self._post.receiver.name, message.item, self._clock()
        own = isinstance(error, RefusedError | ConfigError)  # of this message, not of the receiver
        if not own:
            self._failures += 1
        attempts = message.attempts if own else max(message.attempts, self._failures)
        pause = self._backoff(attempts)
        if isinstance(error, DeliveryError) and error.retry_after is not None:
            pause = max(pause, error.retry_after)
        if now - message.first_tried_at > timedelta(seconds=self._settings.give_up_after):
            ledger.give_up(self._engine, item.notification_id, error=str(error))
            NOTIFICATION_FAILURES.labels(receiver=name, reason="given_up").inc()
            log.error("notification_given_up", receiver=name, notification_id=item.notification_id, reason=str(error))
        else:
            ledger.postpone(self._engine, item.notification_id, due_at=now + timedelta(seconds=pause), error=str(error))
            NOTIFICATION_FAILURES.labels(receiver=name, reason="refused" if own else "unreachable").inc()
            log.warning(
                "notification_waits",
                receiver=name,
                notification_id=item.notification_id,
                reason=str(error),
                attempts=message.attempts,
                seconds=round(pause, 1),
            )
        return None if own else pause

    def _backoff(self, attempts: int) -> float:
        longest = self._settings.backoff_initial * 2.0 ** min(attempts - 1, 30)
        # between half and all of it, so that many messages do not come back at the same moment
        return min(longest, self._settings.backoff_max) * self._chance.uniform(0.5, 1.0)

    def _give_back(self, messages: Sequence[Claimed], due_at: datetime, error: str) -> None:
        for message in messages:
            ledger.postpone(self._engine, message.item.notification_id, due_at=due_at, error=error)

    def _picture(self, item: Item) -> bytes | None:
        wanted = self._post.receiver.kind == "email" and self._post.receiver.picture
        if self._store is None or not wanted or item.alert is None or item.alert.group_image_url is None:
            return None
        try:
            return self._store.get(self._store.key(item.alert.group_image_url))
        except (ObjectNotFoundError, ObjectStoreError, ContractError) as error:
            # the words matter more than the picture
            log.warning("notification_without_picture", alert_id=item.alert.alert_id, reason=str(error))
            return None


class NotifyService:
    """Plans, and sends to every receiver, until it is stopped."""

    BATCH = 500
    POLL_SECONDS = 0.5
    COUNT_SECONDS = 10.0
    BACKOFF_MAX = 10.0

    def __init__(
        self,
        engine: Engine,
        posts: Sequence[Post],
        settings: NotificationsSettings,
        *,
        store: ObjectStore | None = None,
        clock: Clock = now_utc,
    ) -> None:
        self._engine = engine
        self._posts = list(posts)
        self._settings = settings
        self._store = store
        self._clock = clock
        self._news = {post.receiver.name: threading.Event() for post in posts}
        self._count_at = clock()
        self._broken: BaseException | None = None

    def run(self, stop: threading.Event) -> None:
        """Work until `stop`; the message in hand is finished first."""
        threads = [
            threading.Thread(target=self._work, args=(post, stop), name=f"to {post.receiver.name}", daemon=True)
            for post in self._posts
        ]
        for thread in threads:
            thread.start()
        backoff = self.POLL_SECONDS
        while not stop.is_set() and self._broken is None:
            try:
                while self.plan() == self.BATCH and not stop.is_set():
                    pass
                self._count()
                backoff = self.POLL_SECONDS
            except LedgerError as error:
                log.warning("notifications_not_planned", reason=str(error))
                backoff = min(2 * backoff, self.BACKOFF_MAX)
            stop.wait(backoff)
        stop.set()
        for event in self._news.values():
            event.set()
        longest = max((post.receiver.timeout for post in self._posts), default=0.0)
        for thread in threads:
            thread.join(2 * longest)
        for post in self._posts:
            post.channel.close()
        if self._broken is not None:
            raise self._broken

    def plan(self) -> int:
        """Plan what has not been planned; returns how many versions of alerts were looked at.

        Raises:
            LedgerError: nothing was planned.
        """
        now = self._clock()

        def of(alert: Alert, told: Mapping[str, RiskLevel], waits: Mapping[str, Held]) -> list[Planned]:
            found = [
                planned(post.receiver, alert, told.get(name := post.receiver.name), now=now, waits=waits.get(name))
                for post in self._posts
            ]
            return [item for item in found if item is not None]

        oldest = timedelta(seconds=self._settings.oldest)
        looked_at = ledger.plan_pending(self._engine, of, now=now, oldest=oldest, limit=self.BATCH)
        if looked_at:
            NOTIFICATIONS_PLANNED.inc(looked_at)
            for event in self._news.values():
                event.set()
        return looked_at

    def _work(self, post: Post, stop: threading.Event) -> None:
        try:
            dispatcher = Dispatcher(self._engine, post, self._settings, store=self._store, clock=self._clock)
            news, backoff = self._news[post.receiver.name], self.POLL_SECONDS
            while not stop.is_set():
                wait = self.POLL_SECONDS
                news.clear()
                try:
                    until = dispatcher.step()
                    backoff = self.POLL_SECONDS
                    if until is not None:
                        wait = max((until - self._clock()).total_seconds(), self.POLL_SECONDS)
                except LedgerError as error:
                    log.warning("notifications_wait", receiver=post.receiver.name, reason=str(error))
                    backoff = wait = min(2 * backoff, self.BACKOFF_MAX)
                # news do not end a pause that the receiver asked for
                (stop if wait > self.POLL_SECONDS else news).wait(min(wait, self._settings.backoff_max))
        except BaseException as error:  # noqa: BLE001  # raised again by the main thread: the process ends and is restarted
            self._broken = error

    def _count(self) -> None:
        now = self._clock()
        if now < self._count_at:
            return
        self._count_at = now + timedelta(seconds=self.COUNT_SECONDS)
        counts = ledger.waiting_by_receiver(self._engine)
        for name in {post.receiver.name for post in self._posts} | {receiver for receiver, _ in counts}:
            for state in ("pending", "failed"):
                NOTIFICATIONS_WAITING.labels(receiver=name, state=state).set(counts.get((name, state), 0))
