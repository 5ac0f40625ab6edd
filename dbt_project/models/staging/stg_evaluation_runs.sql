select
    -- ids
    run as evaluation_run_id,
    set_version,

    -- text
    prompt_version,
    model,
    state,
    report_url,

    -- numbers: of the held-out cases
    figure.cases::int as cases,
    figure.coverage,
    figure.cost_per_1000,
    figure.latency_p50 as latency_p50_seconds,
    figure.latency_p95 as latency_p95_seconds,
    figure.calibration_error,
    figure.stability,

    -- times
    started_at,
    finished_at
from {{ source('ledger', 'evaluation_run') }}
left join lateral (
    select
        max(value) filter (where metric = 'cases') as cases,
        max(value) filter (where metric = 'coverage') as coverage,
        max(value) filter (where metric = 'cost_per_1000') as cost_per_1000,
        max(value) filter (where metric = 'latency_p50') as latency_p50,
        max(value) filter (where metric = 'latency_p95') as latency_p95,
        max(value) filter (where metric = 'calibration_error') as calibration_error,
        max(value) filter (where metric = 'stability') as stability
    from jsonb_to_recordset(coalesce(figures, '[]'::jsonb))
        as figure (split text, metric text, value double precision)
    where split = 'held_out'
) as figure on true
