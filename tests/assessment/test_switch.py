"""The switch of lanes: global and per camera, by table and by file, the newer entry counts; the lanes follow it while running."""

from __future__ import annotations

import asyncio
import base64
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr
from sqlalchemy import create_engine
from structlog.testing import capture_logs
from typer.testing import CliRunner

from dangerous_driving.assessment import inline
from dangerous_driving.assessment.inline import InlineLane
from dangerous_driving.assessment.inline_folder import InlineFolder
from dangerous_driving.assessment.scheduler import SWITCHED, Scheduler
from dangerous_driving.assessment.switch import ALL, Entry, LaneSwitch, Positions, read_file, write_file
from dangerous_driving.assessment.window_run import assess_window
from dangerous_driving.assessment.windows import window_of
from dangerous_driving.commands import switch as switch_commands
from dangerous_driving.contracts import Lane, Stage
from dangerous_driving.errors import ConfigError, LedgerError
from dangerous_driving.ledger import invariants
from dangerous_driving.ledger.switches import read_switch, write_switch
from dangerous_driving.objects import FolderStore
from dangerous_driving.settings import AssessmentSettings, DatabaseSettings, LlmSettings, Settings
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import tasks_from_detection
from tests.assessment.conftest import Sent, picture
from tests.assessment.test_lanes import LENGTH, offer, until

if TYPE_CHECKING:
    from tests.assessment.conftest import Batches, Bench

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def entry(lane: Lane | None, seconds: float = 0) -> Entry:
    return Entry(lane, NOW + timedelta(seconds=seconds))


def test_a_camera_has_its_own_lane_or_that_of_all() -> None:
    positions = Positions({ALL: entry(Lane.WINDOW), "a": entry(Lane.INLINE), "b": entry(None)})
    assert [positions.lane_of(name) for name in ("a", "b", "c")] == [Lane.INLINE, Lane.WINDOW, Lane.WINDOW]
    assert Positions().lane_of("a") is Lane.REALTIME


def test_of_table_and_file_the_newer_entry_counts_and_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "switch.json"
    table = Positions({ALL: entry(Lane.WINDOW, 10), "a": entry(Lane.INLINE, 0)})
    switch = LaneSwitch(file, lambda: table)
    write_file(file, Positions({ALL: entry(Lane.INLINE, 5), "a": entry(None, 5)}))
    switch.look()
    assert switch.lane_of("a") is Lane.WINDOW
    file.write_text("{")
    switch.look()
    assert switch.lane_of("a") is Lane.WINDOW
    with pytest.raises(ConfigError, match="switch_file"):
        read_file(file)


def test_without_the_ledger_the_file_alone_is_followed(tmp_path: Path) -> None:
    def away() -> Positions:
        raise LedgerError("away")

    write_file(tmp_path / "switch.json", Positions({ALL: entry(Lane.INLINE)}))
    switch = LaneSwitch(tmp_path / "switch.json", away)
    switch.look()
    assert switch.lane_of("a") is Lane.INLINE


