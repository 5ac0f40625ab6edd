"""The window lane and a backfill over 4 cameras x 8 windows in a real Dagster, watched through GraphQL.

No test of the suite, since it takes minutes: ``make proof-backfill`` runs it and keeps what it prints in
``docs/proof/backfill.txt`` and its pictures in ``docs/``. The LLM is the simulated one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import psycopg
import pytest

from dangerous_driving.assessment import prompt
from dangerous_driving.assessment.windows import Window
from dangerous_driving.defs.checks import CHECKS
from dangerous_driving.defs.partitions import partition_key
from dangerous_driving.settings import load
from tests.chromium import chromium
from tests.defs.test_daemon import LENGTH, Platform, llm, platform, post, wait_for

__all__ = ["llm", "platform"]  # fixtures

CAMERAS = [f"junction-{number}" for number in range(1, 5)]
WINDOWS, GROUPS = 8, 2
DOCS = Path(__file__).resolve().parents[2] / "docs"
LOCATION = "dangerous_driving.definitions"

BACKFILL = """
mutation Backfill($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""
STATUS = """
query Status($id: String!) {
  partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status numPartitions error { message } } }
}
"""
LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchPipelineExecution(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  }
}
"""


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201  # what the proof is


@pytest.fixture
def other_prompt() -> Iterator[str]:
    """Another prompt version than the configured one; where the package has only one, a copy of it for this run."""
    configured = load().llm.prompt_version
    others = [version for version in prompt.available_versions() if version != configured]
    if others:
        yield others[-1]
        return
    folder = Path(prompt.__file__).parent / "prompts"
    copy = folder / "proof.yaml"
    content = (folder / f"{configured}.yaml").read_text(encoding="utf-8")
    copy.write_text(content.replace(f"version: {configured}", "version: proof", 1), encoding="utf-8")
    try:
        yield "proof"
    finally:
        copy.unlink()


def capture(platform: Platform) -> list[Window]:
    """An hour's part, replayed: frames with pictures that differ, left to the window lane."""
    begin = datetime.now(UTC).replace(second=7, microsecond=0) - timedelta(minutes=30)
    found = []
    for number, camera_id in enumerate(CAMERAS):
        for minute in range(WINDOWS):
            at = begin + timedelta(minutes=minute)
            picture = np.full((240, 320, 3), 70, np.uint8)
            cv2.rectangle(picture, (30 + 20 * minute, 90), (140 + 20 * minute, 190), (40 * number, 160, 200), -1)
            cv2.rectangle(picture, (200, 60 + 10 * number), (290, 150), (200, 120, 40), -1)
            found.append(
                platform.capture(camera_id, at, groups=GROUPS, picture=cv2.imencode(".jpg", picture)[1].tobytes())
            )
    return found


def check_states(name: str) -> dict[str, str]:
    """The newest result of a check by partition."""
    with psycopg.connect(os.environ["DAGSTER_POSTGRES_URL"]) as connection:
        rows = connection.execute(
            "SELECT partition, execution_status FROM asset_check_executions WHERE check_name = %s ORDER BY id", (name,)
        )
        return {partition: status for partition, status in rows if partition}


def judged(name: str, partitions: int) -> bool:
    """Whether the check has a result for so many partitions: one that is planned has none yet."""
    return sum(state != "PLANNED" for state in check_states(name).values()) == partitions


def launch(url: str, partition: str, *, checks_only: bool) -> None:
    asset = {"path": ["risk_assessments"]}
    selector: dict[str, Any] = {
        "repositoryLocationName": LOCATION, "repositoryName": "__repository__", "pipelineName": "__ASSET_JOB",
        "assetSelection": [] if checks_only else [asset],
    }  # fmt: skip
    if checks_only:
        selector["assetCheckSelection"] = [{"assetKey": asset, "name": "nothing_forgotten"}]
    params = {
        "selector": selector, "mode": "default", "runConfigData": "{}",
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": partition}]},
    }  # fmt: skip
    answer = post(f"{url}/graphql", {"query": LAUNCH, "variables": {"params": params}})
    assert answer.get("data", {}).get("launchPipelineExecution", {}).get("__typename") == "LaunchRunSuccess", answer


