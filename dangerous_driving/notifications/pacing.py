"""How many messages a receiver gets: a limit per time, beyond which several become one digest. Pure.

Nothing is dropped: what finds no room is told in a digest, and what waits for a free place goes on waiting. The same
digest tells what was held in a quiet time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

#: Messages in one digest at most; more become the next one.
MOST_IN_DIGEST = 200


@dataclass(frozen=True)
class Waiting:
    """A message that is due. ``held``: it waited for the end of a quiet time. ``digest``: it is one already."""

    notification_id: str
    held: bool = False
    digest: bool = False


@dataclass(frozen=True)
class Step:
    """What to do now: messages to send as they are, and those that become one digest, which is sent too."""

    send: tuple[str, ...] = ()
    digest: tuple[str, ...] = ()
    look_again: datetime | None = None  # a place comes free then


def pace(waiting: Sequence[Waiting], sent: Sequence[datetime], *, now: datetime, limit: int, window: timedelta) -> Step:
    """Choose among what is due, in its order.

    Args:
        waiting: due messages, those to be sent first at the beginning.
        sent: when messages were sent; a message in hand counts as sent now.
        now: the time.
        limit: messages in any `window`, digests included.
        window: how long.
    """
    recent = sorted(at for at in sent if at > now - window)
    free = limit - len(recent)
    if not waiting:
        return Step()
    if free <= 0:
        # not the oldest one's place alone: a limit may have been lowered meanwhile
        return Step(look_again=recent[len(recent) - limit] + window)
    ready = [item.notification_id for item in waiting if item.digest]
    held = [item.notification_id for item in waiting if item.held and not item.digest]
    single = [item.notification_id for item in waiting if not item.held and not item.digest]
    if len(held) == 1:
        held, single = [], [*held, *single]
    if len(ready) + len(single) + bool(held) <= free:
        return Step((*ready, *single), tuple(held[:MOST_IN_DIGEST]))
    # one place is kept for the digest of all the rest, if there is more than one of them
    alone = [*ready, *single][: free - 1] if free > len(ready) else ready[:free]
    rest = [*held, *(name for name in single if name not in alone)]
    if len(alone) == free:
        return Step(tuple(alone))
    return Step(tuple(alone), tuple(rest[:MOST_IN_DIGEST]))
