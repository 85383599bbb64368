"""Access to the JSON Schema of the configuration, which alone defines the keys, their types and their ranges."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, cast

import jsonschema
from jsonschema.protocols import Validator

NOT_YET = "x-not-yet"
"""The keyword in this schema that marks keys and values which this version does not support.

Its value is True if the whole key is not supported. Otherwise, it is a list of the values that are not supported."""

_extend: Callable[..., Callable[[Any], Validator]] = jsonschema.validators.extend


def schema_text() -> str:
    """Return the text of the JSON Schema of the configuration."""
    data = pkgutil.get_data("mirror", "config.schema.json")
    if data is None:
        raise FileNotFoundError("config.schema.json")
    return data.decode("utf-8")


@cache
def schema() -> dict[str, Any]:
    """Return the JSON Schema of the configuration as dicts, lists and scalars."""
    return cast("dict[str, Any]", json.loads(schema_text()))


@cache
def validator() -> Validator:
    """Return the validator for a whole configuration that consists of dicts, lists and scalars.

    It reports keys and values that this version does not support as errors with the keyword `NOT_YET`."""
    return _extend(jsonschema.Draft202012Validator, {NOT_YET: _report_not_yet})(schema())


def conforms(value: Any, part: dict[str, Any]) -> bool:
    """Return whether a value is valid for a part of the schema, and supported by this version."""
    return validator().evolve(schema=part).is_valid(value)


def _report_not_yet(_: object, later: Any, value: object, __: object) -> Iterator[jsonschema.ValidationError]:
    """Yield an error for a key or value that this version does not support."""
    if later is True or value in later:
        yield jsonschema.ValidationError("not in this version")


def parts() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the path of each key, such as `mirrors[].tags.include`, and the part of the schema that describes it."""
    return _parts(schema(), "")


@cache
def key_paths() -> tuple[str, ...]:
    """Return the paths of all keys, such as `mirrors[].tags.include`."""
    return tuple(where for where, _ in parts())


@cache
def paths_of(key: str) -> tuple[str, ...]:
    """Return the paths of all supported keys that have a given name."""
    found = [where for where in key_paths() if where.rpartition(".")[2] == key]
    later = tuple(where for where, part in parts() if part.get(NOT_YET) is True)
    return tuple(where for where in found if not any(_is_part_of(where, one) for one in later))


def _is_part_of(where: str, whole: str) -> bool:
    """Return whether a key path is equal to the key path `whole`, or is below it."""
    return where == whole or where.startswith((f"{whole}.", f"{whole}[]"))


def resolve_reference(part: dict[str, Any]) -> dict[str, Any]:
    """Return a part of the schema, merged with the definition to which its `$ref` points, if it has one."""
    reference = part.get("$ref")
    if not isinstance(reference, str):
        return part
    return {**schema()["$defs"][reference.removeprefix("#/$defs/")], **part}


def _parts(part: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the paths of all keys below `path` at any depth, each with the part of the schema that describes it."""
    for key, below in part.get("properties", {}).items():
        where = f"{path}.{key}" if path else key
        yield where, resolve_reference(below)
        yield from _parts(resolve_reference(below), where)
    if isinstance(part.get("additionalProperties"), dict):
        yield from _parts(resolve_reference(part["additionalProperties"]), f"{path}.{part.get('x-key', 'KEY')}")
    if isinstance(part.get("items"), dict):
        yield from _parts(resolve_reference(part["items"]), f"{path}[]")
