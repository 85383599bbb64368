"""Whether a configuration conforms to the schema beyond doubt: then nobody needs jsonschema to say what is wrong.

Knows the keywords that our schema uses, and no other. The schema stays the truth: the tests compare with jsonschema.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Part = Mapping[str, Any]
"""Of the schema."""


def conforms(value: object, part: Part, definitions: Part) -> bool:
    """True: `value` is valid, and has nothing that is not in this version. False: it is not, or cannot be told here.

    value: str, bool, int, None, lists and dicts of them, or what YAML made of something else, which is never valid."""
    return all(
        keyword in _SAY_NOTHING or (keyword in _HOLDS and _HOLDS[keyword](value, said, part, definitions))
        for keyword, said in part.items()
    )


def _type(value: object, said: Any, *_: Part) -> bool:
    return any(type(value) is _TYPES.get(name) for name in ([said] if isinstance(said, str) else said))


def _reference(value: object, said: Any, _: Part, definitions: Part) -> bool:
    name = said.removeprefix("#/$defs/")
    return name in definitions and conforms(value, definitions[name], definitions)


def _properties(value: object, said: Any, _: Part, definitions: Part) -> bool:
    if not isinstance(value, dict):
        return True
    return all(conforms(value[key], below, definitions) for key, below in said.items() if key in value)


def _others(value: object, said: Any, part: Part, definitions: Part) -> bool:
    if not isinstance(value, dict):
        return True
    known = part.get("properties", {})
    rest = [item for key, item in value.items() if key not in known]
    return not rest or (said is not False and all(conforms(item, said, definitions) for item in rest))


def _items(value: object, said: Any, _: Part, definitions: Part) -> bool:
    return not isinstance(value, list) or all(conforms(item, said, definitions) for item in value)


_SAY_NOTHING = {"$schema", "$defs", "title", "description", "default", "x-key", "x-want"}
_TYPES = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict}
_HOLDS: dict[str, Callable[[Any, Any, Part, Part], bool]] = {
    "$ref": _reference,
    "additionalProperties": _others,
    "const": lambda value, said, *_: type(value) is type(said) and value == said,
    "enum": lambda value, said, *_: isinstance(value, str) and value in said,
    "items": _items,
    "maximum": lambda value, said, *_: type(value) is not int or value <= said,
    "maxLength": lambda value, said, *_: not isinstance(value, str) or len(value) <= said,
    "maxProperties": lambda value, said, *_: not isinstance(value, dict) or len(value) <= said,
    "minimum": lambda value, said, *_: type(value) is not int or value >= said,
    "minItems": lambda value, said, *_: not isinstance(value, list) or len(value) >= said,
    "minLength": lambda value, said, *_: not isinstance(value, str) or len(value) >= said,
    "minProperties": lambda value, said, *_: not isinstance(value, dict) or len(value) >= said,
    "pattern": lambda value, said, *_: not isinstance(value, str) or re.search(said, value) is not None,
    "properties": _properties,
    "required": lambda value, said, *_: not isinstance(value, dict) or value.keys() >= set(said),
    "type": _type,
    # Planned: true for the key, or a list of values.
    "x-not-yet": lambda value, said, *_: isinstance(said, list) and value not in said,
}
