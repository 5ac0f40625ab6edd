select
    -- ids
    run,

    -- text
    prompt_version,
    model,

    -- times
    created_at
from {{ source('ledger', 'backfill') }}
