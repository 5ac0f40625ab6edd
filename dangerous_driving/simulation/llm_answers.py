"""What the simulated LLM answers: a level that follows from the geometry in the prompt. Pure and repeatable.

It sees no picture. It reads the JSON that the prompts of `assessment` put into their text, looks for the pair of road
users that are closest to each other in space as far as boxes tell, and words what it found. The same geometry and seed
give the same answer, byte for byte.

It cannot read instructions, so a prompt says by itself how well it is to be answered: ``[simulated skill 0.7]`` in its text
makes about 30 % of the levels wrong, which ones depends on the whole prompt. So the evaluation of prompts can be tried and
tested; without the words every prompt is answered alike.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import hypot, sqrt
from typing import Any

from dangerous_driving.detection.grouping import as_boxes
from dangerous_driving.detection.riders import riders

#: Every description begins with it, so that no reader can take an answer for a judgement.
MARK = "[simulated]"

VEHICLES = frozenset({"car", "bus", "truck", "motorcycle"})
HEAVY = frozenset({"bus", "truck"})
TWO_WHEELERS = frozenset({"bicycle", "motorcycle"})

#: Score from which on a pair has that level. On the road pictures and clips this was tried on, about four of five groups
#: are none or low.
LEVELS = ((0.85, "high"), (0.45, "medium"), (0.30, "low"))
#: Models are not consistent either: the score is moved by up to this, by the hash of the geometry.
NOISE = 0.08
#: How well a prompt asks to be answered: the share of levels that are right.
SKILL = re.compile(r"\[simulated skill (0(?:\.\d+)?|1(?:\.0+)?)\]")
#: IoU from which two boxes are one vehicle, which detectors report as a car and a truck at times.
SAME_VEHICLE = 0.75


@dataclass(frozen=True)
class RoadUser:
    """One object of the prompt. The box is in pixels."""

    object_id: int
    class_name: str
    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def width(self) -> float:
        """In pixels, at least 1."""
        return max(self.x2 - self.x1, 1.0)

    @property
    def height(self) -> float:
        """In pixels, at least 1."""
        return max(self.y2 - self.y1, 1.0)

    @property
    def size(self) -> float:
        """The side of a square of the same area."""
        return sqrt(self.width * self.height)


@dataclass(frozen=True)
class Finding:
    """The pair that decides, how close it is (0 to 1 and a little more) and what it means."""

    score: float
    pair: tuple[RoadUser, RoadUser]
    risk_type: str
    words: str


def answer_to(messages: Sequence[Any], *, seed: int = 0, omit: float = 0.0, chance: random.Random | None = None) -> str:
    """The JSON text that answers these chat messages; ``riskLevel`` comes first.

    To several groups it answers with one object each, after its ``groupIndex``: the one that it gives to the group alone.

    Args:
        messages: of the request.
        seed: same seed, same answer.
        omit: the share of several groups that are left out.
        chance: decides which; None: none are.
    """
    groups = groups_in(messages)
    if groups is None:
        return json.dumps(_assessment(messages, road_users_in(messages), seed))
    told = [
        {"groupIndex": index, **_assessment(messages, users, seed)}
        for index, users in groups
        if chance is None or chance.random() >= omit
    ]
    return json.dumps({"groups": told})


def _assessment(messages: Sequence[Any], users: Sequence[RoadUser] | None, seed: int) -> dict[str, Any]:
    if users is None:
        return _answer("none", 0.5, [], "There is no geometry in the prompt, so nothing can be judged.", [], 0)
    chance = random.Random(_digest(users, seed))  # noqa: S311  # repeatable is the point
    users = _without_riders(users)
    finding = max((_judge(first, second) for first, second in combinations(users, 2)), key=_by_score, default=None)
    if finding is None:
        return _answer("none", 0.9, [], "There is at most one road user.", [], 0)
    score = finding.score + chance.uniform(-NOISE, NOISE)
    level = next((name for least, name in LEVELS if score >= least), "none")
    level = _by_skill(level, messages, users, seed)
    confidence = round(min(0.62 + 0.35 * abs(score - 0.42) + chance.uniform(0, 0.1), 0.98), 2)
    if level == "none":
        return _answer(level, confidence, [], "Ordinary traffic with room between the road users.", [], 0)
    ids = sorted(user.object_id for user in finding.pair)
    return _answer(level, confidence, [_type_at(level, finding.risk_type)], finding.words, ids, len(ids))


def _by_skill(level: str, messages: Sequence[Any], users: Sequence[RoadUser], seed: int) -> str:
    """Another level, as often as the prompt asks for it; two prompts of one skill are wrong on different groups."""
    texts = list(texts_in(messages[:1]))
    skill = next((match for text in texts if (match := SKILL.search(text))), None)
    if skill is None:
        return level
    words = hashlib.sha256("".join(texts).encode()).hexdigest()
    chance = random.Random(f"{words}:{_digest(users, seed)}")  # noqa: S311  # repeatable is the point
    if chance.random() < float(skill[1]):
        return level
    return chance.choice([name for name in ("none", "low", "medium", "high") if name != level])


def _without_riders(users: Sequence[RoadUser]) -> list[RoadUser]:
    """A rider and his two-wheeler are one road user."""
    boxes = as_boxes([(user.x1, user.y1, user.x2, user.y2) for user in users])
    riding = riders(boxes, [user.class_name for user in users])
    return [user for number, user in enumerate(users) if number not in riding]


def garbage(chance: random.Random) -> str:
    """An answer that nobody can use: models do all of these."""
    return chance.choice(
        (
            "",
            f"{MARK} I am sorry, but I cannot assess this picture.",
            f"<html><body>{MARK} 502 Bad Gateway</body></html>",
            json.dumps({"description": f"{MARK} some other form", "danger": "yes"}),
            json.dumps({"riskLevel": "purple", "riskTypes": [], "description": MARK}),
            '{"riskLevel": "me',
        )
    )


def road_users_in(messages: Sequence[Any]) -> list[RoadUser] | None:
    """The objects of the last message that has them; None when none has."""
    for text in reversed(list(texts_in(messages))):
        for found in _objects_in(text):
            if isinstance(found.get("objects"), list):
                return _road_users(found)
    return None


def groups_in(messages: Sequence[Any]) -> list[tuple[int, list[RoadUser]]] | None:
    """The groups, by index, of the last message that has several; None when none has."""
    for text in reversed(list(texts_in(messages))):
        for found in _objects_in(text):
            groups = found.get("groups")
            if isinstance(groups, list) and all(isinstance(group, dict) for group in groups):
                return [(_index(group, place), _road_users(group)) for place, group in enumerate(groups, 1)]
    return None


def texts_in(messages: Sequence[Any]) -> Iterator[str]:
    """The texts of chat messages, in their order; what has not the form of one is passed over."""
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list) else [{"text": content}]:
            if isinstance(part, Mapping) and isinstance(part.get("text"), str):
                yield part["text"]


def _judge(first: RoadUser, second: RoadUser) -> Finding:
    """How close two road users are on the ground, as far as their boxes tell."""
    close = 2.0 ** -((_distance(first, second) / (0.6 * (first.size + second.size))) ** 2)
    # boxes that stand on the same line of the picture are at the same distance from the camera
    apart = abs(first.y2 - second.y2) / max(first.height, second.height)
    ground = max(1.0 - apart / 0.9, 0.0)
    kinds = {first.class_name, second.class_name}
    persons = sum(user.class_name == "person" for user in (first, second))
    if persons == 1 and kinds & (VEHICLES - TWO_WHEELERS):
        return Finding(
            1.15 * close * ground,
            (first, second),
            "pedestrian_conflict",
            "A person is close to a vehicle and may step into its way.",
        )
    if persons:
        # next to each other
        return Finding(0.3 * close * ground, (first, second), "pedestrian_conflict", "People share little room.")
    if kinds & TWO_WHEELERS and kinds & (VEHICLES - TWO_WHEELERS):
        words = "A vehicle passes a two-wheeler with little room."
        return Finding(1.05 * close * ground, (first, second), "dangerous_manoeuvre", words)
    overlap = _shared(first, second)
    if overlap > 1.0:
        return Finding(0.0, (first, second), "tailgating", "One vehicle, detected as two.")
    score = 0.62 * close * ground + 0.5 * overlap * ground + (0.04 if kinds & HEAVY else 0.0)
    return Finding(score, (first, second), "tailgating", "Two vehicles are very close behind each other.")


def _type_at(level: str, risk_type: str) -> str:
    # two vehicles so close that it is high are more than a short distance
    return "collision" if level == "high" and risk_type == "tailgating" else risk_type


def _by_score(finding: Finding) -> float:
    return finding.score


def _distance(first: RoadUser, second: RoadUser) -> float:
    return hypot(first.x1 + first.x2 - second.x1 - second.x2, first.y1 + first.y2 - second.y1 - second.y2) / 2


def _shared(first: RoadUser, second: RoadUser) -> float:
    """The part of the smaller box that lies in the other; 2 where the two are one vehicle, detected as two classes."""
    width = min(first.x2, second.x2) - max(first.x1, second.x1)
    height = min(first.y2, second.y2) - max(first.y1, second.y1)
    if width <= 0 or height <= 0:
        return 0.0
    areas = first.width * first.height, second.width * second.height
    union = sum(areas) - width * height
    return 2.0 if width * height > SAME_VEHICLE * union else width * height / min(areas)


def _answer(level: str, confidence: float, types: list[str], words: str, ids: list[int], count: int) -> dict[str, Any]:
    return {
        "riskLevel": level,
        "confidence": confidence,
        "riskTypes": types,
        "description": f"{MARK} {words}",
        "triggerObjectIds": ids,
        "dangerObjectCount": count,
    }


def _digest(users: Iterable[RoadUser], seed: int) -> int:
    text = f"{seed}:{[(user.class_name, user.x1, user.y1, user.x2, user.y2) for user in users]}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _objects_in(text: str) -> Iterator[dict[str, Any]]:
    decoder = json.JSONDecoder()
    at = text.find("{")
    while at >= 0:
        try:
            found, end = decoder.raw_decode(text, at)
        except ValueError:
            end = at + 1
        else:
            yield found
        at = text.find("{", end)


def _index(group: Mapping[str, Any], place: int) -> int:
    index = group.get("groupIndex")
    return index if isinstance(index, int) else place


def _road_users(group: Mapping[str, Any]) -> list[RoadUser]:
    items = group.get("objects")
    return [user for item in items if (user := _road_user(item)) is not None] if isinstance(items, list) else []


def _road_user(item: Any) -> RoadUser | None:
    try:
        x1, y1, x2, y2 = (float(side) for side in item["bbox"])
        return RoadUser(int(item["objectId"]), str(item["class"]), x1, y1, x2, y2)
    except (KeyError, TypeError, ValueError):
        return None
