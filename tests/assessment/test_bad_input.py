"""What endpoints do and models write, from the socket to the ledger: each has a stated outcome, and a failure is never a `none`."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from tests.assessment.test_assessor import assess_all
from tests.assessment.test_llm import DONE, chunk, endpoint

if TYPE_CHECKING:
    from tests.assessment.conftest import Bench

pytestmark = pytest.mark.integration


def said(text: str) -> bytes:
    """A whole stream in which a model writes this."""
    return chunk(text) + chunk(reason="stop") + DONE


def answer(**fields: object) -> str:
    return json.dumps({"riskLevel": "low", "confidence": 0.7, "riskTypes": [], "description": "d", **fields})


FAILED = {
    "an endless hang after the headers": (b"", 100, "unavailable"),
    "a stream of garbage": (b"data: {not json\n\n", None, "unavailable"),
    "an error that cannot be stored": (
        b'data: {"error": {"message": "no \\u0000 \\ud83d", "type": "server_error"}}\n\n',
        None,
        "unavailable",
    ),
    "the end in mid-stream": (chunk('{"riskLevel": "lo'), 10_000, "unavailable"),
    "HTML instead of a stream": (b"<html>wrong address</html>", None, "unavailable"),
    "HTML written by the model": (said("<html>busy</html>"), None, "unparsable"),
    "10 MB": (chunk("x" * 10_000) * 1000, None, "unparsable"),
    "an empty answer": (said(""), None, "unparsable"),
    "a level that nobody knows": (said(answer(riskLevel="purple")), None, "unparsable"),
    "prose in another language": (said("Tout va bien sur cette route."), None, "unparsable"),
}


@pytest.mark.parametrize("name", FAILED)
async def test_what_cannot_be_used_fails_its_task_with_the_cause(bench: Bench, now: datetime, name: str) -> None:
    body, length, code = FAILED[name]
    async with endpoint(body, length=length) as address:
        llm = bench.settings.llm.model_copy(update={"base_url": address, "max_retries": 1, "timeout": 10})
        bench.settings = bench.settings.model_copy(update={"llm": llm})
        bench.record(now)
        await assess_all(bench)
    assert bench.rows("SELECT state, failure_code FROM assessment_task") == [("failed", code)]
    assert bench.rows("SELECT count(*) FROM risk_assessment") == [(0,)]
    assert bench.rows("SELECT DISTINCT status FROM llm_call") == [(code,)]
    [result] = bench.sent.results
    assert result.error is not None
    assert result.results == ()


UNDERSTOOD = {
    "a level in upper case": (answer(riskLevel="MEDIUM"), "medium", 0.7),
    "another language": ('{"风险等级": "中", "置信度": 0.8, "风险类型": "追尾；拥堵"}', "medium", 0.8),
    "fenced JSON with a comment": ('```json\n{"riskLevel": "low", // fine\n "confidence": 0.7}\n```', "low", 0.7),
    "several objects": (answer() + "\n" + answer(riskLevel="high"), "low", 0.7),
    "a confidence in percent": (answer(confidence="95%"), "low", 0.95),
    "a confidence beyond 1": (answer(confidence=1.7), "low", 1.0),
    "objects that do not exist": (answer(triggerObjectIds=[1, 999, "2"]), "low", 0.7),
    "a cut end": (answer()[:-9], "low", 0.7),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
async def test_what_can_be_understood_is(bench: Bench, now: datetime, name: str) -> None:
    text, level, confidence = UNDERSTOOD[name]
    async with endpoint(said(text)) as address:
        bench.settings = bench.settings.model_copy(
            update={"llm": bench.settings.llm.model_copy(update={"base_url": address})}
        )
        bench.record(now)
        await assess_all(bench)
    [(found, sure, ids)] = bench.rows("SELECT risk_level, confidence, trigger_object_ids FROM risk_assessment")
    assert (found, sure) == (level, pytest.approx(confidence))
    assert set(ids) <= {1, 2}
