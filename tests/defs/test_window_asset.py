"""The asset and its check, run as Dagster runs them, on a real ledger with answers that cost nothing."""

from __future__ import annotations

from datetime import UTC, datetime

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from dangerous_driving.assessment.windows import Window, window_of
from dangerous_driving.defs.assets import risk_assessments_asset
from dangerous_driving.defs.checks import nothing_forgotten_check
from dangerous_driving.defs.jobs import window_job
from dangerous_driving.defs.partitions import CAMERA, partition_key, window_partitions
from dangerous_driving.defs.resources import DatabaseResource
from dangerous_driving.ledger.database import transaction
from dangerous_driving.settings import Settings
from tests.defs.conftest import Ledger, LedgerAssessor

pytestmark = pytest.mark.integration


class Windows:
    """Runs the window job in this process."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        self.settings, self.instance = settings, instance

    def run(
        self, window: Window, *, only_check: bool = False, level: str = "low", keep_back: int = 0
    ) -> dg.ExecuteInProcessResult:
        database = DatabaseResource()
        assessor = LedgerAssessor(database=database, level=level, keep_back=keep_back)
        partitions = window_partitions(self.settings.windows, datetime.now(UTC))
        check = nothing_forgotten_check(partitions, length=self.settings.windows.length)
        definitions = dg.Definitions(
            assets=[risk_assessments_asset(self.settings, partitions)],
            asset_checks=[check],
            jobs=[window_job(), dg.define_asset_job("check_only", selection=dg.AssetSelection.checks(check))],
            resources={"database": database, "assessor": assessor},
        )
        self.instance.add_dynamic_partitions(CAMERA, [window.camera_id])
        job = definitions.resolve_job_def("check_only" if only_check else window_job().name)
        # by tag, as the page does it: `partition_key=` is refused for jobs of checks alone
        tags = {"dagster/partition": str(partition_key(window))}
        return job.execute_in_process(tags=tags, instance=self.instance, raise_on_error=False)


@pytest.fixture
def windows(settings: Settings, instance: dg.DagsterInstance) -> Windows:
    return Windows(settings, instance)


def metadata_of(result: dg.ExecuteInProcessResult) -> dict[str, object]:
    [materialization] = result.asset_materializations_for_node("risk_assessments")
    return {name: entry.value for name, entry in materialization.metadata.items()}


def checks(result: dg.ExecuteInProcessResult) -> list[tuple[bool, str | None, str | None]]:
    return [(found.passed, found.description, found.partition) for found in result.get_asset_check_evaluations()]


def test_a_window_is_assessed_checked_and_described(windows: Windows, frames: Ledger, an_hour_ago: datetime) -> None:
    window = frames.capture("north-1", an_hour_ago, groups=3)
    result = windows.run(window, level="medium")
    assert result.success
    found = metadata_of(result)
    assert found["summary"] == "3 groups in 1 frames: 3 medium."
    assert (found["groups"], found["assessed_by_this_run"], found["calls"], found["cost"]) == (3, 3, 3, 1.5)
    assert found["levels"] == {"medium": 3}
    assert found["latency_p95_seconds"] == 1.2
    assert checks(result) == [
        (True, "every group is assessed, failed with a cause, or expired", str(partition_key(window)))
    ]


def test_a_second_run_finds_everything_answered(windows: Windows, frames: Ledger, an_hour_ago: datetime) -> None:
    window = frames.capture("north-1", an_hour_ago, groups=2)
    windows.run(window)
    found = metadata_of(windows.run(window))
    assert (found["assessed_by_this_run"], found["assessed_before"]) == (0, 2)


def test_groups_left_pending_fail_the_run_and_say_how_many(
    windows: Windows, frames: Ledger, an_hour_ago: datetime
) -> None:
    result = windows.run(frames.capture("north-1", an_hour_ago, groups=3), keep_back=1)
    assert not result.success
    [failure] = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data is not None
    assert "1 of 3 groups have no answer yet" in str(failure.user_failure_data.description)


def test_the_check_fails_when_an_answer_is_deleted(
    windows: Windows, frames: Ledger, an_hour_ago: datetime, ledger: Engine
) -> None:
    window = frames.capture("north-1", an_hour_ago, groups=3)
    neighbour = frames.capture("south-2", an_hour_ago, groups=1)
    assert windows.run(window).success
    assert windows.run(neighbour).success
    with transaction(ledger) as connection:
        connection.execute(text("DELETE FROM risk_assessment WHERE camera_id = 'north-1' AND group_index = 2"))
    [(passed, description, _)] = checks(windows.run(window, only_check=True))
    assert (passed, description) == (False, "1 tasks without a current answer")
    assert checks(windows.run(neighbour, only_check=True))[0][0]


def test_the_check_fails_when_a_task_is_deleted(
    windows: Windows, frames: Ledger, an_hour_ago: datetime, ledger: Engine
) -> None:
    window = frames.capture("north-1", an_hour_ago, groups=2)
    with transaction(ledger) as connection:
        connection.execute(text("DELETE FROM assessment_task WHERE group_index = 1"))
    [(passed, description, _)] = checks(windows.run(window, only_check=True))
    assert (passed, description) == (False, "1 groups without a task, 1 tasks pending")


def test_a_window_without_frames_succeeds_and_says_so(windows: Windows, an_hour_ago: datetime) -> None:
    result = windows.run(window_of("north-1", an_hour_ago, 60))
    assert result.success
    assert metadata_of(result)["summary"] == "No frames in this window: nothing to assess."


def test_a_window_that_ended_a_moment_ago_is_refused_until_late_frames_are_in(
    settings: Settings, instance: dg.DagsterInstance, frames: Ledger, an_hour_ago: datetime
) -> None:
    patient = settings.model_copy(update={"windows": settings.windows.model_copy(update={"lateness": 7200.0})})
    result = Windows(patient, instance).run(frames.capture("north-1", an_hour_ago))
    assert not result.success
    [failure] = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data is not None
    assert "the window is open until" in str(failure.user_failure_data.description)
