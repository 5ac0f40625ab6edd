"""`dangerous-driving alerts …` and `notifications …` against a real ledger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine
from typer.testing import CliRunner, Result

from dangerous_driving.commands import alerts as alert_commands
from dangerous_driving.commands import notifications as notification_commands
from dangerous_driving.errors import ConfigError, DeliveryError
from dangerous_driving.ledger import alerts as ledger_alerts
from dangerous_driving.ledger import notifications as ledger_notifications
from dangerous_driving.ledger.quiet import read_quiet
from dangerous_driving.settings import DatabaseSettings
from dangerous_driving.settings.notifications import signing_key
from tests.alerts.conftest import sighting
from tests.notifications.conftest import LIFECYCLE, SECRET


@pytest.fixture
def settings_file(database: DatabaseSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "220")
    file = tmp_path / "settings.yaml"
    receiver = {"name": "desk", "kind": "webhook", "url": "http://127.0.0.1:1/hook", "secret": SECRET, "timeout": 2}
    content: dict[str, Any] = {
        "database": {"url": database.url.get_secret_value()},
        "alerts": {"time_zone": "Europe/Vienna", "quiet_hours": [{"begin": "00:00", "end": "05:00"}]},
        "notifications": {"receivers": [receiver]},
    }
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def alerts(settings_file: Path, command: str, *arguments: str) -> Result:
    return CliRunner().invoke(alert_commands.app, [command, *arguments, "--config", str(settings_file)])


def notifications(settings_file: Path, command: str, *arguments: str) -> Result:
    return CliRunner().invoke(notification_commands.app, [command, *arguments, "--config", str(settings_file)])


def test_a_camera_is_snoozed_shown_and_woken(settings_file: Path, ledger: Engine) -> None:
    assert alerts(settings_file, "snooze", "gate", "--for", "1h30m", "--note", "road [works]").exit_code == 0
    until = read_quiet(ledger)["gate"].snoozed_until
    assert until is not None
    assert timedelta(minutes=89) < until - datetime.now(UTC) <= timedelta(minutes=90)
    shown = alerts(settings_file, "quiet").stdout
    assert "road [works]" in shown
    assert "00:00-05:00" in shown
    assert "Europe/Vienna" in shown
    assert alerts(settings_file, "snooze", "gate", "--end").exit_code == 0
    assert read_quiet(ledger)["gate"].snoozed_until is None


def test_quiet_hours_are_set_and_taken_away(settings_file: Path, ledger: Engine) -> None:
    assert alerts(settings_file, "quiet-hours", "*", "22:00-06:00", "12:00-13:00", "--days", "mon,tue").exit_code == 0
    kept = read_quiet(ledger)["*"].hours
    assert [(f"{item.begin:%H:%M}", item.days) for item in kept] == [
        ("22:00", ("mon", "tue")),
        ("12:00", ("mon", "tue")),
    ]
    assert alerts(settings_file, "quiet-hours", "*", "--none").exit_code == 0
    assert read_quiet(ledger)["*"].hours == ()


@pytest.mark.parametrize(
    ("command", "arguments", "named"),
    [
        ("snooze", ["gate"], "--for, --until and --end"),
        ("snooze", ["gate", "--for", "10m", "--end"], "--for, --until and --end"),
        ("snooze", ["gate", "--for", "soon"], "soon"),
        ("snooze", ["gate", "--for", "0m"], "0m"),
        ("snooze", ["gate", "--for", "400d"], "400d"),
        ("snooze", ["gate", "--until", "2020-01-01"], "2020-01-01"),
        ("snooze", ["no/camera", "--for", "1h"], "no/camera"),
        ("quiet-hours", ["gate"], "--none"),
        ("quiet-hours", ["gate", "22:00-06:00", "--none"], "--none"),
        ("quiet-hours", ["gate", "night"], "night"),
        ("quiet-hours", ["gate", "25:00-06:00"], "a time of day"),
        ("quiet-hours", ["gate", "22:00-06:00", "--days", "someday"], "days are mon"),
    ],
)
def test_what_is_wrong_is_named_with_the_remedy(
    settings_file: Path, ledger: Engine, command: str, arguments: list[str], named: str
) -> None:
    result = alerts(settings_file, command, *arguments)
    assert isinstance(result.exception, ConfigError)
    assert named in str(result.exception)
    assert read_quiet(ledger) == {}


@given(st.integers(0, 300), st.integers(0, 23), st.integers(0, 59), st.integers(1, 59))
def test_durations_are_read_as_written(days: int, hours: int, minutes: int, seconds: int) -> None:
    written = f"{days}d{hours}h{minutes}m{seconds}s"
    assert alert_commands.duration(written) == timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def test_alerts_and_what_was_told_of_them_are_listed(settings_file: Path, ledger: Engine) -> None:
    from dangerous_driving.contracts import AlertBasis, RiskLevel

    look = sighting(AlertBasis.FINAL, 0, RiskLevel.HIGH, 0, 1, ("tailgating", "[red]odd[/]"))
    (change,) = ledger_alerts.advance(ledger, LIFECYCLE, [look])
    listed = alerts(settings_file, "list").stdout
    assert change.after.alert.alert_id in listed
    assert "[red]odd[/]" in listed
    now = datetime.now(UTC)
    message = ledger_notifications.put_test(ledger, "desk", now=now)
    ledger_notifications.give_up(ledger, message, error="the webhook answered with status 404")
    assert "status 404" in notifications(settings_file, "list", "--state", "failed").stdout
    assert "1 failed messages" in notifications(settings_file, "retry").stdout
    assert "pending" in notifications(settings_file, "list", "--receiver", "desk").stdout


def test_a_test_message_says_why_it_does_not_arrive(settings_file: Path) -> None:
    result = notifications(settings_file, "test", "desk")
    assert isinstance(result.exception, DeliveryError)
    unknown = notifications(settings_file, "test", "nobody")
    assert isinstance(unknown.exception, ConfigError)
    assert "desk" in str(unknown.exception)


def test_a_new_secret_has_the_right_form() -> None:
    result = CliRunner().invoke(notification_commands.app, ["make-secret"])
    assert len(signing_key(result.stdout.strip())) == 32


def test_the_doctor_reaches_receivers_and_redis(settings_file: Path) -> None:
    from dangerous_driving import doctor, settings

    loaded = settings.load(settings_file)
    (finding,) = doctor.receivers(loaded)
    assert (finding.part, finding.ok) == ("receiver desk", False)
    assert "did not answer" in finding.text


def test_settings_with_receivers_and_quiet_hours_survive_being_written_for_a_demo(settings_file: Path) -> None:
    from dangerous_driving import settings
    from dangerous_driving.demo.data_folder import plain

    loaded = settings.load(settings_file)
    again = settings.Settings(**yaml.safe_load(yaml.safe_dump(plain(loaded))))
    assert again == loaded
