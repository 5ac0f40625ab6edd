"""Settings of the evaluation of prompts and models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from dangerous_driving.settings.section import Section

#: Metrics that a challenger may be held to.
Guarded = Literal[
    "recall_high", "precision_high", "f1_high", "recall_medium", "precision_medium", "f1_medium", "recall_dangerous",
    "precision_dangerous", "f1_dangerous", "accuracy", "weighted_kappa", "coverage",
]  # fmt: skip


class EvaluationSettings(Section):
    """Cases, runs of prompts over them, and the gate before a new prompt."""

    cron: str = Field(default="30 1 * * *", description="when champion and challengers are evaluated (UTC)")
    challengers: tuple[str, ...] = Field(
        default=(), description="prompt versions that are evaluated against the one in use, every night"
    )
    models: tuple[str, ...] = Field(
        default=(), description="further models that evaluations may be started for, on the same endpoint"
    )
    promote_better: bool = Field(
        default=True,
        description="the nightly gate promotes a challenger that is significantly better; false: it says so",
    )
    guarded: tuple[Guarded, ...] = Field(
        default=("recall_high", "recall_dangerous", "precision_dangerous", "accuracy"),
        min_length=1,
        description="metrics on which a challenger may not be significantly worse",
    )
    significance: float = Field(default=0.05, gt=0, lt=0.5, description="level of the gate's tests")
    min_coverage: float = Field(
        default=0.95, ge=0, le=1, description="share of cases that champion and challenger must answer"
    )
    min_cases: int = Field(default=30, gt=0, description="held-out cases below which nothing is promoted")
    margin: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="loss of a guarded metric that its 95 % interval has to rule out before a challenger is better",
    )
    held_out_share: float = Field(
        default=0.5, gt=0, le=1, description="of camera-days, kept from those who write prompts and judged by"
    )
    stability_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="of cases that are asked a second time, to see whether the answer is stable",
    )
    reuse_days: int = Field(
        default=30,
        ge=0,
        description="days that an answer of the same prompt and model is taken over; then it is asked anew",
    )
    resamples: int = Field(default=2000, ge=100, le=100_000, description="of the bootstrap behind each interval")
    max_in_flight: int = Field(default=16, gt=0, description="calls at a time of an evaluation")
    max_attempts: int = Field(default=3, gt=0, description="on a case that fails")
    retry_pause: float = Field(
        default=15.0,
        ge=0,
        description="s before a case is asked again that the endpoint failed (rate limit, time-out, unavailable); "
        "doubles each time",
    )
    champion_refresh: float = Field(
        default=5.0, gt=0, description="s until running services take up the prompt that was promoted"
    )

    @field_validator("guarded", "challengers", "models")
    @classmethod
    def _once(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(values)) != len(values):
            raise ValueError("each one once")
        return values
