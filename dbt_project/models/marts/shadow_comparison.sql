with shadows as (

    select * from {{ ref('stg_shadows') }}

),

pairs as (

    select
        challenger.run,
        champion.risk_level as champion_level,
        challenger.risk_level as challenger_level,
        count(*) as groups,
        sum(champion.cost) as champion_cost,
        sum(challenger.cost) as challenger_cost
    from {{ ref('stg_risk_assessments') }} as challenger
    join {{ ref('stg_risk_assessments') }} as champion
        on champion.captured_at = challenger.captured_at
        and champion.task_id = challenger.task_id
        and champion.run = 'live'
    where
        challenger.run like 'shadow:%'
        -- where there has never been a challenger, the answers are not read at all
        and exists (select 1 from shadows)
    group by 1, 2, 3

)

select
    -- ids
    pairs.run,
    pairs.champion_level,
    pairs.challenger_level,

    -- text
    shadows.prompt_version,
    shadows.model,

    -- numbers
    shadows.share,
    shadows.is_active,
    pairs.groups,
    pairs.champion_level = pairs.challenger_level as is_same,
    (pairs.champion_level in ('medium', 'high')) and not (pairs.challenger_level in ('medium', 'high')) as only_champion_alerts,
    (pairs.challenger_level in ('medium', 'high')) and not (pairs.champion_level in ('medium', 'high')) as only_challenger_alerts,
    pairs.champion_cost,
    pairs.challenger_cost,

    -- times
    shadows.since
from pairs
join shadows using (run)
