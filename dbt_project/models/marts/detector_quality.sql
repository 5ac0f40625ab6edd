with scores as (

    select
        scores.*,
        evaluations.weights,
        evaluations.weights_hash,
        evaluations.data_set,
        evaluations.data_hash,
        evaluations.is_simulated,
        evaluations.confidence_threshold,
        evaluations.evaluated_at,
        -- a share of a count: its numerator is whole again
        round(scores.recall * scores.objects) as objects_found
    from {{ ref('stg_detector_scores') }} as scores
    join {{ ref('stg_detector_evaluations') }} as evaluations using (evaluation_id)

),

newest as (

    select distinct on (data_set) data_set, evaluation_id
    from {{ ref('stg_detector_evaluations') }}
    order by data_set, evaluated_at desc, evaluation_id

)

select
    -- ids
    scores.evaluation_id,

    -- text
    scores.weights,
    scores.weights_hash,
    scores.data_set,
    scores.class_name,
    scores.size,
    scores.light,
    scores.weather,

    -- numbers
    scores.is_simulated,
    newest.evaluation_id is not null as is_newest,
    scores.pictures,
    scores.objects,
    scores.ap,
    scores.ap50,
    scores.ap75,
    scores.ar,
    -- against the evaluation before it on the same pictures
    scores.ap - lag(scores.ap) over same_cell as ap_change,
    scores.confidence_threshold,
    scores."precision",
    scores.recall,
    {{ wilson_lower('scores.objects_found', 'scores.objects') }} as recall_lower,
    {{ wilson_upper('scores.objects_found', 'scores.objects') }} as recall_upper,

    -- times
    scores.evaluated_at
from scores
left join newest using (evaluation_id)
window same_cell as (
    partition by scores.data_hash, scores.class_name, scores.size, scores.light, scores.weather
    order by scores.evaluated_at, scores.evaluation_id
)
