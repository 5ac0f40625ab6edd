"""Schedulers killed (-9) in mid-run, an endpoint with faults: the short version of `make proof-schedulers`."""

from pathlib import Path

import pytest

from benchmarks.scheduler_kills import prove

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(280)]


def test_every_task_ends_once_and_every_request_is_a_row_over_kills(tmp_path: Path) -> None:
    proof = prove(tmp_path, seconds=15.0, kills=1, schedulers=2, rate=8.0, progress=False)
    assert proof.broken == []
    assert proof.kills == 1
    assert proof.tasks > 50
    assert proof.calls.get("ok", 0) > 0
