"""A camera whose looks at groups tests can write in a line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from dangerous_driving.alerts.inputs import Sighting, Tick, VerdictGiven
from dangerous_driving.alerts.lifecycle import AlertChange, CameraState, Lifecycle
from dangerous_driving.contracts import Alert, AlertBasis, RiskLevel, Verdict
from dangerous_driving.settings import AlertsSettings

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
INTERVAL = 1.8


@dataclass
class Scene:
    """Feeds one camera's lifecycle; frame n is captured at n x 1.8 s after noon, place x is in pixels."""

    lifecycle: Lifecycle = field(default_factory=lambda: Lifecycle(AlertsSettings()))
    state: CameraState = field(default_factory=lambda: CameraState("crossing", frame_interval=INTERVAL))
    given: list[Sighting | Tick | VerdictGiven] = field(default_factory=list)
    changes: list[AlertChange] = field(default_factory=list)

    def give(self, given: Sighting | Tick | VerdictGiven) -> list[AlertChange]:
        self.given.append(given)
        self.state, changes = self.lifecycle.step(self.state, given)
        self.changes += changes
        return changes

    def geometry(self, frame: float, x: float = 0, delay: float = 0.3, group: int = 1) -> list[AlertChange]:
        return self.give(sighting(AlertBasis.GEOMETRY, frame, RiskLevel.MEDIUM, x, delay, (), group))

    def streamed(
        self, frame: float, level: RiskLevel, x: float = 0, delay: float = 0.8, group: int = 1
    ) -> list[AlertChange]:
        return self.give(sighting(AlertBasis.PROVISIONAL, frame, level, x, delay, (), group))

    def final(
        self,
        frame: float,
        level: RiskLevel,
        *types: str,
        x: float = 0,
        delay: float = 1.5,
        group: int = 1,
    ) -> list[AlertChange]:
        return self.give(sighting(AlertBasis.FINAL, frame, level, x, delay, types, group))

    def tick(self, seconds: float) -> list[AlertChange]:
        return self.give(Tick(at=NOON + timedelta(seconds=seconds)))

    def verdict(self, alert: Alert, verdict: Verdict, seconds: float, note: str = "") -> list[AlertChange]:
        at = NOON + timedelta(seconds=seconds)
        return self.give(VerdictGiven(at=at, alert_id=alert.alert_id, verdict=verdict, by="Ada", note=note))

    @property
    def alerts(self) -> list[Alert]:
        return [tracked.alert for tracked in self.state.alerts]

    @property
    def alert(self) -> Alert:
        (alert,) = self.alerts
        return alert

    @property
    def rings(self) -> int:
        return sum(change.after.alert.notify for change in self.changes)


def sighting(
    kind: AlertBasis,
    frame: float,
    level: RiskLevel,
    x: float = 0,
    delay: float = 1.0,
    types: Iterable[str] = (),
    group: int = 1,
    size: float = 200,
) -> Sighting:
    captured = NOON + timedelta(seconds=frame * INTERVAL)
    return Sighting(
        kind=kind,
        at=captured + timedelta(seconds=delay),
        camera_id="crossing",
        task_id=f"frame{frame:g}_group{group}",
        request_id=f"frame{frame:g}",
        captured_at=captured,
        level=level,
        bbox=(x, 100, x + size, 100 + size),
        risk_types=tuple(types),
        description=f"seen in frame {frame:g}" if kind is AlertBasis.FINAL else "",
        group_image_url=f"s3://traffic/groups/{frame:g}_{group}.jpg",
    )


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def scene_with() -> Callable[[AlertsSettings], Scene]:
    return lambda settings: Scene(Lifecycle(settings))
