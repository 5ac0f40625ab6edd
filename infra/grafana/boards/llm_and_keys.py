"""LLM and keys: what the endpoint was asked, what it cost, how it answered."""

from __future__ import annotations

from infra.grafana.declaration import Board, Section, number, promql

BOARD = Board(
    uid="llm-and-keys",
    title="LLM and keys",
    says="What the endpoint was asked, by which key, how it answered and what it cost.",
    sections=[
        Section(
            "Now",
            [
                number(
                    "Calls a second",
                    promql("sum(rate(llm_calls_total[$__rate_interval]))", instant=True),
                    says="Requests to the endpoint that ended.",
                    unit="reqps",
                )
            ],
        )
    ],
)
