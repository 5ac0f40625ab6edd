with newest as (

    select distinct on (data_set) data_set, evaluation_id
    from {{ ref('stg_detector_evaluations') }}
    order by data_set, evaluated_at desc, evaluation_id

)

select
    -- ids
    recalls.evaluation_id,

    -- text
    evaluations.weights,
    evaluations.data_set,
    recalls.kind,
    recalls.risk_type,
    recalls.light,
    recalls.weather,

    -- numbers
    evaluations.is_simulated,
    newest.evaluation_id is not null as is_newest,
    recalls.groups,
    recalls.groups_found,
    recalls.groups_found::double precision / nullif(recalls.groups, 0) as recall,
    {{ wilson_lower('recalls.groups_found', 'recalls.groups') }} as recall_lower,
    {{ wilson_upper('recalls.groups_found', 'recalls.groups') }} as recall_upper,
    recalls."precision",

    -- times
    evaluations.evaluated_at
from {{ ref('stg_detector_group_recalls') }} as recalls
join {{ ref('stg_detector_evaluations') }} as evaluations using (evaluation_id)
left join newest using (evaluation_id)
