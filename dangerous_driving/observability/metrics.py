"""Every metric of the platform, in one place; label sets are bounded. ``docs/metrics.md`` tells them to people.

Each service is one process and tells its own; the sum over instances is the platform's. What no process that lives long
enough to be asked can tell (window runs under Dagster, the queue of record, a group whose members are dead) is told by
the service `exporter`, from the ledger and the brokers.
"""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.openmetrics import exposition as openmetrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter and bucket, which nobody asks for

#: Characters of names and values together, by the OpenMetrics specification
EXEMPLAR_LENGTH = 128


def exposition(accept: str | None, registry: CollectorRegistry = REGISTRY) -> tuple[bytes, str]:
    """All metrics of this process as an answer to a scrape, and its content type.

    Prometheus asks for OpenMetrics, which alone has exemplars: the id of a task in each bucket of a histogram.
    """
    if "application/openmetrics-text" in (accept or ""):
        body: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
        return body, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(registry), CONTENT_TYPE_LATEST


def exemplar(name: str, value: str | None) -> dict[str, str] | None:
    """What a histogram's bucket remembers of its newest observation; None where it would be too long."""
    return {name: value} if value and len(name) + len(value) <= EXEMPLAR_LENGTH else None


#: s; from a frame's capture to a browser, so finest around the two seconds that matter
LATENCY_BUCKETS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0, 10.0, 30.0, 60.0)

