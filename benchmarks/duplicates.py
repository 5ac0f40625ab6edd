"""What reusing answers saves and costs: groups of real clips and simulated scenes at one frame interval, by the cpu engine.

    python -m benchmarks.duplicates yolov8n.onnx clip.mp4 … simulated:queue …       # scenes are seen by their own weights

Saved: the share of groups that a near-identical one answered. Error: of those, the share whose own answer would have had another
level, by the simulated LLM (geometry alone), which is more nervous than a model that sees the picture.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cv2

from benchmarks.figures import Figure, tell
from dangerous_driving.assessment.answer import parse_answer
from dangerous_driving.assessment.duplicates import Scene, difference_hash, overlap
from dangerous_driving.assessment.prompt import load_prompt
from dangerous_driving.contracts import AssessmentTask, DetectionResult, TrafficGroup, message_id_of
from dangerous_driving.detection.engine import open_engine
from dangerous_driving.detection.scene import scene_of
from dangerous_driving.settings import CameraSpec, DetectionSettings
from dangerous_driving.simulation import OWN_WEIGHTS
from dangerous_driving.simulation.llm_answers import answer_to
from dangerous_driving.simulation.scenes import Scene as Scenery
from dangerous_driving.simulation.scenes import SceneSpec
from dangerous_driving.tasks.derivation import tasks_from_detection

INTERVAL, SECONDS = 1.8, 10.0
START = datetime(2026, 1, 1, tzinfo=UTC)


def frames(clip: str) -> Iterator[tuple[datetime, Any]]:
    """A frame each interval; of a clip three times from different instants, so that short ones give enough."""
    if clip.startswith("simulated:"):
        scene = Scenery(SceneSpec.parse(clip))
        for number in range(60):
            yield START + timedelta(seconds=number * INTERVAL), scene.frame(number * INTERVAL).image
        return
    for offset in (0.0, 0.6, 1.2):
        capture = cv2.VideoCapture(clip)
        rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
        number = 0
        due = offset
        while True:
            done, image = capture.read()
            if not done:
                break
            if number / rate >= due:
                due += INTERVAL
                yield START + timedelta(seconds=offset * 1000 + number / rate), image
            number += 1
        capture.release()


def groups(clip: str, weights: Path) -> list[tuple[Scene, str]]:
    """Each group with the level that the simulated LLM gives it."""
    settings = DetectionSettings(weights=OWN_WEIGHTS if clip.startswith("simulated:") else weights)
    engine = open_engine(settings)
    prompt = load_prompt("v2")
    camera = CameraSpec.model_validate({"id": "camera", "source": clip})
    found: list[tuple[Scene, str]] = []
    for captured_at, image in frames(clip):
        height, width = image.shape[:2]
        (detections,) = engine.detect([image], [camera.id])
        scene = scene_of(detections, width, height, settings, camera=camera, previous=None)
        result = DetectionResult(
            message_id=message_id_of(camera.id, captured_at), camera_id=camera.id, timestamp=captured_at,
            image_width=width, image_height=height, detected_objects=scene.objects,
            traffic_groups=tuple(
                TrafficGroup(group_index=number, object_count=group.object_count, bbox=group.bbox, classes=group.classes)
                for number, group in enumerate(scene.groups, 1)
            ),
        )  # fmt: skip
        found += [(compared(task, image), level(task, prompt)) for task in tasks_from_detection(result)]
    return found


def compared(task: AssessmentTask, image: Any) -> Scene:
    x1, y1, x2, y2 = (max(int(side), 0) for side in task.group_metadata.bbox)
    done, jpeg = cv2.imencode(".jpg", image[y1:y2, x1:x2])
    picture_hash = difference_hash(bytes(jpeg)) if done else None
    classes = tuple(sorted(item.class_name for item in task.detected_objects))
    return Scene(task.camera_id, task.timestamp, task.group_metadata.bbox, classes, picture_hash or 0)


def level(task: AssessmentTask, prompt: Any) -> str:
    text = answer_to(prompt.messages(task, "data:image/jpeg;base64,"))
    return parse_answer(text, {item.object_id for item in task.detected_objects}).risk_level.value


def reused(found: list[tuple[Scene, str]], distance: int, iou: float) -> tuple[int, int]:
    """Groups that a near-identical one answers, and those of them that would have had another level."""
    answered: list[tuple[Scene, str]] = []
    saved = wrong = 0
    for scene, own in found:
        like = next(
            (
                other for before, other in reversed(answered)
                if before.camera_id == scene.camera_id and before.classes == scene.classes
                and timedelta(0) < scene.captured_at - before.captured_at <= timedelta(seconds=SECONDS)
                and (before.picture_hash ^ scene.picture_hash).bit_count() <= distance
                and overlap(before.box, scene.box) >= iou
            ),
            None,
        )  # fmt: skip
        if like is None:
            answered.append((scene, own))
        else:
            saved += 1
            wrong += like != own
    return saved, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("clips", nargs="+", help="clips, or simulated:SCENARIO")
    given = parser.parse_args()
    rows = []
    for clip in given.clips:
        found = groups(clip, given.weights)
        for distance, iou in ((2, 0.9), (4, 0.8), (8, 0.7), (12, 0.5)):
            saved, wrong = reused(found, distance, iou)
            name = f"{Path(clip).stem}, at most {distance} bits, IoU {iou}"
            rows.append(Figure(f"saved: {name}", saved, "calls", len(found), saved / max(len(found), 1)))
            rows.append(Figure(f"another level: {name}", wrong, "answers", saved, wrong / saved if saved else None))
    print(json.dumps({"interval": INTERVAL}))
    tell("duplicates", rows)


if __name__ == "__main__":
    main()
