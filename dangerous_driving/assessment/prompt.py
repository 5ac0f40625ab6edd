"""Prompts: versioned files in ``prompts/`` or in a folder of one's own, rendered to the messages of one request.

A version is never edited once answers were given to it; a change is a new file. Every assessment records its version.
A prompt takes one group; ``NAME-frame`` is the version that takes several groups of one frame in one request.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dangerous_driving.assessment.picture import fit_jpeg
from dangerous_driving.contracts import AssessmentTask, DetectedObject, iso_milliseconds
from dangerous_driving.errors import ConfigError
from dangerous_driving.settings import CameraContext

SETTING = "llm.prompt_version"
SUFFIX = ".yaml"
#: What a version that takes several groups has behind the name of the one that takes one.
FRAME = "-frame"

Render = Callable[..., str]

NO_CONTEXT = CameraContext()


class _File(BaseModel):
    """What a prompt file holds."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")
    description: str
    language: Literal["en", "zh"] = "en"  # of the answer's description
    takes: Literal["group", "frame"] = "group"  # one group, or several of a frame
    system: str = Field(min_length=1)
    user: str = Field(min_length=1)
    answer: dict[str, Any] | None = None  # its JSON schema, for structured output


@dataclass(frozen=True)
class Prompt:
    """One version, ready to render.

    ``longest_side``: px that pictures sent as data are scaled down to. ``digest``: of the file, to see that it was changed.
    """

    version: str
    description: str
    language: Literal["en", "zh"]
    takes: Literal["group", "frame"]
    longest_side: int
    uses_context: bool
    _system: Template
    _user: Template
    _answer: dict[str, Any] | None = None
    digest: str = ""

    def response_format(self, kind: Literal["text", "json_object", "json_schema"]) -> dict[str, Any] | None:
        """What is asked of endpoints with structured output; None for plain text, and for a schema that there is not."""
        if kind == "json_schema" and self._answer is not None:
            return {"type": "json_schema", "json_schema": {"name": "risk_assessment", "schema": self._answer}}
        return None if kind == "text" else {"type": "json_object"}

    def messages(
        self, task: AssessmentTask, image: bytes | str, context: CameraContext = NO_CONTEXT
    ) -> list[dict[str, Any]]:
        """The messages of one request in OpenAI's chat format.

        Args:
            task: the group; its objects' geometry goes into the text.
            image: the group's picture as an encoded file (sent as base64 JPEG), or the URL (also ``data:``) of it.
            context: what is known of the camera's place.

        Raises:
            PictureError: the image cannot be decoded.
        """
        return self._rendered([_picture(self.picture_url(image))], _values(task, context, _geometry(task)))

    def frame_messages(
        self, groups: Sequence[tuple[AssessmentTask, str]], context: CameraContext = NO_CONTEXT
    ) -> list[dict[str, Any]]:
        """The messages of one request about several groups of a frame, in the order in which they are to be judged.

        Args:
            groups: at least one, each with the URL (also ``data:``) of its picture.
            context: what is known of the camera's place.
        """
        pictures = []
        for task, url in groups:
            pictures += [{"type": "text", "text": f"Group {task.group_index}:"}, _picture(url)]
        geometry = {"groups": [_geometry(task) for task, _ in groups]}
        return self._rendered(pictures, _values(groups[0][0], context, geometry))

    def picture_url(self, image: bytes | str) -> str:
        """How a picture goes into a request: its URL, or itself as a ``data:`` URL of a JPEG that is small enough.

        Raises:
            PictureError: the image cannot be decoded.
        """
        if isinstance(image, str):
            return image
        jpeg = fit_jpeg(image, longest_side=self.longest_side)
        return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"

    def _rendered(self, pictures: list[dict[str, Any]], values: dict[str, Any]) -> list[dict[str, Any]]:
        user = {"type": "text", "text": self._user.render(values).strip()}
        return [
            {"role": "system", "content": self._system.render(values).strip()},
            {"role": "user", "content": [*pictures, user]},
        ]


def available_versions(folder: Path | None = None) -> tuple[str, ...]:
    """The versions that are packaged, and those of a folder (``llm.prompt_folder``); those for several groups aside.

    Raises:
        ConfigError: the folder cannot be read.
    """
    return tuple(sorted(name for name in _prompt_files(folder) if not name.endswith(FRAME)))


def load_prompt(version: str, *, folder: Path | None = None, longest_side: int = 768) -> Prompt:
    """Read a prompt for one group.

    Args:
        version: file name without ``.yaml``, in the folder or under ``prompts/``.
        folder: of prompts of one's own (``llm.prompt_folder``).
        longest_side: px; larger pictures are scaled down before they are sent (``llm.image_longest_side``).

    Raises:
        ConfigError: there is no such version (the text names those there are), or its file is unusable.
    """
    known = available_versions(folder)
    if version not in known:
        raise ConfigError(SETTING, f"there is no prompt {version!r}", f"use one of: {', '.join(known)}")
    return _load(version, "group", folder, longest_side)


