"""The queries of the dashboards' JSON, with what Grafana puts into them: for tests and benchmarks that run every one.

Grafana's macros and variables are expanded here as its documentation describes them; those that no dashboard uses are not
known and refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

Source = Literal["sql", "promql"]

SOURCES: dict[str, Source] = {"grafana-postgresql-datasource": "sql", "prometheus": "promql"}


@dataclass(frozen=True)
class PanelQuery:
    """One query of one panel. `shape` is how Grafana reads the answer to SQL: ``time_series`` or ``table``."""

    board: str
    panel: str
    source: Source
    text: str
    shape: str = ""
    instant: bool = False

    @property
    def name(self) -> str:
        """Board and panel, for a test's output."""
        return f"{self.board} / {self.panel}"


@dataclass(frozen=True)
class VariableQuery:
    """The query that fills a board's variable."""

    board: str
    name: str
    text: str


def read(path: Path) -> dict[str, Any]:
    """A dashboard's JSON."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def panel_queries(dashboard: Mapping[str, Any]) -> Iterator[PanelQuery]:
    """All queries of a dashboard, in its order.

    Raises:
        ValueError: a panel without a query, or of an unknown data source.
    """
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            continue
        if not panel.get("targets"):
            raise ValueError(f"{dashboard['uid']}: the panel {panel['title']!r} has no query")
        for target in panel["targets"]:
            kind = target["datasource"]["type"]
            if kind not in SOURCES:
                raise ValueError(f"{dashboard['uid']}: {panel['title']!r} asks {kind}, which nobody has set up")
            yield PanelQuery(
                dashboard["uid"],
                panel["title"],
                SOURCES[kind],
                target["rawSql"] if SOURCES[kind] == "sql" else target["expr"],
                target["format"] if SOURCES[kind] == "sql" else "",
                bool(target.get("instant")),
            )


def variable_queries(dashboard: Mapping[str, Any]) -> list[VariableQuery]:
    """The queries that fill its variables."""
    return [
        VariableQuery(dashboard["uid"], variable["name"], variable["query"])
        for variable in dashboard.get("templating", {}).get("list", ())
    ]


def expand_sql(text: str, since: datetime, until: datetime, variables: Mapping[str, Sequence[str]]) -> str:
    """The SQL that Grafana sends for this span of time and these choices.

    Raises:
        ValueError: a macro or variable that is not known here.
    """
    first, last = (f"'{at.isoformat()}'" for at in (since, until))

    def macro(found: re.Match[str]) -> str:
        name, argument = found.group(1), found.group(2).strip()
        if name == "timeFilter" and argument:
            return f"{argument} BETWEEN {first} AND {last}"
        if name in ("timeFrom", "timeTo") and not argument:
            return first if name == "timeFrom" else last
        raise ValueError(f"the macro $__{name}({argument}) is not known")

    def variable(found: re.Match[str]) -> str:
        if found.group(1) not in variables:
            raise ValueError(f"the variable {found.group(1)} is not known")
        # Grafana's format sqlstring: quoted, with a comma between
        return ",".join("'" + value.replace("'", "''") + "'" for value in variables[found.group(1)])

    text = re.sub(r"\$__(\w+)\(([^)]*)\)", macro, text)
    text = re.sub(r"\$\{(\w+):sqlstring\}", variable, text)
    if "$" in text:
        raise ValueError(f"something is left to expand in {text!r}")
    return text


def rows_of_promql(answer: Sequence[Mapping[str, Any]]) -> int:
    """How many series of an instant query's answer have a number: NaN is what a rate of nothing gives."""
    return sum(series["value"][1] not in ("NaN", "+Inf", "-Inf") for series in answer)


def expand_promql(text: str, interval: timedelta, span: timedelta) -> str:
    """The PromQL that Grafana sends; `interval` stands for ``$__rate_interval``, which is at least four scrapes."""
    text = text.replace("$__rate_interval", f"{int(interval.total_seconds())}s")
    text = text.replace("$__range", f"{int(span.total_seconds())}s")
    if "$" in text:
        raise ValueError(f"something is left to expand in {text!r}")
    return text
