"""Windows of a length that is not the setting's any more: none of their content is forgotten, none is counted twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from dangerous_driving import services
from dangerous_driving.assessment.windows import Window, window_of
from dangerous_driving.errors import BrokerError
from dangerous_driving.ledger import windows
from dangerous_driving.ledger.backlog import backlog
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.frames import record_detections
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.settings import DatabaseSettings, Settings, WindowsSettings
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import tasks_from_detection

pytestmark = pytest.mark.integration

MINUTE, HOUR = 60, 3600
NOW = datetime.now(UTC)
#: The start of an hour that ended long ago.
TEN = NOW.replace(minute=0, second=0, microsecond=0) - timedelta(hours=5)


def capture(ledger: Engine, minute: int, *, length: int, camera_id: str = "north", second: int = 0) -> Window:
    at = TEN + timedelta(minutes=minute, seconds=second)
    result = detection_result(camera_id, at, groups=2)
    record_detections(ledger, Partitions(), [result], tasks_from_detection(result), window_length=length)
    return window_of(camera_id, at, length)


def take_over(ledger: Engine, length: int, *, now: datetime = NOW) -> int:
    return windows.take_over_windows(ledger, length=length, now=now, lateness=60)


def due(ledger: Engine, length: int) -> list[tuple[str, int]]:
    """Cameras and minutes after ten of the due windows."""
    found = windows.due_windows(ledger, now=NOW, lateness=60, length=length, limit=1000)
    return [(item.window.camera_id, (item.window.start - TEN) // timedelta(minutes=1)) for item in found]


def rows(ledger: Engine, query: str) -> list[tuple[Any, ...]]:
    with transaction(ledger) as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def complete(ledger: Engine, window: Window) -> None:
    windows.complete_window(ledger, window, windows.start_window(ledger, window, "run"))


def test_an_incomplete_hour_goes_on_as_its_minutes_with_frames(ledger: Engine) -> None:
    for minute in (0, 7, 59):
        capture(ledger, minute, length=HOUR)
    capture(ledger, 30, length=HOUR, camera_id="south")
    assert due(ledger, MINUTE) == []
    assert take_over(ledger, MINUTE) == 2
    assert due(ledger, MINUTE) == [("north", 0), ("north", 7), ("south", 30), ("north", 59)]
    assert due(ledger, HOUR) == []
    assert take_over(ledger, MINUTE) == 0
    assert rows(ledger, "SELECT DISTINCT version FROM camera_window WHERE length = 60") == [(1,)]


def test_incomplete_minutes_go_on_as_their_hour_and_no_minute_of_it_is_left(ledger: Engine) -> None:
    done = capture(ledger, 3, length=MINUTE)
    complete(ledger, done)
    for minute in (5, 50, 61):
        capture(ledger, minute, length=MINUTE)
    other = capture(ledger, -1, length=MINUTE)
    complete(ledger, other)
    assert take_over(ledger, HOUR) == 4  # that of the hour which was complete, too: the hour counts its groups
    assert due(ledger, HOUR) == [("north", 0), ("north", 60)]
    assert due(ledger, MINUTE) == []
    taken = "SELECT count(*) FROM camera_window WHERE assessed_version >= version AND completed_at IS NULL"
    assert rows(ledger, taken) == [(4,)]
    assert rows(ledger, "SELECT count(*) FROM camera_window WHERE completed_at IS NOT NULL") == [
        (1,)
    ]  # of another hour


def test_complete_windows_of_another_length_stay_as_they_are(ledger: Engine) -> None:
    complete(ledger, capture(ledger, 0, length=HOUR))
    assert take_over(ledger, MINUTE) == 0
    assert due(ledger, MINUTE) == []


def test_a_window_is_taken_over_when_it_has_closed(ledger: Engine) -> None:
    capture(ledger, 0, length=HOUR)
    closing = TEN + timedelta(seconds=HOUR + 60)
    assert take_over(ledger, MINUTE, now=closing - timedelta(seconds=1)) == 0
    assert (
        windows.take_over_windows(ledger, length=MINUTE, now=TEN, lateness=None) == 1
    )  # where open ones are asked for


def test_what_was_given_up_has_its_attempts_anew(ledger: Engine) -> None:
    capture(ledger, 0, length=HOUR)
    rows(ledger, f"UPDATE camera_window SET attempts = {windows.MAX_ATTEMPTS} RETURNING 1")
    take_over(ledger, MINUTE)
    assert due(ledger, MINUTE) == [("north", 0)]


def test_late_frames_of_a_process_with_the_old_setting_open_the_new_window_again(ledger: Engine) -> None:
    capture(ledger, 0, length=HOUR)
    take_over(ledger, MINUTE)
    complete(ledger, window_of("north", TEN, MINUTE))
    capture(ledger, 0, length=HOUR, second=20)
    assert due(ledger, MINUTE) == []
    assert take_over(ledger, MINUTE) == 1
    assert due(ledger, MINUTE) == [("north", 0)]


def test_a_change_back_opens_the_first_windows_again_as_new_content(ledger: Engine) -> None:
    capture(ledger, 0, length=HOUR)
    take_over(ledger, MINUTE)
    take_over(ledger, HOUR)
    [hour] = windows.due_windows(ledger, now=NOW, lateness=60, length=HOUR, limit=9)
    assert hour.version == 2  # its runs before had the key of version 1
    assert due(ledger, MINUTE) == []


def test_the_oldest_are_taken_over_first_and_some_at_a_time(ledger: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "TAKEN_OVER_AT_A_TIME", 2)
    for minute in (60, 0, 120):
        capture(ledger, minute, length=HOUR)
    assert take_over(ledger, MINUTE) == 2
    assert due(ledger, MINUTE) == [("north", 0), ("north", 60)]
    assert [take_over(ledger, MINUTE), take_over(ledger, MINUTE)] == [1, 0]


def test_the_metrics_count_a_window_of_another_length_until_it_is_taken_over_and_then_its_heirs(ledger: Engine) -> None:
    for minute in (0, 59):
        capture(ledger, minute, length=HOUR)
    found = backlog(ledger, lateness=60)
    since_closing = (datetime.now(UTC) - TEN).total_seconds() - HOUR - 60
    assert found.windows_due == 1
    assert found.overdue == pytest.approx(since_closing, abs=30)
    take_over(ledger, MINUTE)
    assert backlog(ledger, lateness=60).windows_due == 2


@pytest.mark.parametrize("open_too", [False, True])
def test_the_command_takes_over_what_is_left_before_it_looks_for_windows(
    ledger: Engine, database: DatabaseSettings, monkeypatch: pytest.MonkeyPatch, open_too: bool
) -> None:
    class NoBroker:
        def __init__(self, *_: object) -> None:
            raise BrokerError("there is none here")

    monkeypatch.setattr(services, "Producer", NoBroker)
    settings = Settings(database=database, windows=WindowsSettings(length=MINUTE))
    capture(ledger, 0, length=HOUR)
    day = detection_result("south", NOW - timedelta(seconds=1), groups=1)  # of a day that is not over
    record_detections(ledger, Partitions(), [day], tasks_from_detection(day), window_length=24 * HOUR)
    with pytest.raises(BrokerError):  # so there was something to do
        services.run_windows(settings, open_too=open_too)
    made = {camera for (camera,) in rows(ledger, "SELECT camera_id FROM camera_window WHERE length = 60")}
    assert made == ({"north", "south"} if open_too else {"north"})
