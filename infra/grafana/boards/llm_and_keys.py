"""LLM and keys: what the endpoint was asked, by which key, how it answered and what it cost."""

from __future__ import annotations

from infra.grafana.declaration import (
    BAD,
    GOOD,
    HALF,
    WARNING,
    Board,
    Section,
    cells,
    gauges,
    lines,
    number,
    promql,
    rows,
    sql,
    thresholds,
)

BOARD = Board(
    uid="llm-and-keys",
    title="LLM and keys",
    says="What the endpoint was asked, by which key, how it answered and what it cost. Keys are shown by their hash.",
    sections=[
        Section(
            "Now",
            [
                number(
                    "Calls a second",
                    promql("sum(rate(llm_calls_total[$__rate_interval]))", instant=True),
                    says="Requests to the endpoint that ended.",
                    unit="reqps",
                    decimals=2,
                ),
                number(
                    "Failed",
                    promql(
                        """
                        (sum(rate(llm_calls_total{status!~"ok|cancelled|unsent"}[$__rate_interval])) or vector(0))
                        / sum(rate(llm_calls_total{status!~"cancelled|unsent"}[$__rate_interval]))
                        """,
                        instant=True,
                    ),
                    says="The share of calls that brought no answer; cancelled ones (a hedge whose twin was faster) do not count.",
                    unit="percentunit",
                    marks=thresholds((None, GOOD), (0.01, WARNING), (0.05, BAD)),
                ),
                number(
                    "Answer, P95",
                    promql(
                        "histogram_quantile(0.95, sum by (le) (rate(llm_latency_seconds_bucket[$__rate_interval])))",
                        instant=True,
                    ),
                    says="Seconds from a request to its whole answer.",
                    unit="s",
                    marks=thresholds((None, GOOD), (2.5, WARNING), (5, BAD)),
                ),
                number(
                    "Wait for a key, P95",
                    promql(
                        "histogram_quantile(0.95, sum by (le) (rate(api_key_wait_seconds_bucket[$__rate_interval])))",
                        instant=True,
                    ),
                    says="Seconds until a request was given a key, over all lanes.",
                    unit="s",
                    marks=thresholds((None, GOOD), (1, WARNING), (5, BAD)),
                ),
                number(
                    "Keys at work",
                    promql(
                        'count(max by (key_id) (api_key_status{status=~"available|in_use"} == 1)) or vector(0)',
                        instant=True,
                    ),
                    says="Keys that take calls now; without any, no scene is assessed.",
                    marks=thresholds((None, BAD), (1, WARNING), (2, GOOD)),
                ),
                number(
                    "Under way",
                    promql("sum(assessment_in_flight)", instant=True),
                    says="Groups that are being assessed.",
                ),
            ],
        ),
        Section(
            "Calls",
            [
                lines(
                    "Calls by how they ended",
                    promql("sum by (status) (rate(llm_calls_total[$__rate_interval]))", "{{status}}"),
                    says="A second, from the services' counters.",
                    unit="reqps",
                    stacked=True,
                ),
                cells(
                    "Time to the whole answer",
                    promql(
                        "sum by (le) (increase(llm_latency_seconds_bucket[$__rate_interval]))", "{{le}}", buckets=True
                    ),
                    says="How many calls took how long.",
                ),
                lines(
                    "Wait for a key, P95 by lane",
                    promql(
                        """
                        histogram_quantile(0.95, sum by (le, lane) (rate(api_key_wait_seconds_bucket[$__rate_interval])))
                        """,
                        "{{lane}}",
                    ),
                    says="Seconds until a request was given a key. The realtime lane has a reserve; the others wait.",
                    unit="s",
                ),
                lines(
                    "Requests of the last minute by key",
                    promql('max by (key_id) (api_key_used{window="minute"})', "{{key_id}}"),
                    says="What each key has used of its quota; keys of one size should lie over each other.",
                ),
                gauges(
                    "State of the keys",
                    promql("max by (key_id, status) (api_key_status == 1)", "{{key_id}} {{status}}", instant=True),
                    says="One bar for each key, with the state that it is in.",
                    span=HALF,
                    most=1,
                ),
                lines(
                    "Fail-overs and savings",
                    promql("sum(increase(llm_calls_hedged_total[$__rate_interval])) or vector(0)", "hedged"),
                    promql(
                        "sum(increase(assessment_answers_reused_total[$__rate_interval])) or vector(0)",
                        "reused answers",
                    ),
                    says="Second calls for a task whose first one was slow, and groups that took a near-identical group's answer.",
                ),
            ],
        ),
        Section(
            "Use and cost (from the ledger)",
            [
                lines(
                    "Cost by lane",
                    sql(
                        """
                        select hour_started_at as time, lane as metric, sum(cost) as value from marts.llm_usage
                        where $__timeFilter(hour_started_at) group by 1, 2 order by 1, 2
                        """,
                        "time_series",
                    ),
                    says="Money an hour, by the prices set at the time of each call.",
                    stacked=True,
                    bars=True,
                ),
                lines(
                    "Tokens",
                    sql(
                        """
                        select hour_started_at as time, sum(input_tokens) as input, sum(output_tokens) as output
                        from marts.llm_usage where $__timeFilter(hour_started_at) group by 1 order by 1
                        """,
                        "time_series",
                    ),
                    says="Tokens an hour, as the endpoint counted them.",
                    stacked=True,
                    bars=True,
                ),
                rows(
                    "By day, key, lane and model",
                    sql("""
                        select day, key_hash as key, lane, model, prompt_version as prompt, sum(calls) as calls,
                            sum(calls_ok) as answered, sum(calls_failed) as failed, sum(calls_rate_limited) as "429",
                            sum(calls_timed_out) as "timed out", sum(input_tokens + output_tokens) as tokens,
                            sum(cost) as cost
                        from marts.llm_usage where $__timeFilter(hour_started_at)
                        group by 1, 2, 3, 4, 5 order by 1 desc, 2, 3 limit 500
                    """),
                    says="What each key did and cost.",
                ),
                lines(
                    "Failures by cause",
                    sql(
                        """
                        select hour_started_at as time, sum(calls_rate_limited) as "rate limited",
                            sum(calls_timed_out) as "timed out", sum(calls_unavailable) as unavailable,
                            sum(calls_unparsable) as unparsable, sum(calls_key_rejected) as "key rejected",
                            sum(calls_lost) as lost
                        from marts.llm_usage where $__timeFilter(hour_started_at) group by 1 order by 1
                        """,
                        "time_series",
                    ),
                    says="Calls an hour that brought no answer. Lost: the process that made the call died under way.",
                    stacked=True,
                    bars=True,
                ),
                lines(
                    "Answer, median and P95 of the worst key",
                    sql(
                        """
                        select hour_started_at as time, max(median_latency_seconds) as median,
                            max(p95_latency_seconds) as "P95"
                        from marts.llm_usage where $__timeFilter(hour_started_at) group by 1 order by 1
                        """,
                        "time_series",
                    ),
                    says="Seconds to the whole answer, of the slowest combination of key, lane, model and prompt in the hour.",
                    unit="s",
                ),
            ],
        ),
    ],
)
