"""Data quality: is every scene assessed, is anything late, missing or odd."""

from __future__ import annotations

from infra.grafana.declaration import (
    BAD,
    CAMERA,
    GOOD,
    HALF,
    WARNING,
    Board,
    Section,
    gauges,
    lines,
    number,
    promql,
    rows,
    sql,
    thresholds,
)

BOARD = Board(
    uid="data-quality",
    title="Data quality",
    says="Whether every scene is assessed, and what is late, missing or odd.",
    variables=[CAMERA],
    sections=[
        Section(
            "In this time",
            [
                number(
                    "Assessed",
                    sql("""
                        select sum(groups_assessed)::float8 / nullif(sum(groups), 0) as share from marts.coverage
                        where $__timeFilter(window_started_at) and camera_id in (${camera:sqlstring})
                    """),
                    says="The share of groups with an answer, open windows included.",
                    unit="percentunit",
                    decimals=2,
                    marks=thresholds((None, BAD), (0.95, WARNING), (0.99, GOOD)),
                ),
                number(
                    "Waiting",
                    sql("""
                        select sum(groups_pending + groups_claimed) as waiting from marts.coverage
                        where $__timeFilter(window_started_at) and camera_id in (${camera:sqlstring})
                    """),
                    says="Groups that no lane has assessed yet.",
                ),
                number(
                    "Failed",
                    sql("""
                        select sum(groups_failed)::float8 / nullif(sum(groups), 0) as share from marts.coverage
                        where $__timeFilter(window_started_at) and camera_id in (${camera:sqlstring})
                    """),
                    says="The share of groups whose answer could not be had or read; the window lane tries again.",
                    unit="percentunit",
                    decimals=2,
                    marks=thresholds((None, GOOD), (0.01, WARNING), (0.05, BAD)),
                ),
                number(
                    "Expired",
                    sql("""
                        select sum(groups_expired) as expired from marts.coverage
                        where $__timeFilter(window_started_at) and camera_id in (${camera:sqlstring})
                    """),
                    says="Groups that no lane could carry before retention took them: the quota is too small.",
                    marks=thresholds((None, GOOD), (1, BAD)),
                ),
                number(
                    "Windows open",
                    sql("""
                        select count(*) as open from marts.coverage
                        where not is_complete and window_ended_at < now() - interval '1 hour'
                            and $__timeFilter(window_started_at) and camera_id in (${camera:sqlstring})
                    """),
                    says="Windows that ended over an hour ago and whose content is not all assessed.",
                    marks=thresholds((None, GOOD), (1, WARNING), (20, BAD)),
                ),
                number(
                    "Clocks ahead",
                    sql("""
                        select count(distinct camera_id) as cameras from marts.coverage
                        where frames_from_the_future > 0 and $__timeFilter(window_started_at)
                            and camera_id in (${camera:sqlstring})
                    """),
                    says="Cameras with frames captured after they were recorded, by their own clock.",
                    marks=thresholds((None, GOOD), (1, WARNING)),
                ),
            ],
        ),
        Section(
            "Coverage",
            [
                lines(
                    "What became of the groups",
                    sql(
                        """
                        select window_started_at as time, sum(groups_assessed) as assessed, sum(groups_failed) as failed,
                            sum(groups_expired) as expired, sum(groups_pending + groups_claimed) as waiting
                        from marts.coverage
                        where $__timeFilter(window_started_at) and camera_id in (${camera:sqlstring})
                        group by 1 order by 1
                        """,
                        "time_series",
                    ),
                    says="Groups by the window of their capture.",
                    stacked=True,
                    bars=True,
                    colours={"assessed": GOOD, "failed": BAD, "expired": "purple", "waiting": WARNING},
                ),
                lines(
                    "Frames",
                    sql(
                        """
                        select window_started_at as time, sum(frames) as frames, sum(frames_late) as late,
                            sum(frames_from_the_future) as "of the future"
                        from marts.coverage
                        where $__timeFilter(window_started_at) and camera_id in (${camera:sqlstring})
                        group by 1 order by 1
                        """,
                        "time_series",
                    ),
                    says="Frames by window; late: recorded more than ten minutes after their capture.",
                ),
                rows(
                    "Windows that are not complete, the oldest first",
                    sql("""
                        select coverage.window_started_at as window, cameras.camera_name as camera, coverage.frames,
                            coverage.groups, coverage.groups_assessed as assessed, coverage.groups_failed as failed,
                            coverage.groups_pending + coverage.groups_claimed as waiting, coverage.attempts
                        from marts.coverage join marts.dim_cameras as cameras using (camera_id)
                        where not coverage.is_complete and $__timeFilter(coverage.window_started_at)
                            and coverage.camera_id in (${camera:sqlstring})
                        order by 1, 2 limit 200
                    """),
                    says="What the window lane has still to do.",
                ),
            ],
        ),
        Section(
            "Freshness",
            [
                gauges(
                    "Age of the newest capture",
                    sql("select source, age_seconds as age from marts.source_freshness order by 1"),
                    says="Seconds since the capture of the newest row of each kind, asked of the ledger itself.",
                    unit="s",
                    span=HALF,
                    marks=thresholds((None, GOOD), (600, WARNING), (3600, BAD)),
                ),
                number(
                    "Marts built",
                    sql("""
                        select extract(epoch from now() - max(ledger_read_at))::float8 as age from marts.camera_hourly_risk
                    """),
                    says="Seconds since the last build that found something new.",
                    unit="s",
                    span=HALF,
                    marks=thresholds((None, GOOD), (2 * 3600, WARNING), (6 * 3600, BAD)),
                ),
            ],
        ),
        Section(
            "Oddities",
            [
                lines(
                    "Confidence",
                    sql(
                        """
                        select hour_started_at as time,
                            sum(mean_confidence * (groups_assessed - scenes_without_confidence))
                                / nullif(sum(groups_assessed - scenes_without_confidence), 0) as mean,
                            sum(scenes_without_confidence)::float8 / nullif(sum(groups_assessed), 0) as "without any"
                        from marts.camera_hourly_risk
                        where $__timeFilter(hour_started_at) and camera_id in (${camera:sqlstring})
                        group by 1 order by 1
                        """,
                        "time_series",
                    ),
                    says="Mean of what the model says of its own certainty, and the share of answers that say nothing.",
                    unit="percentunit",
                ),
                lines(
                    "Set aside",
                    promql("sum by (topic) (kafka_dead_lettered_total) or vector(0)", "{{topic}}"),
                    says="Messages that could not be read, since the services began: topics dead-letter shows them with reasons.",
                ),
                rows(
                    "Cameras",
                    sql("""
                        select camera_name as camera, kind, status, is_enabled as enabled, is_in_ledger as "in ledger",
                            frames, last_seen_hour as "last seen"
                        from marts.dim_cameras where camera_id in (${camera:sqlstring}) order by 1 limit 500
                    """),
                    says="Every camera that was ever seen, also those that the inventory has lost.",
                ),
            ],
        ),
    ],
)