def load_frame_prompt(version: str, *, folder: Path | None = None, longest_side: int = 768) -> Prompt:
    """Read the prompt that asks for several groups what `version` asks for one.

    Args:
        version: of the prompt for one group.
        folder: as for :func:`load_prompt`.
        longest_side: as for :func:`load_prompt`.

    Raises:
        ConfigError: that version has none (the text names those that have), or its file is unusable.
    """
    files_of = _prompt_files(folder)
    if version + FRAME not in files_of:
        known = ", ".join(sorted(name.removesuffix(FRAME) for name in files_of if name.endswith(FRAME)))
        raise ConfigError(
            "assessment.coalesce_groups",
            f"there is no prompt {version + FRAME!r} for several groups in one call",
            f"set it to 1, or {SETTING} to one of: {known}",
        )
    return _load(version + FRAME, "frame", folder, longest_side)


def promoted_digest(prompt: Prompt, *, folder: Path | None = None) -> str:
    """What a promotion keeps of a version: the digests of its file and of the one for several groups, with a plus between.

    Nothing stands behind the plus where there is none for several groups. Older promotions have the first digest alone.

    Args:
        prompt: the one for one group, as it was read.
        folder: as for :func:`load_prompt`.

    Raises:
        ConfigError: the file for several groups cannot be read.
    """
    name = prompt.version + FRAME
    file = _prompt_files(folder).get(name)
    if file is None:
        return f"{prompt.digest}+"
    try:
        raw = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(name, error) from error
    return f"{prompt.digest}+{_digest(raw)}"


def known_digests(promoted: str) -> tuple[str, str | None]:
    """The two of `promoted_digest`; the second is empty where there was no file for several groups, None if unknown."""
    group, plus, frame = promoted.partition("+")
    return group, frame if plus else None


def _load(version: str, takes: Literal["group", "frame"], folder: Path | None, longest_side: int) -> Prompt:
    try:
        raw = _prompt_files(folder)[version].read_text(encoding="utf-8")
        content = _File.model_validate(yaml.safe_load(raw))
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
        system, user = environment.from_string(content.system), environment.from_string(content.user)
        example = _geometry(_EXAMPLE)
        for template in (system, user):
            template.render(
                _values(_EXAMPLE, NO_CONTEXT, example if takes == "group" else {"groups": [example, example]})
            )
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError, TemplateError) as error:
        raise _unusable(version, error) from error
    if (content.version, content.takes) != (version, takes):
        problem = f"the file of prompt {version!r} says {content.version!r} and takes a {content.takes}"
        raise ConfigError(SETTING, problem, "make file name and content agree")
    return Prompt(
        content.version,
        content.description,
        content.language,
        content.takes,
        longest_side,
        "camera." in content.system + content.user,
        system,
        user,
        content.answer,
        _digest(raw),
    )


def _unusable(version: str, error: Exception) -> ConfigError:
    return ConfigError(SETTING, f"the file of prompt {version!r} is unusable ({error})", "mend the file")


def _digest(raw: str) -> str:
    return hashlib.sha256(raw.encode()).hexdigest()


def _prompt_files(folder: Path | None) -> dict[str, Any]:
    """Each version's file. The packaged ones cannot be replaced: what answered under a name stays what it was."""
    packaged = files("dangerous_driving.assessment") / "prompts"
    found: dict[str, Any] = {}
    try:
        entries = [] if folder is None else list(folder.iterdir())
    except OSError as error:
        raise ConfigError(
            "llm.prompt_folder", f"{folder} cannot be read ({error.strerror})", "name a folder"
        ) from error
    for entry in (*packaged.iterdir(), *entries):
        if not entry.name.endswith(SUFFIX):
            continue
        version = entry.name.removesuffix(SUFFIX)
        if version in found:
            raise ConfigError(
                "llm.prompt_folder", f"{entry} has the name of a prompt of the package", "give it another version"
            )
        found[version] = entry
    return found


def _values(task: AssessmentTask, context: CameraContext, geometry: dict[str, Any]) -> dict[str, Any]:
    """What a template may use: plain data, nothing of the platform's objects."""
    return {
        "task": {
            "camera_id": task.camera_id,
            "captured_at": iso_milliseconds(task.timestamp),
            "group_index": task.group_index,
        },
        "camera": {"road_type": context.road_type, "speed_limit": context.speed_limit, "text": context.text},
        "geometry": geometry,
    }


def _geometry(task: AssessmentTask) -> dict[str, Any]:
    return {
        "groupIndex": task.group_index,
        "bbox": _pixels(task.group_metadata.bbox),
        "objects": [_object(item) for item in task.detected_objects],
    }


def _picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def _object(item: DetectedObject) -> dict[str, Any]:
    return {
        "objectId": item.object_id,
        "class": item.class_name,
        "confidence": round(item.confidence, 2),
        "bbox": _pixels(item.bbox),
    }


def _pixels(box: tuple[float, float, float, float]) -> list[int]:
    return [round(side) for side in box]


#: What every template is rendered with once, so that one that asks for something unknown is refused when it is read.
_EXAMPLE = AssessmentTask.model_validate(
    {
        "taskId": "example_group1",
        "requestId": "example",
        "cameraId": "example",
        "timestamp": "2025-10-20T10:30:45.123Z",
        "groupIndex": 1,
        "detectedObjects": [{"objectId": 1, "class": "car", "confidence": 0.9, "bbox": [0, 0, 10, 10]}],
        "groupMetadata": {"objectCount": 1, "classes": ["car"], "bbox": [0, 0, 10, 10]},
    }
)
