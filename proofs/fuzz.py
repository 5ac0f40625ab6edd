"""Ten thousand messages, most of them wrong, through the tasks service: none stops it, none vanishes."""

from __future__ import annotations

import base64
import copy
import json
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from dangerous_driving.contracts import DeadLetter, DetectionResult
from dangerous_driving.errors import ContractError, MessageTooLargeError
from dangerous_driving.messaging import Delivery, Producer, Topic, group_lag
from dangerous_driving.settings import KafkaSettings
from proofs.traffic import Verdict, committed, in_ledger, say

if TYPE_CHECKING:
    from proofs.kafka import Generator

#: s until all messages must be dealt with
PATIENCE = 300.0


@dataclass(frozen=True)
class Fuzzed:
    """A message, the kind of damage, and whether it must go to ``dead-letter`` (None: either is right)."""

    kind: str
    value: bytes
    key: bytes | None
    bad: bool | None


def as_json(value: Any) -> bytes:
    """JSON that may hold NaN and Infinity, as Python's own encoder writes them."""
    return json.dumps(value).encode()


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = ("messageId", "cameraId", "timestamp", "imageWidth", "imageHeight", "detectedObjects", "trafficGroups")
_NESTED = {
    "detectedObjects": ("objectId", "class", "confidence", "bbox"),
    "trafficGroups": ("groupIndex", "objectCount", "bbox", "classes"),
}


@st.composite
def valid(draw: st.DrawFn) -> dict[str, Any]:
    """A right detection result of 640 x 360 px with one or more objects and a group around them."""
    count = draw(st.integers(1, 4))
    side = st.integers(0, 300)
    objects: list[dict[str, Any]] = []
    for number in range(count):
        x, y = draw(side), draw(side)
        objects.append(
            {
                "objectId": number + 1,
                "class": draw(st.sampled_from(["car", "person", "bus"])),
                "confidence": draw(st.floats(0, 1)),
                "bbox": [x, y, x + draw(st.integers(0, 60)), y + draw(st.integers(0, 60))],
            }
        )
    boxes = [item["bbox"] for item in objects]
    box = [min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)]
    at = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(milliseconds=draw(st.integers(0, 86_399_999)))
    return {
        "schemaVersion": 1,
        "messageId": draw(st.uuids(version=4)).hex,
        "cameraId": f"cam-{draw(st.integers(0, 49)):02d}",
        "timestamp": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "imageWidth": 640,
        "imageHeight": 360,
        "detectedObjects": objects,
        "trafficGroups": [
            {"groupIndex": 1, "objectCount": count, "bbox": box, "classes": ["car"], "priority": draw(st.floats(0, 1))}
        ],
        "metadata": {"detectionLatency": 0.1},
    }


@st.composite
def fuzzed(draw: st.DrawFn) -> Fuzzed:
    """One message, right or wrong in one of many ways."""
    right = draw(valid())
    key = str(right["cameraId"]).encode()
    kind = draw(
        st.sampled_from(
            [
                "right",
                "right",
                "right",
                "bytes",
                "json",
                "cut",
                "missing",
                "null",
                "other",
                "nested",
                "box",
                "nan",
                "outside",
                "clipped",
                "key",
                "version",
                "past",
                "future",
                "many",
            ]
        )
    )
    wrong = copy.deepcopy(right)
    if kind == "right":
        return Fuzzed(kind, as_json(right), draw(st.sampled_from([key, None])), False)
    if kind == "bytes":
        return Fuzzed(kind, draw(st.binary(max_size=60)), draw(st.none() | st.binary(max_size=8)), True)
    if kind == "json":
        return Fuzzed(kind, as_json(draw(_json)), key, True)
    if kind == "cut":
        whole = as_json(right)
        return Fuzzed(kind, whole[: draw(st.integers(0, len(whole) - 1))], key, True)
    if kind == "missing":
        del wrong[draw(st.sampled_from(_FIELDS))]
    elif kind == "null":
        wrong[draw(st.sampled_from(_FIELDS))] = None
    elif kind == "other":
        wrong[draw(st.sampled_from(_FIELDS))] = draw(_json)
        return Fuzzed(kind, as_json(wrong), key, None)  # a number may be a right width
    elif kind == "nested":
        part = draw(st.sampled_from(sorted(_NESTED)))
        wrong[part][0][draw(st.sampled_from(_NESTED[part]))] = draw(_json)
        return Fuzzed(kind, as_json(wrong), key, None)
    elif kind in {"box", "nan", "outside", "clipped"}:
        part = draw(st.sampled_from(sorted(_NESTED)))
        wrong[part][0]["bbox"] = {
            "box": [50, 50, 10, 60],
            "nan": [0, 0, draw(st.sampled_from([float("nan"), float("inf"), float("-inf")])), 10],
            "outside": [700, 10, 800, 60],
            "clipped": [-20, -20, 700, 400],
        }[kind]
        return Fuzzed(kind, as_json(wrong), key, kind != "clipped")
    elif kind == "key":
        return Fuzzed(kind, as_json(right), b"cam-of-another", True)
    elif kind == "version":
        wrong["schemaVersion"] = draw(st.sampled_from([0, -1, 2, "one", None, 1.5]))
    elif kind == "past":
        wrong["timestamp"] = wrong["timestamp"].replace("2026", "2025")
        return Fuzzed(kind, as_json(wrong), key, False)  # recorded under its time
    elif kind == "future":
        year = datetime.now(UTC).year + draw(st.integers(1, 40))
        wrong["timestamp"] = wrong["timestamp"].replace("2026-11-01", f"{year}-12-31")
    elif kind == "many":
        wrong["trafficGroups"] = [wrong["trafficGroups"][0] | {"groupIndex": 1}] * 2
    return Fuzzed(kind, as_json(wrong), key, True)


