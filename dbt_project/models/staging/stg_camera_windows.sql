select
    -- ids
    camera_id,
    last_run_id,

    -- numbers
    length as window_seconds,
    version,
    assessed_version,
    attempts,

    -- flags
    assessed_version >= version as is_complete,
    assessed_version >= version and completed_at is null as is_taken_over,

    -- times
    window_start as window_started_at,
    window_start + make_interval(secs => length) as window_ended_at,
    created_at,
    updated_at,
    completed_at
from {{ source('ledger', 'camera_window') }}
