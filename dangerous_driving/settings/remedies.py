"""What to do about a setting that is wrong: pydantic says where and what, this says how to mend it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dangerous_driving.errors import ConfigError
from dangerous_driving.settings.schema import Part

NESTED = "__"
"""Between a section's name and a setting's in a variable of the environment."""

#: What pydantic calls by the names of Python's types.
_FORMS = {
    "tuple_type": "Input should be a list",
    "dict_type": "Input should be a mapping",
    "model_type": "Input should be a mapping",
}


@dataclass(frozen=True)
class _Place:
    """Where in the tree something is wrong. ``variable`` is the way to what the environment can name, ``whole`` is that."""

    path: tuple[str, ...]
    part: Part | None
    variable: tuple[str, ...]
    whole: Part


def refused(error: ValidationError, tree: Part, prefix: str) -> ConfigError:
    """The error for whoever wrote the settings; without the value, which may be a secret."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "extra_forbidden":
        *section, name = first["loc"]
        place = _place(section, tree)
        return ConfigError(
            ".".join((*place.path, str(name))),
            "unknown setting",
            names_remedy(str(name), place.part.names if place.part else (), ".".join(place.path)),
        )
    place = _place(first["loc"], tree)
    path, problem = _said(first, place)
    verb = "set" if first["type"] in {"missing", "union_tag_not_found"} else "mend"
    return ConfigError(path or "settings", problem, f"{verb} it in the YAML file{_in_environment(place, prefix)}")


def names_remedy(wrong: str, names: Iterable[str], section: str) -> str:
    """Which names there are; those that may have been meant come first."""
    known = list(names)
    close = get_close_matches(wrong, known)
    ordered = [*close, *(name for name in known if name not in close)]
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{meant}{f'the names in {section}' if section else 'the names'} are: {', '.join(ordered)}"


def no_json(variables: Mapping[str, str], tree: Part, prefix: str) -> ConfigError:
    """The error for a variable that holds a list or a mapping which is no JSON."""
    for variable in sorted(variables):
        if not variable.upper().startswith(prefix):
            continue
        place = _place(variable[len(prefix) :].lower().split(NESTED), tree)
        if place.part is None or place.part.nullable or not _is_json(place.part):
            continue  # what may be null is left to validation, which says what is wrong with it
        try:
            json.loads(variables[variable])
        except ValueError:
            kind, example = _json_form(place.part)
            return ConfigError(variable, f"a {kind} in the environment is JSON, and this is none", f"write {example}")
    return ConfigError("the environment", "a list or mapping is no JSON", "write lists as '[…]', mappings as '{…}'")


def _place(location: Iterable[str | int], tree: Part) -> _Place:
    path: tuple[str, ...] = ()
    variable: tuple[str, ...] = ()
    part: Part | None = tree
    whole = tree
    for step in location:
        if part is not None and step in part.kinds:
            part = part.kinds[str(step)]  # a kind of receiver is no part of the way as people write it
            continue
        if step == "[key]":  # the name itself is what is wrong
            break
        path = (*path, str(step))
        if part is not None and part.names:
            part = part.names.get(str(step))
            if whole.names and part is not None:
                variable, whole = (*variable, str(step)), part
        else:
            part = part and (part.elements or part.values)
    return _Place(path, part, variable, whole)


def _said(first: ErrorDetails, place: _Place) -> tuple[str, str]:
    path, problem = ".".join(place.path), first["msg"].removeprefix("Value error, ")
    if first["type"] in _FORMS:
        return path, _FORMS[first["type"]]
    if first["type"].startswith("union_tag_"):
        path = f"{path}.{first['ctx']['discriminator'].strip(chr(39))}"
        if first["type"] == "union_tag_not_found":
            return path, "Field required"
        return path, f"Input should be one of {first['ctx']['expected_tags']}"
    return path, problem


def _in_environment(place: _Place, prefix: str) -> str:
    variable = prefix + NESTED.join(place.variable).upper()
    if place.whole.names:
        return f" or as {variable}{NESTED if place.variable else 'SECTION__'}NAME"
    if _is_json(place.whole):
        kind, example = _json_form(place.whole)
        return f"; in the environment the whole {kind} is JSON: {variable}={example}"
    return f" or as {variable}"


def _is_json(part: Part) -> bool:
    return part.is_list or part.is_section or part.values is not None


def _json_form(part: Part) -> tuple[str, str]:
    return ("list", "'[…]'") if part.is_list else ("mapping", "'{…}'")
