select
    -- ids
    camera_id,
    day,
    variable,

    -- text
    state,
    changes,
    model,

    -- numbers
    psi,
    jensen_shannon,
    usual,
    count as counts,
    baseline_count as baseline_counts,
    baseline_days,
    model_changed as is_other_model,

    -- times
    scored_at
from {{ source('ledger', 'drift_score') }}
