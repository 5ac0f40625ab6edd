"""Answers to several groups of a frame: each group gets its own, and what is not there is not made up."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.assessment.frame_answer import levels_in_stream, parse_frame_answer
from dangerous_driving.contracts import RiskLevel
from dangerous_driving.errors import AnswerError

GROUPS = {1: {1, 2}, 2: {3, 4}, 5: {5, 6}}


def one(index: int, level: str, **more: Any) -> dict[str, Any]:
    return {"groupIndex": index, "riskLevel": level, "confidence": 0.9, "riskTypes": [], "description": "d", **more}


def levels(raw: str) -> dict[int, str]:
    return {index: answer.risk_level.value for index, answer in parse_frame_answer(raw, GROUPS).items()}


def test_each_group_has_its_own_answer_and_its_own_objects() -> None:
    raw = json.dumps({
        "groups": [
            one(2, "medium", riskTypes=["tailgating"], triggerObjectIds=[3, 1]),
            one(1, "high", riskTypes=["collision"], triggerObjectIds=[1, 2, 9]),
            one(5, "none"),
        ]
    })  # fmt: skip
    answers = parse_frame_answer(raw, GROUPS)
    assert {index: answer.risk_level for index, answer in answers.items()} == {
        1: RiskLevel.HIGH, 2: RiskLevel.MEDIUM, 5: RiskLevel.NONE,
    }  # fmt: skip
    assert answers[1].trigger_object_ids == (1, 2)
    assert answers[2].trigger_object_ids == (3,)  # 1 is no object of that group
    assert answers[2].risk_types == ("tailgating",)


@pytest.mark.parametrize(
    "raw",
    [
        '```json\n[{"group": "1", "level": "high", "types": ["collision"]}, {"group": "2", "level": "safe"}] // done\n```',
        '{"group 1": {"riskLevel": "high", "riskTypes": ["collision"]}, "group_2": {"riskLevel": "none"}}',
        '{"第1组": {"风险等级": "高", "风险类型": ["碰撞"]}, "第2组": {"风险等级": "无"}}',
        """{"groups": [{"groupIndex": 1, "assessment": {"riskLevel": "HIGH", "riskTypes": "collision"}},
                       {"groupIndex": 2.0, "assessment": {"riskLevel": "None"}}]}""",
        """Group one first: {"groupIndex": 1, "riskLevel": "high", "riskTypes": ["collision"]}
           and then {"groupIndex": 2, "riskLevel": "none"}""",
    ],
)
def test_other_forms_of_the_same_are_understood(raw: str) -> None:
    assert levels(raw) == {1: "high", 2: "none"}


def test_without_any_index_the_place_decides_if_there_are_as_many_as_groups() -> None:
    items = [{"riskLevel": "low", "detail": {"riskTypes": ["queue"]}}, {"riskLevel": "none"}, {"riskLevel": "medium"}]
    assert levels(json.dumps(items)) == {1: "low", 2: "none", 5: "medium"}
    with pytest.raises(AnswerError):
        parse_frame_answer(json.dumps(items[:2]), GROUPS)
    with pytest.raises(AnswerError):
        parse_frame_answer('{"riskLevel": "none"}', GROUPS)  # one judgement for all is nobody's


def test_a_group_that_is_missing_cut_or_not_understood_is_left_out() -> None:
    whole = json.dumps([one(1, "low"), one(2, "purple"), one(5, "medium")])
    assert levels(whole) == {1: "low", 5: "medium"}
    assert levels(whole[: whole.index("medium")]) == {1: "low"}
    assert levels(json.dumps([one(1, "low"), one(3, "high")])) == {1: "low"}  # nobody asked about group 3
    # an unknown level goes by the confidence where there is a type, as in an answer to one group
    assert levels(json.dumps([one(2, "purple", riskTypes=["collision"])])) == {2: "high"}


def test_of_two_answers_to_a_group_the_first_that_is_understood_counts() -> None:
    assert levels(json.dumps([one(1, "none|low|medium|high"), one(1, "low"), one(1, "high")])) == {1: "low"}


@pytest.mark.parametrize("raw", ["", "I cannot help.", "<html>502</html>", "{}", '{"groups": []}', "[[[{{{", "null"])
def test_what_is_no_answer_says_so_and_keeps_the_text(raw: str) -> None:
    with pytest.raises(AnswerError) as caught:
        parse_frame_answer(raw, GROUPS)
    assert caught.value.raw == raw


LEVELS = st.sampled_from(["none", "low", "medium", "high", "safe", "critical", "purple", "none|low", "高", 3, None])
ITEM = st.builds(
    lambda fields: {name: value for part in fields for name, value in part.items()},
    st.lists(
        st.one_of(
            st.builds(lambda level: {"riskLevel": level}, LEVELS),
            st.builds(
                lambda index: {"groupIndex": index}, st.sampled_from([1, 2, 5, 7, "1", "group 2", "1 or 2", None])
            ),
            st.builds(lambda types: {"riskTypes": types}, st.sampled_from([[], ["collision"], "queue; tailgating"])),
            st.builds(lambda number: {"confidence": number}, st.floats(0, 1)),
            st.builds(lambda text: {"description": text}, st.text(max_size=12)),
        ),
        max_size=5,
    ),
)
NESTED = st.recursive(
    ITEM,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["groups", "group 1", "2", "x", "group"]), inner, max_size=3),
        st.builds(lambda outer, item: {**outer, "assessment": item}, ITEM, inner),
    ),
    max_leaves=8,
)
ANSWERS = st.builds(
    lambda before, value, after: before + json.dumps(value, ensure_ascii=False) + after,
    st.sampled_from(["", "```json\n", "Sure: ", "<think>{}</think>"]),
    NESTED,
    st.sampled_from(["", "\n```", " as asked", "}]"]),
)


@given(raw=ANSWERS, cut=st.integers(0, 400))
def test_a_level_that_streamed_is_the_one_of_the_whole_answer(raw: str, cut: int) -> None:
    streamed = levels_in_stream(raw[:cut], set(GROUPS))
    try:
        answers = parse_frame_answer(raw, GROUPS)
    except AnswerError:
        answers = {}
    assert streamed == {index: answers[index].stated_level for index in streamed}


@given(raw=st.one_of(st.text(max_size=80), ANSWERS))
def test_whatever_a_model_writes_no_group_gets_an_answer_that_is_not_there(raw: str) -> None:
    try:
        answers = parse_frame_answer(raw, GROUPS)
    except AnswerError:
        return
    assert answers
    assert set(answers) <= set(GROUPS)
    for index, answer in answers.items():
        assert set(answer.trigger_object_ids) <= GROUPS[index]
    named = raw.count("riskLevel") + raw.count("riskTypes")
    assert len(answers) <= named


@given(
    given_levels=st.dictionaries(
        st.sampled_from(sorted(GROUPS)), st.sampled_from(["none", "low", "medium"]), min_size=1
    ),
    order=st.randoms(use_true_random=False),
    wrapped=st.booleans(),
)
def test_any_subset_in_any_order_is_read_back(given_levels: dict[int, str], order: Any, wrapped: bool) -> None:
    items = [one(index, level) for index, level in given_levels.items()]
    order.shuffle(items)
    raw = json.dumps({"groups": items} if wrapped else items)
    assert levels(raw) == given_levels
    assert {index: level.value for index, level in levels_in_stream(raw, set(GROUPS)).items()} == given_levels
