"""`dangerous-driving cameras …` against a real ledger."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine
from typer.testing import CliRunner, Result

from dangerous_driving.camera.sharing import owner_of
from dangerous_driving.commands.cameras import app
from dangerous_driving.errors import ConfigError
from dangerous_driving.ledger.cameras import register_cameras, table_cameras
from dangerous_driving.ledger.detectors import LedgerRegister
from dangerous_driving.settings import CameraSpec, DatabaseSettings


@pytest.fixture(autouse=True)
def _settings(database: DatabaseSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DD_DATABASE__URL", database.url.get_secret_value())
    monkeypatch.setenv("COLUMNS", "200")


def cameras(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_a_camera_is_added_changed_listed_disabled_and_removed(ledger: Engine) -> None:
    assert cameras("add", "gate", "rtsp://operator:${GATE}@camera/1", "--name", "North gate").exit_code == 0
    assert (
        cameras(
            "add", "gate", "rtsp://camera/2", "--set", "frame_interval=0.5", "--set", "privacy={heads: true}"
        ).exit_code
        == 0
    )
    (camera,) = table_cameras(ledger)
    assert (camera.frame_interval, camera.privacy.heads) == (0.5, True)
    listed = cameras("list").stdout
    assert "gate" in listed
    assert "rtsp://camera/2" in listed
    assert cameras("set", "gate", "frame_interval=2", "name=South gate").exit_code == 0
    (camera,) = table_cameras(ledger)
    assert (camera.frame_interval, camera.name, camera.privacy.heads) == (2.0, "South gate", True)
    assert cameras("disable", "gate").exit_code == 0
    assert "disabled" in cameras("list").stdout
    assert table_cameras(ledger) == ()
    assert cameras("set", "gate", "frame_interval=3").exit_code == 0
    assert table_cameras(ledger) == ()  # still disabled
    assert cameras("enable", "gate").exit_code == 0
    assert cameras("remove", "gate").exit_code == 0
    assert table_cameras(ledger) == ()
    assert "removed" in cameras("list").stdout


def test_the_list_says_which_detector_reads_a_camera(ledger: Engine) -> None:
    for camera_id in ("of-north", "of-both", "of-nobody"):
        assert cameras("add", camera_id, "rtsp://camera/1").exit_code == 0
    register_cameras(ledger, [CameraSpec(id="elsewhere", source=SecretStr("0"))], frame_interval=1.8)
    north, south = (LedgerRegister(ledger, f"{node}:/spool", node, lease=600) for node in ("north", "south"))
    north.report(["of-north", "of-both", "elsewhere"])
    detectors = south.report(["of-both"]).detectors

    def read_by() -> dict[str, tuple[str, str]]:
        rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in cameras("list").stdout.splitlines()]
        return {row[0]: (row[5], row[6]) for row in rows if len(row) == 7}

    both = owner_of("of-both", detectors)
    assert both is not None
    assert read_by() == {
        "of-north": ("north", "table"),
        "of-both": (both.node, "table"),
        "of-nobody": ("", "table"),
        "elsewhere": ("north", "settings of north"),
    }
    north.leave()
    assert read_by() == {
        "of-north": ("", "table"),
        "of-both": ("south", "table"),
        "of-nobody": ("", "table"),
        "elsewhere": ("", "settings of no living detect, or nowhere (was removed)"),
    }


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["add", "no/slash", "0"], "id"),
        (["add", "a", "0", "--set", "frame_interval=-1"], "frame_interval"),
        (["add", "a", "0", "--set", "colour=red"], "colour"),
        (["add", "a", "0", "--set", "ignore=[[[0, 0], [2, 0], [1, 1]]]"], "ignore"),
        (["add", "a", "0", "--set", "ignore=[[[0, 0], [1, 1]]]"], "ignore"),
        (["add", "a", "0", "--set", "frame_interval"], "FIELD=VALUE"),
        (["add", "a", "rtsp://user:hunter2@camera"], "password"),
        (["remove", "nobody"], "nobody"),
        (["set", "nobody", "name=x"], "nobody"),
        (["check", "simulated:nonsense"], "nonsense"),
        (["check", "nowhere.mp4"], "nowhere.mp4"),
        (["check", "rtsp://admin:hunter2#x@camera/1"], "source: not an address; write special characters"),
    ],
)
def test_bad_input_is_refused_by_name(ledger: Engine, arguments: list[str], named: str) -> None:
    done = cameras(*arguments)
    assert isinstance(done.exception, ConfigError)
    assert named in str(done.exception)
    assert "hunter2" not in str(done.exception)
    assert table_cameras(ledger) == ()


def test_a_source_can_be_checked_before_it_is_added(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "picture.png"), np.zeros((48, 64, 3), np.uint8))
    assert "64 x 48" in cameras("check", str(tmp_path)).stdout
    assert "320 x 180" in cameras("check", "simulated:queue?size=320x180").stdout
