"""The real Dagster job, with the simulated endpoint and a real ledger; and the way of a rejection into its numbers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import text

from dangerous_driving.assessment.champion import current_version
from dangerous_driving.contracts import RiskLevel
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.evaluation_cases import list_cases
from dangerous_driving.ledger.evaluation_runs import list_runs
from dangerous_driving.ledger.frames import record_detections
from dangerous_driving.ledger.promotions import promotions
from dangerous_driving.ledger.schema import Partitions
from dangerous_driving.settings import load
from dangerous_driving.tasks.derivation import tasks_from_detection
from tests.realtime.conftest import BridgeFactory, a_frame, a_sighting, moment, start_bridge

from .conftest import Bench, write_prompt

__all__ = ["start_bridge"]  # a fixture

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:The `__fields__` attribute is deprecated"),
    pytest.mark.filterwarnings("ignore:InitResourceContext.dagster_run is deprecated"),
]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


def as_environment(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, *, challengers: tuple[str, ...], **evaluation: Any
) -> None:
    """The bench's settings, as a run in a process of its own reads them."""
    settings = bench.settings
    for name, value in {
        "DD_DATABASE__URL": settings.database.url.get_secret_value(),
        "DD_OBJECTS__FOLDER": str(bench.prompts.parent / "objects"),
        "DD_LLM__BASE_URL": settings.llm.base_url,
        "DD_LLM__MODEL": settings.llm.model,
        "DD_LLM__PROMPT_VERSION": settings.llm.prompt_version,
        "DD_LLM__PROMPT_FOLDER": str(bench.prompts),
        "DD_KEYS__SECRETS": json.dumps([secret.get_secret_value() for secret in settings.keys.secrets]),
        "DD_KEYS__QPS_LIMIT": str(settings.keys.qps_limit),
        "DD_KEYS__RPM_LIMIT": str(settings.keys.rpm_limit),
        "DD_EVALUATION__CHALLENGERS": json.dumps(challengers),
        "DD_EVALUATION__RESAMPLES": "200",
        "DD_EVALUATION__MIN_CASES": "20",
        "DD_EVALUATION__STABILITY_SHARE": "0.05",
        "DD_EVALUATION__MAX_IN_FLIGHT": "32",
        **{f"DD_EVALUATION__{key.upper()}": str(value) for key, value in evaluation.items()},
    }.items():
        monkeypatch.setenv(name, value)
    bench.settings = load()


