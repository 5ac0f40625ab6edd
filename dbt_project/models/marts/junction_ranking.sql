{{ config(indexes=[{'columns': ['period_days', 'camera_id'], 'unique': true}]) }}

with periods as (

    select period_days, {{ as_of() }} - period_days * interval '1 day' as since
    from (values (7), (28), (90)) as length (period_days)

),

exposure as (

    select
        periods.period_days,
        hours.camera_id,
        sum(hours.frames)::bigint as frames,
        sum(hours.road_users_seen)::bigint as road_users_seen,
        sum(hours.dangerous_scenes)::bigint as dangerous_scenes
    from periods
    inner join {{ ref('camera_hourly_risk') }} as hours
        on hours.hour_started_at >= periods.since and hours.hour_started_at < {{ as_of() }}
    group by 1, 2

),

dangers as (

    select
        periods.period_days,
        alerts.camera_id,
        count(*) as dangers,
        count(*) filter (where alerts.peak_level = 'high') as dangers_high
    from periods
    inner join {{ ref('fct_alerts') }} as alerts
        on alerts.hour_started_at >= periods.since and alerts.hour_started_at < {{ as_of() }}
    where alerts.is_danger
    group by 1, 2

),

counted as (

    select
        periods.period_days,
        cameras.camera_id,
        cameras.camera_name,
        coalesce(exposure.frames, 0) as frames,
        coalesce(exposure.road_users_seen, 0) as road_users_seen,
        coalesce(exposure.dangerous_scenes, 0) as dangerous_scenes,
        coalesce(dangers.dangers, 0) as dangers,
        coalesce(dangers.dangers_high, 0) as dangers_high
    from periods
    cross join {{ ref('dim_cameras') }} as cameras
    left join exposure
        on exposure.period_days = periods.period_days and exposure.camera_id = cameras.camera_id
    left join dangers
        on dangers.period_days = periods.period_days and dangers.camera_id = cameras.camera_id

),

rated as (

    select
        *,
        dangers * 1000.0 / nullif(road_users_seen, 0) as rate,
        {{ poisson_lower('dangers') }} * 1000.0 / nullif(road_users_seen, 0) as rate_lower,
        {{ poisson_upper('dangers') }} * 1000.0 / nullif(road_users_seen, 0) as rate_upper,
        sum(dangers) over (partition by period_days) * 1000.0
            / nullif(sum(road_users_seen) over (partition by period_days), 0) as rate_of_all
    from counted

)

select
    -- ids
    period_days,
    camera_id,

    -- text
    camera_name,
    case
        when road_users_seen = 0 then 'nothing seen'
        when rate_lower > rate_of_all then 'more dangerous'
        when rate_upper < rate_of_all then 'less dangerous'
        else 'no evidence'
    end as against_all_cameras,

    -- numbers: exposure and dangers
    frames,
    road_users_seen,
    dangerous_scenes,
    dangers,
    dangers_high,

    -- numbers: dangers per 1,000 road users seen
    rate::double precision as dangers_per_1000_road_users,
    rate_lower::double precision as dangers_per_1000_road_users_lower,
    rate_upper::double precision as dangers_per_1000_road_users_upper,
    rate_of_all::double precision as dangers_per_1000_road_users_of_all,

    -- numbers: places; by the end of the interval that has to be believed, so that luck with little traffic wins neither
    case when road_users_seen > 0 then
        rank() over (partition by period_days, road_users_seen > 0 order by rate_lower desc, rate desc)
    end as place_most_dangerous,
    case when road_users_seen > 0 then
        rank() over (partition by period_days, road_users_seen > 0 order by rate_upper, rate)
    end as place_safest
from rated
