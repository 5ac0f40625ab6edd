"""Every metric of the platform, in one place; names are those of DESIGN section 10, label sets are bounded."""

from __future__ import annotations

from prometheus_client import Histogram

#: s; from a frame's capture to a browser, so finest around the two seconds that matter
LATENCY_BUCKETS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0, 10.0, 30.0, 60.0)

STAGE_SECONDS = Histogram(
    "capture_to_stage_seconds", "Seconds from capture until a stage was reached", ["stage"], buckets=LATENCY_BUCKETS
)

# tasks
FRAMES_RECORDED = Counter("frames_recorded_total", "Frames new to the ledger")
TASKS_CREATED = Counter("assessment_tasks_created_total", "Assessment tasks sent")

# assessment
TASKS_DEFERRED = Counter("assessment_tasks_deferred_total", "Tasks left to the window lane", ["reason"])
TASKS_ASSESSED = Counter("assessment_tasks_assessed_total", "Tasks with an answer", ["lane", "risk_level"])
TASKS_FAILED = Counter("assessment_tasks_failed_total", "Attempts on tasks that failed", ["lane", "code"])
QUEUE_DEPTH = Gauge("assessment_queue_depth", "Claimed tasks that wait for a key")
IN_FLIGHT = Gauge("assessment_in_flight", "Tasks that are being assessed")
CLAIMS_SWEPT = Counter("assessment_claims_swept_total", "Claims of dead workers handed back", ["lane"])
