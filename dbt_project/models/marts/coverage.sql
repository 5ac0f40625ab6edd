{{ config(
    materialized='incremental',
    incremental_strategy='delete+insert',
    unique_key=['camera_id', 'window_started_at', 'window_seconds'],
    on_schema_change='append_new_columns',
    full_refresh=var('forget_dropped_days'),
    indexes=[
        {'columns': ['camera_id', 'window_started_at', 'window_seconds'], 'unique': true},
        {'columns': ['window_started_at']},
    ]
) }}

{% set read_at = ledger_read_at() %}
{#- windows divide an hour or, when they are longer, a day: whole ones lie in the spans -#}
{% set spans = changed_spans([
    {'relation': ref('stg_frames'), 'at': 'captured_at', 'written': 'recorded_at'},
    {'relation': ref('stg_assessment_tasks'), 'at': 'captured_at', 'written': 'updated_at'},
    {'relation': ref('stg_camera_windows'), 'at': 'window_started_at', 'written': 'updated_at'},
    {'relation': ref('stg_camera_windows'), 'at': 'window_started_at', 'written': 'completed_at'},
], unit=unit_of_windows()) %}

with windows as (

    select * from {{ ref('stg_camera_windows') }}
    where {{ within(spans, 'window_started_at') }}

),

-- the length is a setting: windows of two lengths may lie over each other after it was changed
lengths as (

    select distinct window_seconds from windows

),

frames as (

    select
        frames.camera_id,
        lengths.window_seconds,
        {{ window_of('frames.captured_at', 'lengths.window_seconds') }} as window_started_at,
        count(*) as frames,
        sum(frames.traffic_groups) as traffic_groups,
        count(*) filter (where frames.captured_at > frames.recorded_at + interval '1 second') as frames_from_the_future,
        count(*) filter (where frames.recorded_at > frames.captured_at + interval '10 minutes') as frames_late
    from {{ ref('stg_frames') }} as frames
    cross join lengths
    where {{ within(spans, 'frames.captured_at') }}
    group by 1, 2, 3

),

tasks as (

    select
        tasks.camera_id,
        lengths.window_seconds,
        {{ window_of('tasks.captured_at', 'lengths.window_seconds') }} as window_started_at,
        count(*) as groups,
        count(*) filter (where tasks.state = 'assessed') as groups_assessed,
        count(*) filter (where tasks.state = 'failed') as groups_failed,
        count(*) filter (where tasks.state = 'expired') as groups_expired,
        count(*) filter (where tasks.state = 'pending') as groups_pending,
        count(*) filter (where tasks.state = 'claimed') as groups_claimed
    from {{ ref('stg_assessment_tasks') }} as tasks
    cross join lengths
    where {{ within(spans, 'tasks.captured_at') }}
    group by 1, 2, 3

)

select
    -- ids
    windows.camera_id,

    -- numbers
    windows.window_seconds,
    coalesce(frames.frames, 0) as frames,
    coalesce(frames.traffic_groups, 0) as traffic_groups,
    coalesce(frames.frames_from_the_future, 0) as frames_from_the_future,
    coalesce(frames.frames_late, 0) as frames_late,
    coalesce(tasks.groups, 0) as groups,
    coalesce(tasks.groups_assessed, 0) as groups_assessed,
    coalesce(tasks.groups_failed, 0) as groups_failed,
    coalesce(tasks.groups_expired, 0) as groups_expired,
    coalesce(tasks.groups_pending, 0) as groups_pending,
    coalesce(tasks.groups_claimed, 0) as groups_claimed,
    tasks.groups_assessed::double precision / nullif(tasks.groups, 0) as assessed_share,
    windows.attempts,

    -- flags
    windows.is_complete,

    -- times
    windows.window_started_at,
    windows.window_ended_at,
    windows.completed_at,
    {{ read_at }} as ledger_read_at
from windows
-- what was taken over is counted once, by the windows that took it over
left join frames
    on not windows.is_taken_over
    and frames.camera_id = windows.camera_id
    and frames.window_seconds = windows.window_seconds
    and frames.window_started_at = windows.window_started_at
left join tasks
    on not windows.is_taken_over
    and tasks.camera_id = windows.camera_id
    and tasks.window_seconds = windows.window_seconds
    and tasks.window_started_at = windows.window_started_at
