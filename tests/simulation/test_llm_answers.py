"""The simulated LLM's answers follow from the geometry in the prompt."""

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dangerous_driving.assessment.answer import parse_answer
from dangerous_driving.contracts import RiskLevel
from dangerous_driving.errors import AnswerError
from dangerous_driving.simulation.llm_answers import MARK, answer_to, garbage

Box = tuple[float, float, float, float]


def messages(*objects: tuple[str, Box], text: str = "Judge this. {}") -> list[dict[str, Any]]:
    listed = [
        {"objectId": number, "class": name, "confidence": 0.9, "bbox": list(box)}
        for number, (name, box) in enumerate(objects, 1)
    ]
    geometry = json.dumps({"groupIndex": 1, "objects": listed})
    return [{"role": "user", "content": [{"type": "text", "text": text.format("") + geometry}]}]


def level(*objects: tuple[str, Box]) -> RiskLevel:
    return parse_answer(answer_to(messages(*objects)), range(100)).risk_level


CAR: Box = (100, 100, 300, 220)


def test_a_person_against_a_vehicle_is_a_conflict() -> None:
    answer = parse_answer(answer_to(messages(("car", CAR), ("person", (210, 110, 250, 222)))), {1, 2})
    assert answer.risk_level is RiskLevel.HIGH
    assert answer.risk_types == ("pedestrian_conflict",)
    assert answer.trigger_object_ids == (1, 2)
    assert answer.description.startswith(MARK)


def test_the_level_falls_as_the_person_walks_away() -> None:
    ranks = [level(("car", CAR), ("person", (x, 110, x + 40, 222))).rank for x in range(220, 1000, 20)]
    assert ranks[0] == 3
    assert ranks[-1] == 0
    assert all(later - earlier <= 1 for earlier, later in pairwise(ranks))


def test_a_person_behind_the_vehicle_as_perspective_shows_it_is_in_no_conflict() -> None:
    assert level(("car", CAR), ("person", (210, 60, 220, 105))) is RiskLevel.NONE


def test_a_rider_is_no_person_in_conflict_with_the_car_beside() -> None:
    machine, rider = (330, 150, 400, 230), (340, 100, 390, 210)
    alone = answer_to(messages(("car", CAR), ("motorcycle", machine)))
    ridden = parse_answer(answer_to(messages(("car", CAR), ("motorcycle", machine), ("person", rider))), {1, 2, 3})
    assert "pedestrian_conflict" not in ridden.risk_types
    assert 3 not in ridden.trigger_object_ids
    assert abs(ridden.risk_level.rank - parse_answer(alone, {1, 2}).risk_level.rank) <= 1  # but for the noise


def test_vehicles_with_room_are_ordinary_and_overlapping_ones_are_not() -> None:
    assert level(("car", CAR), ("car", (450, 100, 650, 220))) is RiskLevel.NONE
    close = parse_answer(answer_to(messages(("car", CAR), ("truck", (190, 104, 400, 224)))), {1, 2})
    assert close.risk_level.rank >= RiskLevel.MEDIUM.rank


def test_one_vehicle_detected_twice_is_no_danger() -> None:
    assert level(("car", CAR), ("truck", (101, 100, 301, 221))) is RiskLevel.NONE


@pytest.mark.parametrize(
    "prompt", [[], [{"role": "user", "content": "How are you?"}], ["text"], [{"content": [3]}], [None]]
)
def test_a_prompt_without_geometry_is_answered_too(prompt: list[Any]) -> None:
    assert parse_answer(answer_to(prompt), ()).risk_level is RiskLevel.NONE


boxes = st.tuples(*[st.floats(-5000, 5000) for _ in range(4)])
objects = st.lists(
    st.tuples(st.sampled_from(["car", "person", "truck", "bicycle", "motorcycle", "dog"]), boxes), max_size=8
)


