select
    -- ids
    id as incident_id,

    -- text
    kind,
    subject,
    message,

    -- numbers
    count as occurrences,

    -- times
    first_at,
    last_at,
    ended_at
from {{ source('ledger', 'incident') }}
