"""Safety analytics: where and when it is dangerous, by the marts."""

from __future__ import annotations

from infra.grafana.declaration import (
    BAD,
    CAMERA,
    FULL,
    GOOD,
    HALF,
    LEVELS,
    WARNING,
    Board,
    Section,
    categories,
    gauges,
    lines,
    number,
    rows,
    sql,
    thresholds,
)

BOARD = Board(
    uid="safety",
    title="Safety analytics",
    says="Where and when it is dangerous, by exposure. From the tables that dbt builds every hour.",
    since="now-7d",
    refresh="5m",
    variables=[CAMERA],
    sections=[
        Section(
            "In this time",
            [
                number(
                    "Dangers",
                    sql("""
                        select count(*) as dangers from marts.fct_alerts
                        where is_danger and $__timeFilter(opened_at) and camera_id in (${camera:sqlstring})
                    """),
                    says="Alerts that were neither withdrawn by the model nor rejected by a person.",
                ),
                number(
                    "Of these high",
                    sql("""
                        select count(*) as high from marts.fct_alerts
                        where is_danger and peak_level = 'high' and $__timeFilter(opened_at)
                            and camera_id in (${camera:sqlstring})
                    """),
                    says="Alerts that reached the level high.",
                    marks=thresholds((None, "text"), (1, BAD)),
                ),
                number(
                    "Road users seen",
                    sql("""
                        select sum(road_users_seen) as road_users from marts.camera_hourly_risk
                        where $__timeFilter(hour_started_at) and camera_id in (${camera:sqlstring})
                    """),
                    says="Objects detected, summed over all frames: the exposure. Who stays in view counts in each frame.",
                ),
                number(
                    "Dangerous scenes per 1,000",
                    sql("""
                        select sum(dangerous_scenes) * 1000.0 / nullif(sum(road_users_seen), 0) as rate
                        from marts.camera_hourly_risk
                        where $__timeFilter(hour_started_at) and camera_id in (${camera:sqlstring})
                    """),
                    says="Groups assessed as medium or high, per 1,000 road users seen.",
                    decimals=2,
                ),
                number(
                    "False alarms",
                    sql("""
                        select sum(rejected)::float8 / nullif(sum(judged), 0) as rate from marts.false_alarm_rate
                        where camera_id in (${camera:sqlstring})
                            and day between ($__timeFrom()::timestamptz at time zone 'UTC')::date
                                and ($__timeTo()::timestamptz at time zone 'UTC')::date
                    """),
                    says="Of the alerts that people judged, the share that they rejected.",
                    unit="percentunit",
                    marks=thresholds((None, GOOD), (0.2, WARNING), (0.5, BAD)),
                ),
                number(
                    "Judged",
                    sql("""
                        select sum(judged)::float8 / nullif(sum(alerts), 0) as share from marts.false_alarm_rate
                        where camera_id in (${camera:sqlstring})
                            and day between ($__timeFrom()::timestamptz at time zone 'UTC')::date
                                and ($__timeTo()::timestamptz at time zone 'UTC')::date
                    """),
                    says="The share of alerts that somebody judged: what the rate of false alarms stands on.",
                    unit="percentunit",
                ),
            ],
        ),
        Section(
            "When",
            [
                lines(
                    "Dangerous scenes by level",
                    sql(
                        """
                        select hour_started_at as time, sum(scenes_high) as high, sum(scenes_medium) as medium
                        from marts.camera_hourly_risk
                        where $__timeFilter(hour_started_at) and camera_id in (${camera:sqlstring})
                        group by 1 order by 1
                        """,
                        "time_series",
                    ),
                    says="Assessed groups per hour of capture. A danger that lasts counts in each frame that shows it.",
                    stacked=True,
                    bars=True,
                    colours=LEVELS,
                ),
                lines(
                    "Dangerous scenes per 1,000 road users, by camera",
                    sql(
                        """
                        select hour_started_at as time, camera_id as metric,
                            dangerous_scenes_per_1000_road_users as value
                        from marts.camera_hourly_risk
                        where $__timeFilter(hour_started_at) and camera_id in (${camera:sqlstring})
                            and camera_id in (
                                select camera_id from marts.junction_ranking where period_days = 7
                                order by place_most_dangerous nulls last limit 10
                            )
                        order by 1, 2
                        """,
                        "time_series",
                    ),
                    says="By exposure, so that busy and quiet roads compare; the ten most dangerous of the last week.",
                ),
                categories(
                    "By hour of the day (UTC)",
                    sql("""
                        select to_char(hour, 'FM00') as hour, rate
                        from generate_series(0, 23) as hour
                        left join (
                            select extract(hour from hour_started_at at time zone 'UTC')::int as hour,
                                sum(dangerous_scenes) * 1000.0 / nullif(sum(road_users_seen), 0) as rate
                            from marts.camera_hourly_risk
                            where $__timeFilter(hour_started_at) and camera_id in (${camera:sqlstring})
                            group by 1
                        ) as by_hour using (hour)
                        order by 1
                    """),
                    by="hour",
                    says="Dangerous scenes per 1,000 road users in each of the 24 hours, over all days of this time.",
                ),
                lines(
                    "False alarms by day",
                    sql(
                        """
                        select day::timestamptz as time, false_alarm_rate as rate,
                            false_alarm_rate_lower as "95 % from", false_alarm_rate_upper as "95 % to"
                        from marts.false_alarm_rate
                        where camera_id = '*' and judged > 0
                            and day between ($__timeFrom()::timestamptz at time zone 'UTC')::date
                                and ($__timeTo()::timestamptz at time zone 'UTC')::date
                        order by 1
                        """,
                        "time_series",
                    ),
                    says="Rejected of judged alerts of all cameras, with Wilson's 95 % interval.",
                    unit="percentunit",
                ),
            ],
        ),
        Section(
            "Where",
            [
                rows(
                    "Junctions, the most dangerous first (28 days)",
                    sql("""
                        select place_most_dangerous as place, camera_name as junction, against_all_cameras as evidence,
                            dangers, dangers_high as high, road_users_seen as "road users",
                            dangers_per_1000_road_users as "per 1,000",
                            dangers_per_1000_road_users_lower as "95 % from",
                            dangers_per_1000_road_users_upper as "95 % to", place_safest as "place by safety"
                        from marts.junction_ranking
                        where period_days = 28 and camera_id in (${camera:sqlstring})
                        order by place_most_dangerous nulls last, camera_name limit 200
                    """),
                    says=(
                        "Dangers per 1,000 road users seen. The order is that of the lower end of the 95 % interval, so that "
                        "little traffic and one alert do not lead; evidence says whether the interval leaves the mean of all."
                    ),
                    span=FULL,
                ),
                gauges(
                    "Dangers per 1,000 road users (28 days)",
                    sql("""
                        select camera_name, dangers_per_1000_road_users as rate from marts.junction_ranking
                        where period_days = 28 and camera_id in (${camera:sqlstring}) and place_most_dangerous <= 10
                        order by place_most_dangerous limit 10
                    """),
                    says="The ten most dangerous junctions of the last 28 days.",
                    span=HALF,
                ),
                gauges(
                    "Kinds of danger",
                    sql("""
                        select kind, count(*) as alerts
                        from marts.fct_alerts cross join lateral unnest(risk_types) as kind
                        where is_danger and $__timeFilter(opened_at) and camera_id in (${camera:sqlstring})
                        group by 1 order by 2 desc limit 12
                    """),
                    says="Risk types of the alerts; an alert may have several.",
                    span=HALF,
                ),
                rows(
                    "Alerts, the latest first",
                    sql("""
                        select alerts.opened_at as opened, cameras.camera_name as junction, alerts.peak_level as level,
                            array_to_string(alerts.risk_types, ', ') as kinds, alerts.outcome,
                            alerts.duration_seconds as lasted,
                            least(alerts.seconds_to_geometry, alerts.seconds_to_provisional, alerts.seconds_to_final)
                                as "first known after"
                        from marts.fct_alerts as alerts join marts.dim_cameras as cameras using (camera_id)
                        where $__timeFilter(alerts.opened_at) and alerts.camera_id in (${camera:sqlstring})
                        order by alerts.opened_at desc limit 100
                    """),
                    says="Each alert with its outcome; the platform's own page has its pictures.",
                    units={"lasted": "s", "first known after": "s"},
                ),
            ],
        ),
        Section(
            "How fast",
            [
                lines(
                    "Capture to stage, P95",
                    sql(
                        """
                        select hour_started_at as time, stage as metric, p95_seconds as value
                        from marts.alert_latency
                        where camera_id = '*' and stage <> 'notification' and $__timeFilter(hour_started_at)
                        order by 1, 2
                        """,
                        "time_series",
                    ),
                    says="Seconds from the capture of a frame to each stage of its alert; the aim is 2 s.",
                    unit="s",
                    marks=thresholds((None, GOOD), (2, BAD)),
                ),
                lines(
                    "Capture to notification",
                    sql(
                        """
                        select hour_started_at as time, median_seconds as median, p95_seconds as "P95"
                        from marts.alert_latency
                        where camera_id = '*' and stage = 'notification' and $__timeFilter(hour_started_at)
                        order by 1
                        """,
                        "time_series",
                    ),
                    says="Until the first receiver had a message; waiting in quiet hours counts.",
                    unit="s",
                ),
            ],
        ),
    ],
)
