"""The reader of almost-JSON: valid JSON exactly, damaged JSON as far as it goes, never a value taken back."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.assessment.tolerant_json import MAX_DEPTH, CutText, read_objects

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)
documents = st.dictionaries(st.text(), values, max_size=5)


@given(documents, st.booleans(), st.sampled_from([None, 2]))
def test_valid_json_is_read_as_the_standard_library_reads_it(
    document: dict[str, Any], ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only, indent=indent)
    assert read_objects(text)[0] == document


@given(documents, st.text(alphabet="{}[]\"',:\\ \n“”，：#/*abc", max_size=40), st.integers(0, 400), st.integers(0, 400))
def test_what_the_beginning_of_a_text_told_the_whole_text_tells_too(
    document: dict[str, Any], noise: str, at: int, end: int
) -> None:
    text = json.dumps(document, ensure_ascii=False)
    text = text[: at % (len(text) + 1)] + noise + text[at % (len(text) + 1) :]

    def told(part: str) -> list[tuple[str, str]]:
        heard: list[tuple[str, str]] = []
        read_objects(part, listener=lambda _, name, value: heard.append((name, repr(value))))
        return heard

    early = told(text[:end])
    assert told(text)[: len(early)] == early


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ('Here you are: {"a": 1} - anything else?', {"a": 1}),
        ("{'a': 'it's close', 'b': 2}", {"a": "it's close", "b": 2}),
        ('{"a": "he said "stop" twice", "b": 2}', {"a": 'he said "stop" twice', "b": 2}),
        ('{"a": [1, 2,], "b": {"c": 3,},}', {"a": [1, 2], "b": {"c": 3}}),
        ('{"a": 1 "b": 2}', {"a": 1, "b": 2}),
        ('{"a": "one two"\n "b": 2}', {"a": "one two", "b": 2}),
        ("{a: high, b: None, c: True}", {"a": "high", "b": None, "c": True}),
        ('{"a": 1, // why\n "b": /* so */ 2, # end\n "c": 3}', {"a": 1, "b": 2, "c": 3}),
        ("{“a”：“高”，“b”：［1，2］}", {"a": "高", "b": [1, 2]}),
        ('{"a": 1, "a": 2}', {"a": 1}),
        ('<think>{"a": 0}</think>{"a": 1}', {"a": 1}),
        ('{"a": "\\u4eba\\ud83d\\ude97\\q"}', {"a": "人🚗q"}),
    ],
)
def test_damage_that_models_do(text: str, expected: dict[str, Any]) -> None:
    assert read_objects(text)[0] == expected


def test_a_text_that_ends_early_yields_what_was_complete() -> None:
    (found,) = read_objects('{"a": "x", "b": [1, 2], "c": "too cl')
    assert found == {"a": "x", "b": [1, 2], "c": "too cl"}
    assert isinstance(found["c"], CutText)
    assert read_objects('{"a": 1, "b": 0.8') == [{"a": 1}]  # 0.8 may have been 0.85


def test_several_objects_come_in_their_order() -> None:
    assert read_objects('{"a": {"b": 1}} and {"c": 2}') == [{"a": {"b": 1}}, {"b": 1}, {"c": 2}]


@pytest.mark.parametrize(
    ("unit", "times"), [("{", 200_000), ('{"a":', 50_000), ('{"a": "b "c', 30_000), ("[", 100_000), ("{a ", 80_000)]
)
def test_large_garbage_is_read_in_linear_time(unit: str, times: int) -> None:
    started = time.process_time()
    read_objects(unit * times)
    assert time.process_time() - started < 5.0  # s; seen: 0.1 to 0.5, a quadratic reader takes minutes


def test_depth_is_bounded() -> None:
    assert len(read_objects('{"a":' * (MAX_DEPTH + 50))) == MAX_DEPTH
