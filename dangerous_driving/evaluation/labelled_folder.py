"""Labelled folders: pictures in, pictures out.

Two forms are read. Sub-folders that are called after levels::

    pictures/none/…  pictures/low/…  pictures/medium/…  pictures/high/…

or a file ``cases.jsonl`` with one object a line, of which ``picture`` and ``level`` are enough::

    {"picture": "a.jpg", "level": "high", "riskTypes": ["wrong_way"], "cameraId": "north-1",
     "capturedAt": "2025-10-20T10:30:45Z", "objects": [{"objectId": 1, "class": "car", "confidence": 0.9,
     "bbox": [10, 20, 200, 160]}], "by": "ann", "note": ""}

``level`` may be two, lowest and highest (``["none", "low"]``), where nobody knows more. An export is written in the second
form, with ``caseId``, ``source`` and all ``labels``, so that it can be imported elsewhere as what it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from dangerous_driving.assessment.duplicates import difference_hash
from dangerous_driving.assessment.risk import level_named, types_named
from dangerous_driving.contracts import AssessmentTask, BBox, CameraId, DetectedObject, GroupMetadata, RiskLevel
from dangerous_driving.errors import ConfigError, PictureError
from dangerous_driving.evaluation.cases import Case, CaseSource, Label, case_id_of, cluster_of, picture_key_of
from dangerous_driving.ledger.evaluation_cases import LabelledCase
from dangerous_driving.objects import ObjectStore

FILE = "cases.jsonl"
PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
#: Camera of pictures that name none.
NO_CAMERA = "imported"
#: Bits of 64 in which two pictures' difference hashes may differ to count as of one scene; as `assessment.reuse_distance`.
NEAR = 4
#: Problems that an error names.
NAMED = 10


class _Form(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class _FileLabel(_Form):
    by: str = Field(min_length=1, max_length=100)
    level: str | list[str]
    at: AwareDatetime
    risk_types: list[str] | None = None
    note: str = ""


class _FileCase(_Form):
    picture: str = Field(min_length=1)
    level: str | list[str] | None = None
    risk_types: list[str] | None = None
    camera_id: CameraId | None = None
    captured_at: AwareDatetime | None = None
    objects: tuple[DetectedObject, ...] = ()
    bbox: BBox | None = None
    by: str | None = Field(default=None, min_length=1, max_length=100)
    note: str = ""
    # of an export
    case_id: str | None = Field(default=None, pattern=r"^case_[0-9a-f]{20}$")
    source: CaseSource | None = None
    origin: str | None = None
    cluster: str | None = None
    task: dict[str, Any] | None = None
    labels: list[_FileLabel] | None = None


@dataclass(frozen=True)
class FoundCase:
    """A case as a folder holds it, with its picture as JPEG."""

    item: LabelledCase
    picture: bytes


@dataclass(frozen=True)
class Folder:
    """What was found: usable cases, and what is wrong with the others, in words."""

    cases: tuple[FoundCase, ...]
    problems: tuple[str, ...]

    def require_whole(self) -> None:
        """Refuse a folder with problems.

        Raises:
            ConfigError: names the first ones.
        """
        if self.problems:
            more = f"; and {len(self.problems) - NAMED} more" if len(self.problems) > NAMED else ""
            raise ConfigError(
                "cases import",
                "; ".join(self.problems[:NAMED]) + more,
                "mend them, or import the others with --skip-bad; nothing was imported",
            )


def read_folder(folder: Path, *, now: datetime) -> Folder:
    """Read a labelled folder; nothing is kept yet.

    Args:
        folder: in one of the two forms.
        now: the time of labels and pictures that name none.

    Raises:
        ConfigError: it is no labelled folder.
    """
    if not folder.is_dir():
        raise ConfigError("cases import", f"there is no folder {folder}", "name one")
    entries = list(_lines(folder) if (folder / FILE).is_file() else _by_level(folder))
    found: list[FoundCase] = []
    problems: list[str] = []
    for where, form in entries:
        if isinstance(form, str):
            problems.append(f"{where}: {form}")
            continue
        try:
            found.append(_read_case(folder, form, now))
        except (ValueError, PictureError) as error:
            problems.append(f"{where}: {error}")
    return Folder(tuple(_clustered(_merged(found))), tuple(problems))


def keep(store: ObjectStore, cases: Iterable[FoundCase]) -> list[LabelledCase]:
    """Copy the pictures into the store; returns the cases for the ledger."""
    kept = []
    for found in cases:
        store.put(found.item.case.picture_key, found.picture, "image/jpeg")
        kept.append(found.item)
    return kept


def write_folder(folder: Path, items: Sequence[LabelledCase], store: ObjectStore) -> int:
    """Write cases with their pictures, in the second form; returns how many.

    Raises:
        ConfigError: the folder is not empty, or cannot be written.
        ObjectNotFoundError: a case has no picture.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError("cases export", f"{folder} is not empty", "name a new folder")
        (folder / "pictures").mkdir()
        with (folder / FILE).open("w", encoding="utf-8") as file:
            for item in items:
                name = f"pictures/{item.case.case_id}.jpg"
                (folder / name).write_bytes(store.get(item.case.picture_key))
                file.write(json.dumps(_as_line(item, name), ensure_ascii=False) + "\n")
    except OSError as error:
        raise ConfigError("cases export", f"{folder} cannot be written ({error.strerror})", "name another") from error
    return len(items)


