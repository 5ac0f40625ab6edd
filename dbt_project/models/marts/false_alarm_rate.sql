{{ config(indexes=[{'columns': ['day', 'camera_id'], 'unique': true}]) }}

with counted as (

    select
        coalesce(camera_id, '*') as camera_id,
        (opened_at at time zone 'UTC')::date as day,
        count(*) as alerts,
        count(*) filter (where outcome = 'acknowledged') as acknowledged,
        count(*) filter (where outcome = 'rejected') as rejected,
        count(*) filter (where outcome = 'withdrawn') as withdrawn,
        count(*) filter (where outcome = 'unjudged') as unjudged
    from {{ ref('fct_alerts') }}
    group by grouping sets (((opened_at at time zone 'UTC')::date, camera_id), ((opened_at at time zone 'UTC')::date))

)

select
    -- ids
    camera_id,

    -- numbers
    alerts,
    acknowledged,
    rejected,
    withdrawn,
    unjudged,
    acknowledged + rejected as judged,
    rejected::double precision / nullif(acknowledged + rejected, 0) as false_alarm_rate,
    {{ wilson_lower('rejected', 'acknowledged + rejected') }} as false_alarm_rate_lower,
    {{ wilson_upper('rejected', 'acknowledged + rejected') }} as false_alarm_rate_upper,

    -- times
    day
from counted
