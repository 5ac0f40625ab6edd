"""Cases with known truth on a real ledger, and the simulated endpoint, whose answers are as good as a prompt says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine

from dangerous_driving.assessment.answer import parse_answer
from dangerous_driving.assessment.keys import load_keys, open_pool
from dangerous_driving.assessment.prompt import load_prompt
from dangerous_driving.contracts import AssessmentTask, RiskLevel
from dangerous_driving.evaluation.answers import Answer
from dangerous_driving.evaluation.asking import run_key
from dangerous_driving.evaluation.cases import Case, CaseSource, Label, case_id_of, cluster_of, picture_key_of
from dangerous_driving.evaluation.run import Evaluated, evaluate_prompt, refresh_set
from dangerous_driving.ledger.evaluation_cases import LabelledCase, SetVersion, add_cases, set_cases
from dangerous_driving.ledger.evaluation_runs import finish_run, keep, open_run
from dangerous_driving.objects import FolderStore
from dangerous_driving.settings import (
    AssessmentSettings,
    DatabaseSettings,
    EvaluationSettings,
    KeysSettings,
    LlmSettings,
    Settings,
)
from dangerous_driving.simulation.llm import serving
from dangerous_driving.simulation.llm_answers import answer_to
from dangerous_driving.simulation.messages import detection_result
from dangerous_driving.tasks.derivation import tasks_from_detection

PROMPT = load_prompt("v1")
DAY = datetime(2025, 10, 20, 8, tzinfo=UTC)


def picture(grey: int = 90) -> bytes:
    done, encoded = cv2.imencode(".jpg", np.full((48, 64, 3), grey, np.uint8))
    assert done
    return bytes(encoded)


def write_prompt(folder: Path, version: str, *, skill: float | None) -> None:
    """A prompt that the simulated endpoint answers with this skill; its words are its own, so its mistakes are, too."""
    words = "" if skill is None else f"[simulated skill {skill}]"
    folder.mkdir(exist_ok=True)
    (folder / f"{version}.yaml").write_text(
        f"version: {version}\ndescription: a test\nsystem: 'You judge traffic, as {version} does. {words}'\n"
        "user: '{{ geometry | tojson }}'\n"
    )


def answered_level(task: AssessmentTask) -> RiskLevel:
    """What the simulated endpoint answers to this group when nothing makes it worse: the truth of these tests."""
    text = answer_to(PROMPT.messages(task, "https://store/1.jpg"))
    return parse_answer(text, {item.object_id for item in task.detected_objects}).risk_level


@cache
def cases(count: int) -> list[LabelledCase]:
    """Groups with the level that is answered for them as their truth, a fourth of each level."""
    left = dict.fromkeys(RiskLevel, count // 4)
    found: list[LabelledCase] = []
    number = 0
    while any(left.values()):
        camera, at = f"cam-{number % 30}", DAY + timedelta(days=number // 30 % 2, seconds=number)
        number += 1
        for task in tasks_from_detection(detection_result(camera, at, groups=4)):
            level = answered_level(task)
            if left[level]:
                left[level] -= 1
                found.append(exact_case(task, level))
    return found


def exact_case(task: AssessmentTask, level: RiskLevel, *, by: str = "truth") -> LabelledCase:
    case_id = case_id_of(CaseSource.SIMULATED, task.task_id)
    case = Case(
        case_id, CaseSource.SIMULATED, task.task_id, task, picture_key_of(case_id),
        cluster_of(task.camera_id, task.timestamp),
    )  # fmt: skip
    return LabelledCase(case, (Label(by, level, level, DAY),))


@dataclass
class Bench:
    engine: Engine
    settings: Settings
    store: FolderStore
    prompts: Path

    def add(self, count: int) -> None:
        """So many cases with exact truth and pictures."""
        items = cases(count)
        shown = picture()
        for item in items:
            self.store.put(item.case.picture_key, shown, "image/jpeg")
        add_cases(self.engine, items)

    def freeze(self) -> SetVersion:
        return refresh_set(self.engine, self.store, self.settings)[1]

    def answer(self, version: str) -> str:
        """A complete run of this prompt over the newest set, without a call; returns its name."""
        newest = self.freeze()
        prompt = load_prompt(version, folder=self.prompts)
        key = run_key(prompt, "simulated-vl", newest.version, datetime.now(UTC))
        open_run(self.engine, key, reuse_since=datetime.now(UTC))
        for item in set_cases(self.engine, newest.version):
            said = answer_to(prompt.messages(item.case.task, "https://store/1.jpg"))
            parsed = parse_answer(said, {thing.object_id for thing in item.case.task.detected_objects})
            given = Answer(parsed.risk_level, parsed.confidence, tuple(parsed.risk_types), latency=1.0)
            keep(self.engine, key.run, item.case.case_id, 0, given)
        finish_run(self.engine, key.run, figures=[], report_url=None)
        return key.run

    async def evaluate(self, version: str, *, model: str = "simulated-vl") -> Evaluated:
        pool = open_pool(self.settings.keys, self.engine)
        try:
            return await evaluate_prompt(
                self.settings,
                prompt_version=version,
                model=model,
                set_version=self.freeze().version,
                engine=self.engine,
                store=self.store,
                pool=pool,
            )
        finally:
            await pool.close()


@pytest.fixture
def bench(ledger: Engine, database: DatabaseSettings, tmp_path: Path) -> Iterator[Bench]:
    keys = KeysSettings(
        secrets=tuple(SecretStr(f"sk-simulated-{number}") for number in range(4)), qps_limit=1000, rpm_limit=60000
    )
    with serving(keys=load_keys(keys), speed=300) as address:
        settings = Settings(
            node="test",
            database=database,
            keys=keys,
            llm=LlmSettings(
                base_url=address, model="simulated-vl", prompt_version="a", prompt_folder=tmp_path / "prompts",
                timeout=5, price_input=1, price_output=2,
            ),
            assessment=AssessmentSettings(heartbeat_interval=0.2, worker_timeout=2),
            evaluation=EvaluationSettings(resamples=200, min_cases=20, stability_share=0.05, max_in_flight=32, retry_pause=0.01),
        )  # fmt: skip
        write_prompt(tmp_path / "prompts", "a", skill=0.75)
        yield Bench(ledger, settings, FolderStore(tmp_path / "objects"), tmp_path / "prompts")


def load_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
