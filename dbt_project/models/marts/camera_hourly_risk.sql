{{ config(
    materialized='incremental',
    incremental_strategy='delete+insert',
    unique_key='hour_started_at',
    on_schema_change='append_new_columns',
    full_refresh=var('forget_dropped_days'),
    indexes=[{'columns': ['hour_started_at', 'camera_id'], 'unique': true}]
) }}

{% set read_at = ledger_read_at() %}
{% set spans = changed_spans([
    {'relation': ref('stg_frames'), 'at': 'captured_at', 'written': 'recorded_at'},
    {'relation': ref('stg_assessment_tasks'), 'at': 'captured_at', 'written': 'updated_at'},
]) %}

with frames as (

    select
        camera_id,
        {{ hour_of('captured_at') }} as hour_started_at,
        count(*) as frames,
        sum(road_users) as road_users_seen
    from {{ ref('stg_frames') }}
    where {{ within(spans, 'captured_at') }}
    group by 1, 2

),

tasks as (

    select
        camera_id,
        {{ hour_of('captured_at') }} as hour_started_at,
        count(*) as groups,
        count(*) filter (where state = 'assessed') as groups_assessed,
        count(*) filter (where state = 'failed') as groups_failed,
        count(*) filter (where state = 'expired') as groups_expired,
        count(*) filter (where state in ('pending', 'claimed')) as groups_open
    from {{ ref('stg_assessment_tasks') }}
    where {{ within(spans, 'captured_at') }}
    group by 1, 2

),

assessments as (

    select
        camera_id,
        {{ hour_of('captured_at') }} as hour_started_at,
        count(*) filter (where risk_level = 'none') as scenes_none,
        count(*) filter (where risk_level = 'low') as scenes_low,
        count(*) filter (where risk_level = 'medium') as scenes_medium,
        count(*) filter (where risk_level = 'high') as scenes_high,
        count(*) filter (where is_dangerous) as dangerous_scenes,
        count(*) filter (where confidence is null) as scenes_without_confidence,
        avg(confidence)::double precision as mean_confidence
    from {{ ref('stg_risk_assessments') }}
    where is_current and {{ within(spans, 'captured_at') }}
    group by 1, 2

),

-- a task may be in the ledger shortly before its frame
hours as (

    select camera_id, hour_started_at from frames
    union
    select camera_id, hour_started_at from tasks

)

select
    -- ids
    hours.camera_id,

    -- numbers: exposure
    coalesce(frames.frames, 0) as frames,
    coalesce(frames.road_users_seen, 0) as road_users_seen,

    -- numbers: groups by state
    coalesce(tasks.groups, 0) as groups,
    coalesce(tasks.groups_assessed, 0) as groups_assessed,
    coalesce(tasks.groups_failed, 0) as groups_failed,
    coalesce(tasks.groups_expired, 0) as groups_expired,
    coalesce(tasks.groups_open, 0) as groups_open,

    -- numbers: assessed groups by level
    coalesce(assessments.scenes_none, 0) as scenes_none,
    coalesce(assessments.scenes_low, 0) as scenes_low,
    coalesce(assessments.scenes_medium, 0) as scenes_medium,
    coalesce(assessments.scenes_high, 0) as scenes_high,
    coalesce(assessments.dangerous_scenes, 0) as dangerous_scenes,
    (coalesce(assessments.dangerous_scenes, 0) * 1000.0 / nullif(frames.road_users_seen, 0))::double precision
        as dangerous_scenes_per_1000_road_users,

    -- numbers: what the model says of its own certainty
    coalesce(assessments.scenes_without_confidence, 0) as scenes_without_confidence,
    assessments.mean_confidence,

    -- times
    hours.hour_started_at,
    {{ read_at }} as ledger_read_at
from hours
left join frames using (camera_id, hour_started_at)
left join tasks using (camera_id, hour_started_at)
left join assessments using (camera_id, hour_started_at)
