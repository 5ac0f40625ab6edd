select
    -- ids
    key_hash,

    -- text
    label as key_label,
    state,
    state_reason,

    -- numbers
    coalesce(learned_qps, qps_limit) as qps_limit,
    coalesce(learned_rpm, rpm_limit) as rpm_limit,
    failures,

    -- times
    cooling_until,
    created_at,
    updated_at
from {{ source('ledger', 'api_key') }}
