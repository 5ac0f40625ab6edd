"""The reference of all settings (docs/settings.md), made from their classes, so that it cannot say what does not hold."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from dangerous_driving.errors import ConfigError
from dangerous_driving.settings import ENV_PREFIX, Settings
from dangerous_driving.settings.remedies import NESTED, names_remedy
from dangerous_driving.settings.schema import JsonSchema, Part

_INTRODUCTION = """\
# Settings

One typed tree. Each setting comes from, in rising order of weight: its default, a YAML file (`--config FILE`, or the one that
`DD_CONFIG` names), the environment, an argument of the command. An unknown name is an error. `dangerous-driving config check`
prints what is in force; `dangerous-driving config reference` prints this page, `config reference kafka` one section of it.

```yaml
kafka:
  bootstrap_servers: kafka-1:9092,kafka-2:9092
camera:
  cameras:
    - {id: north-gate, source: "rtsp://operator:${GATE_PASSWORD}@10.0.0.12/stream"}
```

- **In the environment** a setting is `DD_SECTION__NAME`, with two underscores: `kafka.bootstrap_servers` is
  `DD_KAFKA__BOOTSTRAP_SERVERS`. Lists and mappings are JSON: `DD_KEYS__SECRETS='["sk-…", "sk-…"]'`,
  `DD_CAMERA__CAMERAS='[{"id": "north-gate", "source": "0"}]'`. A list is always whole, and takes the place of the file's: its
  elements, and what stands in them, have no variables of their own. `null` is null.
- **Secrets** are marked. No log, page or command shows them, and neither does this reference their defaults.
- **`${NAME}`** in cameras' sources and in receivers stands for a secret that is no setting: the variable `DD_SECRET_NAME`, or the
  file `NAME` in `camera.secrets_folder`.
- **Units**: s is seconds, px is pixels. A share is a number from 0 to 1. Points are `[x, y]`, in shares of width and height.

Made from the classes in `dangerous_driving/settings/` by `make api-documents`; change it there.
"""

#: Descriptions of numbers begin with their unit, where there is one.
_UNIT = re.compile(
    r"(s|px|km/h|pixels|bytes|bits|days|weeks|money|\w+ (?:a|per) (?:second|minute))(?![\w/])[ ,;:]*(.+)"
)
_TYPES = {
    "boolean": "true or false",
    "number": "number",
    "integer": "whole number",
    "string": "text",
    "object": "mapping",
    "array": "list",
}
_FORMATS = {"path": "path", "password": "secret text", "date-time": "date and time", "time": "time of day"}


def reference(section: str | None = None) -> str:
    """The page in Markdown, or one section of it.

    Raises:
        ConfigError: there is no section of that name.
    """
    tree = Part.whole(Settings)
    sections = {name: part for name, part in tree.names.items() if part.is_section}
    if section is not None:
        if section not in sections:
            raise ConfigError(section, "no section of the settings", names_remedy(section, sections, section=""))
        return "\n".join(_section(section, sections[section]))
    single = {name: part for name, part in tree.names.items() if name not in sections}
    contents = ", ".join(f"[{name}](#{_anchor(name)})" for name in sections)
    blocks = [_INTRODUCTION, f"Sections: {contents}.\n"]
    blocks += ["## Without a section\n", f"In the environment: `{ENV_PREFIX}NAME`.\n", *_table(tree, single, "")]
    for name, part in sections.items():
        blocks += _section(name, part)
    return "\n".join(blocks)


def _section(path: str, part: Part) -> Iterator[str]:
    yield f"## {path}\n"
    yield f"{_about(part)} In the environment: `{ENV_PREFIX}{path.upper()}{NESTED}NAME`.\n"
    yield from _settings(part, part.names, path)


def _settings(section: Part, names: dict[str, Part], path: str) -> Iterator[str]:
    """A table of these settings, and what stands inside them."""
    yield from _table(section, names, path)
    for name, part in names.items():
        inner = _inner(part)
        if inner is not None:
            where = (
                "One element of the list. " if part.is_list else "What stands under one name. " if part.values else ""
            )
            yield f"### {path}.{name}\n"
            yield from _nested(f"{path}.{name}", inner, where)


def _nested(path: str, section: Part, where: str) -> Iterator[str]:
    if not section.kinds:
        yield f"{where}{_about(section)}\n"
        yield from _settings(section, section.names, path)
        return
    tag = section.schema["discriminator"]["propertyName"]
    rows = {kind: dict(_rows(one, one.names, path)) for kind, one in section.kinds.items()}
    any_kind, any_rows = next(iter(section.kinds.values())), next(iter(rows.values()))
    shared = {name for name, row in any_rows.items() if all(others.get(name) == row for others in rows.values())}
    yield f"{where}What all have, of whatever `{tag}`; what each kind has besides stands below.\n"
    yield from _settings(any_kind, {name: part for name, part in any_kind.names.items() if name in shared}, path)
    for kind, one in section.kinds.items():
        yield f"### {path} of {tag} {kind}\n"
        yield f"{_about(one)}\n"
        yield from _settings(one, {name: part for name, part in one.names.items() if name not in shared}, path)


def _inner(part: Part) -> Part | None:
    """The section that a setting is, or that it is a list or mapping of."""
    return next((one for one in (part, part.elements, part.values) if one is not None and one.is_section), None)


def _about(section: Part) -> str:
    return _code(section.schema.get("about") or section.schema.get("description", ""))


def _code(text: str) -> str:
    return text.replace("``", "`")  # as docstrings mark it, and as Markdown does


def _table(section: Part, names: dict[str, Part], path: str) -> Iterator[str]:
    yield "| name | type | default | unit | what it does |"
    yield "|---|---|---|---|---|"
    for _, row in _rows(section, names, path):
        yield row
    yield ""


def _rows(section: Part, names: dict[str, Part], path: str) -> Iterator[tuple[str, str]]:
    for name, part in names.items():
        if _inner(part) is not None:
            link = f"[{path}.{name}](#{_anchor(f'{path}.{name}')})"
            kind = f"list of {link}" if part.is_list else f"mapping of {_keys(part)} to {link}" if part.values else link
        else:
            kind = words(part)
        default = "required" if name in section.schema.get("required", ()) else _default(part)
        unit, text = unit_and_text(part)
        cells = (f"`{name}`", kind + ", or null" * part.nullable, default, unit, text)
        yield name, f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def unit_and_text(part: Part) -> tuple[str, str]:
    """A setting's unit, if it has one, and what it does."""
    description = _code(part.schema.get("description", ""))
    found = _UNIT.fullmatch(description) if part.schema.get("type") in {"number", "integer"} else None
    return (found[1], found[2]) if found else ("", description)


