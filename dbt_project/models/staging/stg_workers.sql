select
    -- ids
    id as worker_id,

    -- text
    service,
    node,

    -- times
    started_at,
    heartbeat_at,
    stopped_at
from {{ source('ledger', 'worker') }}
