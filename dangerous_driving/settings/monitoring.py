"""Settings of what watches over the models: the detector's evaluation, the drift watch, shadow mode."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from dangerous_driving.settings.section import Section


class MonitoringSettings(Section):
    """Evaluation of the detector, drift of what cameras show, challengers that assess beside the champion."""

    labelled_folders: tuple[Path, ...] = Field(
        default=(), description="labelled pictures in COCO's form that detection.weights are evaluated on"
    )
    detector_cron: str = Field(
        default="0 2 * * 0", description="when the detector is evaluated (UTC), if folders are set"
    )
    max_map_loss: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="mAP below that of other weights on the same pictures by more than it warns",
    )
    drift_cron: str = Field(
        default="40 1 * * *", description="when the day before is held against the weeks before (UTC)"
    )
    drift_weeks: int = Field(
        default=4, ge=1, le=12, description="weeks that a camera is compared with: its own last ones"
    )
    drift_days: int = Field(
        default=5, ge=2, description="days with content in these weeks without which nothing is said"
    )
    drift_counts: int = Field(
        default=200,
        gt=0,
        description="objects (or frames, or groups) of a day and of the days before, without which nothing is said",
    )
    drift_moderate: float = Field(default=0.1, gt=0, description="population stability index that is worth a look")
    drift_major: float = Field(default=0.25, gt=0, description="population stability index that is told as drift")
    drift_repeated: int = Field(
        default=3, ge=2, description="days in a row with a moderate change that are told as drift, too"
    )
    shadow_interval: int = Field(
        default=60, gt=0, description="s between looks for groups that challengers have to assess"
    )
    shadow_windows: int = Field(default=25, gt=0, description="windows that one run of challengers assesses at most")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.drift_major <= self.drift_moderate:
            raise ValueError("monitoring.drift_major is not above monitoring.drift_moderate")
        return self
