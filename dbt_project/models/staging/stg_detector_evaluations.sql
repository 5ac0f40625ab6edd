select
    -- ids
    evaluation_id,

    -- text
    weights,
    weights_hash,
    data_set,
    data_hash,
    engine,

    -- numbers
    simulated as is_simulated,
    pictures,
    input_size,
    confidence as confidence_threshold,
    iou as nms_iou,
    group_distance,

    -- times
    evaluated_at
from {{ source('ledger', 'detector_evaluation') }}
