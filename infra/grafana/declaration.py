"""The few words that our dashboards are written in, over Grafana's own builders (grafana-foundation-sdk).

A dashboard is a module in :mod:`infra.grafana.boards` with a constant ``BOARD``; a new file there is a new dashboard, and
nothing else has to be touched (``make grafana`` writes the JSON that Grafana loads). A panel knows its query, its unit and
what it means; places follow from the order.

Two data sources are known by fixed ids, which ``provisioning/datasources`` sets up: the ledger's database (schema
``marts``) and Prometheus.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from grafana_foundation_sdk.builders import (
    barchart,
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.runtime import UnknownDataquery
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

POSTGRES = models.DataSourceRef(type_val="grafana-postgresql-datasource", uid="ledger")
PROMETHEUS = models.DataSourceRef(type_val="prometheus", uid="prometheus")

#: Grafana's grid is 24 columns wide.
FULL, HALF, THIRD, QUARTER, SIXTH = 24, 12, 8, 6, 4

#: What a mark means, from good to bad; Grafana's own colour names.
GOOD, WARNING, BAD = "green", "orange", "red"
#: The colours of the risk levels, as on the platform's page.
LEVELS = {"high": "red", "medium": "orange", "low": "yellow", "none": "green"}


@dataclass(frozen=True)
class Query(Builder[Dataquery]):
    """A query of one panel: `text` is SQL or PromQL, by the data source.

    SQL may use Grafana's ``$__timeFilter(column)``, ``$__timeFrom()`` and ``$__timeTo()``, and the board's variables as
    ``${name:sqlstring}``; PromQL ``$__rate_interval`` and ``$__range``.
    """

    source: models.DataSourceRef
    text: str
    legend: str = ""
    shape: Literal["time_series", "table"] = "time_series"
    instant: bool = False
    buckets: bool = False
    ref: str = "A"

    def build(self) -> Dataquery:
        """Grafana's own form of it."""
        if self.source is PROMETHEUS:
            query = prometheus.Dataquery().expr(self.text).legend_format(self.legend or "__auto").ref_id(self.ref)
            query = query.datasource(self.source)
            if self.buckets:
                query = query.format(PromQueryFormat.HEATMAP)
            return (query.instant() if self.instant else query.range()).build()
        # the SDK has no type of its own for this data source
        return UnknownDataquery(
            {
                "refId": self.ref,
                "datasource": self.source.to_json(),
                "editorMode": "code",
                "rawQuery": True,
                "format": self.shape,
                "rawSql": self.text,
            }
        )


def sql(text: str, shape: Literal["time_series", "table"] = "table") -> Query:
    """A query of the ledger's database. A time series has a column ``time`` first, and may have one ``metric`` of text."""
    return Query(POSTGRES, "\n".join(line.rstrip() for line in text.strip().splitlines()), shape=shape)


def promql(text: str, legend: str = "", *, instant: bool = False, buckets: bool = False) -> Query:
    """A query of Prometheus; `legend` may name labels as ``{{label}}``."""
    return Query(PROMETHEUS, " ".join(text.split()), legend, instant=instant, buckets=buckets)


def thresholds(*steps: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    """Marks from a value on; the first has none: ``(None, GOOD), (2.0, WARNING), (5.0, BAD)``."""
    marks = [models.Threshold(value=value, color=color) for value, color in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(marks)


def lines(
    title: str,
    *queries: Query,
    says: str,
    unit: str = "short",
    span: int = HALF,
    stacked: bool = False,
    bars: bool = False,
    marks: dashboard.ThresholdsConfig | None = None,
    colours: dict[str, str] | None = None,
) -> timeseries.Panel:
    """Values over time; `says` is what the little i tells whoever does not know the panel."""
    panel = timeseries.Panel().title(title).description(says).unit(unit).span(span).height(8).min(0)
    panel = panel.no_value("no data").datasource(queries[0].source).fill_opacity(60 if stacked or bars else 8)
    panel = panel.legend(_legend()).tooltip(
        common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI).sort(common_models.SortOrder.DESCENDING)
    )
    panel = panel.line_width(1 if bars or stacked else 2).show_points(common_models.VisibilityMode.NEVER)
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if bars:
        panel = panel.draw_style(common_models.GraphDrawStyle.BARS)
    if marks:
        panel = panel.thresholds(marks).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.DASHED)
        )
    for name, colour in (colours or {}).items():
        fixed = models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})
        panel = panel.override_by_name(name, [fixed])
    for query in _numbered(queries):
        panel = panel.with_target(query)
    return panel


def categories(
    title: str, query: Query, *, by: str, says: str, unit: str = "short", span: int = HALF
) -> barchart.Panel:
    """One upright bar for each row, in their order; `by` is the column of text that names them. It knows no time."""
    panel = barchart.Panel().title(title).description(says).unit(unit).span(span).height(8).min(0).no_value("no data")
    panel = panel.datasource(query.source).with_target(query).x_field(by).fill_opacity(60)
    panel = panel.orientation(common_models.VizOrientation.VERTICAL).show_value(common_models.VisibilityMode.NEVER)
    return panel.legend(_legend().show_legend(False))


