"""Labelled folders: both forms in, export and import again, and everything that may be wrong with one."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dangerous_driving.contracts import RiskLevel
from dangerous_driving.errors import ConfigError
from dangerous_driving.evaluation.cases import Truth, cluster_of
from dangerous_driving.evaluation.labelled_folder import keep, read_folder, write_folder
from dangerous_driving.objects import FolderStore

NOW = datetime(2025, 10, 20, 10, tzinfo=UTC)
NONE, LOW, MEDIUM, HIGH = RiskLevel


def noise(seed: int, *, brighter: int = 0) -> bytes:
    """A picture with looks of its own; `brighter` is the same one a moment later."""
    coarse = np.random.default_rng(seed).integers(0, 200, (9, 12, 3), dtype=np.uint8)
    large = np.asarray(cv2.resize(coarse, (240, 180), interpolation=cv2.INTER_CUBIC))
    done, encoded = cv2.imencode(".jpg", cv2.add(large, np.full_like(large, brighter)))
    assert done
    return bytes(encoded)


def labelled(folder: Path, lines: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    for number, line in enumerate(lines):
        if not (folder / line["picture"]).exists() and not line["picture"].startswith(("..", "absent")):
            (folder / line["picture"]).write_bytes(noise(number))
    (folder / "cases.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


def test_folders_called_after_levels(tmp_path: Path) -> None:
    for number, level in enumerate(("none", "Safe", "high")):
        (tmp_path / level).mkdir()
        (tmp_path / level / "a.jpg").write_bytes(noise(number))
    (tmp_path / "high" / "notes.txt").write_text("no picture")
    found = read_folder(tmp_path, now=NOW)
    assert found.problems == ()
    assert sorted(one.item.labels[0].lowest.rank for one in found.cases) == [0, 0, 3]  # safe is a word for none
    assert all(one.item.truth is not None for one in found.cases)


def test_a_file_of_cases_says_more(tmp_path: Path) -> None:
    thing = {"objectId": 1, "class": "car", "confidence": 0.9, "bbox": [1, 2, 30, 40]}
    folder = labelled(
        tmp_path / "set",
        [
            {
                "picture": "a.jpg", "level": "high", "riskTypes": ["Wrong-way driving"], "cameraId": "north-1",
                "capturedAt": "2025-10-19T23:59:59Z", "objects": [thing], "by": "ann", "note": "clear",
            },
            {"picture": "b.jpg", "level": ["none", "low"]},
        ],
    )  # fmt: skip
    [one, other] = read_folder(folder, now=NOW).cases
    assert one.item.truth == Truth(HIGH, HIGH, ("wrong_way",))
    assert one.item.case.cluster == cluster_of("north-1", datetime(2025, 10, 19, tzinfo=UTC))
    assert one.item.case.task.detected_objects[0].class_name == "car"
    assert (one.item.labels[0].by, one.item.labels[0].note) == ("ann", "clear")
    assert other.item.truth == Truth(NONE, LOW)
    assert other.item.case.task.group_metadata.bbox == (0, 0, 240, 180)


def test_the_same_picture_with_two_levels_is_kept_as_a_contradiction(tmp_path: Path) -> None:
    for level in ("none", "high"):
        (tmp_path / level).mkdir()
        (tmp_path / level / "a.jpg").write_bytes(noise(1))
    [one] = read_folder(tmp_path, now=NOW).cases
    assert len(one.item.labels) == 2
    assert one.item.truth is None


def test_one_labeller_who_contradicts_himself_in_one_file_is_a_contradiction_too(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "set", [{"picture": "a.jpg", "level": "none"}, {"picture": "a.jpg", "level": "high"}])
    [one] = read_folder(folder, now=NOW).cases
    assert one.item.truth is None


def test_near_identical_pictures_of_no_known_camera_are_not_parted(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    for name, picture in (("a", noise(1)), ("b", noise(1, brighter=9)), ("c", noise(2))):
        (tmp_path / "none" / f"{name}.jpg").write_bytes(picture)
    clusters = {
        one.item.case.origin.rsplit("/", 1)[1]: one.item.case.cluster for one in read_folder(tmp_path, now=NOW).cases
    }
    assert clusters["a.jpg"] == clusters["b.jpg"] != clusters["c.jpg"]


def test_what_is_exported_is_imported_as_what_it_was(tmp_path: Path) -> None:
    folder = labelled(
        tmp_path / "set",
        [
            {
                "picture": "a.jpg",
                "level": ["none", "low"],
                "by": "ann",
                "cameraId": 7,
                "capturedAt": "2025-10-19T10:00:00Z",
            },
            {"picture": "b.jpg", "level": "high", "riskTypes": ["collision"]},
            {"picture": "a.jpg", "level": "high", "by": "bob", "cameraId": 7, "capturedAt": "2025-10-19T10:00:00Z"},
        ],
    )
    store = FolderStore(tmp_path / "objects")
    items = keep(store, read_folder(folder, now=NOW).cases)
    assert write_folder(tmp_path / "out", items, store) == 2
    again = read_folder(tmp_path / "out", now=datetime(2026, 1, 1, tzinfo=UTC))
    again.require_whole()
    assert sorted((one.item for one in again.cases), key=lambda item: item.case.case_id) == sorted(
        items, key=lambda item: item.case.case_id
    )
    with pytest.raises(ConfigError, match="is not empty"):
        write_folder(tmp_path / "out", items, store)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"picture": "a.jpg", "level": "purple"}, "level: 'purple' is none; use one of none, low, medium, high"),
        ({"picture": "a.jpg"}, "level: is missing"),
        ({"picture": "a.jpg", "level": ["low", "medium", "high"]}, "two as"),
        ({"picture": "a.jpg", "level": ["high", "low"]}, "above the highest"),
        ({"picture": "absent.jpg", "level": "none"}, "picture: absent.jpg cannot be read"),
        ({"picture": "../../etc/passwd", "level": "none"}, "lies outside the folder"),
        ({"picture": "a.jpg", "level": "none", "cameraId": "a/b"}, "cameraId"),
        ({"picture": "a.jpg", "level": "none", "capturedAt": "yesterday"}, "capturedAt"),
        ({"picture": "a.jpg", "level": "none", "lebel": "x"}, "lebel"),
        ({"picture": "a.jpg", "level": "none", "objects": [{"objectId": 0}]}, "objects.0.objectId"),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_nothing_is_imported(
    tmp_path: Path, line: dict[str, Any], problem: str
) -> None:
    folder = labelled(tmp_path / "set", [{"picture": "good.jpg", "level": "none"}, line])
    found = read_folder(folder, now=NOW)
    assert len(found.cases) == 1
    [text] = found.problems
    assert text.startswith("cases.jsonl line 2: ")
    assert problem in text
    with pytest.raises(ConfigError, match="nothing was imported"):
        found.require_whole()


def test_a_broken_picture_and_a_broken_line_are_named(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "set", [{"picture": "a.jpg", "level": "none"}])
    (folder / "a.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    with (folder / "cases.jsonl").open("a") as file:
        file.write("\n{broken\n")
    found = read_folder(folder, now=NOW)
    assert len(found.problems) == 2
    assert "cannot be decoded" in found.problems[0]
    assert found.problems[1].startswith("cases.jsonl line 2")


def test_an_unknown_level_as_a_folder_and_no_labelled_folder_at_all(tmp_path: Path) -> None:
    (tmp_path / "purple").mkdir()
    assert read_folder(tmp_path, now=NOW).problems == ("purple: is no level; use none, low, medium, high",)
    with pytest.raises(ConfigError, match=r"neither cases\.jsonl nor folders"):
        read_folder(tmp_path / "purple", now=NOW)
    with pytest.raises(ConfigError, match="there is no folder"):
        read_folder(tmp_path / "absent", now=NOW)
