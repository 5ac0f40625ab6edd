"""Answers of models: everything that can be understood is, everything else is an AnswerError, never a `none`."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dangerous_driving.assessment.answer import ParsedAnswer, level_in_stream, parse_answer
from dangerous_driving.contracts import RiskLevel
from dangerous_driving.errors import AnswerError

WHOLE = (
    '{"riskLevel": "high", "confidence": 0.88, "riskTypes": ["pedestrian_conflict", "speeding"], '
    '"description": "A person stands close to a moving car", "triggerObjectIds": [1, 2], "dangerObjectCount": 2}'
)
EXPECTED = ParsedAnswer(
    risk_level=RiskLevel.HIGH,
    confidence=0.88,
    risk_types=("pedestrian_conflict", "speeding"),
    description="A person stands close to a moving car",
    trigger_object_ids=(1, 2),
    danger_object_count=2,
    stated_level=RiskLevel.HIGH,
)


@pytest.mark.parametrize(
    "raw",
    [
        WHOLE,
        f"```json\n{WHOLE}\n```",
        f"Sure! Here is my assessment:\n\n{WHOLE}\n\nLet me know {{if}} you need more.",
        WHOLE.replace('"', "'"),
        WHOLE.replace("}", ",}").replace("]", ",]"),
        WHOLE.replace(", ", " // see the picture\n, "),
        WHOLE.replace("riskLevel", "RISK_LEVEL").replace("riskTypes", "risk types").replace('"high"', '"HIGH"'),
        WHOLE.replace('["pedestrian_conflict", "speeding"]', '"pedestrian conflict； speeding"'),
        WHOLE.replace("0.88", '"88%"'),
        WHOLE.replace("0.88", "88"),
        WHOLE.replace("[1, 2]", '["1", "object 2", 77, 2.0, -1]'),
        WHOLE.replace("[1, 2]", '[{"objectId": 1}, {"objectId": 2}]'),
        f"[{WHOLE}]",
        f'{{"result": {WHOLE}}}',
        f"{WHOLE}\n{WHOLE.replace('high', 'low')}",  # the first answer counts
        '{"riskLevel": "none|low|medium|high"}\n' + WHOLE,  # the asked form, repeated
        f'<think>perhaps {{"riskLevel": "low"}}</think>{WHOLE}',
        "{“风险等级”：“高”，“置信度”：0.88，“风险类型”：“人车冲突、speeding”，“描述”：“A person stands close to a moving car”，“触发对象”：［1，2］，“危险对象数”：2}",
    ],
)
def test_what_models_do_to_an_answer(raw: str) -> None:
    assert parse_answer(raw, {1, 2, 3}) == EXPECTED


@pytest.mark.parametrize(
    ("cut", "types", "description"),
    [
        (WHOLE[: WHOLE.index("confidence")], (), ""),
        (WHOLE[: WHOLE.index("speed") + 2], ("pedestrian_conflict",), ""),
        (WHOLE[: WHOLE.index("close")], ("pedestrian_conflict", "speeding"), "A person stands"),
    ],
)
def test_a_cut_answer_keeps_what_was_complete(cut: str, types: tuple[str, ...], description: str) -> None:
    answer = parse_answer(cut, {1, 2})
    assert (answer.risk_level, answer.risk_types) == (RiskLevel.HIGH, types)
    assert answer.description.startswith(description)


@pytest.mark.parametrize(
    ("confidence", "expected"),
    [
        ("0", 0.0), ("1", 1.0), ("1.7", 1.0), ("-0.2", 0.0), ("85", 0.85), ("100", 1.0), ("850", 1.0), ('"85 %"', 0.85), ('"８５％"', 0.85),
        ('"0.5"', 0.5), ('"0.5%"', 0.005), ("NaN", None), ("Infinity", 1.0), ("null", None), ('"very"', None), ("true", None), ("[0.5]", None),
    ],
)  # fmt: skip
def test_confidence_is_a_probability_or_unknown(confidence: str, expected: float | None) -> None:
    answer = parse_answer(f'{{"riskLevel": "low", "confidence": {confidence}}}', ())
    assert answer.confidence == pytest.approx(expected)


@pytest.mark.parametrize(
    ("raw", "level"),
    [
        ('{"riskLevel": "purple", "riskTypes": ["collision"], "confidence": 0.8}', RiskLevel.HIGH),
        ('{"riskLevel": "purple", "riskTypes": ["collision"], "confidence": 0.7}', RiskLevel.MEDIUM),
        ('{"riskLevel": "purple", "riskTypes": ["collision"]}', RiskLevel.LOW),
        ('{"riskLevel": null, "riskTypes": ["collision"], "confidence": 0.9}', RiskLevel.HIGH),
        ('{"riskTypes": ["tailgating"], "confidence": 0.9}', RiskLevel.LOW),  # high, then lowered: all types are soft
        ('{"riskLevel": "severe", "riskTypes": "排队"}', RiskLevel.LOW),
        ('{"riskLevel": "无"}', RiskLevel.NONE),
        ("{riskLevel: none}", RiskLevel.NONE),
    ],
)
def test_levels_by_the_rules(raw: str, level: RiskLevel) -> None:
    assert parse_answer(raw, ()).risk_level is level


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "   \n",
        "<html><body>502 Bad Gateway</body></html>",
        "I cannot help with that.",
        "The risk level is none.",
        "{}",
        '{"answer": 42}',
        '{"riskLevel": null}',
        '{"riskLevel": None}',
        '{"riskLevel": "purple", "riskTypes": ["none"]}',
        '{"riskLevel": "non',
        '{"riskLevel": false}',
        '{"riskLevel": ["none"]}',
        '{"description": "no danger at all", "confidence": 0.99}',
        pytest.param("x" * 10_000_000, id="10 MB"),
    ],
)
def test_what_is_not_understood_is_an_error_with_the_raw_text_and_never_a_none(raw: str) -> None:
    with pytest.raises(AnswerError) as caught:
        parse_answer(raw, {1})
    assert caught.value.raw == raw
    assert len(str(caught.value)) < 300


def test_invented_ids_and_counts_are_left_out() -> None:
    answer = parse_answer('{"riskLevel": "low", "triggerObjectIds": "1, 2 and 7", "dangerObjectCount": 1e30}', {2, 7})
    assert answer.trigger_object_ids == (2, 7)
    assert answer.danger_object_count is None


def test_texts_can_be_stored() -> None:
    answer = parse_answer('{"riskLevel": "low", "riskTypes": ["a\\u0000b"], "description": "x\\ud83dy\\u0000"}', ())
    for text in (*answer.risk_types, answer.description):
        text.encode()
        assert "\x00" not in text


def test_the_level_is_known_as_soon_as_its_word_is_whole_and_never_before() -> None:
    known = [level_in_stream(WHOLE[:end]) for end in range(len(WHOLE) + 1)]
    complete = WHOLE.index('"high"') + len('"high"')
    assert known == [None] * complete + [RiskLevel.HIGH] * (len(WHOLE) + 1 - complete)


@pytest.mark.parametrize(
    "text", ['{"riskLevel": "hi', '{"riskLevel": "no', "{riskLevel: no", '{"riskLevel": "low', '{"riskLevel": ']
)
def test_half_words_are_no_level(text: str) -> None:
    assert level_in_stream(text) is None


fragments = st.sampled_from(
    ['"riskLevel"', "riskLevel", "风险等级", ":", "：", '"high"', "'low'", "none", "very", " ", "{", "}", "[", "]", ",", "，", '"', "'", "“", "”",
     "\\", "\n", "```", '"description"', '"riskTypes"', "collision", "0.9", "//", "/*", "#", "null", "<think>", "</think>", "\\u0000"]
)  # fmt: skip
damaged = st.lists(fragments | st.text(max_size=5), max_size=40).map("".join)


@given(st.text() | damaged)
@example('{"riskLevel": "very high')
def test_no_text_breaks_the_parser(raw: str) -> None:
    try:
        answer = parse_answer(raw, {1, 2})
    except AnswerError:
        return
    assert isinstance(answer.risk_level, RiskLevel)
    assert answer.confidence is None or 0 <= answer.confidence <= 1


@given(damaged, st.integers(0, 200))
def test_a_streamed_level_is_the_one_of_the_whole_answer(raw: str, end: int) -> None:
    early = level_in_stream(raw[:end])
    assert early is None or early is level_in_stream(raw)
    if early is not None:
        assert parse_answer(raw, ()).stated_level is early


@given(st.sampled_from(list(RiskLevel)), st.text(), st.integers(0, 300))
def test_a_valid_answer_streams_its_own_level(level: RiskLevel, description: str, end: int) -> None:
    raw = json.dumps({"riskLevel": level.value, "description": description})
    assert level_in_stream(raw[:end]) in {None, level}
    assert level_in_stream(raw) is level
