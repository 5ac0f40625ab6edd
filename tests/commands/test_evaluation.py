"""`cases` and `prompts` as a person uses them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from dangerous_driving.cli import app
from dangerous_driving.errors import ConfigError
from dangerous_driving.settings import DatabaseSettings

RUN = CliRunner()


@pytest.fixture
def folder(tmp_path: Path, database: DatabaseSettings, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DD_DATABASE__URL", database.url.get_secret_value())
    monkeypatch.setenv("DD_OBJECTS__FOLDER", str(tmp_path / "objects"))
    monkeypatch.setenv("COLUMNS", "200")
    for number, level in enumerate(("none", "high")):
        (tmp_path / "set" / level).mkdir(parents=True)
        picture = np.asarray(np.random.default_rng(number).integers(0, 255, (60, 80, 3), dtype=np.uint8))
        cv2.imwrite(str(tmp_path / "set" / level / "a.jpg"), picture)
    return tmp_path / "set"


def invoke(*arguments: str) -> str:
    done = RUN.invoke(app, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_pictures_go_in_are_listed_and_come_out(folder: Path, tmp_path: Path) -> None:
    assert "2 cases, 2 of them new" in invoke("cases", "import", str(folder))
    assert "2 cases, 0 of them new" in invoke("cases", "import", str(folder))
    shown = invoke("cases", "list")
    assert "2 cases: 1 high, 1 none" in shown
    assert "2 cases in" in invoke("cases", "export", str(tmp_path / "out"))
    assert "2 cases, 0 of them new" in invoke("cases", "import", str(tmp_path / "out"))
    assert "0 cases: " in invoke("cases", "list", "--source", "operator")


def test_a_bad_picture_stops_the_import_or_is_left_out(folder: Path) -> None:
    (folder / "none" / "b.jpg").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"none/b\.jpg: picture: none/b\.jpg cannot be decoded.*nothing was imported"):
        invoke("cases", "import", str(folder))
    assert "0 cases: " in invoke("cases", "list")
    done = RUN.invoke(app, ["cases", "import", str(folder), "--skip-bad"])
    assert done.exit_code == 1
    assert "2 cases, 2 of them new; 1 left out" in done.output


def test_simulated_scenes_have_exact_truth(folder: Path) -> None:
    said = invoke("simulate", "cases", "--scenes", "1", "--frames", "1")
    assert "cases from 1 simulated scenes" in said
    assert "simulation" in invoke("cases", "list", "--source", "simulated")


def test_the_prompt_in_use_is_shown_and_nothing_can_be_rolled_back(folder: Path) -> None:
    shown = invoke("prompts", "list")
    assert "in use" in next(line for line in shown.splitlines() if " v2 " in line)
    with pytest.raises(ConfigError, match="nothing to go back to"):
        invoke("prompts", "rollback")
    with pytest.raises(ConfigError, match="no cases yet"):
        invoke("prompts", "evaluate")
    with pytest.raises(ConfigError, match="there is no set of cases yet"):
        invoke("prompts", "promote", "v1")
    assert "no challenger is configured" in invoke("prompts", "gate")
