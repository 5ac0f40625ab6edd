select
    -- ids
    call_id,
    task_id,
    camera_id,
    key_hash,
    worker as worker_id,

    -- text
    run,
    lane,
    model,
    prompt_version,
    status,
    error,

    -- numbers
    call_number,
    cardinality(shared_with) + 1 as groups_asked,
    http_status,
    input_tokens,
    output_tokens,
    cost,
    extract(epoch from first_token_at - started_at)::double precision as first_token_latency_seconds,
    extract(epoch from finished_at - started_at)::double precision as latency_seconds,

    -- times
    captured_at,
    started_at,
    first_token_at,
    finished_at,
    recorded_at
from {{ source('ledger', 'llm_call') }}
