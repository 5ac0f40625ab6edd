"""The demo's folder: its own, of this version, and for one demo at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dangerous_driving.demo.data_folder import FORMAT, DataFolder, opened_settings
from dangerous_driving.errors import ConfigError
from dangerous_driving.settings import Settings


def test_a_new_folder_is_made_and_used_again(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "new" / "demo")
    made = folder.open()
    folder.close()
    again = DataFolder(tmp_path / "new" / "demo")
    assert again.open() == made
    again.close()


def test_a_second_demo_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    first, second = DataFolder(tmp_path / "demo"), DataFolder(tmp_path / "demo")
    first.open()
    with pytest.raises(ConfigError, match="another demo is running"):
        second.open()
    first.close()
    second.open()
    second.close()


def test_a_folder_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(json.dumps({"format": FORMAT + 1}))
    with pytest.raises(ConfigError, match="another version"):
        DataFolder(tmp_path).check()


def test_somebody_else_s_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(ConfigError, match="not a demo's folder"):
        DataFolder(tmp_path).open()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        DataFolder(tmp_path / "demo").open()


def test_a_folder_without_a_demo_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no demo"), opened_settings(Settings(), tmp_path):
        pass
