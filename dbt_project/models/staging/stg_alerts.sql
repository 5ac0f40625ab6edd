select
    -- ids
    alert_id,
    camera_id,
    first_task_id,
    last_task_id,

    -- text
    state,
    basis,
    risk_level,
    peak_level,
    risk_types,
    description,
    verdict,

    -- numbers
    version,

    -- flags
    simulated as is_simulated,
    state <> 'withdrawn' as is_danger,

    -- times
    opened_at,
    last_seen_at,
    closed_at,
    updated_at,
    notified_at,
    verdict_at
from {{ source('ledger', 'alert') }}
