{{ config(materialized='view') }}

-- from indices alone, so that a dashboard may ask at any time
with newest as (

    select 'frames' as source, (select max(captured_at) from {{ ref('stg_frames') }} where captured_at <= now()) as newest_at
    union all
    select 'assessment tasks', (select max(captured_at) from {{ ref('stg_assessment_tasks') }} where captured_at <= now())
    union all
    select 'risk assessments', (select max(captured_at) from {{ ref('stg_risk_assessments') }} where captured_at <= now())
    union all
    select 'calls', (select max(captured_at) from {{ ref('stg_llm_calls') }} where captured_at <= now())
    union all
    select 'alerts', (select max(opened_at) from {{ ref('stg_alerts') }} where opened_at <= now())

)

select
    -- text
    source,

    -- numbers
    {{ seconds_between('newest_at', 'now()') }} as age_seconds,

    -- times
    newest_at
from newest
