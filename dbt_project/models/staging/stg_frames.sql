select
    -- ids
    message_id as frame_id,
    camera_id,

    -- text
    model as detection_model,
    node,

    -- numbers
    image_width,
    image_height,
    jsonb_array_length(detected_objects) as road_users,
    jsonb_array_length(traffic_groups) as traffic_groups,
    detection_latency as detection_latency_seconds,

    -- times
    captured_at,
    recorded_at
from {{ source('ledger', 'frame') }}
