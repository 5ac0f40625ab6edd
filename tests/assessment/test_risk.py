"""Levels and types as models name them, and the rule for an unfounded high."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.assessment.risk import (
    SEVERITIES,
    Severity,
    level_by_confidence,
    level_named,
    lowered,
    type_named,
    types_named,
)
from dangerous_driving.contracts import RiskLevel

NONE, LOW, MEDIUM, HIGH = RiskLevel


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("safe", NONE), ("Normal", NONE), ("无", NONE), ("无风险", NONE), ("none", NONE),
        ("LOW", LOW), ("低风险", LOW), ("low_risk", LOW),
        ("moderate", MEDIUM), ("中等", MEDIUM), ("Medium.", MEDIUM),
        ("severe", HIGH), ("CRITICAL", HIGH), ("高风险", HIGH), ("**high**", HIGH), ("High risk level", HIGH), ("高级别", HIGH),
    ],
)  # fmt: skip
def test_synonyms_of_levels(text: str, level: RiskLevel) -> None:
    assert level_named(text) is level


@pytest.mark.parametrize("text", ["", "purple", "none|low|medium|high", "not high", "hi", "3", "highway"])
def test_words_that_name_no_level(text: str) -> None:
    assert level_named(text) is None


@pytest.mark.parametrize(
    ("confidence", "level"),
    [(1.0, HIGH), (0.80, HIGH), (0.799, MEDIUM), (0.65, MEDIUM), (0.649, LOW), (0.0, LOW), (None, LOW)],
)
def test_an_unknown_level_goes_by_confidence(confidence: float | None, level: RiskLevel) -> None:
    assert level_by_confidence(confidence) is level


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("tailgating", "tailgating"), ("Following too closely", "tailgating"), ("跟车过近", "tailgating"),
        ("conflict with a pedestrian", "pedestrian_conflict"), ("人车冲突", "pedestrian_conflict"),
        ("Pedestrian-Conflict", "pedestrian_conflict"), ("逆行", "wrong_way"), ("闯红灯", "red_light"),
        ("driving on the pavement", "pavement_driving"), ("dangerous maneuver", "dangerous_manoeuvre"),
        ("追尾", "collision"), ("traffic jam", "congestion"), ("排队", "queue"), ("slow traffic", "slow_traffic"),
        ("speeding", "speeding"), ("  object  on road ", "object on road"), ("none", None), ("N/A", None), ("无", None), ("", None),
    ],
)  # fmt: skip
def test_synonyms_of_types(text: str, name: str | None) -> None:
    assert type_named(text) == name


def test_the_table_of_types_is_closed_and_each_name_means_itself() -> None:
    assert {name for name, severity in SEVERITIES.items() if severity is Severity.SEVERE} == {
        "collision", "pedestrian_conflict", "wrong_way", "red_light", "pavement_driving", "dangerous_manoeuvre",
    }  # fmt: skip
    assert {name for name, severity in SEVERITIES.items() if severity is Severity.SOFT} == {
        "congestion", "queue", "slow_traffic", "tailgating",
    }  # fmt: skip
    assert [type_named(name) for name in SEVERITIES] == list(SEVERITIES)


def test_types_given_as_one_text_are_split() -> None:
    assert types_named(["追尾；行人，排队、speeding; wrong way, 追尾"]) == (
        "collision", "pedestrian_conflict", "queue", "speeding", "wrong_way",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("types", "description", "level"),
    [
        (("collision",), "", HIGH),  # a severe type
        (("tailgating", "wrong_way"), "", HIGH),
        (("tailgating",), "a rear-end collision is likely", HIGH),  # a severe word
        (("tailgating",), "前车急刹，可能追尾", HIGH),
        (("tailgating", "queue"), "cars wait", LOW),  # types, all soft
        (("tailgating", "speeding"), "", MEDIUM),  # a soft type among others
        (("speeding",), "slow cars", MEDIUM),  # a soft word
        ((), "道路拥堵", MEDIUM),
        (("speeding",), "fast", HIGH),  # neither soft nor severe
        ((), "", HIGH),
        (("tailgating",), "a white van", LOW),  # "hit" within a word is no severe word
    ],
)
def test_high_without_a_severe_ground_is_lowered(types: tuple[str, ...], description: str, level: RiskLevel) -> None:
    assert lowered(HIGH, types, description) is level


@given(st.sampled_from([NONE, LOW, MEDIUM]), st.lists(st.sampled_from(list(SEVERITIES))), st.text())
def test_other_levels_stay(level: RiskLevel, types: list[str], description: str) -> None:
    assert lowered(level, types, description) is level