@pytest.mark.timeout(1500)
def test_proof(platform: Platform, other_prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: PLR0915  # a story
    monkeypatch.setenv("DD_WINDOWS__WINDOWS_PER_RUN", str(2 * WINDOWS))
    # minutes over 90 days would be half a million partitions, and the page would load for a minute
    monkeypatch.setenv("DD_WINDOWS__START", f"{datetime.now(UTC) - timedelta(hours=1):%Y-%m-%dT%H:%M}")
    windows = capture(platform)
    groups = len(windows) * GROUPS
    say(f"captured: {len(CAMERAS)} cameras x {WINDOWS} windows of {LENGTH} s, {groups} groups; no assess service runs")
    with platform.daemon(), platform.webserver() as url:
        began = time.monotonic()
        current = "SELECT count(*) FROM risk_assessment WHERE is_current"
        until("all groups", lambda: platform.scalar(current) == groups, platform)
        until(
            "all windows", lambda: platform.scalar("SELECT count(*) FROM camera_window WHERE assessed_version < version") == 0,
            platform,
        )  # fmt: skip
        until("checks", lambda: all(judged(name, len(windows)) for name in CHECKS), platform)
        runs = platform.runs("assess_window")
        say(f"sensor: {len(runs)} runs, all groups answered after {time.monotonic() - began:.0f} s")
        twice = "SELECT count(*) FROM (SELECT 1 FROM risk_assessment WHERE is_current GROUP BY task_id HAVING count(*) > 1) x"
        assert platform.scalar(twice) == 0
        assert platform.scalar("SELECT count(*) FROM llm_call") == groups
        say(f"current answers: {platform.scalar(current)} of {groups}, none twice, {groups} calls")
        for name in CHECKS:
            states = check_states(name)
            say(f"check {name}: {len(states)} partitions, {sorted(set(states.values()))}")
            assert set(states.values()) == {"SUCCEEDED"}, (name, states)

        began = time.monotonic()
        params = {
            "assetSelection": [{"path": ["risk_assessments"]}],
            "partitionNames": [str(partition_key(window)) for window in windows],
            "runConfigData": {
                "ops": {"risk_assessments": {"config": {"prompt_version": other_prompt, "backfill": "better"}}}
            },
        }
        answer = post(f"{url}/graphql", {"query": BACKFILL, "variables": {"params": params}})
        launched = answer["data"]["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", answer
        say(
            f"GraphQL: backfill {launched['backfillId']} with prompt {other_prompt} launched in {time.monotonic() - began:.1f} s"
        )

        def ended() -> bool:
            found = post(f"{url}/graphql", {"query": STATUS, "variables": {"id": launched["backfillId"]}})
            status = found["data"]["partitionBackfillOrError"]
            assert status["status"] not in ("FAILED", "COMPLETED_FAILED", "CANCELED"), status
            return str(status["status"]) == "COMPLETED_SUCCESS"

        until("the backfill's end", ended, platform)
        say(f"backfill: COMPLETED_SUCCESS after {time.monotonic() - began:.0f} s")
        per_run = "SELECT string_agg(run || ' ' || n, ', ') FROM (SELECT run, count(*) n FROM risk_assessment GROUP BY 1 ORDER BY 1) x"
        say(f"answers by run: {platform.scalar(per_run)}")
        pairs = (
            "SELECT count(*) FROM risk_assessment a JOIN risk_assessment b USING (captured_at, task_id) "
            "WHERE a.run = 'better' AND b.run = 'live' AND b.is_current AND NOT a.is_current"
        )
        assert platform.scalar(pairs) == groups
        different = platform.scalar(
            "SELECT count(*) FROM risk_assessment a JOIN risk_assessment b USING (captured_at, task_id) "
            "WHERE a.run = 'better' AND b.run = 'live' AND a.risk_level <> b.risk_level"
        )
        say(f"two answers each: {groups} groups, {different} of them with another level; the live ones are current")
        published = platform.scalar(
            "SELECT count(*) FROM risk_assessment WHERE run = 'better' AND published_at IS NOT NULL"
        )
        alerts = platform.scalar("SELECT count(*) FROM alert")
        say(f"published of the backfill: {published}; alerts: {alerts}")
        assert (published, alerts) == (0, 0)
        pictures(url, runs[0].run_id, str(partition_key(windows[0])))

        gone = str(partition_key(windows[0]))
        platform.scalar(
            f"WITH d AS (DELETE FROM risk_assessment WHERE is_current AND camera_id = '{windows[0].camera_id}' AND group_index = 1 "
            f"AND captured_at < '{windows[0].end.isoformat()}' RETURNING 1) SELECT count(*) FROM d"
        )
        launch(url, gone, checks_only=True)
        until("the check's failure", lambda: check_states("nothing_forgotten")[gone] == "FAILED", platform)
        say(f"an answer of {gone} deleted: check nothing_forgotten FAILED")
        launch(url, gone, checks_only=False)
        until("the check's success", lambda: check_states("nothing_forgotten")[gone] == "SUCCEEDED", platform)
        assert platform.scalar("SELECT count(*) FROM llm_call WHERE run = 'live'") == groups + 1
        say("its window run again: 1 call, check SUCCEEDED")
    if incidents := platform.scalar("SELECT string_agg(kind || ' ' || message, '; ') FROM incident"):
        say(f"incidents: {incidents}")


def until(what: str, look: Callable[[], bool], platform: Platform) -> None:
    """Wait, however busy the machine is."""
    wait_for(what, look, platform.log, patience=500)


def pictures(url: str, run_id: str, partition: str) -> None:
    """The asset graph, the partitions and a run's metadata, as Chromium shows them."""
    partition = quote(partition)
    places = {
        "dagster-assets": f"{url}/assets/risk_assessments?view=lineage&lineageScope=downstream",
        "dagster-partitions": f"{url}/assets/risk_assessments?view=partitions&partition={partition}",
        "dagster-run": f"{url}/runs/{run_id}",
    }
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        for name, address in places.items():
            page.goto(address, wait_until="domcontentloaded", timeout=120_000)
            page.wait_for_timeout(8_000)  # the page asks on and on; the graph's layout comes last
            page.screenshot(path=str(DOCS / f"{name}.png"))
            say(f"docs/{name}.png from {address.removeprefix(url)}")
