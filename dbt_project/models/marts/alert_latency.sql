{{ config(indexes=[{'columns': ['hour_started_at', 'camera_id', 'stage'], 'unique': true}]) }}

with stages as (

    select
        alerts.hour_started_at,
        alerts.camera_id,
        stage.name as stage,
        stage.seconds
    from {{ ref('fct_alerts') }} as alerts
    cross join lateral (
        values
        ('geometry', alerts.seconds_to_geometry),
        ('provisional', alerts.seconds_to_provisional),
        ('final', alerts.seconds_to_final),
        ('notification', alerts.seconds_to_notification)
    ) as stage (name, seconds)
    where stage.seconds is not null

)

select
    -- ids
    coalesce(camera_id, '*') as camera_id,

    -- text
    stage,

    -- numbers
    count(*) as alerts,
    count(*) filter (where seconds > 2) as alerts_over_2_seconds,
    percentile_cont(0.5) within group (order by seconds) as median_seconds,
    percentile_cont(0.95) within group (order by seconds) as p95_seconds,
    percentile_cont(0.99) within group (order by seconds) as p99_seconds,
    max(seconds) as max_seconds,

    -- times
    hour_started_at
from stages
group by grouping sets ((hour_started_at, stage, camera_id), (hour_started_at, stage))
