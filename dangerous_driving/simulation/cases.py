"""Evaluation cases from simulated scenes, whose truth is exact: rendered pictures of their groups."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import cv2
import numpy as np

from dangerous_driving.contracts import AssessmentTask, DetectedObject, GroupMetadata
from dangerous_driving.evaluation.cases import Case, CaseSource, Label, case_id_of, cluster_of, picture_key_of
from dangerous_driving.evaluation.labelled_folder import FoundCase
from dangerous_driving.ledger.evaluation_cases import LabelledCase
from dangerous_driving.simulation.scenes.scene import Scene, SceneFrame, TrueGroup
from dangerous_driving.simulation.scenes.spec import Light, Scenario, SceneSpec, Weather

#: Every scene happens on this day, at its own simulated camera: a scene is a cluster of its own.
DAY = datetime(2025, 1, 1, tzinfo=UTC)
#: px around a group's box, as `detection.crop_margin` by default.
MARGIN = 12
#: s of scene time between two frames that are taken: near-identical ones teach nothing.
STEP = 4.0


def scene_cases(number: int, *, frames: int, seed: int = 0) -> Iterator[FoundCase]:
    """Groups of two or more road users in frames of one simulated scene.

    Args:
        number: of the scene, from 0; scenarios, light and weather go round with it.
        frames: of the scene.
        seed: of scene 0.
    """
    spec = SceneSpec(
        list(Scenario)[number % len(Scenario)],
        list(Light)[number // len(Scenario) % len(Light)],
        Weather.RAIN if number % 5 == 4 else Weather.DRY,  # noqa: PLR2004  # every fifth
        seed + number,
    )
    scene = Scene(spec)
    for step in range(frames):
        frame = scene.frame(step * STEP)
        for index, group in enumerate(frame.groups, 1):
            case = _case(spec, frame, index, group)
            if case is not None:
                yield case


def _case(spec: SceneSpec, frame: SceneFrame, index: int, group: TrueGroup) -> FoundCase | None:
    members = [
        thing for thing in frame.objects if thing.actor_id in group.actor_ids or thing.rider_of in group.actor_ids
    ]
    if len(members) < 2:  # noqa: PLR2004  # the platform assesses no group of one
        return None
    origin = f"{spec} at {frame.at:g} s, group {index}"
    case_id = case_id_of(CaseSource.SIMULATED, origin)
    camera_id, captured_at = f"scene-{spec.seed}", DAY + timedelta(seconds=frame.at)
    x1, y1, x2, y2 = group.bbox
    height, width = frame.image.shape[:2]
    left, top = max(int(x1) - MARGIN, 0), max(int(y1) - MARGIN, 0)
    crop = frame.image[top : min(int(y2) + MARGIN, height), left : min(int(x2) + MARGIN, width)]
    done, jpeg = cv2.imencode(".jpg", np.ascontiguousarray(crop), [cv2.IMWRITE_JPEG_QUALITY, 88])
    if not done:
        return None
    task = AssessmentTask(
        task_id=case_id,
        request_id=case_id,
        camera_id=camera_id,
        timestamp=captured_at,
        group_index=index,
        detected_objects=tuple(
            DetectedObject(object_id=number, class_name=thing.class_name, confidence=0.9, bbox=thing.bbox)
            for number, thing in enumerate(members, 1)
        ),
        group_metadata=GroupMetadata(
            object_count=len(members), classes=tuple(sorted({thing.class_name for thing in members})), bbox=group.bbox
        ),
    )
    case = Case(
        case_id, CaseSource.SIMULATED, origin, task, picture_key_of(case_id), cluster_of(camera_id, captured_at)
    )
    types = () if group.risk_type is None else (group.risk_type,)
    label = Label("simulation", group.risk_level, group.risk_level, DAY, types)
    return FoundCase(LabelledCase(case, (label,)), jpeg.tobytes())
