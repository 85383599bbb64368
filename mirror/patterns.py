"""Regular expressions that select tags: they match whole tags, and never take exponential time.

A pattern that an engine with backtracking can match in exponentially many ways is refused. That needs a
repetition of something that varies; there we ask that, after each character, at most one thing can come next
(the rule of deterministic content models in XML 1.0, appendix E), counting an inner and an outer loop apart.
So `v\\d+(\\.\\d+)*` is fine, `(a+)+` and `(a|a)*` are not.
"""

from __future__ import annotations

import importlib
import re
import string
import warnings
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from mirror.errors import ConfigError, printable
from mirror.structs import Struct, field

LONGEST = 1000  # characters

# Only what shell patterns are made of, and a `*` that does not repeat a `.` as it does in `.*`.
_SHELL_PATTERN = re.compile(r"(?=[A-Za-z0-9_.*?-]+\Z)(?:.*[^.])?\*.*")
_ALPHABET = frozenset(string.ascii_letters + string.digits + "_.-")  # what tags are made of
_MOST_COPIES = 16
_IGNORES_CASE = re.compile(r"\(\?[a-zA-Z]*i")  # somewhere, so everywhere: it only makes us stricter
_CATEGORIES = {
    "CATEGORY_DIGIT": frozenset(string.digits),
    "CATEGORY_WORD": frozenset(string.ascii_letters + string.digits + "_"),
    "CATEGORY_SPACE": frozenset[str](),
}


