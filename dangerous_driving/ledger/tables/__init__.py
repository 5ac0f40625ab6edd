"""The tables of the ledger (SQLAlchemy 2). `migrations/` makes them; a test holds the two against each other.

``frame``, ``assessment_task``, ``risk_assessment`` and ``llm_call`` are partitioned by day of ``captured_at`` (UTC), which
is therefore part of their keys: every look-up gives it, so that PostgreSQL reads one partition. They carry no foreign
keys: the order in which parts write is free (a scheduler's claim may come before the tasks service), and
`invariants` checks the references instead. All times are ``timestamptz``, all latencies seconds.
"""

from dangerous_driving.ledger.tables.alerts import Alert, AlertEvent, AuditEntry, CameraQuiet, Notification
from dangerous_driving.ledger.tables.declarative import BY_DAY, PARTITIONED, Base, claim_token_sequence, filled_now
from dangerous_driving.ledger.tables.evaluation import (
    EvaluationCase,
    EvaluationLabel,
    EvaluationResult,
    EvaluationRun,
    EvaluationSet,
    EvaluationSetCase,
    PromptDecision,
    PromptPromotion,
)
from dangerous_driving.ledger.tables.keys import ApiKey, KeyPoolMember, KeyReservation, LaneSpending, Switch
from dangerous_driving.ledger.tables.monitoring import (
    DetectionProfile,
    DetectorEvaluation,
    DetectorGroupRecall,
    DetectorScoreRow,
    DriftBaseline,
    DriftScore,
    Shadow,
    ShadowWindow,
)
from dangerous_driving.ledger.tables.scenes import (
    AssessmentTask,
    Camera,
    Detector,
    Frame,
    LlmCall,
    RiskAssessment,
    Worker,
)
from dangerous_driving.ledger.tables.windows import Backfill, BackfillTask, CameraWindow, Incident

__all__ = [
    "BY_DAY",
    "PARTITIONED",
    "Alert",
    "AlertEvent",
    "ApiKey",
    "AssessmentTask",
    "AuditEntry",
    "Backfill",
    "BackfillTask",
    "Base",
    "Camera",
    "CameraQuiet",
    "CameraWindow",
    "DetectionProfile",
    "Detector",
    "DetectorEvaluation",
    "DetectorGroupRecall",
    "DetectorScoreRow",
    "DriftBaseline",
    "DriftScore",
    "EvaluationCase",
    "EvaluationLabel",
    "EvaluationResult",
    "EvaluationRun",
    "EvaluationSet",
    "EvaluationSetCase",
    "Frame",
    "Incident",
    "KeyPoolMember",
    "KeyReservation",
    "LaneSpending",
    "LlmCall",
    "Notification",
    "PromptDecision",
    "PromptPromotion",
    "RiskAssessment",
    "Shadow",
    "ShadowWindow",
    "Switch",
    "Worker",
    "claim_token_sequence",
    "filled_now",
]
