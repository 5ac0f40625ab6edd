"""Operations: is the platform alive, fast and whole, by Prometheus."""

from __future__ import annotations

from infra.grafana.declaration import (
    BAD,
    GOOD,
    HALF,
    WARNING,
    Board,
    Section,
    cells,
    gauges,
    lines,
    number,
    promql,
    thresholds,
)

BOARD = Board(
    uid="operations",
    title="Operations",
    says="Whether the platform is alive, fast and whole. From Prometheus.",
    since="now-3h",
    refresh="30s",
    sections=[
        Section(
            "Now",
            [
                number(
                    "Capture to level, P95",
                    promql(
                        """
                        histogram_quantile(0.95, sum by (le) (
                            rate(capture_to_stage_seconds_bucket{stage="level"}[$__rate_interval])))
                        """,
                        instant=True,
                    ),
                    says="Seconds from the capture of a frame until the level of one of its groups was read from the stream.",
                    unit="s",
                    marks=thresholds((None, GOOD), (2, WARNING), (5, BAD)),
                ),
                number(
                    "Services up",
                    promql("sum(up)", instant=True),
                    says="Services that Prometheus reaches.",
                ),
                number(
                    "Cameras up",
                    promql("sum(camera_up)", instant=True),
                    says="Cameras that give frames.",
                ),
                number(
                    "Cameras down",
                    promql("count(camera_up == 0) or vector(0)", instant=True),
                    says="Cameras of the inventory that give none.",
                    marks=thresholds((None, GOOD), (1, BAD)),
                ),
                number(
                    "Consumer lag",
                    promql("max(group:kafka_lag:sum)", instant=True),
                    says="Messages that the slowest group has not committed.",
                    marks=thresholds((None, GOOD), (50, WARNING), (1000, BAD)),
                ),
                number(
                    "Queue",
                    promql("sum(assessment_queue_depth)", instant=True),
                    says="Claimed groups that wait for a key.",
                ),
            ],
        ),
        Section(
            "From camera to screen",
            [
                lines(
                    "Capture to stage, P95",
                    promql(
                        """
                        histogram_quantile(0.95, sum by (le, stage) (rate(capture_to_stage_seconds_bucket[$__rate_interval])))
                        """,
                        "{{stage}}",
                    ),
                    says="Seconds from a frame's capture until each stage; docs/metrics.md names the stages in their order.",
                    unit="s",
                    marks=thresholds((None, GOOD), (2, BAD)),
                ),
                cells(
                    "Capture to level",
                    promql(
                        'sum by (le) (increase(capture_to_stage_seconds_bucket{stage="level"}[$__rate_interval]))',
                        "{{le}}",
                        buckets=True,
                    ),
                    says="How many groups took how long until their level was known.",
                ),
                lines(
                    "Where the seconds go",
                    promql("hop:capture_to_push_seconds:mean5m", "{{hop}}"),
                    says="Mean seconds of each hop from capture to the browsers, of a streamed level; they add up.",
                    unit="s",
                    stacked=True,
                ),
                lines(
                    "Groups",
                    promql("sum(rate(assessment_tasks_created_total[$__rate_interval]))", "to assess"),
                    promql("sum(rate(assessment_tasks_assessed_total[$__rate_interval]))", "assessed"),
                    promql("sum(rate(assessment_tasks_failed_total[$__rate_interval])) or vector(0)", "failed"),
                    promql(
                        "sum(rate(assessment_tasks_deferred_total[$__rate_interval])) or vector(0)",
                        "left to the window lane",
                    ),
                    says="A second. Between the first and the second line lies what the quota cannot carry at once.",
                    unit="ops",
                ),
                lines(
                    "Answers by level",
                    promql(
                        "sum by (risk_level) (rate(assessment_tasks_assessed_total[$__rate_interval]))",
                        "{{risk_level}}",
                    ),
                    says="Assessed groups a second.",
                    unit="ops",
                    stacked=True,
                    colours={"high": "red", "medium": "orange", "low": "yellow", "none": "green"},
                ),
                lines(
                    "Alerts by state",
                    promql("sum by (state) (increase(alerts_total[$__rate_interval]))", "{{state}}"),
                    says="Alerts that reached a state.",
                ),
                lines(
                    "Waiting in the ledger",
                    promql("sum by (lane) (ledger_tasks_waiting)", "{{lane}}"),
                    promql("sum(windows_due)", "windows due"),
                    says="Groups that nobody has claimed, by the lane they wait for, and closed windows that no run has completed.",
                ),
                lines(
                    "Browsers",
                    promql("sum(websocket_clients)", "connected"),
                    promql(
                        "sum(rate(websocket_dropped_total[$__rate_interval])) or vector(0)", "messages dropped a second"
                    ),
                    says="Clients of the bridges. Alerts are never dropped; a slow client loses detection results.",
                ),
            ],
        ),
        Section(
            "Cameras and detection",
            [
                lines(
                    "Frames with a result",
                    promql("sum(rate(frames_detected_total[$__rate_interval]))", "detected"),
                    promql("sum by (reason) (rate(frames_skipped_total[$__rate_interval]))", "skipped: {{reason}}"),
                    says="Frames a second, and frame intervals without a result.",
                    unit="ops",
                ),
                lines(
                    "Inference",
                    promql(
                        "histogram_quantile(0.5, sum by (le) (rate(inference_seconds_bucket[$__rate_interval])))",
                        "median",
                    ),
                    promql(
                        "histogram_quantile(0.95, sum by (le) (rate(inference_seconds_bucket[$__rate_interval])))",
                        "P95",
                    ),
                    says="Seconds of one batch.",
                    unit="s",
                ),
                gauges(
                    "Interval between frames",
                    promql("max by (camera_id) (effective_frame_interval_seconds)", "{{camera_id}}", instant=True),
                    says="Seconds between the last two frames of a camera that were detected; 1.8 by default.",
                    unit="s",
                    span=HALF,
                    marks=thresholds((None, GOOD), (3, WARNING), (10, BAD)),
                ),
                lines(
                    "Spool",
                    promql("sum(spool_frames)", "frames on disk"),
                    promql("max(spool_oldest_age_seconds)", "age of the oldest (s)"),
                    says="What waits on disk while the broker or the store is away.",
                ),
            ],
        ),
        Section(
            "Messages",
            [
                lines(
                    "Consumer lag by group",
                    promql("group:kafka_lag:sum", "{{group}}"),
                    says="Messages that a group has not committed.",
                    marks=thresholds((None, GOOD), (1000, BAD)),
                ),
                lines(
                    "Messages sent",
                    promql("sum by (topic) (rate(kafka_produced_total[$__rate_interval]))", "{{topic}}"),
                    says="A second, acknowledged or failed.",
                    unit="ops",
                ),
                lines(
                    "Messages read",
                    promql("sum by (topic) (rate(kafka_consumed_total[$__rate_interval]))", "{{topic}}"),
                    says="A second, over all groups.",
                    unit="ops",
                ),
                lines(
                    "Memory",
                    promql("sum by (service) (process_resident_memory_bytes)", "{{service}}"),
                    says="Resident memory of each service.",
                    unit="bytes",
                ),
            ],
        ),
    ],
)
