select
    -- text
    lane,

    -- numbers
    calls,
    cost,

    -- times
    day
from {{ source('ledger', 'lane_spending') }}
