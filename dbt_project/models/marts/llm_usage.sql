{{ config(
    materialized='incremental',
    incremental_strategy='delete+insert',
    unique_key='hour_started_at',
    on_schema_change='append_new_columns',
    full_refresh=var('forget_dropped_days'),
    indexes=[
        {'columns': ['hour_started_at', 'key_hash', 'lane', 'model', 'prompt_version'], 'unique': true},
        {'columns': ['day']},
    ]
) }}

{% set read_at = ledger_read_at() %}
{% set spans = changed_spans([
    {'relation': ref('stg_llm_calls'), 'at': 'started_at', 'written': 'started_at'},
    {'relation': ref('stg_llm_calls'), 'at': 'started_at', 'written': 'finished_at'},
    {'relation': ref('stg_llm_calls'), 'at': 'started_at', 'written': 'recorded_at'},
]) %}

select
    -- ids
    key_hash,

    -- text
    lane,
    model,
    prompt_version,

    -- numbers: calls by how they ended
    count(*) as calls,
    count(*) filter (where status = 'ok') as calls_ok,
    count(*) filter (where status = 'started') as calls_under_way,
    count(*) filter (where status = 'cancelled') as calls_cancelled,
    count(*) filter (where status not in ('ok', 'started', 'cancelled')) as calls_failed,
    count(*) filter (where status = 'rate_limited') as calls_rate_limited,
    count(*) filter (where status = 'timeout') as calls_timed_out,
    count(*) filter (where status = 'unavailable') as calls_unavailable,
    count(*) filter (where status = 'unparsable') as calls_unparsable,
    count(*) filter (where status = 'key_rejected') as calls_key_rejected,
    count(*) filter (where status = 'lost') as calls_lost,

    -- numbers: what they took
    coalesce(sum(input_tokens), 0)::bigint as input_tokens,
    coalesce(sum(output_tokens), 0)::bigint as output_tokens,
    coalesce(sum(cost), 0)::double precision as cost,
    percentile_cont(0.5) within group (order by latency_seconds) filter (where status = 'ok') as median_latency_seconds,
    percentile_cont(0.95) within group (order by latency_seconds) filter (where status = 'ok') as p95_latency_seconds,
    percentile_cont(0.95) within group (order by first_token_latency_seconds) filter (where status = 'ok')
        as p95_first_token_seconds,

    -- times
    (started_at at time zone 'UTC')::date as day,
    {{ hour_of('started_at') }} as hour_started_at,
    {{ read_at }} as ledger_read_at
from {{ ref('stg_llm_calls') }}
where {{ within(spans, 'started_at') }}
group by key_hash, lane, model, prompt_version, day, hour_started_at