def _lines(folder: Path) -> Iterator[tuple[str, _FileCase | str]]:
    text = (folder / FILE).read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{FILE} line {number}"
        try:
            yield where, _FileCase.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            yield where, f"{place}: {first['msg']}" if place else first["msg"]


def _by_level(folder: Path) -> Iterator[tuple[str, _FileCase | str]]:
    children = sorted(child for child in folder.iterdir() if child.is_dir())
    if not children:
        raise ConfigError(
            "cases import",
            f"{folder} has neither {FILE} nor folders called after levels",
            f"make {', '.join(RiskLevel)} and put the pictures there, or write {FILE}",
        )
    for child in children:
        if level_named(child.name) is None:
            yield child.name, f"is no level; use {', '.join(RiskLevel)}"
            continue
        for picture in sorted(child.iterdir()):
            if picture.suffix.lower() in PICTURES:
                name = picture.relative_to(folder).as_posix()
                # folders cannot say who labelled: the same picture in two of them is a contradiction
                yield name, _FileCase(picture=name, level=child.name, by=f"{folder.name}/{child.name}")


def _read_case(folder: Path, form: _FileCase, now: datetime) -> FoundCase:
    path = (folder / form.picture).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"picture: {form.picture} lies outside the folder")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"picture: {form.picture} cannot be read ({error.strerror})") from error
    jpeg, width, height = _jpeg(raw, form.picture)
    labels = _labels(form, folder.name, now)
    bbox = form.bbox or (0.0, 0.0, float(width), float(height))
    source = form.source or CaseSource.IMPORTED
    origin = form.origin or f"{folder.name}/{form.picture}"
    digest = hashlib.sha256(raw + repr(bbox).encode()).hexdigest()
    case_id = form.case_id or case_id_of(source, digest)
    if form.task is not None:
        task = AssessmentTask.model_validate(form.task)
    else:
        task = AssessmentTask(
            task_id=case_id,
            request_id=case_id,
            camera_id=form.camera_id or NO_CAMERA,
            timestamp=form.captured_at or now,
            group_index=1,
            detected_objects=form.objects,
            group_metadata=GroupMetadata(
                object_count=len(form.objects),
                classes=tuple(sorted({item.class_name for item in form.objects})),
                bbox=bbox,
            ),
        )
    known_place = form.camera_id is not None and form.captured_at is not None
    cluster = form.cluster or (cluster_of(task.camera_id, task.timestamp) if known_place else "")
    case = Case(case_id, source, origin, task, picture_key_of(case_id), cluster)
    return FoundCase(LabelledCase(case, tuple(labels)), jpeg)


def _labels(form: _FileCase, folder: str, now: datetime) -> list[Label]:
    if form.labels is not None:
        return [_label(item.by, item.level, item.risk_types, item.at, item.note) for item in form.labels]
    if form.level is None:
        raise ValueError(f"level: is missing; use one of {', '.join(RiskLevel)}, or two of them as [lowest, highest]")
    return [_label(form.by or folder, form.level, form.risk_types, now, form.note)]


