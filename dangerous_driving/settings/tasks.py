"""Settings of the task generator."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from pydantic import Field

from dangerous_driving.settings.section import Section


class Generator(StrEnum):
    """Who puts tasks on the topic."""

    PYTHON = "python"
    FLINK = "flink"


class Guarantee(StrEnum):
    """What the Flink job promises for the tasks that it sends."""

    AT_LEAST_ONCE = "at-least-once"
    EXACTLY_ONCE = "exactly-once"


class TasksSettings(Section):
    """Detection results become tasks: by the Python service, or by the Flink job with the service for the ledger."""

    generator: Generator = Field(
        default=Generator.PYTHON,
        description="who puts tasks on the topic: the service `tasks`, or the Flink job (infra/flink), never both",
    )
    guarantee: Guarantee = Field(
        default=Guarantee.AT_LEAST_ONCE,
        description="of the Flink job; exactly-once hides tasks until the next checkpoint, at-least-once shows them at "
        "once and after a failure some twice, which their ids make harmless",
    )
    checkpoint_interval: float = Field(default=10.0, gt=0, description="s between two checkpoints of the Flink job")
    checkpoints: Path = Field(default=Path("data/flink"), description="folder of the Flink job's checkpoints")
    parallelism: int = Field(default=2, gt=0, description="parallel instances of the Flink job's operators")
