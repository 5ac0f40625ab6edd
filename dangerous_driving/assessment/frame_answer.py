"""What a model answered about several groups of one frame: one answer for each group that it spoke of. Pure.

An answer is a group's by its own ``groupIndex``; failing that by that of an object around it, or by the name that it stands
under (``"group 2": {…}``); failing that, where no answer names a group and there are as many as there are groups, by its place.
What stays without an answer is left out, and asked for in a call of its own: an answer is never guessed for a group.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dangerous_driving.assessment.answer import ParsedAnswer, field_named, integers, problem_of, understood
from dangerous_driving.assessment.risk import level_named
from dangerous_driving.assessment.tolerant_json import CutText, read_objects
from dangerous_driving.contracts import RiskLevel
from dangerous_driving.errors import AnswerError


def parse_frame_answer(raw: str, groups: Mapping[int, Collection[int]]) -> dict[int, ParsedAnswer]:
    """Understand an answer to several groups.

    Args:
        raw: what the model wrote.
        groups: those that were asked about, by index and in the order asked, each with its object ids.

    Returns:
        The answers by group index. Groups that it does not speak of, or not so that it can be understood, are left out;
        groups that were not asked about are inventions.

    Raises:
        AnswerError: there is no answer to any of the groups in it.
    """
    reading = _read(raw, groups)
    candidates = dict(reading.found)
    for index, candidate in _by_surroundings(reading, groups):
        candidates.setdefault(index, candidate)
    if not candidates:
        candidates = _by_place(reading, groups)
    answers: dict[int, ParsedAnswer] = {}
    problem = problem_of(raw) if not reading.objects else "it answers for none of the groups that were asked about"
    for index, known in groups.items():
        if index not in candidates:
            continue
        candidate = candidates[index]
        try:
            answers[index] = understood(candidate.answer, candidate.level, raw, known)
        except AnswerError as error:
            problem = error.problem
    if not answers:
        raise AnswerError(problem, raw)
    return answers


def levels_in_stream(text_so_far: str, groups: Collection[int]) -> dict[int, RiskLevel]:
    """The levels that are complete, with their group, in an answer that is still arriving.

    Each is the one that :func:`parse_frame_answer` will find in the whole answer, before the rule that lowers a ``high``.
    """
    found = _read(text_so_far, groups).found
    return {index: level for index, item in found.items() if item.level and (level := level_named(item.level))}


@dataclass(frozen=True)
class _Candidate:
    """An object that holds an answer, and its level as it stands there."""

    answer: dict[str, Any]
    level: str | None


@dataclass
class _Reading:
    """What a text holds. ``found``: answers that name their group and an understood level, the first of each group.

    Which is first is decided by when both were complete, so that the text to come cannot change it.
    """

    objects: list[dict[str, Any]] = field(default_factory=list)
    found: dict[int, _Candidate] = field(default_factory=dict)
    levels: dict[int, str] = field(default_factory=dict)  # by object: the first level that is understood
    unknown_levels: dict[int, str] = field(default_factory=dict)
    indices: dict[int, int] = field(default_factory=dict)  # by object

    def level_of(self, item: dict[str, Any]) -> str | None:
        return self.levels.get(id(item), self.unknown_levels.get(id(item)))


def _read(text: str, groups: Collection[int]) -> _Reading:
    reading = _Reading()

    def listen(owner: dict[str, Any], name: str, value: Any) -> None:
        if name == "risk_level" and isinstance(value, str):
            known = reading.unknown_levels if level_named(value) is None else reading.levels
            known.setdefault(id(owner), value)
        elif name == "group_index" and (index := _single(value)) is not None:
            reading.indices.setdefault(id(owner), index)
        if name in {"risk_level", "group_index"} and id(owner) in reading.levels and id(owner) in reading.indices:
            index = reading.indices[id(owner)]
            if index in groups:
                reading.found.setdefault(index, _Candidate(owner, reading.levels[id(owner)]))

    # the reader keeps all objects alive, so their ids stay theirs
    reading.objects = read_objects(text, normal=field_named, listener=listen)
    return reading


def _by_surroundings(reading: _Reading, groups: Collection[int]) -> list[tuple[int, _Candidate]]:
    """Answers whose group is told elsewhere, or whose level is not understood; those with an understood level first."""
    parents = _parents(reading.objects)
    taken = {id(item.answer) for item in reading.found.values()}
    found = []
    for item in _answers(reading):
        index = _index_around(item, parents, reading)
        if id(item) not in taken and index is not None and index in groups:
            found.append((index, _Candidate(item, reading.level_of(item))))
    return sorted(found, key=lambda pair: level_named(pair[1].level or "") is None)


def _by_place(reading: _Reading, groups: Mapping[int, Collection[int]]) -> dict[int, _Candidate]:
    parents = _parents(reading.objects)
    items = [item for item in _answers(reading) if not _within_an_answer(item, parents)]
    named = any(_index_around(item, parents, reading) is not None for item in items)
    if named or len(items) != len(groups):
        return {}
    return {index: _Candidate(item, reading.level_of(item)) for index, item in zip(groups, items, strict=True)}


def _answers(reading: _Reading) -> Iterator[dict[str, Any]]:
    return (item for item in reading.objects if "risk_level" in item or "risk_types" in item)


def _parents(objects: list[dict[str, Any]]) -> dict[int, tuple[dict[str, Any], str]]:
    """Of each inner object, the one around it and the name that it stands under."""
    found: dict[int, tuple[dict[str, Any], str]] = {}
    for outer in objects:
        for name, value in outer.items():
            for item in _objects_in(value):
                found[id(item)] = (outer, name)
    return found


def _objects_in(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _objects_in(item)


def _index_around(
    item: dict[str, Any], parents: Mapping[int, tuple[dict[str, Any], str]], reading: _Reading
) -> int | None:
    """The group of the nearest object that says one: the answer itself, what is around it, the name that it stands under."""
    while True:
        if id(item) in reading.indices:
            return reading.indices[id(item)]
        if id(item) not in parents:
            return None
        item, name = parents[id(item)]
        if (index := _single(name)) is not None:
            return index


def _within_an_answer(item: dict[str, Any], parents: Mapping[int, tuple[dict[str, Any], str]]) -> bool:
    while id(item) in parents:
        item, _ = parents[id(item)]
        if "risk_level" in item or "risk_types" in item:
            return True
    return False


def _single(value: Any) -> int | None:
    """The one number in it: 2, "2", "group 2", "第2组"; None where there is none, or more than one."""
    if isinstance(value, dict | list | CutText):
        return None
    numbers = list(integers(value))
    return numbers[0] if len(numbers) == 1 else None
