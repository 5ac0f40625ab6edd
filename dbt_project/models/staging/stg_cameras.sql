select
    -- ids
    id as camera_id,

    -- text
    name as camera_name,
    kind,
    status,
    status_reason,

    -- numbers
    frame_interval as frame_interval_seconds,

    -- flags
    enabled as is_enabled,

    -- times
    status_at,
    created_at
from {{ source('ledger', 'camera') }}
