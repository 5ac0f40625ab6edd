"""The asset and its check, run as Dagster runs them, on a real ledger with answers that cost nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from dangerous_driving.assessment.windows import Window, window_of
from dangerous_driving.defs.checks import window_checks
from dangerous_driving.defs.jobs import window_job
from dangerous_driving.defs.partitions import CAMERA, partition_key, window_partitions
from dangerous_driving.defs.resources import window_resources
from dangerous_driving.defs.risk_assessments import risk_assessments_asset
from dangerous_driving.defs.sensors import RANGE_END_TAG, RANGE_START_TAG
from dangerous_driving.ledger.database import transaction
from dangerous_driving.settings import Settings
from tests.defs.conftest import Ledger, resources

pytestmark = pytest.mark.integration


class Windows:
    """Runs the window job in this process."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        self.settings, self.instance = settings, instance

    def run(
        self,
        *windows: Window,
        only_check: bool = False,
        config: dict[str, object] | None = None,
        real: bool = False,
        **answers: object,
    ) -> dg.ExecuteInProcessResult:
        """One run; of several windows as a range from the first to the last. `real`: with the real assessor."""
        partitions = window_partitions(self.settings.windows, datetime.now(UTC))
        checks = window_checks(self.settings.windows, partitions)
        definitions = dg.Definitions(
            assets=[risk_assessments_asset(self.settings, partitions)],
            asset_checks=[checks],
            jobs=[window_job(), dg.define_asset_job("check_only", selection=dg.AssetSelection.checks(checks))],
            resources=window_resources() if real else resources(**answers),
        )
        for window in windows:
            if window.camera_id not in self.instance.get_dynamic_partitions(CAMERA):
                self.instance.add_dynamic_partitions(CAMERA, [window.camera_id])
        job = definitions.resolve_job_def("check_only" if only_check else window_job().name)
        first, last = str(partition_key(windows[0])), str(partition_key(windows[-1]))
        # by tag, as the page does it: `partition_key=` is refused for jobs of checks alone
        tags = {"dagster/partition": first} if len(windows) == 1 else {RANGE_START_TAG: first, RANGE_END_TAG: last}
        return job.execute_in_process(
            tags=tags,
            instance=self.instance,
            raise_on_error=False,
            run_config={"ops": {"risk_assessments": {"config": config}}} if config else None,
        )


@pytest.fixture
def windows(settings: Settings, instance: dg.DagsterInstance) -> Windows:
    return Windows(settings, instance)


def metadata_of(result: dg.ExecuteInProcessResult) -> dict[str, object]:
    [materialization] = result.asset_materializations_for_node("risk_assessments")
    return {name: entry.value for name, entry in materialization.metadata.items()}


def checks(
    result: dg.ExecuteInProcessResult, name: str = "nothing_forgotten"
) -> list[tuple[bool, str | None, str | None]]:
    return [
        (found.passed, found.description, found.partition)
        for found in result.get_asset_check_evaluations()
        if found.check_name == name
    ]


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


def test_a_window_without_frames_succeeds_and_says_so(windows: Windows, frames: Ledger, an_hour_ago: datetime) -> None:
    frames.capture("north-1", an_hour_ago - timedelta(minutes=5))
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


def test_several_windows_share_a_run_and_each_has_its_own_result_and_checks(
    windows: Windows, frames: Ledger, an_hour_ago: datetime
) -> None:
    captured = [
        frames.capture(camera_id, an_hour_ago + timedelta(minutes=minute), groups=number + 1)
        for number, camera_id in enumerate(("north-1", "south-2"))
        for minute in range(2)
    ]
    result = windows.run(*captured)
    assert result.success
    found = {
        event.partition: event.metadata["groups"].value
        for event in result.asset_materializations_for_node("risk_assessments")
    }
    assert found == {str(partition_key(window)): groups for window, groups in zip(captured, (1, 1, 2, 2), strict=True)}
    assert sorted(check[2] or "" for check in checks(result) if check[0]) == sorted(map(str, found))


def test_one_window_that_fails_is_named_and_the_others_are_kept(
    windows: Windows, frames: Ledger, an_hour_ago: datetime, ledger: Engine
) -> None:
    good = frames.capture("north-1", an_hour_ago)
    open_one = window_of("north-1", datetime.now(UTC), 60)
    with transaction(ledger) as connection:
        connection.execute(text("DELETE FROM camera WHERE id = 'south-2'"))
    result = windows.run(good, window_of("south-2", an_hour_ago, 60))
    assert not result.success
    assert failure_of(result).startswith("1 of 2 windows are not complete: south-2")
    assert "there is no camera 'south-2'" in failure_of(result)
    [kept] = result.asset_materializations_for_node("risk_assessments")
    assert kept.partition == str(partition_key(good))
    assert [check[2] for check in checks(result)] == [str(partition_key(good))]
    assert "the window is open until" in failure_of(windows.run(open_one))


def test_a_window_in_the_future_is_refused(windows: Windows, frames: Ledger, an_hour_ago: datetime) -> None:
    frames.capture("north-1", an_hour_ago)
    later = window_of("north-1", datetime.now(UTC) + timedelta(hours=2), 60)
    assert "lies in the future" in failure_of(windows.run(later))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"prompt_version": "v99"}, "there is no prompt 'v99'; use one of: "),
        ({"model": " "}, "is no model"),
        ({"model": "m", "backfill": "live"}, "is no name for a backfill"),
        ({"make_current": True}, "are of a backfill"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_by_name(
    windows: Windows, frames: Ledger, an_hour_ago: datetime, config: dict[str, object], problem: str
) -> None:
    assert problem in failure_of(windows.run(frames.capture("north-1", an_hour_ago), config=config))


def test_a_picture_that_is_not_in_the_store_and_an_answer_without_its_task_are_orphans(
    windows: Windows, frames: Ledger, an_hour_ago: datetime, ledger: Engine
) -> None:
    window = frames.capture("north-1", an_hour_ago)
    assert windows.run(window).success
    with transaction(ledger) as connection:
        connection.execute(text("UPDATE frame SET raw_frame_url = 'folder://traffic/frames/north-1/gone.jpg'"))
        connection.execute(text("DELETE FROM assessment_task WHERE group_index = 1"))
    [(passed, description, _)] = checks(windows.run(window, only_check=True), "no_orphans")
    assert (passed, description) == (False, "1 answers without a task, 1 pictures that are not in the store")


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    [failure] = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data is not None, failure.error
    return str(failure.user_failure_data.description)


def test_an_estimate_asks_nothing_and_materialises_nothing(
    windows: Windows, frames: Ledger, an_hour_ago: datetime, ledger: Engine
) -> None:
    window = frames.capture("north-1", an_hour_ago, groups=3)
    result = windows.run(window, config={"prompt_version": "v1", "backfill": "new", "estimate_only": True})
    assert result.success
    assert result.asset_materializations_for_node("risk_assessments") == []
    [event] = [event for event in result.all_events if event.event_type is dg.DagsterEventType.ASSET_OBSERVATION]
    found = event.asset_observation_data.asset_observation.metadata
    assert (found["groups"].value, found["calls_to_make"].value) == (3, 3)
    with transaction(ledger) as connection:
        assert connection.scalar(text("SELECT count(*) FROM llm_call")) == 0
