select
    -- ids
    run,
    task_id,
    camera_id,

    -- text
    state,
    failure_code,

    -- numbers
    attempts,

    -- times
    captured_at,
    updated_at
from {{ source('ledger', 'backfill_task') }}