def number(
    title: str,
    query: Query,
    *,
    says: str,
    unit: str = "short",
    span: int = SIXTH,
    decimals: int | None = None,
    marks: dashboard.ThresholdsConfig | None = None,
) -> stat.Panel:
    """One number now, coloured by its marks."""
    panel = stat.Panel().title(title).description(says).unit(unit).span(span).height(4).no_value("no data")
    panel = panel.datasource(query.source).with_target(query)
    panel = panel.graph_mode(common_models.BigValueGraphMode.NONE)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    if decimals is not None:
        panel = panel.decimals(decimals)
    return panel.thresholds(marks or thresholds((None, "text")))


def gauges(
    title: str,
    query: Query,
    *,
    says: str,
    unit: str = "short",
    span: int = HALF,
    most: float | None = None,
    marks: dashboard.ThresholdsConfig | None = None,
) -> bargauge.Panel:
    """One bar for each row or series."""
    panel = bargauge.Panel().title(title).description(says).unit(unit).span(span).height(8).min(0).no_value("no data")
    panel = panel.datasource(query.source).with_target(query).orientation(common_models.VizOrientation.HORIZONTAL)
    rows = query.source is POSTGRES
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(rows))
    if most is not None:
        panel = panel.max(most)
    return panel.thresholds(marks or thresholds((None, "blue")))


def rows(
    title: str, query: Query, *, says: str, span: int = FULL, units: dict[str, str] | None = None, height: int = 9
) -> table.Panel:
    """A table; `units` names the unit of a column."""
    panel = table.Panel().title(title).description(says).span(span).height(height).no_value("no data")
    panel = panel.datasource(query.source).with_target(query)
    for column, unit in (units or {}).items():
        panel = panel.override_by_name(column, [models.DynamicConfigValue(id_val="unit", value=unit)])
    return panel


def cells(title: str, query: Query, *, says: str, unit: str = "s", span: int = HALF) -> heatmap.Panel:
    """A histogram over time, from Prometheus' buckets."""
    panel = heatmap.Panel().title(title).description(says).span(span).height(8).no_value("no data")
    panel = panel.datasource(query.source).with_target(query).calculate(False)
    axis = heatmap_models.YAxisConfig(unit=unit)
    return panel.y_axis(_built(axis))


@dataclass(frozen=True)
class Section:
    """Panels under one heading."""

    title: str
    panels: Sequence[Any]


@dataclass(frozen=True)
class Variable:
    """A choice at the top of a board, filled by a query with one column of text, or two: ``__value`` and ``__text``."""

    name: str
    label: str
    query: str

    def builder(self) -> dashboard.QueryVariable:
        """Grafana's own form: several may be chosen, and all are at first."""
        every = models.VariableOption(selected=True, text="All", value="$__all")
        variable = dashboard.QueryVariable(self.name).label(self.label).query(self.query).datasource(POSTGRES)
        variable = variable.multi(True).include_all(True).current(every)
        return variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(
            models.VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC
        )


#: The cameras to look at; panels use it as ``camera_id in (${camera:sqlstring})``.
CAMERA = Variable(
    "camera",
    "Camera",
    "select camera_id as __value, camera_name as __text from marts.dim_cameras order by 2",
)


@dataclass(frozen=True)
class Board:
    """A dashboard. Its id is part of its address, and the name of its file."""

    uid: str
    title: str
    says: str
    sections: Sequence[Section]
    variables: Sequence[Variable] = ()
    since: str = "now-24h"
    refresh: str = "1m"

    def build(self) -> models.Dashboard:
        """Grafana's own form of it."""
        built = (
            dashboard.Dashboard(self.title)
            .uid(self.uid)
            .description(self.says)
            .tags(["dangerous-driving"])
            .time(self.since, "now")
            .timezone("utc")
            .refresh(self.refresh)
            .tooltip(models.DashboardCursorSync.CROSSHAIR)
            .readonly()
        )
        for variable in self.variables:
            built = built.with_variable(variable.builder())
        ids = itertools.count(1)
        for section in self.sections:
            built = built.with_row(dashboard.Row(section.title).id(next(ids)))
            for panel in section.panels:
                built = built.with_panel(panel.id(next(ids)))
        built = built.link(
            dashboard.DashboardLink("Dangerous driving")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["dangerous-driving"])
            .as_dropdown(True)
            .keep_time(True)
        )
        return built.build()


def _numbered(queries: Sequence[Query]) -> list[Query]:
    return [replace(query, ref=chr(ord("A") + index)) for index, query in enumerate(queries)]


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
    )


def _built(value: Any) -> Any:
    class Ready(Builder[Any]):
        def build(self) -> Any:
            return value

    return Ready()