def _label(by: str, level: str | list[str], types: list[str] | None, at: datetime, note: str) -> Label:
    named = [level] if isinstance(level, str) else level
    levels = [level_named(name) for name in named]
    if len(named) not in {1, 2} or None in levels:
        wrong = next((name for name, known in zip(named, levels, strict=True) if known is None), str(named))
        raise ValueError(f"level: {wrong!r} is none; use one of {', '.join(RiskLevel)}, or two as [lowest, highest]")
    lowest, highest = levels[0], levels[-1]
    assert lowest is not None  # both are known  # noqa: S101
    assert highest is not None  # noqa: S101
    return Label(by, lowest, highest, at, None if types is None else types_named(types), note)


def _jpeg(raw: bytes, name: str) -> tuple[bytes, int, int]:
    try:
        pixels = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR) if raw else None
    except cv2.error:
        pixels = None
    if pixels is None:
        raise ValueError(f"picture: {name} cannot be decoded; was it written whole?")
    height, width = pixels.shape[:2]
    if raw.startswith(b"\xff\xd8\xff"):
        return raw, width, height
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return encoded.tobytes(), width, height


def _merged(found: Sequence[FoundCase]) -> list[FoundCase]:
    """The same picture named several times is one case with several labels; one labeller's contradictions stay, too."""
    by_id: dict[str, FoundCase] = {}
    for one in found:
        before = by_id.get(one.item.case.case_id)
        if before is None:
            by_id[one.item.case.case_id] = one
            continue
        labels = list(before.item.labels)
        for label in one.item.labels:
            same = [other for other in labels if (other.by, other.at) == (label.by, label.at)]
            if any((other.lowest, other.highest) == (label.lowest, label.highest) for other in same):
                continue
            by = f"{label.by} #{len(same) + 1}" if same else label.by
            labels.append(Label(by, label.lowest, label.highest, label.at, label.risk_types, label.note))
        by_id[one.item.case.case_id] = FoundCase(LabelledCase(before.item.case, tuple(labels)), before.picture)
    return list(by_id.values())


def _clustered(found: Sequence[FoundCase]) -> Iterator[FoundCase]:
    """Pictures of no known camera and day belong together by their looks, so that near-identical ones are not parted."""
    loose = [one for one in found if not one.item.case.cluster]
    hashes = np.array([difference_hash(one.picture) or 0 for one in loose], np.uint64)
    # a picture so even that its hash says nothing is alone
    says = np.array([difference_hash(one.picture) is not None for one in loose], bool)
    root = list(range(len(loose)))

    def find(number: int) -> int:
        while root[number] != number:
            root[number] = root[root[number]]
            number = root[number]
        return number

    for number in range(len(loose)):
        if not says[number]:
            continue
        near = np.flatnonzero((np.bitwise_count(hashes[:number] ^ hashes[number]) <= NEAR) & says[:number])
        for other in near:
            root[find(number)] = find(int(other))
    members: dict[int, list[str]] = {}
    for number, one in enumerate(loose):
        members.setdefault(find(number), []).append(one.item.case.case_id)
    names = {case_id: f"look/{min(together)}" for together in members.values() for case_id in together}
    for one in found:
        case = one.item.case
        if case.cluster:
            yield one
        else:
            named = Case(case.case_id, case.source, case.origin, case.task, case.picture_key, names[case.case_id])
            yield FoundCase(LabelledCase(named, one.item.labels), one.picture)


def _as_line(item: LabelledCase, picture: str) -> dict[str, Any]:
    case = item.case
    return {
        "picture": picture,
        "caseId": case.case_id,
        "source": case.source.value,
        "origin": case.origin,
        "cluster": case.cluster,
        "task": case.task.model_dump(mode="json", by_alias=True, exclude={"group_image_url", "group_image_base64"}),
        "labels": [
            {
                "by": label.by,
                "level": [label.lowest.value, label.highest.value],
                "at": label.at.isoformat(),
                "riskTypes": None if label.risk_types is None else list(label.risk_types),
                "note": label.note,
            }
            for label in item.labels
        ],
    }
