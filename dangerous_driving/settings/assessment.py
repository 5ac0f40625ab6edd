"""Settings of the assessment: the LLM, its keys, the lanes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from dangerous_driving.settings.section import Section


def _web_address(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError("an address that starts with http:// or https://")
    return url.rstrip("/")


class CameraContext(Section):
    """What a model cannot see in the picture of a group, and a person knows of the place."""

    road_type: str = Field(
        default="", max_length=80, description="such as: motorway, junction with lights, school street"
    )
    speed_limit: int | None = Field(default=None, gt=0, le=200, description="km/h that are allowed there")
    text: str = Field(default="", max_length=400, description="in a sentence or two: lanes, signs, what is usual there")
    reuse_duplicates: bool | None = Field(
        default=None, description="of this camera; default assessment.reuse_duplicates"
    )

    @property
    def says_something(self) -> bool:
        """Whether there is anything for the prompt."""
        return bool(self.road_type or self.speed_limit or self.text)


class FallbackSettings(Section):
    """An endpoint or model for when the ones before it are out of order; what is not given is as in ``llm``."""

    base_url: str | None = Field(default=None, description="OpenAI-compatible")
    model: str | None = Field(default=None, description="its name at that endpoint")
    secrets: tuple[SecretStr, ...] = Field(default=(), description="keys of this endpoint; none: those of ``keys``")
    price_input: float | None = Field(default=None, ge=0, description="money per million input tokens")
    price_output: float | None = Field(default=None, ge=0, description="money per million output tokens")

    @field_validator("base_url")
    @classmethod
    def _http(cls, url: str | None) -> str | None:
        return None if url is None else _web_address(url)


class LlmSettings(Section):
    """The vision LLM: any OpenAI-compatible endpoint."""

    base_url: str = Field(default="https://dashscope.aliyuncs.com/compatible-mode/v1", description="OpenAI-compatible")
    model: str = Field(default="qwen-vl-plus", description="its name at the endpoint; it must take pictures")
    prompt_version: str = Field(
        default="v2",
        description="file name under assessment/prompts or in prompt_folder, without .yaml; in use until one is promoted",
    )
    prompt_folder: Path | None = Field(
        default=None, description="prompts of your own, one file VERSION.yaml each, on every node that assesses"
    )
    timeout: float = Field(default=30.0, gt=0, description="s for one whole answer")
    connect_timeout: float = Field(default=5.0, gt=0, description="s to connect")
    max_retries: int = Field(default=2, ge=0, description="further attempts after a failed call, never on the same key")
    temperature: float = Field(default=0.0, ge=0, le=2, description="0: the likeliest answer, higher: more varied")
    max_tokens: int = Field(default=400, gt=0, description="of an answer")
    images: Literal["base64", "url"] = Field(
        default="base64",
        description="url: the endpoint reads it at objects.endpoint, by an address that is signed for an hour",
    )
    image_longest_side: int = Field(
        default=768, gt=0, description="px; larger crops are scaled down before they are sent"
    )
    response_format: Literal["text", "json_object", "json_schema"] = Field(
        default="text", description="structured output, where endpoint and model support it"
    )
    hedge: bool = Field(
        default=True,
        description="a second call on another key when the first exceeds the running P95 and quota is spare",
    )
    breaker_failures: int = Field(
        default=10, gt=0, description="5xx or time-outs in a row, on whatever key, until the next endpoint is asked"
    )
    fallbacks: tuple[FallbackSettings, ...] = Field(
        default=(), description="endpoints or models to ask, in this order, while those before are out of order"
    )
    price_input: float = Field(default=0.0, ge=0, description="money per million input tokens")
    price_output: float = Field(default=0.0, ge=0, description="money per million output tokens")

    @field_validator("base_url")
    @classmethod
    def _http(cls, url: str) -> str:
        return _web_address(url)

    @property
    def simulated(self) -> bool:
        """Whether answers come from the simulated LLM (its model name says so)."""
        return self.model.startswith("simulated")


class BudgetSettings(Section):
    """What a lane may spend in a day (UTC); then its tasks stay pending."""

    calls: int | None = Field(default=None, ge=0, description="requests; null: as many as the keys allow")
    cost: float | None = Field(default=None, ge=0, description="money, by llm.price_input and price_output; null: any")


class KeysSettings(Section):
    """API keys and their limits. Give the keys in ``file`` or as DD_KEYS__SECRETS='["sk-…"]'."""

    secrets: tuple[SecretStr, ...] = Field(default=(), description="the keys themselves")
    file: Path | None = Field(default=None, description="YAML: keys: [{secret: sk-…, label: …}], see infra/config")
    qps_limit: int = Field(default=10, gt=0, description="requests per second on one key, in a sliding window")
    rpm_limit: int = Field(default=300, gt=0, description="requests per minute on one key, in a sliding window")
    window_margin: float = Field(
        default=0.25,
        ge=0,
        description="s added to both windows for the requests' uneven way; lower it for keys that qps_limit binds",
    )
    cooling_initial: float = Field(default=1.0, gt=0, description="s a key rests after a 429 without Retry-After")
    cooling_max: float = Field(default=60.0, gt=0, description="s a key rests at most")
    breaker_failures: int = Field(default=5, gt=0, description="5xx or time-outs in a row until a key is probed")
    realtime_reserve: float = Field(default=0.2, ge=0, lt=1, description="share of a key's minute kept for realtime")
    recovery: float = Field(
        default=10.0, ge=0, description="s until a key that has rested is used at its full rate again"
    )
    lease: float = Field(
        default=0.5, ge=0, le=5, description="s for which a process takes slots ahead, so as not to ask for each call"
    )
    lane_weights: dict[Literal["window", "inline", "evaluation"], Annotated[float, Field(gt=0)]] = Field(
        default={"window": 3.0, "evaluation": 1.0}, description="of the lanes below realtime while several of them wait"
    )
    budgets: dict[Literal["realtime", "window", "inline", "evaluation"], BudgetSettings] = Field(
        default={}, description="by lane and day, such as {window: {calls: 20000}, evaluation: {cost: 5}}"
    )
    processes: int = Field(
        default=1, gt=0, description="that use the keys, at least: each one's share while the database is away is 1/N"
    )
    refresh: float = Field(default=5.0, gt=0, description="s between looks at keys.file for keys that come and go")


class AssessmentSettings(Section):
    """The scheduler of the realtime lane and what window runs share with it."""

    max_in_flight: int = Field(default=96, gt=0, description="calls at a time in one process")
    queue_size: int = Field(default=500, gt=0, description="claimed tasks that wait for a key; more stay pending")
    realtime_deadline: float = Field(
        default=10.0, gt=0, description="s after capture; later groups go to the window lane"
    )
    batch_size: int = Field(default=200, gt=0, description="tasks claimed in one statement at most")
    heartbeat_interval: float = Field(default=2.0, gt=0, description="s between two heartbeats of a worker")
    worker_timeout: float = Field(default=10.0, gt=0, description="s without heartbeat until claims are handed back")
    max_attempts: int = Field(default=3, gt=0, description="of the window lane on a failed task")
    coalesce_groups: int = Field(
        default=1, ge=1, le=8, description="groups of one frame that may share a call; 1: each has its own"
    )
    coalesce_after: float = Field(
        default=0.2,
        ge=0,
        description="s that a group of the realtime lane has waited for a key before others of its frame join its call; "
        "0: they always do",
    )
    reuse_duplicates: bool = Field(
        default=False,
        description="a group that looks as one answered moments ago takes its answer; per camera: context",
    )
    reuse_seconds: float = Field(default=10.0, gt=0, description="s that an answer may be reused")
    reuse_distance: int = Field(
        default=4, ge=0, le=64, description="bits of 64 in which the two pictures' perceptual hashes may differ"
    )
    reuse_overlap: float = Field(default=0.8, gt=0, le=1, description="IoU of the two groups' boxes at least")
    switch_refresh: float = Field(
        default=2.0, gt=0, le=5, description="s between looks at the switch of lanes (dangerous-driving switch)"
    )
    switch_file: Path = Field(
        default=Path("data/switch.json"), description="the switch of lanes on this node, for when the ledger is away"
    )
    inline_folder: Path = Field(
        default=Path("data/inline"), description="where the inline lane keeps answers until broker and ledger are back"
    )

    @model_validator(mode="after")
    def _heard_in_time(self) -> Self:
        if self.worker_timeout < 2 * self.heartbeat_interval:
            raise ValueError(
                "worker_timeout is below two heartbeat_intervals: living workers would be given up between two heartbeats"
            )
        return self