def generate(count: int) -> list[Fuzzed]:
    """So many messages, the same each time."""
    found: list[Fuzzed] = []

    @settings(
        max_examples=count, database=None, derandomize=True, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(fuzzed())
    def collect(one: Fuzzed) -> None:
        found.append(one)

    collect()
    return found


def large() -> list[Fuzzed]:
    """What is too much: groups by the ten thousand (small once compressed)."""
    groups = [{"groupIndex": n, "objectCount": 2, "bbox": [0, 0, 9, 9], "classes": ["car"]} for n in range(1, 10_001)]
    base = {
        "messageId": "many", "cameraId": "cam-01", "timestamp": "2026-11-01T00:00:00.000Z", "imageWidth": 640,
        "imageHeight": 360, "detectedObjects": [], "trafficGroups": groups, "metadata": {},
    }  # fmt: skip
    return [Fuzzed("10,000 groups", as_json(base), b"cam-01", True)]


def fuzz(verdict: Verdict, kafka: KafkaSettings, engine: Engine, generator: Generator, *, count: int) -> None:
    """Send them all, and look where each one is."""
    say(f"fuzz: {count} messages made by Hypothesis")
    messages = [*generate(count), *large()]
    say(f"{len(messages)} messages: {dict(Counter(message.kind for message in messages))}")
    deliveries: list[tuple[Fuzzed, Delivery]] = []
    with Producer(kafka.model_copy(update={"max_unacknowledged": 2 * len(messages)}), "fuzz") as producer:
        deliveries += [
            (message, producer.send_bytes(Topic.DETECTION_RESULTS, message.value, message.key)) for message in messages
        ]
        try:
            producer.send_bytes(Topic.DETECTION_RESULTS, b"{" + b" " * 5_000_000 + b"}", b"cam-01").result()
            refused = ""
        except MessageTooLargeError as error:
            refused = str(error)
        verdict.that("publish_images" in refused, f"5 MB: refused at the sender: {refused}")
        places = {(at.partition, at.offset): message for message, delivery in deliveries for at in [delivery.result()]}

    deadline = time.monotonic() + PATIENCE
    while sum(group_lag(kafka, f"{kafka.group_prefix}.tasks", follows=[Topic.DETECTION_RESULTS]).values()):
        if time.monotonic() > deadline:
            break
        time.sleep(0.3)
    lag = sum(group_lag(kafka, f"{kafka.group_prefix}.tasks", follows=[Topic.DETECTION_RESULTS]).values())
    running = generator.process is not None and generator.process.poll() is None
    verdict.that(running and lag == 0, f"the service still runs, in the process that began; {lag} messages left")

    letters = [DeadLetter.from_json(value) for value in committed(kafka, Topic.DEAD_LETTER)]
    by_place = {(letter.source_partition, letter.source_offset): letter for letter in letters}
    must = {place for place, message in places.items() if message.bad}
    must_not = {place for place, message in places.items() if message.bad is False}
    verdict.that(must <= by_place.keys(), f"{len(must)} bad messages, {len(must - by_place.keys())} not in dead-letter")
    wrongly = must_not & by_place.keys()
    verdict.that(not wrongly, f"{len(must_not)} right messages, {len(wrongly)} in dead-letter")
    whole = sum(
        base64.b64decode(letter.value_base64) == places[place].value and bool(letter.reason)
        for place, letter in by_place.items()
        if place in places
    )
    verdict.that(whole == len(by_place), f"{len(by_place)} dead letters, {whole} with the bytes as sent and a reason")
    named = [place for place in must & by_place.keys() if places[place].kind not in {"bytes", "json", "cut"}]
    nameless = sum(not by_place[place].field for place in named)
    verdict.that(not nameless, f"{len(named)} of them JSON objects with a wrong field, {nameless} without its name")

    _, _, frames = in_ledger(engine)
    kept = [message for place, message in places.items() if place not in by_place]
    absent = 0
    for message in kept:
        try:
            absent += DetectionResult.from_json(message.value).message_id not in frames
        except ContractError:
            absent += 1
    verdict.that(absent == 0, f"{len(kept)} messages not in dead-letter, {absent} of them not in the ledger either")
    reasons = Counter(letter.field or letter.reason[:40] for letter in letters)
    say(f"dead letters by field: {dict(reasons.most_common(12))}")