def words(part: Part, *, many: bool = False) -> str:
    """What may be written there, in plain words; `many`: of several."""
    schema = part.schema
    if "const" in schema or "enum" in schema:
        return _choice([f"`{value}`" for value in schema.get("enum", [schema.get("const")])])
    if "prefixItems" in schema:
        return _plural("pair `[x, y]`", many=many)
    noun = _plural(_FORMATS.get(schema.get("format", ""), _TYPES[schema["type"]]), many=many)
    if part.elements is not None:
        least, held = schema.get("minItems"), words(part.elements, many=True)
        if least is None:
            return f"{noun} of {held}"
        return f"{noun} of at least {least} {held}" if many else f"{noun} of {held}, at least {least}"
    if part.values is not None:
        return f"{noun} of {_keys(part)} to {words(part.values, many=True)}"
    return noun + _limits(schema, comma=not many)


def _keys(mapping: Part) -> str:
    names = mapping.schema.get("propertyNames", {}).get("enum")
    return _choice([f"`{name}`" for name in names]) if names else "names"


def _choice(values: list[str]) -> str:
    return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} or {values[-1]}"


def _plural(noun: str, *, many: bool) -> str:
    if not many:
        return noun
    head, _, tail = noun.partition(" `")
    return f"{head}s `{tail}" if tail else f"{head}s"


def _limits(schema: JsonSchema, *, comma: bool) -> str:
    if "minLength" in schema or "maxLength" in schema:
        longest = f" of at most {schema['maxLength']} characters" if "maxLength" in schema else ""
        return longest or ", not empty"
    if "pattern" in schema:
        return f" like `{schema['pattern']}`"
    low, high, above = schema.get("minimum"), schema.get("maximum"), schema.get("exclusiveMinimum")
    below = schema.get("exclusiveMaximum")
    if schema["type"] == "integer" and above is not None:
        low, above = above + 1, None
    if low is not None and high is not None:
        return f" from {_plain(low)} to {_plain(high)}"
    ends = [f"above {_plain(above)}"] if above is not None else []
    ends += [f"{_plain(low)} or more"] if low is not None else []
    ends += [f"at most {_plain(high)}"] if high is not None else []
    ends += [f"below {_plain(below)}"] if below is not None else []
    begin = ", " if comma and low is not None else " "
    return begin + ", ".join(ends) if ends else ""


def _default(part: Part) -> str:
    if _inner(part) is part:
        return "as there"
    if "default" not in part.schema:
        return "found at the start"
    value = part.schema["default"]
    hidden = part.is_secret or any(inner is not None and inner.is_secret for inner in (part.elements, part.values))
    if value and hidden:
        return "not shown"
    shown = value if isinstance(value, str) and value else json.dumps(_plain(value), ensure_ascii=False)
    return f"`{shown}`"


def _plain(value: Any) -> Any:
    """Numbers as people write them: 30, not 30.0."""
    if isinstance(value, dict):
        return {name: _plain(inside) for name, inside in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
