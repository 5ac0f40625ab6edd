"""The drift watch, the detector's evaluation and shadow mode as assets, on a real ledger."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import dagster as dg
import numpy as np
import pytest
from pydantic import Field
from sqlalchemy import Engine, insert, text

from dangerous_driving.assessment.backfill_run import BackfillPlan
from dangerous_driving.assessment.window_run import WindowReport
from dangerous_driving.assessment.windows import Window
from dangerous_driving.defs.monitoring import CAMERAS_STABLE, detection_drift_asset, detector_evaluation_asset
from dangerous_driving.defs.resources import (
    AssessorResource,
    DatabaseResource,
    KafkaResource,
    KeyPoolResource,
    ObjectStoreResource,
)
from dangerous_driving.defs.shadows import shadow_assessments_asset, shadow_sensor
from dangerous_driving.errors import ConfigError
from dangerous_driving.ledger import drift, shadows
from dangerous_driving.ledger.cameras import set_running
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.ledger.tables import Frame
from dangerous_driving.settings import Settings, load
from dangerous_driving.simulation import OWN_WEIGHTS
from tests.defs.conftest import LENGTH, Ledger, LedgerAssessor

pytestmark = pytest.mark.integration

NOW = datetime.now(UTC)
YESTERDAY = NOW.date() - timedelta(days=1)
DAYS = 8

Mix = Mapping[str, float]
USUAL: Mix = {"car": 0.7, "person": 0.2, "truck": 0.1}
TURNED: Mix = {"car": 0.1, "person": 0.8, "truck": 0.1}


def frame(camera_id: str, at: datetime, random: np.random.Generator, mix: Mix, model: str) -> dict[str, Any]:
    names = random.choice(list(mix), p=list(mix.values()), size=random.integers(2, 7))
    objects = [
        {"objectId": number, "class": str(name), "confidence": float(random.beta(8, 3)), "bbox": [0, 0, 9, 9]}
        for number, name in enumerate(names, 1)
    ]
    group = {"groupIndex": 1, "objectCount": len(names), "bbox": [0, 0, 9, 9], "classes": sorted(set(names))}
    return {
        "captured_at": at, "message_id": f"{camera_id}-{at:%Y%m%d%H%M%S}", "camera_id": camera_id, "image_width": 1280,
        "image_height": 720, "detected_objects": objects, "traffic_groups": [group], "model": model,
    }  # fmt: skip


@pytest.fixture
def weeks(ledger: Engine) -> Engine:
    """Three cameras over some days, two hours each; `turned` shows something else on the last of them."""
    rows, random = [], np.random.default_rng(1)
    for camera_id in ("steady", "turned", "new"):
        for back in range(1 if camera_id == "new" else DAYS, 0, -1):
            day = datetime.combine(NOW.date() - timedelta(days=back), datetime.min.time(), tzinfo=UTC)
            mix = TURNED if camera_id == "turned" and back == 1 else USUAL
            rows += [
                frame(camera_id, day + timedelta(hours=hour, seconds=30 * number), random, mix, "yolo11n")
                for hour in (8, 17)
                for number in range(60)
            ]
    Partitions().ensure(ledger, [row["captured_at"] for row in rows])
    with transaction(ledger) as connection:
        connection.execute(insert(Frame), rows)
        connection.execute(text("INSERT INTO camera (id) VALUES ('steady'), ('turned'), ('new')"))
    return ledger


def watch(settings: Settings, instance: dg.DagsterInstance, day: date = YESTERDAY) -> dg.ExecuteInProcessResult:
    # two hours a day are few
    few = settings.model_copy(update={"monitoring": settings.monitoring.model_copy(update={"drift_counts": 100})})
    asset = detection_drift_asset(few, NOW)
    return dg.materialize(
        [asset],
        instance=instance,
        resources={"database": DatabaseResource()},
        partition_key=str(day),
        selection=[asset],
    )


def check_of(result: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
    [evaluation] = result.get_asset_check_evaluations()
    return evaluation


def rows(engine: Engine, query: str) -> list[tuple[Any, ...]]:
    with transaction(engine) as connection:
        return [tuple(row) for row in connection.execute(text(query))]


class TestDrift:
    def test_a_camera_that_was_turned_is_told_and_the_others_are_not(
        self, settings: Settings, instance: dg.DagsterInstance, weeks: Engine
    ) -> None:
        check = check_of(watch(settings, instance))
        assert (check.check_name, check.passed, check.severity) == (CAMERAS_STABLE, False, dg.AssetCheckSeverity.WARN)
        assert "turned: the mix of classes has changed" in (check.description or "")
        states = "SELECT camera_id, variable, state FROM drift_score WHERE state <> 'stable' ORDER BY 1, 2"
        assert rows(weeks, states) == [
            *(("new", variable, "too_little") for variable in ("class", "confidence", "group_size", "road_users")),
            ("turned", "class", "drifted"),
        ]
        [(kind, subject, message)] = rows(weeks, "SELECT kind, subject, message FROM incident WHERE ended_at IS NULL")
        assert (kind, subject) == ("detection_drift", "turned")
        assert re.search(r"person 2\d% -> (79|80|81)%", message)

    def test_profiles_are_those_of_the_frames_and_made_again_they_are_the_same(
        self, settings: Settings, instance: dg.DagsterInstance, weeks: Engine
    ) -> None:
        watch(settings, instance)
        query = "SELECT * FROM detection_profile ORDER BY 1, 2, 3, 4"
        first = rows(weeks, query)
        counted = """
            SELECT (SELECT sum(n::int) FROM detection_profile, jsonb_each_text(counts) AS c(bin, n) WHERE variable = 'class'),
                   (SELECT sum(jsonb_array_length(detected_objects)) FROM frame),
                   (SELECT sum(n::int) FROM detection_profile, jsonb_each_text(counts) AS c(bin, n)
                    WHERE variable = 'road_users'),
                   (SELECT count(*) FROM frame)
        """
        [(objects, true_objects, frames, true_frames)] = rows(weeks, counted)
        assert (objects, frames) == (true_objects, true_frames)
        bins = {row[0] for row in rows(weeks, """
            SELECT DISTINCT bin FROM detection_profile, jsonb_each_text(counts) AS c(bin, n) WHERE variable = 'confidence'
        """)}  # fmt: skip
        assert bins <= {f"{number * 0.05:.2f}" for number in range(20)}
        watch(settings, instance)
        assert rows(weeks, query) == first

    def test_the_incident_ends_when_the_camera_is_as_before(
        self, settings: Settings, instance: dg.DagsterInstance, weeks: Engine
    ) -> None:
        watch(settings, instance)
        with transaction(weeks) as connection:
            connection.execute(
                text("""
                    UPDATE frame t SET detected_objects = s.detected_objects FROM frame s
                    WHERE t.camera_id = 'turned' AND s.camera_id = 'steady' AND t.captured_at = s.captured_at
                """)
            )
        assert check_of(watch(settings, instance)).passed
        assert rows(weeks, "SELECT count(*) FROM incident WHERE ended_at IS NULL") == [(0,)]

    def test_the_incident_ends_when_nobody_is_to_watch_the_camera(
        self, settings: Settings, instance: dg.DagsterInstance, weeks: Engine
    ) -> None:
        """Else it would last for ever: such a camera is never seen as before."""
        watch(settings, instance)
        set_running(weeks, "turned", running=False)
        watch(settings, instance)
        assert rows(weeks, "SELECT count(*) FROM incident WHERE ended_at IS NULL") == [(0,)]

    def test_an_accepted_camera_begins_anew(
        self, settings: Settings, instance: dg.DagsterInstance, weeks: Engine
    ) -> None:
        drift.accept(weeks, "turned", YESTERDAY, by="ann", note="turned to the new crossing")
        check = check_of(watch(settings, instance))
        assert check.passed
        assert check.description == "1 of 3 cameras could be judged, all are as before"
        assert {score.state for score in drift.latest_scores(weeks) if score.camera_id == "turned"} == {"too_little"}

    def test_days_whose_frames_are_gone_are_judged_by_their_profiles(
        self, settings: Settings, instance: dg.DagsterInstance, weeks: Engine
    ) -> None:
        for back in range(DAYS, 1, -1):
            drift.profile_day(weeks, NOW.date() - timedelta(days=back))
        rows(weeks, f"DELETE FROM frame WHERE captured_at < '{YESTERDAY}' RETURNING 1")
        assert not check_of(watch(settings, instance)).passed

    def test_an_empty_ledger_has_no_drift(
        self, settings: Settings, instance: dg.DagsterInstance, ledger: Engine
    ) -> None:
        check = check_of(watch(settings, instance))
        assert (check.passed, check.description) == (True, "0 of 0 cameras could be judged, all are as before")


class TestDetector:
    @pytest.fixture
    def labelled(self, tmp_path: Path) -> Path:
        """One picture with a car that is there in the labels alone: rendering takes too long for this."""
        folder = tmp_path / "grey"
        folder.mkdir()
        cv2.imwrite(str(folder / "a.jpg"), np.full((64, 64, 3), 90, np.uint8))
        content = {
            "info": {"simulated": True},
            "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 64, "light": "night"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 40, 40]}],
            "categories": [{"id": 1, "name": "car"}],
        }
        (folder / "annotations.json").write_text(json.dumps(content))
        return folder

    def evaluate(self, settings: Settings) -> dg.ExecuteInProcessResult:
        return dg.materialize([detector_evaluation_asset(settings)], resources={"database": DatabaseResource()})

    def test_scores_are_kept_by_weights_and_pictures_and_worse_ones_warn(
        self, settings: Settings, ledger: Engine, labelled: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DD_MONITORING__LABELLED_FOLDERS", json.dumps([str(labelled)]))
        monkeypatch.setenv("DD_DETECTION__WEIGHTS", str(OWN_WEIGHTS))
        result = self.evaluate(load())
        assert check_of(result).passed
        [event] = result.get_asset_materialization_events()
        metadata = event.materialization.metadata
        assert "| night | 1 (few) | 0.000 |" in str(metadata["report"].value)
        assert metadata["map"].value == 0.0
        again = self.evaluate(load())
        assert check_of(again).passed
        assert rows(ledger, "SELECT count(*), min(weights) FROM detector_evaluation") == [(1, OWN_WEIGHTS.name)]
        assert rows(ledger, "SELECT count(*) FROM detector_score WHERE light = 'night' AND objects = 1")[0][0] > 0
        # other weights were better on the same pictures
        rows(ledger, _BETTER)
        worse = check_of(self.evaluate(load()))
        assert not worse.passed
        assert "mAP 0.000, better.onnx had 0.500" in (worse.description or "")

    def test_without_labelled_folders_nothing_is_made(self, settings: Settings, ledger: Engine) -> None:
        result = self.evaluate(settings)
        assert result.get_asset_materialization_events() == []
        assert check_of(result).description == "nothing was evaluated: no labelled folder is set"


_BETTER = """
WITH e AS (
    INSERT INTO detector_evaluation
    SELECT 'other', 'better.onnx', 'other', data_set, data_hash, simulated, pictures, engine, input_size, confidence, iou,
        group_distance, now() - interval '1 day' FROM detector_evaluation
)
INSERT INTO detector_score
SELECT 'other', class_name, size, light, weather, pictures, objects, 0.5, 0.5, 0.5, 0.5, recall, precision
FROM detector_score RETURNING 1
"""


class ShadowAssessor(LedgerAssessor):
    """Says of each window that it was assessed, or why not; asks nobody."""

    problem: str | None = None
    refused: dict[str, str] = Field(default_factory=dict)  # prompt versions, and the setting that is wrong for each

    def backfill(self, windows: Sequence[Window], plan: BackfillPlan) -> list[WindowReport]:
        if plan.prompt_version in self.refused:
            raise ConfigError(self.refused[plan.prompt_version], "it is not there", "put it there")
        return [
            WindowReport(window, 1, 2, 1, 0, run=plan.run, complete=self.problem is None, error=self.problem)
            for window in windows
        ]


class TestShadow:
    def run(
        self, settings: Settings, problem: str | None = None, refused: dict[str, str] | None = None
    ) -> dg.ExecuteInProcessResult:
        database, store = DatabaseResource(), ObjectStoreResource()
        assessor: AssessorResource = ShadowAssessor(
            database=database,
            object_store=store,
            kafka=KafkaResource(),
            key_pool=KeyPoolResource(),
            problem=problem,
            refused=refused or {},
        )
        return dg.materialize(
            [shadow_assessments_asset(settings)], resources={"database": database, "assessor": assessor}
        )

    def tick(self, settings: Settings, instance: dg.DagsterInstance) -> Any:
        with dg.build_sensor_context(instance=instance, resources={"database": DatabaseResource()}) as context:
            return shadow_sensor(settings)(context)

    def test_the_sensor_waits_for_a_challenger_and_for_completed_windows(
        self, settings: Settings, instance: dg.DagsterInstance, frames: Ledger, an_hour_ago: datetime, ledger: Engine
    ) -> None:
        assert "no challenger" in str(self.tick(settings, instance).skip_message)
        shadows.start_shadow(ledger, "v1", "simulated-vl", 0.5)
        rows(ledger, "UPDATE shadow SET since = now() - interval '1 day' RETURNING 1")
        frames.capture("north-1", an_hour_ago)
        assert "have assessed all" in str(self.tick(settings, instance).skip_message)
        rows(ledger, "UPDATE camera_window SET assessed_version = version RETURNING 1")
        assert isinstance(self.tick(settings, instance), dg.RunRequest)
        self.run(settings)
        assert "have assessed all" in str(self.tick(settings, instance).skip_message)

    def test_what_could_not_be_assessed_is_noted_and_tried_again(
        self, settings: Settings, instance: dg.DagsterInstance, frames: Ledger, an_hour_ago: datetime, ledger: Engine
    ) -> None:
        frames.capture("north-1", an_hour_ago)
        rows(ledger, "UPDATE camera_window SET assessed_version = version RETURNING 1")
        shadows.start_shadow(ledger, "v1", "simulated-vl", 0.5)
        rows(ledger, "UPDATE shadow SET since = now() - interval '1 day' RETURNING 1")
        result = self.run(settings, problem="no key")
        [event] = result.get_asset_materialization_events()
        assert "no key" in str(event.materialization.metadata["problems"].value)
        assert isinstance(self.tick(settings, instance), dg.RunRequest)
        self.run(settings)
        noted = "SELECT attempts, problem, length FROM shadow_window"
        assert rows(ledger, noted) == [(2, None, LENGTH)]

    def test_a_challenger_whose_prompt_is_gone_is_given_up_and_holds_up_no_other(
        self, settings: Settings, instance: dg.DagsterInstance, frames: Ledger, an_hour_ago: datetime, ledger: Engine
    ) -> None:
        frames.capture("north-1", an_hour_ago)
        rows(ledger, "UPDATE camera_window SET assessed_version = version RETURNING 1")
        shadows.start_shadow(ledger, "v1", "simulated-vl", 0.5)
        shadows.start_shadow(ledger, "gone", "simulated-vl", 0.5)  # the newer one comes first
        rows(ledger, "UPDATE shadow SET since = since - interval '1 day' RETURNING 1")
        noted = "SELECT run, attempts, problem FROM shadow_window ORDER BY run"
        [event] = self.run(settings, refused={"gone": "llm.prompt_version"}).get_asset_materialization_events()
        problem = "llm.prompt_version: it is not there; put it there"
        assert problem in str(event.materialization.metadata["problems"].value)
        assert rows(ledger, noted) == [("shadow:gone:simulated-vl", 1, problem), ("shadow:v1:simulated-vl", 1, None)]
        for _ in range(shadows.MAX_ATTEMPTS - 1):
            assert isinstance(self.tick(settings, instance), dg.RunRequest)
            self.run(settings, refused={"gone": "llm.prompt_version"})
        assert "have assessed all" in str(self.tick(settings, instance).skip_message)

    def test_keys_that_are_not_there_cost_no_challenger_an_attempt(
        self, settings: Settings, frames: Ledger, an_hour_ago: datetime, ledger: Engine
    ) -> None:
        frames.capture("north-1", an_hour_ago)
        rows(ledger, "UPDATE camera_window SET assessed_version = version RETURNING 1")
        shadows.start_shadow(ledger, "v1", "simulated-vl", 0.5)
        rows(ledger, "UPDATE shadow SET since = since - interval '1 day' RETURNING 1")
        with pytest.raises(ConfigError, match=r"keys\.file"):
            self.run(settings, refused={"v1": "keys.file"})
        assert rows(ledger, "SELECT count(*) FROM shadow_window") == [(0,)]

    def test_a_challenger_that_was_promoted_has_no_shadow_any_more(self, settings: Settings, ledger: Engine) -> None:
        shadows.start_shadow(ledger, settings.llm.prompt_version, settings.llm.model, 0.5)
        assert self.run(settings).get_asset_materialization_events() == []
        assert shadows.challengers(ledger, active=True) == []
