select
    -- ids
    run,

    -- text
    prompt_version,
    model,

    -- numbers
    share,
    ended_at is null as is_active,

    -- times
    since,
    ended_at
from {{ source('ledger', 'shadow') }}
