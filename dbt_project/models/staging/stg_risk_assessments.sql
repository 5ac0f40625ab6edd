select
    -- ids
    task_id,
    run,
    message_id as frame_id,
    camera_id,
    key_hash,
    call_id,

    -- text
    risk_level,
    risk_types,
    description,
    lane,
    prompt_version,
    model,

    -- numbers
    group_index,
    confidence,
    retry_count,
    first_token_latency as first_token_latency_seconds,
    latency as latency_seconds,
    input_tokens,
    output_tokens,
    cost,

    -- flags
    is_current,
    risk_level in ('medium', 'high') as is_dangerous,

    -- times
    captured_at,
    assessed_at,
    published_at
from {{ source('ledger', 'risk_assessment') }}
