select
    -- ids
    notification_id,
    alert_id,
    camera_id,

    -- text
    receiver,
    kind,
    level,
    state,
    held_reason,

    -- numbers
    attempts,

    -- times
    created_at,
    due_at,
    sent_at
from {{ source('ledger', 'notification') }}
