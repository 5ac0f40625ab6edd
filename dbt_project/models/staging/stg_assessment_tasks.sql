select
    -- ids
    task_id,
    message_id as frame_id,
    camera_id,

    -- text
    state,
    lane,
    reason,
    failure_code,

    -- numbers
    group_index,
    object_count,
    priority,
    attempts,
    calls,

    -- times
    captured_at,
    created_at,
    updated_at
from {{ source('ledger', 'assessment_task') }}
