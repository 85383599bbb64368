"""A strict JSON parser: it rejects documents that two parsers could interpret differently.

Python's json accepts NaN, UTF-16, a byte order mark, and duplicate keys, of which it uses the last. Go's decoder
matches keys regardless of case. Such documents are rejected before their content is used (docs/decisions.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NoReturn, TypeAlias

from mirror.errors import Refused, printable

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"
Object: TypeAlias = dict[str, Value]

MAX_DEPTH = 64
MAX_NODES = 1_000_000


def parse(
    data: bytes, *, what: str, code: str = "manifest_invalid", fold: bool = True, nodes: int = MAX_NODES
) -> Value:
    """Parse a JSON document strictly. Raises Refused if it is invalid, ambiguous or too large.

    what: the name of the document in error messages.
    code: the error code.
    fold: whether keys that differ only in case are treated as duplicates. False if keys are names, such as tags.
    nodes: the maximum number of values and keys."""

    def refuse(why: str) -> NoReturn:
        """Raise Refused for this document."""
        raise Refused(f"{what} is not valid JSON: {why}", code=code)

    def build_object(items: list[tuple[str, Value]]) -> Object:
        """Return the object with these keys and values. Raises Refused if a key is repeated."""
        found = dict(items)
        if len(found) != len(items) or (fold and len({key.casefold() for key in found}) != len(items)):
            keys = [key.casefold() if fold else key for key, _ in items]
            repeated = next(items[i][0] for i, key in enumerate(keys) if key in keys[:i])
            refuse(f"duplicate key {printable(repeated, 80)!r}")
        return found

    def refuse_constant(name: str) -> NoReturn:
        """Raise Refused for NaN, Infinity or -Infinity, which Python's json accepts."""
        refuse(f"{name} is not a JSON value")

    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        refuse(f"byte {error.start} is not valid UTF-8")
    if text.startswith("\ufeff"):
        refuse("it begins with a byte order mark")
    try:
        value: Value = json.loads(text, object_pairs_hook=build_object, parse_constant=refuse_constant)
    except RecursionError:
        refuse(f"it is nested more than {MAX_DEPTH} levels deep")
    except ValueError as error:
        refuse(printable(error, 120))
    _check_limits(value, refuse, nodes)
    return value


def refuse_look_alikes(value: Object, known: frozenset[str], *, where: str) -> None:
    """Raise Refused (manifest_ambiguous) if a key of `value` differs only in case from a key in `known`."""
    for key in value.keys() - known:
        if key.casefold() in {name.casefold() for name in known}:
            raise Refused(
                f"{where} is ambiguous: the key {printable(key, 80)!r} differs from a known key only in case",
                code="manifest_ambiguous",
            )


def _check_limits(value: Value, refuse: Callable[[str], NoReturn], max_nodes: int) -> None:
    """Raise Refused if the document is nested too deeply, is too large or contains lone surrogates.

    max_nodes: the maximum number of values and keys."""
    level: list[Value] = [value]
    nodes = depth = 0
    while level:
        nodes += len(level)
        if nodes > max_nodes:
            refuse(f"it has more than {max_nodes} values")
        next_level: list[Value] = []
        holders = False
        for item in level:
            if isinstance(item, dict):
                holders = True
                next_level.extend(item)
                next_level.extend(item.values())
            elif isinstance(item, list):
                holders = True
                next_level.extend(item)
            elif isinstance(item, str) and not item.isascii() and _has_surrogate(item):
                refuse("a string contains a lone surrogate")
        depth += holders
        if depth > MAX_DEPTH:
            refuse(f"it is nested more than {MAX_DEPTH} levels deep")
        level = next_level


def _has_surrogate(text: str) -> bool:
    """Return whether `text` contains a lone surrogate."""
    return any("\ud800" <= character <= "\udfff" for character in text)
