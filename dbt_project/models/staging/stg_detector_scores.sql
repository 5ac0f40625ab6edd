select
    -- ids
    evaluation_id,

    -- text
    class_name,
    size,
    light,
    weather,

    -- numbers
    pictures,
    objects,
    ap,
    ap50,
    ap75,
    ar,
    recall,
    "precision"
from {{ source('ledger', 'detector_score') }}
