"""The settings' tree as data: what its reference and the remedies of wrong settings are made from.

JSON Schema, since pydantic has then already looked through validators, optional values and kinds of receivers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel

JsonSchema = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A setting, a section, or an element of a list; references are followed, and null stands apart."""

    schema: JsonSchema
    nullable: bool
    definitions: JsonSchema

    @classmethod
    def whole(cls, model: type[BaseModel]) -> Part:
        """The tree whose root is `model`."""
        schema = model.model_json_schema()
        return _part(schema, schema.get("$defs", {}))

    @cached_property
    def names(self) -> dict[str, Part]:
        """What a section holds; of anything else: nothing."""
        return {name: _part(schema, self.definitions) for name, schema in self.schema.get("properties", {}).items()}

    @cached_property
    def kinds(self) -> dict[str, Part]:
        """The sections that this one may be, by what its discriminator says."""
        mapping = self.schema.get("discriminator", {}).get("mapping", {})
        parts = [_part(schema, self.definitions) for schema in self.schema.get("oneOf", ())]
        by_reference = dict(zip((schema["$ref"] for schema in self.schema.get("oneOf", ())), parts, strict=True))
        kinds = {kind: by_reference[reference] for kind, reference in mapping.items()}
        return dict(sorted(kinds.items(), key=lambda item: parts.index(item[1])))  # as the class lists them

    @cached_property
    def elements(self) -> Part | None:
        """What a list holds."""
        return _part(self.schema["items"], self.definitions) if "items" in self.schema else None

    @cached_property
    def values(self) -> Part | None:
        """What a mapping with free names holds."""
        inside = self.schema.get("additionalProperties")
        return _part(inside, self.definitions) if isinstance(inside, dict) else None

    @property
    def is_section(self) -> bool:
        """Whether it has names of its own, or kinds that have."""
        return bool(self.names or self.kinds)

    @property
    def is_list(self) -> bool:
        """Whether a list is written there."""
        return self.schema.get("type") == "array"

    @property
    def is_secret(self) -> bool:
        """Whether it is never shown."""
        return self.schema.get("format") == "password"


def _part(schema: JsonSchema, definitions: JsonSchema) -> Part:
    alternatives = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    nullable = 0 < len(alternatives) < len(schema.get("anyOf", ()))
    if len(alternatives) == 1:
        schema = {name: value for name, value in schema.items() if name != "anyOf"} | alternatives[0]
    if "$ref" in schema:
        definition = definitions[schema["$ref"].removeprefix("#/$defs/")]
        about = {"about": definition["description"]} if "description" in definition else {}
        without = {name: value for name, value in definition.items() if name != "description"}
        schema = without | about | {name: value for name, value in schema.items() if name != "$ref"}
    return Part(schema, nullable, definitions)
