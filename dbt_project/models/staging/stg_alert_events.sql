select
    -- ids
    id as event_id,
    alert_id,
    input_id,
    camera_id,
    task_id,

    -- text
    kind,

    -- numbers
    version,

    -- times
    captured_at,
    at as decided_at
from {{ source('ledger', 'alert_event') }}
