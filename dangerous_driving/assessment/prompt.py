"""Prompts: versioned files in ``prompts/``, rendered to the messages of one request.

A version is never edited once answers were given to it; a change is a new file. Every assessment records its version.
A prompt takes one group; ``NAME-frame`` is the version that takes several groups of one frame in one request.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
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
    """One version, ready to render. ``longest_side``: px that pictures sent as data are scaled down to."""

    version: str
    description: str
    language: Literal["en", "zh"]
    takes: Literal["group", "frame"]
    longest_side: int
    uses_context: bool
    _system: Template
    _user: Template
    _answer: dict[str, Any] | None = None

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


def available_versions() -> tuple[str, ...]:
    """The versions that are packaged, those for several groups aside."""
    return tuple(name for name in _packaged() if not name.endswith(FRAME))


def load_prompt(version: str, *, longest_side: int = 768) -> Prompt:
    """Read a packaged prompt for one group.

    Args:
        version: file name under ``prompts/``, without ``.yaml``.
        longest_side: px; larger pictures are scaled down before they are sent (``llm.image_longest_side``).

    Raises:
        ConfigError: there is no such version (the text names those there are), or its file is unusable.
    """
    if version not in available_versions():
        raise ConfigError(SETTING, f"there is no prompt {version!r}", f"use one of: {', '.join(available_versions())}")
    return _load(version, "group", longest_side)


def load_frame_prompt(version: str, *, longest_side: int = 768) -> Prompt:
    """Read the packaged prompt that asks for several groups what `version` asks for one.

    Args:
        version: of the prompt for one group.
        longest_side: as for :func:`load_prompt`.

    Raises:
        ConfigError: that version has none (the text names those that have), or its file is unusable.
    """
    if version + FRAME not in _packaged():
        known = ", ".join(name.removesuffix(FRAME) for name in _packaged() if name.endswith(FRAME))
        raise ConfigError(
            "assessment.coalesce_groups",
            f"there is no prompt {version + FRAME!r} for several groups in one call",
            f"set it to 1, or {SETTING} to one of: {known}",
        )
    return _load(version + FRAME, "frame", longest_side)


def _load(version: str, takes: Literal["group", "frame"], longest_side: int) -> Prompt:
    try:
        content = _File.model_validate(yaml.safe_load((_folder() / f"{version}{SUFFIX}").read_text(encoding="utf-8")))
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
        system, user = environment.from_string(content.system), environment.from_string(content.user)
    except (yaml.YAMLError, ValidationError, TemplateError) as error:
        raise ConfigError(SETTING, f"the file of prompt {version!r} is unusable ({error})", "mend the file") from error
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
    )


def _packaged() -> list[str]:
    return sorted(entry.name.removesuffix(SUFFIX) for entry in _folder().iterdir() if entry.name.endswith(SUFFIX))


def _folder() -> Any:
    return files("dangerous_driving.assessment") / "prompts"


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
