"""The daily digest of alerts as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime


@dataclass(frozen=True)
class DigestAlert:
    """One alert of the day."""

    alert_id: str
    camera_id: str
    level: str
    risk_types: tuple[str, ...]
    opened_at: datetime
    seconds: float
    verdict: str | None
    description: str


@dataclass(frozen=True)
class DayFigures:
    """What a day was. Costs in money."""

    day: date
    alerts: tuple[DigestAlert, ...] = ()  # highest first
    by_level: dict[str, int] = field(default_factory=dict)
    by_verdict: dict[str, int] = field(default_factory=dict)
    by_camera: dict[str, int] = field(default_factory=dict)
    by_hour: dict[int, int] = field(default_factory=dict)
    frames: int = 0
    tasks: dict[str, int] = field(default_factory=dict)  # by state
    calls: int = 0
    cost: float = 0.0
    incidents: tuple[str, ...] = ()


def digest(figures: DayFigures, *, shown: int = 20) -> str:
    """The day on one page.

    Args:
        figures: of the day.
        shown: alerts in the table at most, the highest first.
    """
    total = sum(figures.by_level.values())
    lines = [f"# Alerts of {figures.day:%Y-%m-%d}", ""]
    if total:
        levels = ", ".join(
            f"{figures.by_level[level]} {level}" for level in ("high", "medium", "low") if level in figures.by_level
        )
        rejected, confirmed = figures.by_verdict.get("rejected", 0), figures.by_verdict.get("acknowledged", 0)
        lines += [
            (
                f"**{total} alerts**: {levels}. Acknowledged {confirmed}, rejected as false {rejected}, "
                f"not judged {total - rejected - confirmed}."
            ),
            "",
            *_ranking("camera", "alerts", sorted(figures.by_camera.items(), key=lambda item: (-item[1], item[0]))[:10]),
            *_ranking(
                "hour (UTC)", "alerts", [(f"{hour:02d}:00", count) for hour, count in sorted(figures.by_hour.items())]
            ),
            "| opened (UTC) | camera | level | what | seconds | verdict |",
            "|---|---|---|---|---|---|",
            *(
                f"| {alert.opened_at:%H:%M:%S} | {_cell(alert.camera_id)} | {alert.level} "
                f"| {_cell(', '.join(alert.risk_types))} {_cell(alert.description)} | {alert.seconds:.0f} "
                f"| {alert.verdict or ''} |"
                for alert in figures.alerts[:shown]
            ),
        ]
        if len(figures.alerts) > shown:
            lines.append(f"\n{len(figures.alerts) - shown} more are in the table `alert`.")
    else:
        lines.append("No alerts.")
    states = ", ".join(f"{count} {state}" for state, count in sorted(figures.tasks.items())) or "none"
    lines += [
        "",
        "## The platform",
        "",
        f"- {figures.frames} frames; groups: {states}",
        f"- {figures.calls} calls, cost {figures.cost:.4g}",
    ]
    lines += [f"- incident: {_cell(incident)}" for incident in figures.incidents] or ["- no incidents"]
    return "\n".join(lines) + "\n"


def _ranking(name: str, value: str, rows: Sequence[tuple[str, int]]) -> list[str]:
    return [f"| {name} | {value} |", "|---|---|", *(f"| {_cell(key)} | {count} |" for key, count in rows), ""]


def _cell(content: str) -> str:
    """Text of a model or a person, as the content of a table's cell: no line breaks, no markup."""
    plain = " ".join(content.split())
    for sign in "\\|<>`*_[]":
        plain = plain.replace(sign, f"\\{sign}")
    return plain[:160]