@given(objects, st.integers(0, 5))
def test_every_geometry_has_a_valid_answer_and_always_the_same(given_objects: list[tuple[str, Box]], seed: int) -> None:
    text = answer_to(messages(*given_objects), seed=seed)
    answer = parse_answer(text, range(1, len(given_objects) + 1))
    assert answer.stated_level is answer.risk_level  # valid: no rule has to lower it
    assert text == answer_to(messages(*given_objects), seed=seed)
    assert text.startswith('{"riskLevel": ')
    assert len(answer.trigger_object_ids) in {0, 2}


def test_seeds_differ_in_close_cases() -> None:
    person: Box = (330, 110, 370, 222)
    assert len({answer_to(messages(("car", CAR), ("person", person)), seed=seed) for seed in range(20)}) > 1


def test_ordinary_traffic_is_mostly_none_or_low(shared: Path) -> None:
    detections = json.loads((shared / "samples" / "detections.json").read_text())["images"]
    levels = [
        level(*((item["class"], tuple(item["bbox"])) for item in found)) for found in detections.values() if found
    ]
    assert len(levels) > 10
    assert len(set(levels)) >= 3  # whole pictures are crowded, so their levels are spread


def test_garbage_is_never_understood() -> None:
    chance = random.Random(1)  # noqa: S311
    seen = {garbage(chance) for _ in range(100)}
    assert len(seen) >= 5
    for text in seen:
        with pytest.raises(AnswerError):
            parse_answer(text, {1, 2})


def test_several_groups_are_answered_one_by_one_as_each_is_alone() -> None:
    crossing, apart = [("car", CAR), ("person", (210, 110, 250, 222))], [("car", CAR), ("car", (900, 100, 1100, 220))]

    def geometry(*objects: tuple[str, Box]) -> dict[str, Any]:
        text = messages(*objects)[0]["content"][0]["text"]
        return dict(json.loads(text[text.index("{") :]))

    several = {"groups": [geometry(*crossing) | {"groupIndex": 3}, geometry(*apart) | {"groupIndex": 1}]}
    asked = [{"role": "user", "content": [{"type": "text", "text": "Judge these. " + json.dumps(several)}]}]
    told = json.loads(answer_to(asked))["groups"]
    assert [list(item)[:2] for item in told] == [["groupIndex", "riskLevel"]] * 2
    alone = [json.loads(answer_to(messages(*objects))) for objects in (crossing, apart)]
    assert told == [{"groupIndex": 3, **alone[0]}, {"groupIndex": 1, **alone[1]}]
    assert json.loads(answer_to(asked, omit=1.0, chance=random.Random(1))) == {"groups": []}  # noqa: S311


def asked(skill: str, *, words: str = "Judge this.", count: int = 400) -> float:
    """The share of levels that a prompt of this skill has right."""
    draw = random.Random(1)  # noqa: S311
    right = 0
    for _ in range(count):
        x, y = draw.uniform(0, 400), draw.uniform(0, 60)
        users = (("car", CAR), ("person", (x, 90 + y, x + 40, 202 + y)))
        system = {"role": "system", "content": f"{words} {skill}"}
        given = parse_answer(answer_to([system, *messages(*users)]), range(100)).risk_level
        right += given is level(*users)
    return right / count


def test_a_prompt_says_how_well_it_is_answered() -> None:
    assert asked("[simulated skill 1]") == asked("[simulated skill 1.0]") == asked("") == 1.0
    assert 0.6 < asked("[simulated skill 0.7]") < 0.8
    assert asked("[simulated skill 0]") == 0.0
    assert asked("[simulated skill 7]") == 1.0  # no skill at all


def test_two_prompts_of_one_skill_are_wrong_on_different_groups() -> None:
    users = [(("car", CAR), ("person", (float(x), 110, x + 40.0, 222))) for x in range(0, 400, 4)]

    def answers(words: str) -> list[str]:
        system = {"role": "system", "content": f"{words} [simulated skill 0.5]"}
        return [answer_to([system, *messages(*pair)]) for pair in users]

    assert answers("one") == answers("one")
    assert answers("one") != answers("two")
