"""The mart `prompt_comparison` on a real ledger: what the gate decided, in SQL, with dbt's own tests."""

from __future__ import annotations

import os
import subprocess
import warnings
from pathlib import Path

import pytest
from sqlalchemy import text

from dangerous_driving.evaluation.promotion import nightly_rulings
from dangerous_driving.ledger.database import transaction

from .conftest import Bench, write_prompt

with warnings.catch_warnings():
    # as in tests/defs: sqlglot warns of its own parser when dagster-dbt is imported
    warnings.simplefilter("ignore", DeprecationWarning)
    from dangerous_driving.defs import dbt

PROJECT = Path(__file__).resolve().parents[2] / "dbt_project"

pytestmark = pytest.mark.integration


def test_what_the_gate_decided_can_be_asked_in_sql(bench: Bench, tmp_path: Path) -> None:
    for version, skill in (("worse", 0.2), ("better", 1.0)):
        write_prompt(bench.prompts, version, skill=skill)
    evaluation = bench.settings.evaluation.model_copy(
        update={"challengers": ("worse", "better"), "held_out_share": 1.0}
    )
    bench.settings = bench.settings.model_copy(update={"evaluation": evaluation})
    bench.add(120)
    for version in ("a", "worse", "better"):
        bench.answer(version)
    nightly_rulings(bench.settings, bench.engine, bench.store)
    done = subprocess.run(
        [
            dbt.dbt_executable(), "build", "--project-dir", str(PROJECT), "--profiles-dir", str(PROJECT),
            "--select", "+prompt_comparison",
        ],
        env=os.environ | dbt.dbt_environment(bench.settings.database, tmp_path / "target"),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    with transaction(bench.engine) as connection:
        rows = connection.execute(
            text(
                "SELECT challenger, verdict, is_promoted, count(*) AS metrics, "
                "max(difference) FILTER (WHERE metric = 'recall_high') AS recall_high "
                "FROM marts.prompt_comparison GROUP BY 1, 2, 3 ORDER BY 1"
            )
        ).all()
    assert [tuple(row)[:4] for row in rows] == [("better", "better", True, 4), ("worse", "refused", False, 4)]
    assert rows[0].recall_high > 0 > rows[1].recall_high
