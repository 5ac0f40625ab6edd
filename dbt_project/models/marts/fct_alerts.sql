{{ config(
    materialized='incremental',
    incremental_strategy='delete+insert',
    unique_key='alert_id',
    on_schema_change='append_new_columns',
    full_refresh=var('forget_dropped_days'),
    indexes=[
        {'columns': ['alert_id'], 'unique': true},
        {'columns': ['opened_at']},
        {'columns': ['camera_id', 'opened_at']},
    ]
) }}

with told as (

    select
        alert_id,
        min(sent_at) as first_told_at,
        count(*) filter (where state = 'sent') as messages_sent
    from {{ ref('stg_notifications') }}
    where alert_id is not null
    group by 1

),

-- Every change of an alert raises its version, so that no clock is asked. Retention deletes notifications and no alert:
-- what was built knows of messages that the ledger has forgotten.
changed as (

    select
        alerts.*,
        {%- if is_incremental() %}
        -- both pass over nulls
        least(told.first_told_at, built.first_told_at) as first_told_at,
        greatest(told.messages_sent, built.messages_sent, 0) as messages_sent
        {%- else %}
        told.first_told_at,
        coalesce(told.messages_sent, 0) as messages_sent
        {%- endif %}
    from {{ ref('stg_alerts') }} as alerts
    left join told on told.alert_id = alerts.alert_id
    {%- if is_incremental() %}
    left join {{ this }} as built on built.alert_id = alerts.alert_id
    where built.alert_id is null
        or built.version <> alerts.version
        or told.messages_sent > built.messages_sent
    {%- endif %}

),

-- the first of each stage
stages as (

    select distinct on (events.alert_id, events.kind)
        events.alert_id,
        events.kind,
        {{ seconds_between('events.captured_at', 'events.decided_at') }} as seconds
    from {{ ref('stg_alert_events') }} as events
    inner join changed on changed.alert_id = events.alert_id
    where events.kind in ('geometry', 'provisional', 'final')
    order by events.alert_id, events.kind, events.version

),

by_alert as (

    select
        alert_id,
        max(seconds) filter (where kind = 'geometry') as seconds_to_geometry,
        max(seconds) filter (where kind = 'provisional') as seconds_to_provisional,
        max(seconds) filter (where kind = 'final') as seconds_to_final,
        bool_or(seconds is null) as has_clock_fault
    from stages
    group by 1

)

select
    -- ids
    changed.alert_id,
    changed.camera_id,
    changed.first_task_id,
    changed.last_task_id,

    -- text
    changed.state,
    changed.basis,
    changed.risk_level,
    changed.peak_level,
    changed.risk_types,
    case
        when changed.verdict is not null then changed.verdict
        when changed.state = 'withdrawn' then 'withdrawn'
        else 'unjudged'
    end as outcome,

    -- numbers
    changed.version,
    changed.messages_sent,
    extract(epoch from changed.last_seen_at - changed.opened_at)::double precision as duration_seconds,
    by_alert.seconds_to_geometry,
    by_alert.seconds_to_provisional,
    by_alert.seconds_to_final,
    {{ seconds_between('changed.opened_at', 'changed.first_told_at') }} as seconds_to_notification,

    -- flags
    changed.is_simulated,
    changed.is_danger and changed.verdict is distinct from 'rejected' as is_danger,
    coalesce(by_alert.has_clock_fault, false) as has_clock_fault,

    -- times
    changed.opened_at,
    changed.last_seen_at,
    changed.closed_at,
    changed.verdict_at,
    changed.first_told_at,
    changed.updated_at,
    {{ hour_of('changed.opened_at') }} as hour_started_at
from changed
left join by_alert on by_alert.alert_id = changed.alert_id