@lru_cache(maxsize=10_000)
def compile_pattern(text: str) -> re.Pattern[str]:
    """For `fullmatch`. Raises ConfigError that says what is wrong, and at which character (from 1)."""
    if len(text) > LONGEST:
        raise ConfigError(f"pattern too long: {len(text)} characters, at most {LONGEST}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # "possible nested set": it will mean something else one day
            pattern = re.compile(text)
            risky = _risky(text, pattern.flags)
    except re.error as error:
        at = f" at character {error.pos + 1}" if error.pos is not None else ""
        instead = regex_for_shell_pattern(text)
        hint = f"it looks like a shell pattern; write '{instead}'" if instead is not None else ""
        raise ConfigError(f"not a regular expression: {error.msg}{at}: {_shown(text)}", hint=hint) from None
    except RecursionError:
        raise ConfigError(f"not a usable regular expression: nested too deep: {_shown(text)}") from None
    except (OverflowError, Warning) as error:
        raise ConfigError(f"not a usable regular expression: {printable(error, 80)}: {_shown(text)}") from None
    if risky:
        raise ConfigError(
            f"nested quantifier: a repetition in {_shown(text)} can match one text in very many ways",
            hint="begin or end what is repeated with a separator, as in (\\.\\d+)*",
        )
    return pattern


def regex_for_shell_pattern(text: str) -> str | None:
    """The regular expression for `text`, if that looks like a shell pattern (`v*`, `*-alpine`); None: it does not."""
    if not _SHELL_PATTERN.match(text):
        return None
    return re.sub(r"[.*?]", lambda match: {".": r"\.", "*": ".*", "?": "."}[match.group()], text)


def _shown(text: str) -> str:
    return f'"{printable(text, 80)}"'


class _Part(Struct, frozen=True):
    """Of an expression: may it be empty, and which character positions can begin and end it."""

    empty: bool
    first: tuple[int, ...] = ()
    last: tuple[int, ...] = ()


class _Loop(Struct):
    """The positions within one repetition, the characters of each, and what can follow each (with duplicates)."""

    ignore_case: bool
    characters: list[frozenset[str]] = field(default_factory=list)
    follow: list[list[int]] = field(default_factory=list)
    opaque: bool = False  # holds something whose matches we cannot enumerate

    def position(self, characters: frozenset[str]) -> _Part:
        if self.ignore_case:
            characters |= {character.swapcase() for character in characters}
        self.characters.append(characters)
        self.follow.append([])
        return _Part(False, (len(self.follow) - 1,), (len(self.follow) - 1,))

    def then(self, left: _Part, right: _Part) -> _Part:
        for position in left.last:
            self.follow[position].extend(right.first)
        return _Part(
            left.empty and right.empty,
            left.first + right.first if left.empty else left.first,
            left.last + right.last if right.empty else right.last,
        )

    def again(self, body: _Part) -> None:
        for position in body.last:
            self.follow[position].extend(body.first)

    def ambiguous(self, body: _Part) -> bool:
        return self.opaque or any(self._overlap(choice) for choice in (body.first, *self.follow))

    def _overlap(self, choice: Iterable[int]) -> bool:
        seen: set[str] = set()
        for position in choice:
            if not seen.isdisjoint(self.characters[position]):
                return True
            seen |= self.characters[position]
        return False


def _risky(text: str, flags: int) -> bool:
    # The parser of `re` is not public. Where a Python has none, patterns are trusted: they are the operator's own.
    try:
        parse = importlib.import_module("re._parser").parse
    except (ImportError, AttributeError):  # pragma: no cover - no such Python is known
        return False
    return _any_risky(parse(text, flags & ~re.DEBUG), _IGNORES_CASE.search(text) is not None)


def _any_risky(items: Any, ignore_case: bool) -> bool:
    for op, value in items:
        name = str(op)
        if name.endswith("_REPEAT"):
            _, most, body = value
            if most > 1 and _loops_badly(body, ignore_case):
                return True
            if _any_risky(body, ignore_case):
                return True
        elif any(_any_risky(below, ignore_case) for below in _below(name, value)):
            return True
    return False


def _below(name: str, value: Any) -> list[Any]:
    """The expressions within an item."""
    if name == "SUBPATTERN":
        return [value[3]]
    if name == "BRANCH":
        return list(value[1])
    if name == "ATOMIC_GROUP":
        return [value]
    if name in ("ASSERT", "ASSERT_NOT"):
        return [value[1]]
    if name == "GROUPREF_EXISTS":
        return [below for below in value[1:] if below is not None]
    return []


def _loops_badly(body: Any, ignore_case: bool) -> bool:
    loop = _Loop(ignore_case)
    part = _sequence(loop, body)
    loop.again(part)
    return loop.ambiguous(part)


def _sequence(loop: _Loop, items: Any) -> _Part:
    whole = _Part(True)
    for op, value in items:
        whole = loop.then(whole, _item(loop, str(op), value))
    return whole


def _item(loop: _Loop, name: str, value: Any) -> _Part:
    if name.endswith("_REPEAT"):
        return _repeat(loop, *value)
    if name == "BRANCH":
        parts = [_sequence(loop, below) for below in value[1]]
        loop.opaque |= sum(part.empty for part in parts) > 1  # (a|a) reaches us as a(|)
        return _Part(
            any(part.empty for part in parts),
            tuple(position for part in parts for position in part.first),
            tuple(position for part in parts for position in part.last),
        )
    if name in ("SUBPATTERN", "ATOMIC_GROUP"):
        return _sequence(loop, _below(name, value)[0])
    if name in ("AT", "ASSERT", "ASSERT_NOT"):
        return _Part(True)
    characters = _characters(name, value)
    if characters is None:
        loop.opaque = True
        return _Part(True)
    return loop.position(characters)


def _repeat(loop: _Loop, least: int, most: int, body: Any) -> _Part:
    if least == most and least <= _MOST_COPIES:
        whole = _Part(True)
        for _ in range(least):
            whole = loop.then(whole, _sequence(loop, body))
        return whole
    part = _sequence(loop, body)
    if most > 1:
        loop.again(part)
    return _Part(part.empty or least == 0, part.first, part.last)


def _characters(name: str, value: Any) -> frozenset[str] | None:
    """Those of a tag that a one-character item matches; None: it is no such item."""
    if name in ("LITERAL", "NOT_LITERAL"):
        return _ALPHABET - {chr(value)} if name == "NOT_LITERAL" else frozenset(chr(value))
    if name == "RANGE":
        return frozenset(character for character in _ALPHABET if value[0] <= ord(character) <= value[1])
    if name == "CATEGORY":
        category = str(value)
        named = _CATEGORIES.get(category.replace("_NOT_", "_"), _ALPHABET)
        return _ALPHABET - named if "_NOT_" in category else named
    if name == "IN":
        negated = str(value[0][0]) == "NEGATE"
        found = frozenset[str]().union(*(_characters(str(op), item) or () for op, item in value))
        return _ALPHABET - found if negated else found
    return _ALPHABET if name == "ANY" else None
