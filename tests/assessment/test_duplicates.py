"""Answers of near-identical groups: on the same camera, within a time limit, off or on per camera."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.assessment.assessor import Outcome
from dangerous_driving.assessment.duplicates import RecentAnswers, Scene, difference_hash, overlap
from dangerous_driving.contracts import Lane
from dangerous_driving.ledger.assessments import AssessmentRecord
from dangerous_driving.ledger.claims import claim_pending_realtime
from dangerous_driving.settings import AssessmentSettings, CameraContext, CameraSettings, CameraSpec

if TYPE_CHECKING:
    from tests.assessment.conftest import Bench

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
BOX = (100.0, 100.0, 300.0, 200.0)
SCENE = Scene("a", NOW, BOX, ("car", "person"), 0b1010)
SETTINGS = AssessmentSettings(reuse_seconds=5, reuse_distance=2, reuse_overlap=0.8)


def road(shift: int = 0, seed: int = 3) -> bytes:
    base = cv2.resize(np.random.default_rng(seed).integers(0, 255, (6, 8), np.uint8), (320, 240))
    done, jpeg = cv2.imencode(".jpg", np.roll(base, shift, axis=1))
    assert done
    return bytes(jpeg)


def record(task_id: str = "first") -> AssessmentRecord:
    return AssessmentRecord(
        captured_at=NOW, task_id=task_id, run="live", message_id="m", camera_id="a", group_index=1, group_bbox=list(BOX),
        risk_level="low", confidence=0.7, risk_types=[], description="", trigger_object_ids=[1], danger_object_count=1,
        lane="realtime", prompt_version="v2", model="m", key_hash="k", call_id="c", retry_count=0,
        first_token_latency=0.1, latency=1.0, input_tokens=1, output_tokens=1, cost=0.1, reused_from=None,
        raw_answer="{}", node="n", assessed_at=NOW,
    )  # fmt: skip


def test_the_hash_is_near_for_small_shifts_and_far_for_another_picture() -> None:
    same, shifted, other = (difference_hash(data) for data in (road(), road(2), road(seed=9)))
    assert same is not None
    assert shifted is not None
    assert other is not None
    assert (same ^ shifted).bit_count() <= 4
    assert (same ^ other).bit_count() > 12


@pytest.mark.parametrize("data", [b"", b"no picture"])
def test_what_is_no_picture_has_no_hash(data: bytes) -> None:
    assert difference_hash(data) is None


def test_an_even_picture_says_nothing() -> None:
    done, jpeg = cv2.imencode(".jpg", np.full((40, 40, 3), 90, np.uint8))
    assert done
    assert difference_hash(bytes(jpeg)) is None


boxes = st.tuples(st.floats(0, 50), st.floats(0, 50), st.floats(60, 100), st.floats(60, 100))


@given(boxes, boxes)
def test_overlap_is_symmetric_and_one_for_the_same(
    first: tuple[float, float, float, float], second: tuple[float, float, float, float]
) -> None:
    assert overlap(first, second) == pytest.approx(overlap(second, first))
    assert overlap(first, first) == pytest.approx(1.0)
    assert 0 <= overlap(first, second) <= 1.0 + 1e-9
    assert overlap(first, (200.0, 200.0, 210.0, 210.0)) == 0.0


@pytest.mark.parametrize(
    ("change", "reused"),
    [
        ({"captured_at": NOW + timedelta(seconds=5)}, True),
        ({"captured_at": NOW + timedelta(seconds=5.1)}, False),
        ({"captured_at": NOW}, False),  # two groups of one frame are two groups
        ({"camera_id": "b"}, False),
        ({"classes": ("car", "car")}, False),
        ({"picture_hash": 0b1001}, True),
        ({"picture_hash": 0b0101}, False),
        ({"box": (110.0, 100.0, 310.0, 200.0)}, True),
        ({"box": (200.0, 100.0, 400.0, 200.0)}, False),
    ],
)
def test_what_is_near_enough(change: dict[str, object], reused: bool) -> None:
    recent = RecentAnswers(SETTINGS)
    recent.add(SCENE, record())
    scene = replace(SCENE, **({"captured_at": NOW + timedelta(seconds=1)} | change))  # type: ignore[arg-type]
    assert (recent.like(scene) is not None) is reused


@pytest.mark.integration
@pytest.mark.parametrize(("of_camera", "calls"), [(None, 1), (False, 2)])
async def test_a_duplicate_takes_the_answer_without_a_call(bench: Bench, of_camera: bool | None, calls: int) -> None:
    camera = CameraSpec.model_validate(
        {"id": "sim-1", "source": "simulated:queue", "context": CameraContext(reuse_duplicates=of_camera)}
    )
    bench.settings = bench.settings.model_copy(
        update={
            "camera": CameraSettings(cameras=(camera,)),
            "assessment": bench.settings.assessment.model_copy(update={"reuse_duplicates": True}),
        }
    )
    now = datetime.now(UTC)
    frames = [bench.record(now - timedelta(seconds=age), groups=1) for age in (2, 1)]
    first = frames[0].traffic_groups[0]
    picture = bench.store.put("road.jpg", road(), "image/jpeg")
    box = "[" + ", ".join(str(side) for side in first.bbox) + "]"
    bench.rows(
        f"UPDATE assessment_task SET group_image_url = '{picture}', group_bbox = '{box}', "
        "detected_objects = (SELECT detected_objects FROM assessment_task ORDER BY captured_at LIMIT 1) RETURNING 1"
    )
    async with bench.assessor() as assessor:
        claims = claim_pending_realtime(
            bench.engine, assessor.worker, captured_after=now - timedelta(minutes=1), limit=9
        )
        for held in sorted(claims, key=lambda item: item.task.timestamp):
            assert await assessor.assess(held, Lane.REALTIME) is Outcome.ASSESSED
    assert bench.rows("SELECT count(*) FROM llm_call") == [(calls,)]
    levels = bench.rows("SELECT DISTINCT risk_level FROM risk_assessment")
    reused = bench.rows(
        "SELECT reused_from, cost, trigger_object_ids FROM risk_assessment WHERE reused_from IS NOT NULL"
    )
    assert len(levels) == 1
    assert reused == ([] if calls == 2 else [(f"{frames[0].message_id}_group1", 0.0, [])])
    if calls == 1:
        finals = [result for result in bench.sent.results if result.metadata.reused_from]
        assert [result.task_id for result in finals] == [f"{frames[1].message_id}_group1"]
