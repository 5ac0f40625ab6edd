"""The reference of the settings: that it is whole, tells no secret, and is the one in the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, Field, SecretStr
from typer.testing import CliRunner

from dangerous_driving.cli import app
from dangerous_driving.errors import ConfigError
from dangerous_driving.settings import Settings
from dangerous_driving.settings.reference import reference, unit_and_text, words
from dangerous_driving.settings.schema import Part

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "settings.md"


def every_setting(part: Part, path: str = "") -> Iterator[tuple[str, Part]]:
    """Each setting, by its section's path and its name; a kind of receiver counts as the receiver."""
    for inside in (part.elements, part.values, *part.kinds.values()):
        if inside is not None:
            yield from every_setting(inside, path)
    for name, setting in part.names.items():
        if not (path == "" and setting.is_section):  # the sections themselves have docstrings
            yield f"{path}.{name}".lstrip("."), setting
        yield from every_setting(setting, f"{path}.{name}".lstrip("."))


def rows_by_section(document: str) -> dict[str, dict[str, list[str]]]:
    """The cells of each table by its heading, kinds of one list together."""
    found: dict[str, dict[str, list[str]]] = {}
    for block in re.split(r"^###? ", document, flags=re.MULTILINE)[1:]:
        heading = block.splitlines()[0].split(" of kind ")[0]
        for row in re.findall(r"^\| `(\w+)` \| (.*) \|$", block, flags=re.MULTILINE):
            found.setdefault(heading, {})[row[0]] = row[1].split(" | ")
    return found


def test_the_reference_is_the_one_in_the_documentation() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == reference(), "write it anew: make api-documents"


def test_every_setting_says_what_it_does() -> None:
    silent = [path for path, part in every_setting(Part.whole(Settings)) if not part.schema.get("description")]
    assert not silent


def test_every_section_says_what_it_is() -> None:
    silent = [
        name for name, part in Part.whole(Settings).names.items() if part.is_section and "about" not in part.schema
    ]
    assert not silent


def test_every_setting_is_in_the_table_of_its_section() -> None:
    tables = rows_by_section(reference())
    paths = {path for path, _ in every_setting(Part.whole(Settings))}
    assert {"node", "kafka.partitions", "camera.cameras.privacy.heads", "keys.budgets.calls"} <= paths
    missing = [
        path
        for path in paths
        if (path.rpartition(".")[2]) not in tables.get(path.rpartition(".")[0] or "Without a section", {})
    ]
    assert not missing


def test_each_kind_of_receiver_has_a_table_of_what_is_its_own() -> None:
    document = reference()
    own = {
        kind: set(re.findall(r"^\| `(\w+)`", document.split(f"of kind {kind}\n")[1].split("\n#")[0], re.MULTILINE))
        for kind in ("webhook", "email", "mqtt")
    }
    assert own["webhook"] == {"kind", "url", "secret", "headers"}
    assert "topic" in own["mqtt"] - own["email"]
    assert not {"name", "min_level", "tells"} & (own["webhook"] | own["email"] | own["mqtt"])


def test_secrets_are_marked_and_their_defaults_are_not_shown() -> None:
    tables = rows_by_section(reference())
    for path, part in every_setting(Part.whole(Settings)):
        if part.is_secret:
            section, _, name = path.rpartition(".")
            assert tables[section][name][0].startswith("secret text"), path
    assert tables["database"]["url"][1] == "not shown"
    default = Settings().database.url.get_secret_value()
    assert default not in reference()
    assert "***" not in reference()


def test_a_list_or_mapping_of_secrets_does_not_show_its_default_either() -> None:
    class Hidden(BaseModel):
        secrets: tuple[SecretStr, ...] = (SecretStr("hunter2"),)
        by_name: dict[str, SecretStr] = {"a": SecretStr("hunter2")}

    assert "hunter2" not in str(Part.whole(Hidden).schema)
    parts = Part.whole(Hidden).names
    assert (words(parts["secrets"]), words(parts["by_name"])) == (
        "list of secret texts",
        "mapping of names to secret texts",
    )


def test_every_link_leads_to_a_heading() -> None:
    document = reference()
    headings = re.findall(r"^###? (.+)$", document, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert len(anchors) == len(headings)
    assert set(re.findall(r"\]\(#([^)]+)\)", document)) <= anchors


class Sample(BaseModel):
    share: float = Field(default=0.5, gt=0, le=1)
    count: int = Field(default=1, gt=0)
    port: int = Field(default=1, gt=0, le=65535)
    rest: float = Field(default=1.0, ge=0)
    names: tuple[str, ...] = Field(default=(), min_length=1)
    corners: tuple[tuple[float, float], ...] = ()
    short: str = Field(default="", max_length=8)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("share", "number above 0, at most 1"),
        ("count", "whole number, 1 or more"),
        ("port", "whole number from 1 to 65535"),
        ("rest", "number, 0 or more"),
        ("names", "list of texts, at least 1"),
        ("corners", "list of pairs `[x, y]`"),
        ("short", "text of at most 8 characters"),
    ],
)
def test_types_and_ranges_are_told_in_plain_words(name: str, said: str) -> None:
    assert words(Part.whole(Sample).names[name]) == said


@pytest.mark.parametrize(
    ("type_", "description", "unit", "text"),
    [
        ("number", "s between two frames", "s", "between two frames"),
        ("number", "s; older results notify nobody", "s", "older results notify nobody"),
        ("integer", "days that pictures are kept", "days", "that pictures are kept"),
        ("number", "messages a second that one client may send", "messages a second", "that one client may send"),
        ("number", "share of the frames", "", "share of the frames"),
        ("array", "days on which they begin", "", "days on which they begin"),
    ],
)
def test_the_unit_is_what_a_number_s_description_begins_with(
    type_: str, description: str, unit: str, text: str
) -> None:
    part = Part({"type": type_, "description": description}, nullable=False, definitions={})
    assert unit_and_text(part) == (unit, text)


def test_the_command_prints_the_page_or_one_section_of_it() -> None:
    assert CliRunner().invoke(app, ["config", "reference"]).output == reference()
    section = CliRunner().invoke(app, ["config", "reference", "kafka"]).output
    assert section.startswith("## kafka\n")
    assert "`bootstrap_servers`" in section
    assert "## tasks" not in section


def test_an_unknown_section_gets_the_names_that_there_are() -> None:
    with pytest.raises(ConfigError, match="did you mean kafka"):
        reference("kafak")
