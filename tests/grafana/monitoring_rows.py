"""What the detector's evaluations, the drift watch and a challenger leave in the ledger, for the dashboards' queries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Engine, text

from dangerous_driving.detection.engine import Detection
from dangerous_driving.evaluation.detection_scores import detector_scores
from dangerous_driving.evaluation.detector import DetectorReport
from dangerous_driving.evaluation.drift import Change, Score, State, Variable
from dangerous_driving.evaluation.group_recall import group_recalls
from dangerous_driving.evaluation.labels import LabelledPicture, LabelledSet, TrueGroup, TrueObject
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.detector_quality import keep_report
from dangerous_driving.ledger.drift import keep_scores
from dangerous_driving.ledger.shadows import start_shadow
from dangerous_driving.settings import DetectionSettings

CAR, PERSON = (100.0, 300.0, 180.0, 360.0), (190.0, 300.0, 215.0, 370.0)


def fill_monitoring(engine: Engine, cameras: list[str]) -> None:
    """A decision of the gate, two evaluations, three days of verdicts on each camera, a challenger with answers to some live groups."""
    for weights, found in (("old.onnx", ("car",)), ("new.onnx", ("car", "person"))):
        keep_report(engine, _report(weights, found))
    today = datetime.now(UTC).date()
    for number, camera_id in enumerate(cameras):
        for back in range(3, 0, -1):
            drifted = number == 0 and back == 1
            state = State.DRIFTED if drifted else State.STABLE
            change = (Change("car", 0.7, 0.1),) if drifted else ()
            score = Score(Variable.CLASS, state, 0.6 if drifted else 0.02, 0.1, 0.05, 900, 9000, 20, change, "new.onnx")
            keep_scores(engine, camera_id, today - timedelta(days=back), [score])
    challenger = start_shadow(engine, "v1", "simulated-vl", 0.1)
    with transaction(engine) as connection:
        connection.execute(text(_ANSWERS), {"run": challenger.run})
        connection.execute(text(_DECISION))


def _report(weights: str, found: tuple[str, ...]) -> DetectorReport:
    objects = (TrueObject("car", CAR), TrueObject("person", PERSON))
    pictures = tuple(
        LabelledPicture("a", Path("a"), 1280, 720, objects, light, "dry", (TrueGroup((0, 1), "high", "conflict"),))
        for light in ("day", "night")
    )
    labelled = LabelledSet("junctions", pictures, ("person", "car"), simulated=True, fingerprint="d")
    boxes = [
        [Detection(thing.class_name, 0.9, thing.bbox) for thing in objects if thing.class_name in found]
        for _ in pictures
    ]
    settings = DetectionSettings()
    return DetectorReport(
        weights,
        weights,
        weights,
        "junctions",
        "d",
        True,
        len(pictures),
        settings,
        tuple(detector_scores(labelled, boxes, confidence=settings.confidence)),
        tuple(group_recalls(labelled, boxes, settings)),
    )


_ANSWERS = """
INSERT INTO risk_assessment
SELECT (jsonb_populate_record(r, jsonb_build_object('run', CAST(:run AS text), 'is_current', false, 'risk_level', 'low'))).*
FROM risk_assessment r WHERE r.run = 'live' LIMIT 50
"""

_DECISION = """
WITH runs AS (
    INSERT INTO evaluation_run (run, prompt_version, prompt_digest, model, set_version)
    VALUES ('a', 'v2', 'd', 'simulated-vl', 1), ('b', 'v3', 'e', 'simulated-vl', 1)
)
INSERT INTO prompt_decision (champion, challenger, model, set_version, champion_run, challenger_run, verdict, reasons, cases,
    clusters, coverage, differences, decided_by)
VALUES ('v2', 'v3', 'simulated-vl', 1, 'a', 'b', 'no_evidence', '{}', 40, 12, 1, '[{"metric": "recall_high",
    "champion": 0.8, "challenger": 0.9, "difference": 0.1, "low": -0.1, "high": 0.3, "p": 0.4, "p_adjusted": 0.4}]', 'ann')
"""
