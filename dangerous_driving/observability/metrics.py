"""Every metric of the platform, in one place; names are those of DESIGN section 10, label sets are bounded."""

from __future__ import annotations

from prometheus_client import Histogram

#: s; from a frame's capture to a browser, so finest around the two seconds that matter
LATENCY_BUCKETS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0, 10.0, 30.0, 60.0)

STAGE_SECONDS = Histogram(
    "capture_to_stage_seconds", "Seconds from capture until a stage was reached", ["stage"], buckets=LATENCY_BUCKETS
)
