"""Reads labelled pictures from a folder in COCO's form.

A folder holds one annotation file (``annotations.json``, or the only ``.json`` in it or in ``annotations/``) and pictures,
named relative to the folder or to ``images/`` in it. Beyond COCO, all of it optional: a picture's ``light`` (``day``,
``dusk``, ``night``) and ``weather``, or BDD100K's ``attributes.timeofday`` and ``attributes.weather``; ``groups`` with the
ids of their members, a ``risk_level`` and a ``risk_type``; ``info.simulated``.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dangerous_driving.errors import ConfigError
from dangerous_driving.evaluation.labels import UNKNOWN, LabelledPicture, LabelledSet, TrueGroup, TrueObject

SETTING = "monitoring.labelled_folders"
ANNOTATIONS = "annotations.json"
REMEDY = "name a folder with pictures and their labels in COCO's form (simulate scenes makes one)"

#: BDD100K's words for the time of day.
LIGHTS = {"daytime": "day", "dawn/dusk": "dusk", "night": "night"}
#: COCO's and common other names for the classes that are looked for.
SYNONYMS = {
    "pedestrian": "person",
    "rider": "person",
    "bike": "bicycle",
    "motor": "motorcycle",
    "motorbike": "motorcycle",
}
#: Files of a kind that a message names at most.
NAMED = 3


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Attributes(_Part):
    timeofday: str | None = None
    weather: str | None = None


class _Image(_Part):
    id: int | str
    file_name: str = Field(min_length=1)
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    light: str | None = None
    weather: str | None = None
    attributes: _Attributes = _Attributes()


class _Annotation(_Part):
    id: int | str
    image_id: int | str
    category_id: int
    bbox: Annotated[list[float], Field(min_length=4, max_length=4)]
    iscrowd: bool = False


class _Category(_Part):
    id: int
    name: str


class _Group(_Part):
    image_id: int | str
    annotation_ids: list[int | str] = Field(min_length=1)
    risk_level: str = Field(pattern="^(none|low|medium|high)$")
    risk_type: str | None = None


class _Labels(_Part):
    info: dict[str, Any] = {}
    images: list[_Image] = Field(min_length=1)
    annotations: list[_Annotation]
    categories: list[_Category] = Field(min_length=1)
    groups: list[_Group] = []


def read_labelled(folder: Path, classes: Sequence[str]) -> LabelledSet:
    """Read a folder.

    Args:
        folder: with pictures and labels.
        classes: road users that are looked for; other labels are left out, and counted.

    Raises:
        ConfigError: there is no such folder, its labels cannot be used, or pictures are missing; names what and where.
    """
    file = _annotation_file(folder)
    content = file.read_bytes()
    labels = _labels(file, content)
    _require_unique(file, "image", [image.id for image in labels.images])
    _require_unique(file, "annotation", [annotation.id for annotation in labels.annotations])
    names = {category.id: _class_name(category.name, classes) for category in labels.categories}
    wanted = tuple(name for name in classes if name in names.values())
    if not wanted:
        raise _unusable(file, f"labels none of {', '.join(classes)}")
    by_image: dict[int | str, list[_Annotation]] = {image.id: [] for image in labels.images}
    left_out: Counter[str] = Counter()
    for annotation in labels.annotations:
        if annotation.image_id not in by_image:
            raise _unusable(file, f"annotation {annotation.id} is of image {annotation.image_id}, which is not listed")
        if annotation.category_id not in names:
            raise _unusable(file, f"annotation {annotation.id} is of category {annotation.category_id}, not listed")
        if names[annotation.category_id] not in wanted:
            left_out["of other classes"] += 1
        elif min(annotation.bbox[2:]) <= 0:
            left_out["without an area"] += 1
        else:
            by_image[annotation.image_id].append(annotation)
    groups: dict[int | str, list[_Group]] = {}
    for group in labels.groups:
        groups.setdefault(group.image_id, []).append(group)
    files = _picture_files(folder, file, labels.images)
    pictures = tuple(
        _picture(image, files[image.id], by_image[image.id], names, groups.get(image.id, ()), left_out)
        for image in labels.images
    )
    return LabelledSet(
        folder.resolve().name,
        pictures,
        wanted,
        bool(labels.info.get("simulated", False)),
        tuple(sorted(left_out.items())),
        _fingerprint(content, pictures),
    )


def _annotation_file(folder: Path) -> Path:
    if not folder.is_dir():
        raise ConfigError(SETTING, f"there is no folder {folder}", REMEDY)
    if (folder / ANNOTATIONS).is_file():
        return folder / ANNOTATIONS
    found = sorted(folder.glob("*.json")) or sorted((folder / "annotations").glob("*.json"))
    if len(found) != 1:
        raise ConfigError(
            SETTING,
            f"{folder} has {len(found) or 'no'} annotation files",
            f"keep one of them, or call the one to use {ANNOTATIONS}",
        )
    return found[0]


def _labels(file: Path, content: bytes) -> _Labels:
    try:
        return _Labels.model_validate(json.loads(content))
    except ValueError as error:  # of JSON, of UTF-8, of pydantic
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise _unusable(file, f"{where}: {first['msg']}") from error
        raise _unusable(file, f"is no JSON ({error})") from error


def _require_unique(file: Path, kind: str, ids: Sequence[int | str]) -> None:
    [(most, count)] = Counter(ids).most_common(1) if ids else [(0, 1)]
    if count > 1:
        raise _unusable(file, f"uses the {kind} id {most} {count} times")


def _class_name(name: str, classes: Sequence[str]) -> str:
    plain = name.strip().casefold()
    by_name = {wanted.casefold(): wanted for wanted in classes}
    return by_name.get(plain) or by_name.get(SYNONYMS.get(plain, ""), plain)


def _picture_files(folder: Path, file: Path, images: Sequence[_Image]) -> dict[int | str, Path]:
    found: dict[int | str, Path] = {}
    missing: list[str] = []
    for image in images:
        candidates = [folder / image.file_name, folder / "images" / image.file_name]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            missing.append(image.file_name)
        else:
            found[image.id] = path
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise _unusable(file, f"lists pictures that are not there: {', '.join(missing[:NAMED])}{more}")
    return found


def _picture(
    image: _Image,
    file: Path,
    annotations: Sequence[_Annotation],
    names: dict[int, str],
    groups: Sequence[_Group],
    left_out: Counter[str],
) -> LabelledPicture:
    places = {annotation.id: index for index, annotation in enumerate(annotations)}
    kept = []
    for group in groups:
        members = tuple(places[number] for number in group.annotation_ids if number in places)
        if members:
            kept.append(TrueGroup(members, group.risk_level, group.risk_type))
        else:
            left_out["groups without a member"] += 1
    return LabelledPicture(
        image.file_name,
        file,
        image.width,
        image.height,
        tuple(
            TrueObject(names[annotation.category_id], _corners(annotation.bbox), annotation.iscrowd)
            for annotation in annotations
        ),
        image.light or LIGHTS.get(image.attributes.timeofday or "", UNKNOWN),
        image.weather or image.attributes.weather or UNKNOWN,
        tuple(kept),
    )


def _corners(bbox: Sequence[float]) -> tuple[float, float, float, float]:
    left, top, width, height = bbox
    return left, top, left + width, top + height


def _fingerprint(content: bytes, pictures: Sequence[LabelledPicture]) -> str:
    digest = hashlib.sha256(content)
    for picture in pictures:
        with picture.file.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _unusable(file: Path, problem: str) -> ConfigError:
    return ConfigError(SETTING, f"{file}: {problem}", REMEDY)
