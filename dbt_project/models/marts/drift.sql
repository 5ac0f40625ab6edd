with scores as (

    select
        *,
        -- rises with each day that is no drift, so that days in a row share a number
        count(*) filter (where state <> 'drifted') over (
            partition by camera_id, variable order by day
        ) as run_number,
        row_number() over (partition by camera_id, variable order by day desc) = 1 as is_newest
    from {{ ref('stg_drift_scores') }}

)

select
    -- ids
    scores.camera_id,
    scores.day,
    scores.variable,

    -- text
    coalesce(cameras.camera_name, scores.camera_id) as camera_name,
    scores.state,
    (
        select string_agg(
            format('%s %s %% -> %s %%', change ->> 'bin', round((change ->> 'expected')::numeric * 100),
                round((change ->> 'actual')::numeric * 100)), ', ' order by place)
        from jsonb_array_elements(scores.changes) with ordinality as listed(change, place)
    ) as what_changed,
    scores.model,

    -- numbers
    scores.is_newest,
    scores.psi,
    scores.jensen_shannon,
    scores.usual,
    scores.counts,
    scores.baseline_days,
    scores.is_other_model,
    case when scores.state = 'drifted' then
        count(*) filter (where scores.state = 'drifted') over (
            partition by scores.camera_id, scores.variable, scores.run_number order by scores.day
        )
    else 0 end as drifted_days_in_a_row,

    -- times
    scores.day::timestamp at time zone 'UTC' as day_started_at
from scores
left join {{ ref('dim_cameras') }} as cameras using (camera_id)
