"""The dashboards: their files are those of their declarations, Grafana's own types read them, every query gives rows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from benchmarks.ledger_rows import Traffic, fill_hours, fill_inventory
from dangerous_driving.ledger.database import open_engine
from dangerous_driving.ledger.embedded import EmbeddedPostgres
from dangerous_driving.ledger.retention import camera_ids
from dangerous_driving.settings import DatabaseSettings
from infra.grafana import generate, queries
from tests.conftest import missing_component
from tests.defs.conftest import PROJECT, run
from tests.grafana.monitoring_rows import fill_monitoring

DASHBOARDS = sorted(generate.FOLDER.glob("*.json"))
PROVISIONING = generate.FOLDER.parent / "provisioning"
TRAFFIC = Traffic(cameras=4, frames=60, groups=2, keys=3, window_seconds=600)
HOURS = 6


@pytest.fixture(scope="module")
def ledger_url(postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A ledger as a demo leaves it, with the marts built on it."""
    url = postgres_server.create_database("dashboards", template="template_ledger")
    settings = DatabaseSettings.model_validate({"url": url})
    engine = open_engine(settings)
    fill_inventory(engine, TRAFFIC)
    first = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=HOURS)
    assert len(list(fill_hours(engine, TRAFFIC, first, HOURS))) == HOURS
    fill_monitoring(engine, camera_ids(engine))
    engine.dispose()
    run(settings, tmp_path_factory.mktemp("dbt"))
    yield url
    postgres_server.drop_database("dashboards")


def test_the_files_are_those_of_the_declarations(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_grafanas_own_types_read_a_dashboard_and_write_the_same(path: Path) -> None:
    register_default_plugins()
    content = queries.read(path)
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(content)))
    assert again == content


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_panel_has_an_id_a_title_a_place_and_says_what_it_means(path: Path) -> None:
    panels = queries.read(path)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    shown = [panel for panel in panels if panel["type"] != "row"]
    assert len({panel["title"] for panel in shown}) == len(shown)
    for panel in shown:
        assert panel["description"].endswith("."), panel["title"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.integration
def test_the_dashboards_are_valid_by_grafanas_schema(tmp_path: Path) -> None:
    """Strictly, by the types that are generated from Grafana's own schema; a change for the worse is found."""
    if shutil.which("go") is None:
        missing_component("Grafana's schema is checked by a Go program, and Go is not on PATH")
    schema = generate.FOLDER.parent / "schema"
    wrong = tmp_path / "wrong.json"
    wrong.write_text(DASHBOARDS[0].read_text("utf-8").replace('"editable"', '"edittable"'), encoding="utf-8")

    def check(*paths: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["go", "run", ".", *map(str, paths)], cwd=schema, capture_output=True, text=True, timeout=240
        )

    right = check(*DASHBOARDS)
    assert right.returncode == 0, right.stdout + right.stderr
    assert right.stdout.count(": valid") == len(DASHBOARDS)
    assert "unexpected field 'edittable'" in check(wrong).stdout


def test_each_panel_asks_a_source_that_is_set_up() -> None:
    [file] = (PROVISIONING / "datasources").glob("*.yaml")
    known = {(source["type"], source["uid"]) for source in yaml.safe_load(file.read_text("utf-8"))["datasources"]}
    asked = {
        (target["datasource"]["type"], target["datasource"]["uid"])
        for path in DASHBOARDS
        for panel in queries.read(path)["panels"]
        for target in panel.get("targets") or ()
    }
    assert asked <= known
    assert "password: ${" in file.read_text("utf-8")  # from the environment, never in the file


def test_each_dashboard_is_an_exposure_of_the_marts_that_it_reads() -> None:
    exposures: dict[str, dict[str, Any]] = {}
    for path in (PROJECT / "models/exposures").glob("*.yml"):
        for exposure in yaml.safe_load(path.read_text("utf-8"))["exposures"]:
            exposures[exposure["name"]] = exposure
    for path in DASHBOARDS:
        dashboard = queries.read(path)
        texts = [query.text for query in queries.panel_queries(dashboard) if query.source == "sql"]
        texts += [variable.text for variable in queries.variable_queries(dashboard)]
        read = {f"ref('{name}')" for text in texts for name in re.findall(r"marts\.(\w+)", text)}
        if read:
            exposure = exposures[path.stem.replace("-", "_")]
            assert set(exposure["depends_on"]) == read, path.stem


@pytest.mark.integration
@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_sql_panel_has_rows_of_the_shape_that_it_draws(path: Path, ledger_url: str) -> None:
    dashboard = queries.read(path)
    until = datetime.now(UTC)
    since = until - timedelta(hours=HOURS + 1)
    with psycopg.connect(ledger_url) as connection:
        chosen = {}
        for variable in queries.variable_queries(dashboard):
            found = connection.execute(variable.text.encode()).fetchall()
            assert len(found) == TRAFFIC.cameras
            chosen[variable.name] = [str(row[0]) for row in found]
        for query in queries.panel_queries(dashboard):
            if query.source != "sql":
                continue
            cursor = connection.execute(queries.expand_sql(query.text, since, until, chosen).encode())
            found = cursor.fetchall()
            assert found, query.name
            assert any(value is not None for row in found for value in row), query.name
            columns = cursor.description or []
            print(f"{query.name}: {len(found)} rows")  # noqa: T201  # the list of what was seen
            if query.shape == "time_series":
                assert columns[0].name == "time", query.name
                assert [row[0] for row in found] == sorted(row[0] for row in found), query.name
                assert all(isinstance(row[0], datetime) and row[0].tzinfo for row in found), query.name
                values = [name.name for name in columns[1:]]
                assert values == ["metric", "value"] or "metric" not in values, query.name


@pytest.mark.integration
def test_the_hours_of_the_day_are_all_drawn_whatever_time_it_is(ledger_url: str) -> None:
    """By name: bars at times of the last day would be cut off where that day is not over."""
    dashboard = queries.read(generate.FOLDER / "safety.json")
    [panel] = [panel for panel in dashboard["panels"] if panel["title"] == "By hour of the day (UTC)"]
    assert (panel["type"], panel["options"]["xField"]) == ("barchart", "hour")
    [query] = [query for query in queries.panel_queries(dashboard) if query.panel == panel["title"]]
    until = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    with psycopg.connect(ledger_url) as connection:
        cameras = [str(row[0]) for row in connection.execute("SELECT camera_id FROM marts.dim_cameras")]
        text = queries.expand_sql(query.text, until - timedelta(days=7), until, {"camera": cameras})
        found = connection.execute(text.encode()).fetchall()
    assert [hour for hour, _ in found] == [f"{hour:02d}" for hour in range(24)]
    filled = {(until - timedelta(hours=back)).hour for back in range(1, HOURS + 1)}
    assert {int(hour) for hour, rate in found if rate is not None} == filled


def test_a_macro_that_grafana_would_not_know_is_refused() -> None:
    now = datetime.now(UTC)
    with pytest.raises(ValueError, match="timeFiler"):
        queries.expand_sql("select 1 where $__timeFiler(at)", now, now, {})
    with pytest.raises(ValueError, match="left to expand"):
        queries.expand_sql("select $camera", now, now, {})
    with pytest.raises(ValueError, match="left to expand"):
        queries.expand_promql("rate(x[$__rate])", timedelta(minutes=1), timedelta(hours=1))
    assert queries.expand_sql("${c:sqlstring}", now, now, {"c": ["a'b", "c"]}) == "'a''b','c'"