@pytest.mark.integration
def test_the_commands_write_table_and_file(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DD_DATABASE__URL", bench.settings.database.url.get_secret_value())
    monkeypatch.setenv("DD_ASSESSMENT__SWITCH_FILE", str(tmp_path / "switch.json"))
    runner = CliRunner()
    assert runner.invoke(switch_commands.app, ["window"]).exit_code == 0
    assert runner.invoke(switch_commands.app, ["inline", "--camera", "a"]).exit_code == 0
    for positions in (read_switch(bench.engine), read_file(tmp_path / "switch.json")):
        assert [positions.lane_of(name) for name in ("a", "b")] == [Lane.INLINE, Lane.WINDOW]
    shown = runner.invoke(switch_commands.app, ["show"]).output
    assert "inline" in shown
    assert runner.invoke(switch_commands.app, ["reset", "--camera", "a"]).exit_code == 0
    assert read_switch(bench.engine).lane_of("a") is Lane.WINDOW
    monkeypatch.setenv("DD_DATABASE__URL", "postgresql://nobody@127.0.0.1:1/none")
    assert runner.invoke(switch_commands.app, ["realtime"]).exit_code == 0
    assert read_file(tmp_path / "switch.json").lane_of("a") is Lane.REALTIME


@pytest.mark.integration
async def test_a_camera_that_is_switched_while_the_scheduler_runs_goes_to_the_window_lane_and_back(
    bench: Bench, batches: Batches, tmp_path: Path
) -> None:
    switch = LaneSwitch(tmp_path / "switch.json", lambda: read_switch(bench.engine))
    stop = threading.Event()
    async with bench.assessor() as assessor:
        scheduler = Scheduler(assessor, batches, bench.settings.assessment, window_length=LENGTH, switch=switch)
        running = asyncio.create_task(scheduler.run(stop))
        write_switch(bench.engine, Positions({"sim-1": Entry(Lane.WINDOW, datetime.now(UTC))}))
        switch.look()
        offer(
            batches,
            bench.record(datetime.now(UTC), camera_id="sim-1"),
            bench.record(datetime.now(UTC), camera_id="sim-2"),
        )
        by_camera = "SELECT camera_id, state, reason FROM assessment_task ORDER BY 1"
        await until(bench, by_camera, [("sim-1", "pending", SWITCHED), ("sim-2", "assessed", "")])
        await asyncio.sleep(1.5)  # a look at what waits in the ledger takes none of it
        assert bench.rows(by_camera)[0][1] == "pending"
        write_switch(bench.engine, Positions({"sim-1": Entry(None, datetime.now(UTC))}))
        switch.look()
        offer(batches, bench.record(datetime.now(UTC), camera_id="sim-1"))
        await until(bench, "SELECT count(*) FROM assessment_task WHERE state = 'assessed'", [(2,)])
        stop.set()
        await running


@pytest.mark.integration
def test_the_inline_lane_works_without_ledger_and_broker_and_hands_its_answers_in(bench: Bench, tmp_path: Path) -> None:
    away = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none", connect_args={"connect_timeout": 1})
    folder = tmp_path / "inline"
    settings = bench.settings.model_copy(
        update={
            "assessment": bench.settings.assessment.model_copy(update={"inline_folder": folder}),
            "keys": bench.settings.keys.model_copy(update={"processes": 2}),
            "database": DatabaseSettings(url=SecretStr("postgresql://nobody@127.0.0.1:1/none")),
        }
    )
    switch = LaneSwitch(tmp_path / "switch.json", lambda: Positions({"sim-1": Entry(Lane.INLINE, NOW)}))
    switch.look()
    bench.sent.away = True
    frame, other = (bench.record(datetime.now(UTC), groups=2, camera_id=camera) for camera in ("sim-1", "sim-2"))
    with InlineLane(settings, away, bench.store, bench.sent, switch) as lane:
        lane.offer(frame)
        lane.offer(other)  # its camera is not switched
        wait_for(lambda: sum(1 for call in InlineFolder(folder).ended() if call.record) == 2)
    assert bench.rows("SELECT count(*) FROM llm_call") == [(0,)]

    # the ledger is back: a new process hands in what the one before left, twice without effect
    files = {file: file.read_text() for file in folder.glob("*.json")}
    with InlineLane(settings, bench.engine, bench.store, bench.sent, switch):
        wait_for(lambda: bench.rows("SELECT count(*) FROM risk_assessment WHERE lane = 'inline'") == [(2,)])
        wait_for(lambda: not list(folder.glob("*.json")))
    for file, content in files.items():
        file.write_text(content)
    with InlineLane(settings, bench.engine, bench.store, bench.sent, switch):
        wait_for(lambda: not list(folder.glob("*.json")))
    states = "SELECT camera_id, state, lane, calls FROM assessment_task ORDER BY 1, group_index"
    assert bench.rows(states)[:2] == [("sim-1", "assessed", "inline", 1)] * 2
    assert {state for _, state, _, _ in bench.rows(states)[2:]} == {"pending"}
    assert bench.rows("SELECT lane, status, count(*) FROM llm_call GROUP BY 1, 2") == [("inline", "ok", 2)]
    broken = invariants.verify(
        bench.engine, bench.store, since=frame.timestamp - timedelta(hours=1),
        until=datetime.now(UTC) + timedelta(hours=1), window_length=LENGTH,
    ).violations  # fmt: skip
    assert not [violation for violation in broken if violation.subject.startswith(frame.message_id)]


@pytest.mark.integration
def test_the_inline_lane_needs_no_store_for_crops_that_it_is_given(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "inline"
    settings = bench.settings.model_copy(
        update={"assessment": bench.settings.assessment.model_copy(update={"inline_folder": folder})}
    )
    switch = LaneSwitch(tmp_path / "switch.json", lambda: Positions({ALL: Entry(Lane.INLINE, NOW)}))
    switch.look()
    (group,) = (frame := bench.record(datetime.now(UTC))).traffic_groups
    crop = base64.b64encode(picture()).decode()
    given = frame.model_copy(update={"traffic_groups": (group.model_copy(update={"group_image_base64": crop}),)})
    with InlineLane(settings, bench.engine, FolderStore(tmp_path / "empty"), bench.sent, switch) as lane:
        lane.offer(given)
        wait_for(lambda: bench.rows("SELECT count(*) FROM risk_assessment WHERE lane = 'inline'") == [(1,)])


def lane_without_anything(settings: Settings, tmp_path: Path) -> InlineLane:
    """Every camera is its, and nothing else is there."""
    switch = LaneSwitch(tmp_path / "switch.json", lambda: Positions({ALL: Entry(Lane.INLINE, NOW)}))
    switch.look()
    away = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none", connect_args={"connect_timeout": 1})
    return InlineLane(settings, away, FolderStore(tmp_path), Sent(), switch)


@pytest.mark.parametrize(
    ("llm", "named"),
    [
        (LlmSettings(prompt_version="v99"), r"^llm\.prompt_version: .*'v99'; use one of: "),
        (LlmSettings(prompt_folder=Path("/nowhere")), r"^llm\.prompt_folder: /nowhere cannot be read"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_told_at_the_start_and_not_when_the_inline_lane_is_needed(
    llm: LlmSettings, named: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=named):
        lane_without_anything(Settings(llm=llm), tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_inline_lane_that_has_ended_takes_nobody_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    def deferred() -> float:
        return REGISTRY.get_sample_value("assessment_tasks_deferred_total", {"reason": "inline_ended"}) or 0.0

    monkeypatch.setattr(inline, "CameraContexts", broken)
    settings = Settings(assessment=AssessmentSettings(inline_folder=tmp_path / "inline"))
    before = deferred()
    with capture_logs() as logs, lane_without_anything(settings, tmp_path) as lane:

        def offered() -> bool:
            lane.offer(detection_result("a", datetime.now(UTC), groups=2))
            return deferred() - before >= 4

        wait_for(offered)
    assert [entry["event"] for entry in logs].count("inline_lane_ended") == 1


@pytest.mark.integration
async def test_an_answer_of_another_lane_is_not_replaced_and_the_call_is_a_row_all_the_same(
    bench: Bench, tmp_path: Path
) -> None:
    folder = tmp_path / "inline"
    settings = bench.settings.model_copy(
        update={"assessment": bench.settings.assessment.model_copy(update={"inline_folder": folder})}
    )
    switch = LaneSwitch(tmp_path / "switch.json", lambda: Positions({ALL: Entry(Lane.INLINE, NOW)}))
    switch.look()
    frame = bench.record(datetime.now(UTC))
    (task,) = tasks_from_detection(frame)
    async with bench.assessor() as assessor:
        await assess_window(
            assessor, window_of("sim-1", task.timestamp, LENGTH), run_id="1", settings=settings.assessment
        )
    lane = InlineLane(settings, bench.engine, bench.store, bench.sent, switch)
    await asyncio.to_thread(lane.__enter__)
    lane.offer(frame)
    await until(bench, "SELECT lane, status FROM llm_call ORDER BY call_number", [("window", "ok"), ("inline", "ok")])
    await asyncio.to_thread(lane.__exit__, None, None, None)
    assert bench.rows("SELECT lane FROM risk_assessment") == [("window",)]
    assert Stage.PROVISIONAL in {result.stage for result in bench.sent.results if result.metadata.lane is Lane.INLINE}


def wait_for(condition: object) -> None:
    import time

    ends = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < ends, "it did not come true in time"
        time.sleep(0.05)
