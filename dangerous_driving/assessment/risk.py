"""Risk levels and risk types as models name them, and the rule that lowers an unfounded ``high``. Pure.

Models translate, paraphrase and exaggerate. What they say is brought to the four levels and to a closed table of types;
a type outside the table is kept as text and has no severity.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from enum import StrEnum

from dangerous_driving.contracts import RiskLevel


class Severity(StrEnum):
    """Whether a type alone can found a level of ``high``."""

    SEVERE = "severe"
    SOFT = "soft"


#: The closed table: what counts as which severity.
SEVERITIES: dict[str, Severity] = {
    "collision": Severity.SEVERE,
    "pedestrian_conflict": Severity.SEVERE,
    "wrong_way": Severity.SEVERE,
    "red_light": Severity.SEVERE,
    "pavement_driving": Severity.SEVERE,
    "dangerous_manoeuvre": Severity.SEVERE,
    "congestion": Severity.SOFT,
    "queue": Severity.SOFT,
    "slow_traffic": Severity.SOFT,
    "tailgating": Severity.SOFT,
}

#: Names that models use in turn for one scene: what a short distance, a cut-in and a near crash are called changes from
#: frame to frame, and so does whether slow traffic is a queue.
_FAMILIES: dict[str, str] = {
    "tailgating": "between vehicles",
    "collision": "between vehicles",
    "dangerous_manoeuvre": "between vehicles",
    "congestion": "congestion",
    "queue": "congestion",
    "slow_traffic": "congestion",
}

_TYPE_SYNONYMS: dict[str, tuple[str, ...]] = {
    "collision": (
        "crash", "accident", "traffic accident", "collision risk", "risk of collision", "potential collision",
        "imminent collision", "rear end collision", "rear end", "side collision", "vehicle collision", "impact",
        "碰撞", "碰撞风险", "追尾", "追尾风险", "追尾碰撞", "撞车", "事故", "交通事故", "车辆碰撞", "刮擦", "剐蹭",
    ),
    "pedestrian_conflict": (
        "pedestrian", "pedestrian risk", "pedestrian danger", "conflict with pedestrian", "conflict with a pedestrian",
        "person vehicle conflict", "pedestrian vehicle conflict", "vehicle pedestrian conflict", "pedestrian crossing",
        "pedestrian too close", "pedestrian on road", "pedestrian in road", "jaywalking",
        "行人冲突", "人车冲突", "行人", "行人风险", "行人危险", "行人横穿", "行人闯入", "人车混行", "与行人冲突", "未礼让行人",
    ),
    "wrong_way": (
        "wrong way driving", "driving the wrong way", "wrong direction", "against traffic", "driving against traffic",
        "contraflow", "逆行", "逆向行驶", "逆向", "车辆逆行",
    ),
    "red_light": (
        "red light running", "running red light", "running a red light", "ran red light", "red light violation",
        "traffic light violation", "闯红灯", "红灯", "违反信号灯", "不按信号灯行驶",
    ),
    "pavement_driving": (
        "driving on pavement", "driving on the pavement", "vehicle on pavement", "vehicle on the pavement",
        "vehicle on sidewalk", "driving on sidewalk", "driving on the sidewalk", "sidewalk driving", "pavement", "sidewalk",
        "占用人行道", "人行道行驶", "驶上人行道", "人行道上行驶", "车辆驶入人行道",
    ),
    "dangerous_manoeuvre": (
        "dangerous maneuver", "dangerous driving", "reckless driving", "aggressive driving", "unsafe manoeuvre",
        "unsafe maneuver", "unsafe lane change", "dangerous lane change", "illegal lane change", "sudden lane change",
        "cutting in", "cut in", "dangerous overtaking", "illegal overtaking", "unsafe overtaking", "illegal u turn",
        "危险驾驶", "危险动作", "危险变道", "违规变道", "强行变道", "加塞", "危险超车", "违规超车", "违规掉头", "鲁莽驾驶",
    ),
    "congestion": ("congested", "traffic congestion", "traffic jam", "jam", "heavy traffic", "dense traffic",
        "拥堵", "交通拥堵", "拥挤", "堵车", "车流密集"),
    "queue": ("queuing", "queueing", "queued vehicles", "vehicle queue", "waiting in line", "排队", "车辆排队", "排队等候"),
    "slow_traffic": ("slow", "slow moving traffic", "slow moving", "slow moving vehicles", "slow driving",
        "缓行", "缓慢", "行驶缓慢", "车流缓慢", "慢行"),
    "tailgating": (
        "following too closely", "following too close", "close following", "too close", "vehicles too close",
        "insufficient distance", "insufficient following distance", "unsafe distance", "unsafe following distance",
        "short following distance", "close distance", "close proximity",
        "跟车过近", "跟车太近", "车距过近", "车距不足", "车距过小", "未保持安全距离", "未保持安全车距", "距离过近", "近距离跟车", "尾随",
    ),
}  # fmt: skip

_LEVEL_SYNONYMS: dict[RiskLevel, tuple[str, ...]] = {
    RiskLevel.NONE: (
        "none", "no", "no risk", "no danger", "safe", "normal", "ok", "zero", "nil", "not dangerous", "negligible",
        "无", "无风险", "没有风险", "无危险", "没有", "安全", "正常",
    ),
    RiskLevel.LOW: ("low", "low risk", "minor", "slight", "mild", "minimal", "small", "very low",
        "低", "低风险", "较低", "轻微", "轻度", "低危"),
    RiskLevel.MEDIUM: ("medium", "medium risk", "moderate", "moderate risk", "mid", "middle", "elevated", "medium high",
        "中", "中等", "中等风险", "中风险", "中度", "一般", "中危"),
    RiskLevel.HIGH: (
        "high", "high risk", "severe", "critical", "very high", "extreme", "serious", "dangerous", "urgent", "severe risk",
        "高", "高风险", "较高", "较大", "严重", "危险", "极高", "极高风险", "重大", "紧急", "高危",
    ),
}  # fmt: skip

#: In a description: words that found a ``high`` as a severe type does.
_SEVERE_WORDS = (
    "collision", "collisions", "collide", "collides", "collided", "colliding", "crash", "crashes", "crashed", "crashing",
    "accident", "hit", "hits", "struck", "run over", "pedestrian", "pedestrians", "wrong way", "wrong-way",
    "against traffic", "red light", "pavement", "sidewalk", "reckless", "dangerous manoeuvre", "dangerous maneuver",
    "swerve", "swerves", "swerving", "碰撞", "相撞", "追尾", "撞", "事故", "行人", "逆行", "逆向", "闯红灯", "人行道", "危险驾驶",
    "危险变道", "危险超车", "强行",
)  # fmt: skip
#: In a description: words that say why a ``high`` is too much.
_SOFT_WORDS = (
    "congestion", "congested", "traffic jam", "heavy traffic", "dense traffic", "queue", "queues", "queued", "queuing",
    "queueing", "slow", "slowly", "slow-moving", "tailgating", "following too closely", "following too close",
    "close following", "too close", "拥堵", "拥挤", "堵车", "排队", "缓行", "缓慢", "慢行", "跟车过近", "跟车太近", "车距过近",
    "车距不足", "车距过小", "距离过近",
)  # fmt: skip

#: What models write where there is no type at all.
_NO_TYPE = frozenset(
    ("", "none", "no", "null", "n a", "na", "nil", "no risk", "normal", "safe", "unknown", "无", "没有", "无风险", "正常", "安全", "未知")
)  # fmt: skip

#: Between types given as one text. The ASCII comma is no less common than its Chinese sisters.
_TYPE_SEPARATORS = re.compile(r"[;,，、；\n|]+")
_LATIN = re.compile(r"[a-z]")


def _plain(text: str) -> str:
    """For look-ups: full-width forms folded, lower case, ``_ - /`` and runs of space as one space, no outer punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"[\s_\-/]+", " ", folded).strip(" .!。！\"'`*:[](){}<>")


