with seen as (

    select
        camera_id,
        min(hour_started_at) as first_seen_hour,
        max(hour_started_at) as last_seen_hour,
        sum(frames)::bigint as frames
    from {{ ref('camera_hourly_risk') }}
    group by 1

),

alerted as (

    select distinct camera_id from {{ ref('stg_alerts') }}

)

select
    -- ids
    coalesce(cameras.camera_id, seen.camera_id, alerted.camera_id) as camera_id,

    -- text
    coalesce(
        nullif(cameras.camera_name, ''), cameras.camera_id, seen.camera_id, alerted.camera_id
    ) as camera_name,
    coalesce(cameras.kind, 'unknown') as kind,
    coalesce(cameras.status, 'unknown') as status,

    -- numbers
    cameras.frame_interval_seconds,
    coalesce(seen.frames, 0) as frames,

    -- flags
    cameras.camera_id is not null as is_in_ledger,
    coalesce(cameras.is_enabled, false) as is_enabled,
    coalesce(cameras.kind = 'simulated', false) as is_simulated,

    -- times
    cameras.created_at,
    seen.first_seen_hour,
    seen.last_seen_hour
from {{ ref('stg_cameras') }} as cameras
full join seen on seen.camera_id = cameras.camera_id
full join alerted on alerted.camera_id = coalesce(cameras.camera_id, seen.camera_id)
