"""Keys and windows say the same, and every window that has ended has a partition."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.assessment.windows import Window, window_of
from dangerous_driving.defs.partitions import WINDOW, first_window, partition_key, window_of_key, window_partitions
from dangerous_driving.settings import WindowsSettings

LENGTHS = st.sampled_from([60, 300, 900, 1800, 3600, 7200, 21600, 86400])
CAMERAS = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
NOW = datetime(2025, 10, 20, 10, 30, 45, tzinfo=UTC)
CAPTURED = st.datetimes(datetime(2025, 7, 23), datetime(2025, 10, 20), timezones=st.just(UTC))  # noqa: DTZ001


def windows_of(settings: WindowsSettings) -> dg.TimeWindowPartitionsDefinition:
    windows = window_partitions(settings, NOW).get_partitions_def_for_dimension(WINDOW)
    assert isinstance(windows, dg.TimeWindowPartitionsDefinition)
    return windows


@given(camera_id=CAMERAS, captured_at=CAPTURED, length=LENGTHS)
def test_a_key_leads_back_to_its_window(camera_id: str, captured_at: datetime, length: int) -> None:
    window = window_of(camera_id, captured_at, length)
    assert window_of_key(str(partition_key(window)), length) == window


@given(captured_at=CAPTURED, length=LENGTHS)
def test_every_ended_window_of_the_ledger_is_a_partition_of_the_same_span(captured_at: datetime, length: int) -> None:
    window = window_of("north-1", captured_at, length)
    key = partition_key(window).keys_by_dimension[WINDOW]
    partitions = windows_of(WindowsSettings(length=length))
    assert partitions.has_partition_key(key)
    span = partitions.time_window_for_partition_key(key)
    assert (span.start, span.end) == (window.start, window.end)


def test_a_key_names_camera_and_start_in_utc() -> None:
    window = Window("north-1", datetime(2025, 10, 20, 10, tzinfo=UTC), 3600)
    assert str(partition_key(window)) == "north-1|2025-10-20-10:00"


@pytest.mark.parametrize("key", ["north-1", "north-1|yesterday", "north-1|2025-10-20"])
def test_another_form_of_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="does not match format"):
        window_of_key(key, 3600)


def test_windows_begin_with_the_retention_and_stay_put_for_a_day() -> None:
    settings = WindowsSettings(retention_days=30)
    assert first_window(settings, NOW) == datetime(2025, 9, 20, tzinfo=UTC)
    assert first_window(settings, NOW + timedelta(hours=13)) == first_window(settings, NOW)


def test_a_given_start_is_cut_to_a_whole_window_and_taken_as_utc() -> None:
    settings = WindowsSettings(length=900, start=datetime(2025, 10, 19, 22, 50))  # noqa: DTZ001
    assert first_window(settings, NOW) == datetime(2025, 10, 19, 22, 45, tzinfo=UTC)
