"""What a model answered about one group, brought to the platform's words. Pure.

Models fence, prefix, truncate, translate and invent. What can be understood is; what cannot is an
:class:`~dangerous_driving.errors.AnswerError` that keeps the raw text, and never a level ``none``.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dangerous_driving.assessment.risk import level_by_confidence, level_named, lowered, types_named
from dangerous_driving.assessment.tolerant_json import CutText, read_objects
from dangerous_driving.contracts import RiskLevel
from dangerous_driving.errors import AnswerError

#: Bounds of what is kept: an answer is a few hundred characters; what is longer was not written for a person.
MAX_DESCRIPTION, MAX_TYPE, MAX_TYPES, MAX_COUNT = 2000, 100, 16, 1000

#: From here on a bare number is a percentage, below it a probability that overshoots.
PERCENT_FROM = 10.0

_FIELDS = {
    "risk_level": ("riskLevel", "risk", "level", "risk grade", "danger level", "风险等级", "风险级别", "风险水平", "风险程度",
        "危险等级", "危险级别", "风险", "等级", "级别"),
    "confidence": ("confidence", "confidence score", "score", "probability", "certainty", "置信度", "置信", "可信度", "概率"),
    "risk_types": ("riskTypes", "risk type", "types", "type", "risks", "categories", "风险类型", "风险类别", "危险类型", "类型"),
    "description": ("description", "desc", "reason", "reasoning", "explanation", "summary", "描述", "说明", "原因", "理由",
        "风险描述", "场景描述"),
    "trigger_object_ids": ("triggerObjectIds", "trigger objects", "trigger ids", "object ids", "objects", "objectId",
        "触发对象", "触发目标", "触发对象ID", "对象ID", "目标ID", "触发物体"),
    "danger_object_count": ("dangerObjectCount", "danger count", "dangerous object count", "danger objects", "count",
        "危险对象数", "危险对象数量", "危险目标数", "危险目标数量", "危险物体数量"),
    # of an answer to several groups
    "group_index": ("groupIndex", "group", "groupId", "groupNumber", "group no", "组", "组号", "组别", "分组", "群组", "组编号", "编号"),
}  # fmt: skip


def _key(name: str) -> str:
    return re.sub(r"[\s_\-]+", "", unicodedata.normalize("NFKC", name)).casefold()


_NAMES = {_key(name): field for field, names in _FIELDS.items() for name in names}
# plurals and "…Id" forms of the above
_NAMES |= {_key(name): "trigger_object_ids" for name in ("triggerObjects", "triggerObjectId", "objectIds")}


@dataclass(frozen=True)
class ParsedAnswer:
    """One understood answer. ``stated_level``: the level it named, before the rules; None: the confidence decided."""

    risk_level: RiskLevel
    confidence: float | None
    risk_types: tuple[str, ...]
    description: str
    trigger_object_ids: tuple[int, ...]
    danger_object_count: int | None
    stated_level: RiskLevel | None = None


def parse_answer(raw: str, known_object_ids: Collection[int]) -> ParsedAnswer:
    """Understand an answer.

    Args:
        raw: what the model wrote.
        known_object_ids: the objects of the group; other ids in the answer are inventions and left out.

    Raises:
        AnswerError: there is no answer in it, or its level is not understood and it names no risk type.
    """
    answer, level_field = _find(raw)
    if answer is None:
        raise AnswerError(problem_of(raw), raw)
    return understood(answer, level_field, raw, known_object_ids)


def understood(
    answer: Mapping[str, Any], level_field: str | None, raw: str, known_object_ids: Collection[int]
) -> ParsedAnswer:
    """Bring an object that was found in an answer to the platform's words.

    Args:
        answer: with the names of :class:`ParsedAnswer`, see :func:`field_named`.
        level_field: the level as it stands there.
        raw: what the model wrote, for the error.
        known_object_ids: as for :func:`parse_answer`.

    Raises:
        AnswerError: its level is not understood and it names no risk type.
    """
    risk_types = _types(answer.get("risk_types"))
    confidence = _confidence(answer.get("confidence"))
    stated = None if level_field is None else level_named(level_field)
    if stated is None and not risk_types:
        problem = "no risk level is given"
        if level_field is not None:
            problem = f"the risk level {_excerpt(level_field)} is not understood"
        raise AnswerError(f"{problem}, and there is no risk type to go by", raw)
    description = _description(answer.get("description"))
    return ParsedAnswer(
        risk_level=lowered(stated or level_by_confidence(confidence), risk_types, description),
        confidence=confidence,
        risk_types=risk_types,
        description=description,
        trigger_object_ids=_object_ids(answer.get("trigger_object_ids"), known_object_ids),
        danger_object_count=_count(answer.get("danger_object_count")),
        stated_level=stated,
    )


def level_in_stream(text_so_far: str) -> RiskLevel | None:
    """The level as soon as its value is complete in an answer that is still arriving, else None.

    It is the level that :func:`parse_answer` will find in the whole answer, before the rule that lowers a ``high``.
    """
    _, level_field = _find(text_so_far)
    return None if level_field is None else level_named(level_field)


def field_named(name: str) -> str:
    """The field of :class:`ParsedAnswer` that a model means by a name (or ``group_index``); the name itself if none."""
    return _NAMES.get(_key(name), name)


def _find(text: str) -> tuple[dict[str, Any] | None, str | None]:
    """The object that holds the answer, with the names of ParsedAnswer, and its level as it stands there.

    The first level in the text's order that is understood counts, so that a streamed level cannot differ from the
    final one (and an echoed ``"riskLevel": "none|low|medium|high"`` does no harm).
    """
    understood: list[tuple[dict[str, Any], str]] = []
    unknown: list[tuple[dict[str, Any], str]] = []

    def listen(owner: dict[str, Any], name: str, value: Any) -> None:
        if name == "risk_level" and isinstance(value, str):
            (unknown if level_named(value) is None else understood).append((owner, value))

    objects = read_objects(text, normal=field_named, listener=listen)
    for found in (understood, unknown):
        if found:
            return found[0]
    return next(((candidate, None) for candidate in objects if "risk_types" in candidate), (None, None))


def problem_of(raw: str) -> str:
    """Why there is no answer in a text."""
    if not raw.strip():
        return "the answer is empty"
    if raw.lstrip()[:1] == "<":
        return f"the answer is markup, not JSON: {_excerpt(raw)}"
    return f"there is no JSON object with a risk level in the answer: {_excerpt(raw)}"


def _excerpt(text: str) -> str:
    return repr(text.strip()[:60])


def _texts(value: Any) -> Iterable[str]:
    """The texts of a list, a text, or objects with a name; what the end of the answer cut is no type."""
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        yield from _texts(value.get("risk_types") or value.get("name"))
    elif isinstance(value, str) and not isinstance(value, CutText):
        yield value


def _types(value: Any) -> tuple[str, ...]:
    return tuple(_storable(name)[:MAX_TYPE] for name in types_named(_texts(value))[:MAX_TYPES])


def _confidence(value: Any) -> float | None:
    """A probability in 0..1 out of 0.85, "85%", 85 or "0.85"; overshoots are clipped, what is no number is None."""
    if isinstance(value, bool | CutText) or not isinstance(value, int | float | str):
        return None
    text = unicodedata.normalize("NFKC", str(value)).strip()
    percent = text.endswith("%")
    try:
        number = float(text.rstrip("% "))
    except ValueError:
        return None
    if math.isnan(number):
        return None
    if percent or PERCENT_FROM <= number <= 100.0:  # noqa: PLR2004
        number /= 100.0
    return min(max(number, 0.0), 1.0)


def _description(value: Any) -> str:
    return _storable(" ".join(value.split()))[:MAX_DESCRIPTION] if isinstance(value, str) else ""


def _object_ids(value: Any, known: Collection[int]) -> tuple[int, ...]:
    ids = dict.fromkeys(number for number in integers(value) if number in known)
    return tuple(ids)


def integers(value: Any) -> Iterable[int]:
    """The whole numbers that a value of an answer names, also within texts, lists and objects with an id."""
    if isinstance(value, list):
        for item in value:
            yield from integers(item)
    elif isinstance(value, dict):
        yield from integers(value.get("trigger_object_ids", value.get("id")))
    elif isinstance(value, float):
        if value.is_integer():
            yield int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value
    elif isinstance(value, str) and not isinstance(value, CutText):
        yield from (int(digits) for digits in re.findall(r"(?<![\d.\-])\d{1,9}(?![\d.])", value))


def _count(value: Any) -> int | None:
    numbers = [] if isinstance(value, list | dict) else list(integers(value))
    return numbers[0] if len(numbers) == 1 and 0 <= numbers[0] <= MAX_COUNT else None


def _storable(text: str) -> str:
    """Without what PostgreSQL and UTF-8 refuse: NUL and halves of surrogate pairs (both can be escaped in JSON)."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