STAGE_SECONDS = Histogram(
    "capture_to_stage_seconds",
    "Seconds from capture until a stage was reached (see observability.stages)",
    ["stage"],
    buckets=LATENCY_BUCKETS,
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

# -- messaging

KAFKA_CONSUMER_LAG = Gauge(
    "kafka_consumer_lag",
    "Messages of a partition that its group has not committed, told by the member that reads it",
    ["group", "topic", "partition"],
)
KAFKA_PRODUCED = Counter(
    "kafka_produced_total", "Messages whose delivery ended, by outcome: acknowledged or failed", ["topic", "outcome"]
)
KAFKA_CONSUMED = Counter("kafka_consumed_total", "Messages handed out by consumers", ["topic"])
KAFKA_DEAD_LETTERED = Counter(
    "kafka_dead_lettered_total", "Messages that could not be read and were set aside", ["topic"]
)

# -- cameras and detection

CAMERA_UP = Gauge("camera_up", "1 while a camera gives frames (online or degraded), else 0", ["camera_id"])
CAMERA_RECONNECTS = Counter("camera_reconnects_total", "Attempts to open a source again after a failure", ["camera_id"])
DETECT_CAMERAS = Gauge("detect_cameras", "Cameras that this detector reads, of those that it knows")
DETECT_DETECTORS = Gauge("detect_detectors", "Detectors that divide the cameras, this one included, as it last read")
DETECT_HEARD = Gauge(
    "detect_heard", "1 while the other detectors can hear this one through the ledger, under its own name"
)
FRAMES_READ = Counter("frames_read_total", "Frames read from a camera, most of which nobody needs", ["camera_id"])
FRAMES_DETECTED = Counter("frames_detected_total", "Frames whose detection result was stored", ["camera_id"])
FRAMES_SKIPPED = Counter(
    "frames_skipped_total",
    "Frame intervals without a result, by reason: behind, inference, store, spool, unchanged, frozen",
    ["camera_id", "reason"],
)
FRAME_INTERVAL = Gauge(
    "effective_frame_interval_seconds",
    "Seconds between the last two frames of a camera that were detected",
    ["camera_id"],
)
DETECTIONS = Counter("detection_total", "Objects detected", ["camera_id"])
INFERENCE_SECONDS = Histogram(
    "inference_seconds",
    "Seconds of one inference, preparation and decoding included",
    buckets=(0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0),
)
INFERENCE_FRAMES = Histogram(
    "inference_batch_frames", "Frames in one inference", buckets=(1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
)
DETECTIONS_UNPUBLISHED = Counter(
    "detection_results_unpublished_total",
    "Detection results that only the object store has (see reimport)",
    ["camera_id"],
)
SPOOL_BYTES = Gauge("spool_bytes", "Bytes of frames that wait on disk for the broker or the store")
SPOOL_ENTRIES = Gauge("spool_frames", "Frames that wait on disk for the broker or the store")
SPOOL_OLDEST_AGE = Gauge("spool_oldest_age_seconds", "Seconds since the capture of the oldest frame that waits on disk")
SPOOLED = Counter("spooled_frames_total", "Frames put into the spool", ["camera_id"])
SPOOL_REPLAYED = Counter(
    "spool_replayed_frames_total", "Frames that left the spool and were acknowledged", ["camera_id"]
)
SPOOL_DROPPED = Counter(
    "spool_dropped_frames_total",
    "Frames of the spool that are lost, by reason: full, damaged, refused",
    ["camera_id", "reason"],
)


def forget_camera(camera_id: str) -> None:
    """Remove all series of a camera that is no more: it is neither up nor down."""
    for metric in (
        CAMERA_UP, CAMERA_RECONNECTS, FRAMES_READ, FRAMES_DETECTED, FRAMES_SKIPPED, FRAME_INTERVAL, DETECTIONS,
        DETECTIONS_UNPUBLISHED,
    ):  # fmt: skip
        metric.remove_by_labels({"camera_id": camera_id})


# -- LLM and key pool

LLM_CALLS = Counter("llm_calls_total", "Requests to the LLM endpoint by how they ended", ["key_id", "status"])
ANSWERS_REUSED = Counter("assessment_answers_reused_total", "Tasks that took the answer of a near-identical group")
CALLS_HEDGED = Counter("llm_calls_hedged_total", "Second calls for a task whose first one was slow")
CALLS_SHARED = Counter(
    "llm_calls_saved_by_sharing_total",
    "Groups that were asked about in a call of another group of their frame",
    ["lane"],
)
LLM_FIRST_TOKEN = Histogram(
    "llm_first_token_seconds", "Seconds from a request to the first token of its answer", buckets=LATENCY_BUCKETS
)
LLM_TOKENS = Counter("llm_tokens_total", "Tokens that the endpoint counted: input, output", ["direction"])
LLM_LATENCY = Histogram("llm_latency_seconds", "Seconds from a request to its whole answer", buckets=LATENCY_BUCKETS)
API_KEY_STATUS = Gauge("api_key_status", "1 for the state that a key is in, 0 for the others", ["key_id", "status"])
API_KEY_USED = Gauge("api_key_used", "Requests on a key within the last second or minute", ["key_id", "window"])
BUDGET_USED = Gauge("llm_budget_used_ratio", "Share of a lane's daily budget that is spent; at 1 it stops", ["lane"])
KEY_WAIT = Histogram(
    "api_key_wait_seconds",
    "Seconds until a request was given a key",
    ["lane"],
    buckets=(0.001, 0.005, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0),
)

# -- alerts and the realtime bridge

ALERT_CHANGES = Counter("alerts_total", "Alerts that reached a state, by their level then", ["state", "risk_level"])
ALERTS_RUNG = Counter("alerts_rung_total", "Alerts that asked for attention", ["risk_level"])
ALERTS_HELD = Counter("alerts_held_total", "Alerts whose ringing waits: quiet_hours, snooze", ["reason"])
ALERTS_ESCALATED = Counter("alerts_escalated_total", "Alerts that rang again since nobody had judged them")
ALERT_INPUTS_IGNORED = Counter(
    "alert_inputs_ignored_total", "Results that alerts do not follow from: failure, other_run, no_place", ["reason"]
)
NOTIFICATIONS_PLANNED = Counter("notification_alert_changes_total", "Changes of alerts looked at for notifications")
NOTIFICATIONS_SENT = Counter("notifications_sent_total", "Messages that a receiver has taken", ["receiver", "kind"])
NOTIFICATION_FAILURES = Counter(
    "notification_failures_total",
    "Attempts that failed, by reason: refused, unreachable, given_up",
    ["receiver", "reason"],
)
NOTIFICATIONS_WAITING = Gauge("notifications_waiting", "Messages that are pending or failed", ["receiver", "state"])
NOTIFICATION_SECONDS = Histogram(
    "notification_seconds",
    "Seconds from planning a message until its receiver has it (held ones included)",
    ["receiver"],
    buckets=(0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 7200, 43200),
)
REDIS_FED = Counter("redis_fed_total", "Messages brought to Redis for big screens", ["type"])
WEBSOCKET_CLIENTS = Gauge("websocket_clients", "Browsers and other clients connected to this bridge")
WEBSOCKET_DROPPED = Counter(
    "websocket_dropped_total", "Messages not sent to a client that was slow, by type (never alerts)", ["type"]
)
WEBSOCKET_TOO_SLOW = Counter("websocket_too_slow_total", "Clients disconnected because alerts waited for them")
WEBSOCKET_REFUSED = Counter("websocket_refused_total", "Connections refused, by reason: rate, full, origin", ["reason"])
REQUESTS_REFUSED = Counter("http_requests_refused_total", "Requests refused since their address made too many")

# -- the exporter: what the ledger and the brokers know

TASKS_WAITING = Gauge(
    "ledger_tasks_waiting", "Tasks of the ledger that nobody has claimed, by the lane they wait for", ["lane"]
)
TASKS_OLDEST = Gauge(
    "ledger_oldest_waiting_task_seconds", "Seconds since the capture of the oldest task that waits", ["lane"]
)
TASKS_CLAIMED = Gauge("ledger_tasks_claimed", "Tasks of the ledger that a worker has claimed and not ended")
WINDOWS_DUE = Gauge("windows_due", "Closed windows that no run has completed")
WINDOW_OVERDUE = Gauge(
    "window_overdue_seconds", "Seconds since the oldest window closed that no run has completed; 0: there is none"
)
WINDOW_LENGTH = Gauge("window_length_seconds", "Length of a window (windows.length)")
INCIDENTS_OPEN = Gauge(
    "incidents_open",
    "Incidents that are not over, by kind; of kinds that nobody ends, those of the last hour",
    ["kind"],
)
API_KEYS = Gauge("api_keys", "Configured keys by the state that all processes have them in", ["status"])
GROUP_LAG = Gauge(
    "kafka_group_lag",
    "Messages of a topic that a group has not committed, also while none of its members lives",
    ["group", "topic"],
)
LOOKS_FAILED = Counter("exporter_looks_failed_total", "Looks that brought nothing, by part: ledger, brokers", ["part"])