def run_job(instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    from dangerous_driving.defs.evaluation import evaluation_assets
    from dangerous_driving.defs.jobs import evaluation_job
    from dangerous_driving.defs.resources import window_resources

    definitions = dg.Definitions(
        assets=evaluation_assets(load()),
        jobs=[evaluation_job()],
        resources=window_resources(),
        executor=dg.in_process_executor,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        return definitions.resolve_job_def("evaluate_prompts").execute_in_process(
            instance=instance, raise_on_error=False
        )


def metadata_of(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    [event] = [
        event.materialization
        for event in result.get_asset_materialization_events()
        if event.materialization.asset_key == dg.AssetKey(asset)
    ]
    return {name: value.value for name, value in event.metadata.items()}


def test_worse_is_refused_equal_is_no_evidence_better_is_promoted(
    bench: Bench, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version, skill in (("worse", 0.2), ("equal", 0.75), ("better", 1.0)):
        write_prompt(bench.prompts, version, skill=skill)
    (bench.prompts / "broken.yaml").write_text("version: broken\ndescription: d\nsystem: '{{ unclosed'\nuser: u")
    as_environment(bench, monkeypatch, challengers=("worse", "equal", "broken", "better"), held_out_share=1)
    bench.add(120)
    result = run_job(instance)
    # one challenger cannot be used: the run says so at its end, and the others are judged all the same
    assert not result.success
    [failure] = [event.step_failure_data.error for event in result.all_events if event.is_step_failure]
    assert "the file of prompt 'broken' is unusable" in str(failure)
    shown = metadata_of(result, "prompt_gate")
    assert shown["verdicts"] == {"worse": "refused", "equal": "no_evidence", "better": "better"}
    assert shown["promoted"] == ["better"]
    assert "significantly worse on recall_high: " in shown["report"]
    assert "data:image/png;base64," in shown["report"]
    assert current_version(bench.settings.llm, bench.engine) == "better"
    [made] = promotions(bench.engine, limit=5)
    assert (made.promoted_by, made.previous) == ("nightly evaluation", "a")

    # each evaluation is a partition of its asset, with numbers that Dagster plots
    found = instance.get_materialized_partitions(dg.AssetKey("prompt_evaluations"))
    assert found == {f"simulated-vl|{version}" for version in ("a", "worse", "equal", "better")}
    # every request is a row of the evaluation lane, none is open, and no more were made than asked for
    with transaction(bench.engine) as connection:
        calls = connection.execute(
            text("SELECT lane, status, prompt_version, count(*) FROM llm_call GROUP BY 1, 2, 3")
        ).all()
        asked = dict(
            connection.execute(
                text(
                    "SELECT r.prompt_version, count(*) FROM evaluation_result a JOIN evaluation_run r USING (run) GROUP BY 1"
                )
            )
            .tuples()
            .all()
        )
    assert {(row.lane, row.status) for row in calls} == {("evaluation", "ok")}
    assert {row.prompt_version: row.count for row in calls} == asked
    assert set(asked) == {"a", "worse", "equal", "better"}


def test_a_rejection_on_the_page_becomes_a_case_and_shows_in_the_next_numbers(
    bench: Bench,
    instance: dg.DagsterInstance,
    start_bridge: BridgeFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_prompt(bench.prompts, "a", skill=None)
    as_environment(bench, monkeypatch, challengers=(), held_out_share=1)
    bench.add(20)
    assert run_job(instance).success
    [before] = list_runs(bench.engine, limit=5)

    bridge = start_bridge()
    frame = a_frame(at=moment(60), store=bridge.store)
    [task] = tasks_from_detection(frame)
    record_detections(bench.engine, Partitions(), [frame], [task], window_length=3600)
    [alert] = bridge.decide(a_sighting(frame, RiskLevel.HIGH))
    with bridge.http() as http:
        given = http.post(f"/api/alerts/{alert.alert_id}/reject", json={"by": "Ada", "note": "parked cars"})
        assert given.status_code == 200
    result = run_job(instance)
    assert result.success

    cases = metadata_of(result, "evaluation_cases")
    assert (cases["new_cases"], cases["new_labels"], cases["dagster/row_count"]) == (1, 1, 21)
    [case] = [item for item in list_cases(bench.engine) if item.case.source == "operator"]
    [label] = case.labels
    assert (label.by, label.note, label.lowest, label.highest) == ("Ada", "parked cars", RiskLevel.NONE, RiskLevel.LOW)
    # its picture is a copy of its own: retention may take the frame
    assert bench.store.get(case.case.picture_key) == bridge.store.get(bridge.store.key(str(task.group_image_url)))

    [after, _] = list_runs(bench.engine, limit=5)
    assert after.key.set_version == before.key.set_version + 1
    was, now = (
        {item["metric"]: item["value"] for item in run.figures if item["split"] == "held_out"}
        for run in (before, after)
    )
    assert now["cases_operator"] == 1
    assert now["cases"] == was["cases"] + 1
    # the model still calls this scene dangerous: a false alarm more
    assert was["precision_dangerous"] == 1.0
    assert now["precision_dangerous"] == pytest.approx(10 / 11)
    # only the new case was asked about, the other answers were taken over
    with transaction(bench.engine) as connection:
        asked = connection.scalar(text("SELECT count(*) FROM llm_call WHERE run = :run"), {"run": after.key.run})
    assert asked == 1 + int(any(item.case_id == case.case.case_id for item in _asked_twice(bench, after.key.run)))

    # a second verdict, of somebody else: a contradiction, which is kept and in no figure
    with bridge.http() as http:
        http.post(f"/api/alerts/{alert.alert_id}/acknowledge", json={"by": "Bob", "note": ""})
    shown = metadata_of(run_job(instance), "evaluation_cases")
    assert (shown["disagreements"], shown["new_cases"], shown["new_labels"]) == (1, 0, 1)


def _asked_twice(bench: Bench, run: str) -> list[Any]:
    from dangerous_driving.ledger.evaluation_runs import run_answers

    return [item for item in run_answers(bench.engine, run) if item.ask == 1]


def test_without_cases_the_night_passes_quietly(
    bench: Bench, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_environment(bench, monkeypatch, challengers=())
    result = run_job(instance)
    assert result.success
    assert list_runs(bench.engine, limit=1) == []
