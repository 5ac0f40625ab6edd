select
    -- ids
    evaluation_id,

    -- text
    kind,
    risk_type,
    light,
    weather,

    -- numbers
    groups,
    found as groups_found,
    "precision"
from {{ source('ledger', 'detector_group_recall') }}
