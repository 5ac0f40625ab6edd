"""`dangerous-driving drift …`, `shadow …` and `weights evaluate`, against a real ledger."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
import yaml
from sqlalchemy import Engine, text
from typer.testing import CliRunner, Result

from dangerous_driving.commands import drift, shadow, weights
from dangerous_driving.errors import ConfigError
from dangerous_driving.evaluation.drift import Change, Score, State, Variable
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.detector_quality import evaluations
from dangerous_driving.ledger.drift import DRIFT_INCIDENT, keep_scores
from dangerous_driving.ledger.incidents import Incident, record
from dangerous_driving.ledger.shadows import challengers
from dangerous_driving.settings import DatabaseSettings
from dangerous_driving.simulation import OWN_WEIGHTS

pytestmark = pytest.mark.integration

YESTERDAY = datetime.now(UTC).date() - timedelta(days=1)


@pytest.fixture
def settings_file(database: DatabaseSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "220")
    file = tmp_path / "settings.yaml"
    file.write_text(
        yaml.safe_dump({
            "database": {"url": database.url.get_secret_value()},
            "llm": {"model": "simulated-vl", "prompt_version": "v2"},
            "detection": {"weights": str(OWN_WEIGHTS)},
        })
    )  # fmt: skip
    return file


def say(app: typer.Typer, settings_file: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--config", str(settings_file)])


def test_drift_is_shown_and_accepted(settings_file: Path, ledger: Engine) -> None:
    assert "has not run yet" in say(drift.app, settings_file, "show").stdout
    with transaction(ledger) as connection:
        connection.execute(text("INSERT INTO camera (id) VALUES ('north-1')"))
    score = Score(Variable.CLASS, State.DRIFTED, 0.61, 0.2, 0.05, 900, 9000, 20, (Change("car", 0.7, 0.1),))
    keep_scores(ledger, "north-1", YESTERDAY, [score])
    record(ledger, Incident(DRIFT_INCIDENT, "north-1", "the mix of classes has changed"))
    shown = say(drift.app, settings_file, "show").stdout
    assert all(part in shown for part in (f"north-1 {YESTERDAY}", "drifted", "0.610", "20"))
    accepted = say(drift.app, settings_file, "accept", "north-1", "--by", "ann", "--note", "turned")
    assert "can be judged after 5 days" in accepted.stdout
    with transaction(ledger) as connection:
        assert connection.scalar(text("SELECT accepted_by FROM drift_baseline")) == "ann"
        assert connection.scalar(text("SELECT count(*) FROM incident WHERE ended_at IS NULL")) == 0
    unknown = say(drift.app, settings_file, "accept", "nowhere", "--by", "ann")
    assert isinstance(unknown.exception, ConfigError)


def test_a_day_that_is_not_over_is_not_checked(settings_file: Path, ledger: Engine) -> None:
    today = say(drift.app, settings_file, "check", "--day", f"{datetime.now(UTC):%Y-%m-%d}")
    assert "is not over" in str(today.exception)
    done = say(drift.app, settings_file, "check")
    assert (done.exit_code, f"{YESTERDAY}: 0 of 0 cameras" in done.stdout) == (0, True)


def test_a_challenger_is_started_listed_reported_and_stopped(settings_file: Path, ledger: Engine) -> None:
    assert "no challenger has assessed" in say(shadow.app, settings_file, "list").stdout
    started = say(shadow.app, settings_file, "start", "v1", "--share", "0.25", "--by", "ann")
    assert "shadow:v1:simulated-vl assesses 25%" in started.stdout
    [challenger] = challengers(ledger, active=True)
    assert (challenger.prompt_version, challenger.model, challenger.share) == ("v1", "simulated-vl", 0.25)
    assert "assesses" in say(shadow.app, settings_file, "list").stdout
    assert "0 groups with both answers" in say(shadow.app, settings_file, "report", "v1").stdout
    assert say(shadow.app, settings_file, "stop", "v1").exit_code == 0
    assert challengers(ledger, active=True) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("start", "v2"), "is what assesses live"),
        (("start", "v99"), "there is no prompt 'v99'"),
        (("start", "v1", "--share", "0"), "give a share above 0"),
        (("stop", "v1"), "does not assess now"),
        (("report", "v1"), "has never assessed"),
    ],
)
def test_what_cannot_be_in_the_shadow_is_refused(
    settings_file: Path, ledger: Engine, arguments: tuple[str, ...], said: str
) -> None:
    assert said in str(say(shadow.app, settings_file, *arguments).exception)


def test_weights_are_evaluated_and_kept(settings_file: Path, ledger: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "grey"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.jpg"), np.full((64, 64, 3), 90, np.uint8))
    labels = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 64, "light": "night"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 40, 40]},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [5, 5, 40, 40]},
        ],
        "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "tree"}],
    }
    (folder / "annotations.json").write_text(json.dumps(labels))
    done = say(weights.app, settings_file, "evaluate", str(folder), "--keep")
    assert done.exit_code == 0, done.exception
    assert "1 labels left out, of other classes" in done.stdout
    assert "night" in done.stdout
    [kept] = evaluations(ledger)
    assert (kept.weights, kept.data_set, kept.ap, kept.groups) == (OWN_WEIGHTS.name, "grey", 0.0, 0)
    say(weights.app, settings_file, "evaluate", str(folder), "--keep")
    assert len(evaluations(ledger)) == 1
    assert "there is no folder" in str(say(weights.app, settings_file, "evaluate", str(tmp_path / "no")).exception)
