"""Evaluation: prompts against each other, how good the detector is, whether cameras drift, challengers in the shadow."""

from __future__ import annotations

from infra.grafana.declaration import (
    BAD,
    FULL,
    GOOD,
    HALF,
    WARNING,
    Board,
    Section,
    gauges,
    lines,
    number,
    rows,
    sql,
    thresholds,
)

BOARD = Board(
    uid="evaluation",
    title="Evaluation",
    says="Prompts against each other, how good the detector is, whether cameras show what they have shown.",
    since="now-30d",
    sections=[
        Section(
            "Now",
            [
                number(
                    "mAP",
                    sql("""
                        select ap from marts.detector_quality
                        where class_name = 'all' and size = 'all' and light = 'all' and weather = 'all' and is_newest
                        order by evaluated_at desc limit 1
                    """),
                    says="COCO's mean average precision (IoU 0.50 to 0.95) of the newest evaluation.",
                    unit="percentunit",
                    decimals=1,
                ),
                number(
                    "mAP50",
                    sql("""
                        select ap50 from marts.detector_quality
                        where class_name = 'all' and size = 'all' and light = 'all' and weather = 'all' and is_newest
                        order by evaluated_at desc limit 1
                    """),
                    says="The same at IoU 0.50 alone.",
                    unit="percentunit",
                    decimals=1,
                ),
                number(
                    "Groups found",
                    sql("""
                        select recall from marts.detector_group_quality
                        where kind = 'group' and light = 'all' and weather = 'all' and is_newest
                        order by evaluated_at desc limit 1
                    """),
                    says="The share of true traffic groups of which the detector shows at least two members.",
                    unit="percentunit",
                    decimals=1,
                ),
                number(
                    "Dangers found",
                    sql("""
                        select recall from marts.detector_group_quality
                        where kind = 'danger' and risk_type = 'all' and light = 'all' and weather = 'all' and is_newest
                        order by evaluated_at desc limit 1
                    """),
                    says="The share of dangerous groups that become a question to the LLM at all.",
                    unit="percentunit",
                    decimals=1,
                    marks=thresholds((None, BAD), (0.8, WARNING), (0.95, GOOD)),
                ),
                number(
                    "Cameras drifted",
                    sql("""
                        select count(distinct camera_id) filter (where state = 'drifted') as cameras
                        from marts.drift where is_newest
                    """),
                    says="Cameras whose newest day is far from their own weeks before.",
                    marks=thresholds((None, GOOD), (1, WARNING), (5, BAD)),
                ),
                number(
                    "Challengers in the shadow",
                    sql("select count(distinct run) from marts.shadow_comparison where is_active"),
                    says="Prompts or models that assess a share of the live groups now, without alerting.",
                ),
            ],
        ),
        Section(
            "Prompts",
            [
                rows(
                    "What the gate decided",
                    sql("""
                        select decided_at, challenger, champion, model, verdict, is_promoted, metric, champion_value,
                            challenger_value, difference, difference_low, difference_high, p_adjusted, cases, camera_days,
                            challenger_coverage
                        from marts.prompt_comparison order by decided_at desc, metric limit 100
                    """),
                    says="Each guarded metric of each decision: champion and challenger on the same held-out cases, and how surely they differ.",
                    units={
                        "champion_value": "percentunit",
                        "challenger_value": "percentunit",
                        "difference": "percentunit",
                        "challenger_coverage": "percentunit",
                    },
                ),
            ],
        ),
        Section(
            "Detector",
            [
                gauges(
                    "Average precision by class",
                    sql("""
                        select class_name || ' (' || data_set || ')' as class, ap from marts.detector_quality
                        where class_name <> 'all' and size = 'all' and light = 'all' and weather = 'all' and is_newest
                            and ap is not null
                        order by data_set, ap desc
                    """),
                    says="Of the newest evaluation on each labelled set.",
                    unit="percentunit",
                    most=1,
                ),
                gauges(
                    "Average precision by light, weather and size",
                    sql("""
                        select concat_ws(', ', nullif(light, 'all'), nullif(weather, 'all'), nullif(size, 'all'))
                            || ' (' || data_set || ')' as circumstances, ap
                        from marts.detector_quality
                        where class_name = 'all' and is_newest and ap is not null
                            and (light <> 'all')::int + (weather <> 'all')::int + (size <> 'all')::int = 1
                        order by data_set, light, weather, size
                    """),
                    says="Mean over the classes. Sizes are COCO's: small below 32 x 32 px, large above 96 x 96 px.",
                    unit="percentunit",
                    most=1,
                ),
                rows(
                    "Evaluations",
                    sql("""
                        select q.evaluated_at, q.weights, q.data_set, q.pictures, q.objects, q.ap, q.ap_change, q.ap50,
                            q."precision", q.recall, g.recall as groups_found, g.recall_lower, g.recall_upper
                        from marts.detector_quality q
                        left join marts.detector_group_quality g on g.evaluation_id = q.evaluation_id
                            and g.kind = 'group' and g.light = 'all' and g.weather = 'all'
                        where q.class_name = 'all' and q.size = 'all' and q.light = 'all' and q.weather = 'all'
                        order by q.evaluated_at desc limit 50
                    """),
                    says="Every evaluation of some weights on some labelled pictures, newest first; ap_change is against the one before it on the same pictures.",
                    units=dict.fromkeys(("ap", "ap50", "precision", "recall", "groups_found"), "percentunit"),
                ),
                rows(
                    "Dangers by type",
                    sql("""
                        select data_set, weights, risk_type, groups, groups_found, recall, recall_lower, recall_upper
                        from marts.detector_group_quality
                        where kind = 'danger' and light = 'all' and weather = 'all' and is_newest
                        order by data_set, recall
                    """),
                    says="How many dangerous groups of each type the detector shows, with Wilson's 95 % interval.",
                    span=FULL,
                    units=dict.fromkeys(("recall", "recall_lower", "recall_upper"), "percentunit"),
                ),
            ],
        ),
        Section(
            "Drift",
            [
                lines(
                    "Distance from the weeks before",
                    sql(
                        """
                        select day_started_at as time, camera_name as metric, max(psi) as value from marts.drift
                        where psi is not null
                            and day between ($__timeFrom()::timestamptz at time zone 'UTC')::date - 1
                                and ($__timeTo()::timestamptz at time zone 'UTC')::date
                        group by 1, 2 order by 1
                        """,
                        shape="time_series",
                    ),
                    says="Population stability index of the variable that changed most: 0.1 is worth a look, 0.25 is told.",
                    marks=thresholds((None, GOOD), (0.1, WARNING), (0.25, BAD)),
                ),
                rows(
                    "Cameras that changed",
                    sql("""
                        select camera_name, day, variable, state, psi, usual, what_changed, drifted_days_in_a_row, is_other_model
                        from marts.drift where is_newest and state <> 'too_little'
                        order by psi desc limit 100
                    """),
                    says="The newest day of each camera; `usual` is the index above which a day of that camera is unusual.",
                    span=HALF,
                ),
            ],
        ),
        Section(
            "Shadow",
            [
                rows(
                    "Challengers beside the champion",
                    sql("""
                        select prompt_version, model, share, is_active, since, sum(groups) as groups,
                            sum(groups) filter (where is_same)::float8 / sum(groups) as same_level,
                            coalesce(sum(groups) filter (where only_champion_alerts), 0) as only_champion_alerts,
                            coalesce(sum(groups) filter (where only_challenger_alerts), 0) as only_challenger_alerts,
                            1000 * sum(champion_cost) / sum(groups) as champion_per_1000,
                            1000 * sum(challenger_cost) / sum(groups) as challenger_per_1000
                        from marts.shadow_comparison group by 1, 2, 3, 4, 5 order by since desc
                    """),
                    says="Live groups that both answered: how often the level is the same, and who alone would alert.",
                    units={"share": "percentunit", "same_level": "percentunit"},
                ),
            ],
        ),
    ],
)
