"""Settings of the window lane and of what Dagster does with it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pydantic import Field, SecretStr, field_validator

from dangerous_driving.settings.section import Section


class WindowsSettings(Section):
    """Camera x time windows, the partitions of the window lane."""

    length: int = Field(default=3600, gt=0, description="s; divides an hour, or is a multiple that divides a day")
    lateness: float = Field(default=60.0, ge=0, description="s after its end until a window counts as closed")
    start: datetime | None = Field(default=None, description="first window; default: retention_days before today")
    retention_days: int = Field(default=90, gt=0, description="days that frames, answers and pictures are kept")
    windows_per_run: int = Field(
        default=25, gt=0, le=1000, description="windows that one Dagster run takes: its start-up costs seconds"
    )
    runs_per_tick: int = Field(default=4, gt=0, description="runs that one sensor tick starts at most")
    sensor_interval: int = Field(default=30, gt=0, description="s between ticks at least")
    retry_delay: float = Field(
        default=30.0, ge=0, description="s until a failed window runs again; four times longer after each failure"
    )
    marts_cron: str = Field(default="5 * * * *", description="when the dbt models are built")
    dbt_project: Path | None = Field(default=None, description="default: dbt_project beside the package")
    contact_sheet: int = Field(
        default=6,
        ge=0,
        le=24,
        description="riskiest crops shown with a window's run; 0: none, they go to Dagster's log",
    )
    max_failed_share: float = Field(default=0.05, ge=0, le=1, description="failed groups above this warn")
    max_latency_p95: float = Field(default=10.0, gt=0, description="s; slower answers (P95 of a window) warn")
    max_key_share: float = Field(default=2.0, ge=1, description="calls of one key above this many times the mean warn")

    @field_validator("length")
    @classmethod
    def _divides(cls, length: int) -> int:
        if length % 60 or not (3600 % length == 0 or (length % 3600 == 0 and 86400 % length == 0)):
            raise ValueError("whole minutes that divide an hour, or whole hours that divide a day")
        return length


class OperationsSettings(Section):
    """Housekeeping by Dagster, and whom it tells."""

    retention_cron: str = Field(default="30 3 * * *", description="when expired data is dropped (UTC)")
    event_log_days: int = Field(
        default=30, gt=0, description="days that Dagster's finished runs and their logs are kept"
    )
    digest_hour: int = Field(default=6, ge=0, le=23, description="when the digest of the day before is written (UTC)")
    inventory_cron: str = Field(default="*/15 * * * *", description="when the list of cameras is looked at")
    observe_interval: int = Field(default=60, gt=0, description="s between observations of frames and tasks")
    frames_fresh: float = Field(default=300.0, ge=60, description="s without a new frame until frames count as stale")
    webhook: SecretStr | None = Field(
        default=None, description="URL that incidents and the digest are posted to as JSON; it may carry a token"
    )
    webhook_timeout: float = Field(default=5.0, gt=0, description="s for one post")

    @field_validator("webhook")
    @classmethod
    def _http(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(("http://", "https://")):
            raise ValueError("an address that starts with http:// or https://")
        return url
