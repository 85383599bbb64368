"""The JSON Schema is the one list of keys, types and ranges."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Iterator
from functools import cache
from typing import Any, cast

from mirror.config.conform import conforms
from mirror.config.tree import Document


def schema_text() -> str:
    """The schema as it is published."""
    data = pkgutil.get_data("mirror", "config.schema.json")
    if data is None:
        raise FileNotFoundError("config.schema.json")
    return data.decode("utf-8")


@cache
def schema() -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(schema_text()))


def check(document: Document, data: object) -> None:
    """Add to `document` all that breaks the schema in `data`, its tree as plain values."""
    if not conforms(data, schema(), schema()["$defs"]):
        from mirror.config import breaches  # noqa: PLC0415 (jsonschema takes 40 ms, and nearly always nothing is wrong)

        breaches.report(document, data, schema())


def parts() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key of the language with what the schema says of its value."""
    return _parts(schema(), "")


@cache
def key_paths() -> tuple[str, ...]:
    """Every key of the language, like `mirrors[].tags.include`."""
    return tuple(where for where, _ in parts())


@cache
def places_of(key: str) -> tuple[str, ...]:
    """The paths at which a key has an effect in this version."""
    found = [where for where in key_paths() if where.rpartition(".")[2] == key]
    later = tuple(where for where, part in parts() if part.get("x-not-yet") is True)
    return tuple(where for where in found if not any(_is_part_of(where, one) for one in later))


def _is_part_of(where: str, whole: str) -> bool:
    return where == whole or where.startswith((f"{whole}.", f"{whole}[]"))


def resolved(part: dict[str, Any]) -> dict[str, Any]:
    """A part of the schema, with what its reference leads to."""
    reference = part.get("$ref")
    if not isinstance(reference, str):
        return part
    return {**schema()["$defs"][reference.removeprefix("#/$defs/")], **part}


def _parts(part: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, below in part.get("properties", {}).items():
        where = f"{path}.{key}" if path else key
        yield where, resolved(below)
        yield from _parts(resolved(below), where)
    if isinstance(part.get("additionalProperties"), dict):
        yield from _parts(resolved(part["additionalProperties"]), f"{path}.{part.get('x-key', 'KEY')}")
    if isinstance(part.get("items"), dict):
        yield from _parts(resolved(part["items"]), f"{path}[]")
