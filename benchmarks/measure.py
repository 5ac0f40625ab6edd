"""What a caller in a benchmark counts. No import of the package: LiteLLM's environment does not have it."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

MESSAGES = [
    {"role": "system", "content": "You judge traffic scenes."},
    {"role": "user", "content": '{"objects": [{"objectId": 1, "class": "car", "bbox": [100, 100, 300, 220]}]}'},
]

Call = Callable[[], Awaitable[str]]
"""One task: returns the answer's text, or raises: then the task is lost."""


def percentile(values: list[float], share: float) -> float | None:
    """The value below which this share of the values lies."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None


@dataclass
class Count:
    """Answers, losses, and the seconds that were added to the model's own."""

    answered: int = 0
    lost: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    added: list[float] = field(default_factory=list)
    longest_pause: float = 0.0

    async def task(self, call: Call) -> None:
        """Run one task and count it."""
        started = time.monotonic()
        try:
            text = await call()
        except Exception as error:  # noqa: BLE001  # whatever a contender raises, its task is lost
            self.lost += 1
            name = type(error).__name__
            self.reasons[name] = self.reasons.get(name, 0) + 1
            return
        self.answered += 1
        own = re.search(r'"seconds": ([\d.]+)', text)
        if own:
            self.added.append(time.monotonic() - started - float(own.group(1)))

    async def watch_loop(self) -> None:
        """Note the longest pause of the event loop."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            self.longest_pause = max(self.longest_pause, time.monotonic() - before - 0.01)

    def tell(self, **more: object) -> None:
        """Print what was counted, for the process that started this one."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        print(
            json.dumps({
                "answered": self.answered, "lost": self.lost, "reasons": self.reasons,
                "added_p50": percentile(self.added, 0.5), "added_p95": percentile(self.added, 0.95),
                "cpu": usage.ru_utime + usage.ru_stime, "longest_pause": self.longest_pause, **more,
            }),
            flush=True,
        )  # fmt: skip


async def backlog(count: Count, call: Call, *, workers: int, seconds: float) -> None:
    """As many tasks at a time as there are workers, for so long; those under way are cut off and not counted."""
    ends = time.monotonic() + seconds

    async def work() -> None:
        while time.monotonic() < ends:
            await count.task(call)

    running = [asyncio.create_task(work()) for _ in range(workers)]
    watching = asyncio.create_task(count.watch_loop())
    await asyncio.sleep(seconds)
    for task in (*running, watching):
        task.cancel()
    await asyncio.gather(*running, watching, return_exceptions=True)


async def arrivals(count: Count, call: Call, *, rate: float, seconds: float, grace: float = 20.0) -> None:
    """Tasks that come at an even rate; those under way at the end are waited for."""
    watching = asyncio.create_task(count.watch_loop())
    running: set[asyncio.Task[None]] = set()
    started = time.monotonic()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(started + number / rate - time.monotonic(), 0))
        task = asyncio.create_task(count.task(call))
        running.add(task)
        task.add_done_callback(running.discard)
    if running:
        _, late = await asyncio.wait(running, timeout=grace)
        count.lost += len(late)
        for task in late:
            task.cancel()
    watching.cancel()
