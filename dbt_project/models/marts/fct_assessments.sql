{{ config(
    materialized='incremental',
    incremental_strategy='delete+insert',
    unique_key='hour_started_at',
    on_schema_change='append_new_columns',
    indexes=[
        {'columns': ['captured_at', 'task_id', 'run'], 'unique': true},
        {'columns': ['hour_started_at']},
        {'columns': ['camera_id', 'captured_at']},
        {'columns': ['ledger_read_at']},
    ],
    post_hook=["{{ forget_dropped_days('captured_at') }}", "analyze {{ this }}"]
) }}

{% set read_at = ledger_read_at() %}
{% set spans = changed_spans([
    {'relation': ref('stg_assessment_tasks'), 'at': 'captured_at', 'written': 'updated_at'},
    {'relation': ref('stg_backfill_tasks'), 'at': 'captured_at', 'written': 'updated_at'},
    {'relation': ref('stg_risk_assessments'), 'at': 'captured_at', 'written': 'assessed_at'},
]) %}

with assessments as (

    select * from {{ ref('stg_risk_assessments') }}
    where {{ within(spans, 'captured_at') }}

),

tasks as (

    select * from {{ ref('stg_assessment_tasks') }}
    where {{ within(spans, 'captured_at') }}

)

select
    -- ids
    assessments.task_id,
    assessments.run,
    assessments.frame_id,
    assessments.camera_id,
    assessments.key_hash,
    assessments.call_id,

    -- text
    assessments.risk_level,
    assessments.risk_types,
    assessments.lane,
    assessments.prompt_version,
    assessments.model,

    -- numbers
    assessments.confidence,
    assessments.retry_count,
    assessments.first_token_latency_seconds,
    assessments.latency_seconds,
    {{ seconds_between('assessments.captured_at', 'assessments.assessed_at') }} as seconds_from_capture,
    assessments.input_tokens,
    assessments.output_tokens,
    assessments.cost,
    tasks.priority,
    tasks.object_count,

    -- flags
    assessments.is_current,
    assessments.is_dangerous,
    assessments.run = 'live' as is_live,

    -- times
    assessments.captured_at,
    assessments.assessed_at,
    {{ hour_of('assessments.captured_at') }} as hour_started_at,
    {{ read_at }} as ledger_read_at
from assessments
left join tasks
    on tasks.captured_at = assessments.captured_at
    and tasks.task_id = assessments.task_id
