"""What Dagster loads: all of it, by name, and nothing at import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from dangerous_driving.defs import retention
from dangerous_driving.defs.graph import definitions_of
from dangerous_driving.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.Definitions]:
    # no database, broker or key is needed to load them
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(tmp_path_factory.mktemp("dagster_home")))
        yield definitions_of(Settings())


def test_every_asset_with_its_parents(loaded: dg.Definitions) -> None:
    graph = loaded.resolve_asset_graph()
    parents = {
        key.to_user_string(): sorted(parent.to_user_string() for parent in graph.get(key).parent_keys)
        for key in graph.get_all_asset_keys()
    }
    group = {key.to_user_string(): graph.get(key).group_name for key in graph.get_all_asset_keys()}
    models = {name for name in parents if group[name] in {"staging", "marts"}}
    tables = {parent for name in models if group[name] == "staging" for parent in parents[name]}
    assert {name: parents[name] for name in parents.keys() - models if name not in tables or parents[name]} == {
        "assessment_tasks": ["frames"],
        "risk_assessments": ["assessment_tasks", "frames"],
        "alert_digest": ["risk_assessments"],
        "camera_inventory": ["cameras"],
        "retention": [],
        "detection_drift": ["frames"],
        "shadow_assessments": ["risk_assessments"],
        "evaluation_cases": ["risk_assessments"],
        "prompt_evaluations": ["evaluation_cases"],
        "prompt_gate": ["evaluation_cases", "prompt_evaluations"],
        "prompt_promotions": ["prompt_gate"],
    }
    written = {
        "detector_evaluation",
        "detection_drift",
        "shadow_assessments",
        "prompt_evaluations",
        "prompt_gate",
        "prompt_promotions",
    }
    # a staging model is one table (of the ledger, or what an asset writes), a mart is built from models
    assert {"cameras", "frames", "assessment_tasks", "risk_assessments", "llm_calls", "alerts"} <= tables
    for name in models:
        if group[name] == "staging":
            assert len(parents[name]) == 1, name
            assert parents[name] == [name.removeprefix("stg_")] or set(parents[name]) <= written, name
        else:
            assert set(parents[name]) <= models, name
    assert parents["camera_hourly_risk"] == ["stg_assessment_tasks", "stg_frames", "stg_risk_assessments"]


def test_jobs_sensors_schedules_and_resources(loaded: dg.Definitions) -> None:
    repository = loaded.get_repository_def()
    assert {job.name for job in repository.get_all_jobs()} == {
        "__ASSET_JOB", "assess_window", "build_marts", "apply_retention", "write_digest", "list_cameras",
        "evaluate_detector", "watch_drift", "assess_shadows",
        "evaluate_prompts",
    }  # fmt: skip
    # retention asks for old runs by these names: those of a job that it does not know would stay for ever
    assert {*retention.WINDOW_JOBS, *retention.OTHER_JOBS} == {job.name for job in repository.get_all_jobs()}
    assert {sensor.name for sensor in repository.sensor_defs} == {
        "closed_windows", "endpoint_state", "failed_runs", "ledger_content", "shadow_windows",
    }  # fmt: skip
    assert {schedule.name: schedule.cron_schedule for schedule in repository.schedule_defs} == {
        "marts": "5 * * * *",
        "retention": "30 3 * * *",
        "camera_inventory": "*/15 * * * *",
        "alert_digest": "0 6 * * *",
        "detector_evaluation": "0 2 * * 0",
        "detection_drift": "40 1 * * *",
        "evaluation": "30 1 * * *",
    }
    assert set(repository.get_top_level_resources()) == {
        "assessor", "database", "dbt", "evaluator", "kafka", "key_pool", "object_store",
    }  # fmt: skip


def test_a_windows_run_holds_its_checks_and_no_model(loaded: dg.Definitions) -> None:
    job = loaded.resolve_job_def("assess_window")
    assert {node.name for node in job.nodes} == {"risk_assessments", "risk_assessments_checks"}
    assert job.executor_def.name == "in_process"


def test_every_model_is_checked(loaded: dg.Definitions) -> None:
    graph = loaded.resolve_asset_graph()
    checked = {key.asset_key.to_user_string() for key in graph.asset_check_keys}
    models = {
        key.to_user_string() for key in graph.get_all_asset_keys() if graph.get(key).group_name in {"staging", "marts"}
    }
    assert models <= checked


def test_sensors_and_schedules_run_by_themselves(loaded: dg.Definitions) -> None:
    repository = loaded.get_repository_def()
    assert {sensor.default_status for sensor in repository.sensor_defs} == {dg.DefaultSensorStatus.RUNNING}
    assert {schedule.default_status for schedule in repository.schedule_defs} == {dg.DefaultScheduleStatus.RUNNING}


@pytest.mark.slow
def test_dagster_validates_the_workspace(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("dagster")), "definitions", "validate", "-w", "workspace.yaml"],
        cwd=REPOSITORY,
        env=os.environ | {"DAGSTER_HOME": str(tmp_path), "DAGSTER_DISABLE_TELEMETRY": "yes"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_invalid_setting_is_named_when_definitions_load(monkeypatch: pytest.MonkeyPatch) -> None:
    from dangerous_driving.definitions import definitions
    from dangerous_driving.errors import ConfigError

    monkeypatch.setenv("DD_WINDOWS__LENGTH", "61")
    with pytest.raises(ConfigError, match=r"windows\.length"):
        definitions()


@pytest.fixture(scope="module")
def after_loading() -> list[str]:
    """What a process of Dagster's says that has loaded the definitions: of its garbage collector, and a line of its log."""
    program = (
        "import gc, structlog\n"
        "from dangerous_driving.definitions import definitions\n"
        "definitions()\n"
        "print(gc.get_freeze_count() / (gc.get_freeze_count() + len(gc.get_objects())), gc.isenabled())\n"
        "structlog.get_logger().info('llm_call', task_id='t1')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.splitlines()


def test_loading_leaves_nothing_for_the_garbage_collector_to_go_through(after_loading: list[str]) -> None:
    share, enabled = after_loading[-2].split()
    assert float(share) > 0.9
    assert enabled == "True"


def test_runs_log_as_the_services_do(after_loading: list[str]) -> None:
    line = json.loads(after_loading[-1])
    assert (line["event"], line["task_id"], line["service"]) == ("llm_call", "t1", "dagster")
