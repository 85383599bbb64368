"""JSON as registries must read it, so that no two readers can see different things in one document.

Python's json takes the last of two equal keys, NaN, UTF-16 and a BOM; Go's decoder matches keys whatever their
case. A document on which readers could differ is refused, before anything is believed (docs/decisions.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NoReturn, TypeAlias

from mirror.errors import Refused, printable

Value: TypeAlias = "None | bool | int | float | str | list[Value] | dict[str, Value]"
Object: TypeAlias = dict[str, Value]

MAX_DEPTH = 64
MAX_NODES = 1_000_000


def parse(data: bytes, *, what: str, code: str = "manifest_invalid") -> Value:
    """The document in `data`. Raises Refused (`code`) that names `what`."""

    def refuse(why: str) -> NoReturn:
        raise Refused(f"{what} is not usable JSON: {why}", code=code)

    def pairs(items: list[tuple[str, Value]]) -> Object:
        found = dict(items)
        if len(found) != len(items) or len({key.casefold() for key in found}) != len(items):
            keys = [key for key, _ in items]
            again = next(
                k for i, k in enumerate(keys) if k.casefold() in {other.casefold() for other in keys[:i]}
            )
            refuse(f"duplicate key {printable(again, 80)!r}")
        return found

    def constant(name: str) -> NoReturn:
        refuse(f"{name} is not JSON")

    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        refuse(f"not UTF-8 at byte {error.start}")
    if text.startswith("\ufeff"):
        refuse("it begins with a byte order mark")
    try:
        value: Value = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except RecursionError:
        refuse(f"nested deeper than {MAX_DEPTH}")
    except ValueError as error:
        refuse(printable(error, 120))
    _bounded(value, refuse)
    return value


def _bounded(value: Value, refuse: Callable[[str], NoReturn]) -> None:
    level: list[Value] = [value]
    nodes = depth = 0
    while level:
        depth += 1
        nodes += len(level)
        if depth > MAX_DEPTH + 1:
            refuse(f"nested deeper than {MAX_DEPTH}")
        if nodes > MAX_NODES:
            refuse(f"more than {MAX_NODES} values")
        below: list[Value] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, str) and not item.isascii():
                if any("\ud800" <= character <= "\udfff" for character in item):
                    refuse("a lone surrogate in a string")
        level = below
