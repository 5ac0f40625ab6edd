select
    -- ids
    id as decision_id,
    set_version,
    champion_run as champion_run_id,
    challenger_run as challenger_run_id,

    -- text
    champion,
    challenger,
    model,
    verdict,
    reasons,
    differences,
    decided_by,

    -- numbers
    cases,
    clusters as camera_days,
    coverage,

    -- times
    decided_at
from {{ source('ledger', 'prompt_decision') }}