def _table(synonyms: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {_plain(word): name for name, words in synonyms.items() for word in (name, *words)}


_TYPES = _table(_TYPE_SYNONYMS)
_LEVELS = {_plain(word): level for level, words in _LEVEL_SYNONYMS.items() for word in words}


def _pattern(words: Sequence[str]) -> re.Pattern[str]:
    # Chinese has no word boundaries; in English "hit" must not be found in "white"
    english = [re.escape(word) for word in words if _LATIN.search(word)]
    chinese = [re.escape(word) for word in words if not _LATIN.search(word)]
    return re.compile(rf"(?<![a-z])(?:{'|'.join(english)})(?![a-z])|{'|'.join(chinese)}")


_SEVERE = _pattern(_SEVERE_WORDS)
_SOFT = _pattern(_SOFT_WORDS)


def level_named(text: str) -> RiskLevel | None:
    """The level that a model's word for it means, in English or Chinese; None for a word that is in no table."""
    plain = _plain(text)
    level = _LEVELS.get(plain)
    if level is None:
        # "high risk level", "风险等级: 高": the word without what only says that it is a level
        level = _LEVELS.get(re.sub(r"\b(risk|level|danger)\b|风险等级|风险级别|等级|级别|级$", "", plain).strip(" :"))
    return level


def level_by_confidence(confidence: float | None) -> RiskLevel:
    """The level of a scene with a risk type whose level is not understood: the plan's thresholds of confidence."""
    if confidence is not None and confidence >= 0.80:  # noqa: PLR2004
        return RiskLevel.HIGH
    if confidence is not None and confidence >= 0.65:  # noqa: PLR2004
        return RiskLevel.MEDIUM
    return RiskLevel.LOW


def type_named(text: str) -> str | None:
    """The table's name of a type, the text itself when it is in no table, None where it says that there is no type."""
    plain = _plain(text)
    if plain in _NO_TYPE:
        return None
    return _TYPES.get(plain) or " ".join(text.split())


def families_of(risk_types: Iterable[str]) -> frozenset[str]:
    """What kinds of danger these types name; types that are in no table name none, since they are wording."""
    return frozenset(_FAMILIES.get(name, name) for name in risk_types if name in SEVERITIES)


def types_named(texts: Iterable[str]) -> tuple[str, ...]:
    """The types of a list of texts, each of which may hold several; without repetitions, in their order."""
    parts = (part for text in texts for part in _TYPE_SEPARATORS.split(text))
    named = (type_named(part) for part in parts)
    return tuple(dict.fromkeys(name for name in named if name))


def lowered(level: RiskLevel, risk_types: Sequence[str], description: str) -> RiskLevel:
    """The level after the rule for an unfounded ``high``.

    A ``high`` with no severe type and no severe word in the description becomes ``low`` if it has types and all are
    soft, else ``medium`` if a soft type or word is there, else it stays. Other levels stay.
    """
    severities = [SEVERITIES.get(name) for name in risk_types]
    words = description.casefold()
    if level is not RiskLevel.HIGH or Severity.SEVERE in severities or _SEVERE.search(words):
        return level
    if severities and all(severity is Severity.SOFT for severity in severities):
        return RiskLevel.LOW
    if Severity.SOFT in severities or _SOFT.search(words):
        return RiskLevel.MEDIUM
    return level
