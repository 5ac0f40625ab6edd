select
    -- ids
    decision.decision_id,
    difference.metric,
    decision.set_version,
    decision.champion_run_id,
    decision.challenger_run_id,

    -- text
    decision.champion,
    decision.challenger,
    decision.model,
    decision.verdict,
    decision.decided_by,
    promotion.promotion_id is not null as is_promoted,

    -- numbers
    decision.cases,
    decision.camera_days,
    decision.coverage as challenger_coverage,
    difference.champion as champion_value,
    difference.challenger as challenger_value,
    difference.difference,
    difference.low as difference_low,
    difference.high as difference_high,
    difference.p as p_value,
    difference.p_adjusted,
    champion_run.cost_per_1000 as champion_cost_per_1000,
    challenger_run.cost_per_1000 as challenger_cost_per_1000,
    champion_run.latency_p95_seconds as champion_latency_p95_seconds,
    challenger_run.latency_p95_seconds as challenger_latency_p95_seconds,

    -- times
    decision.decided_at
from {{ ref('stg_prompt_decisions') }} as decision
cross join lateral jsonb_to_recordset(decision.differences) as difference (
    metric text,
    champion double precision,
    challenger double precision,
    difference double precision,
    low double precision,
    high double precision,
    p double precision,
    p_adjusted double precision
)
left join {{ ref('stg_evaluation_runs') }} as champion_run on champion_run.evaluation_run_id = decision.champion_run_id
left join {{ ref('stg_evaluation_runs') }} as challenger_run
    on challenger_run.evaluation_run_id = decision.challenger_run_id
left join {{ ref('stg_prompt_promotions') }} as promotion on promotion.decision_id = decision.decision_id
