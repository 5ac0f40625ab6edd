select
    -- ids
    id as promotion_id,
    decision_id,

    -- text
    kind,
    prompt_version,
    previous as previous_version,
    promoted_by,
    note,

    -- times
    promoted_at,
    lead(promoted_at) over (order by id) as replaced_at
from {{ source('ledger', 'prompt_promotion') }}
