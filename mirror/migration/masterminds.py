"""Parses the version ranges of skopeo, which uses the Go library Masterminds/semver, version 3."""

from __future__ import annotations

import re

from mirror.errors import ConfigError, printable
from mirror.migration.version_patterns import TagForm
from mirror.migration.version_sets import (
    NONE,
    VersionSet,
    check_length,
    compare,
    intersect_all,
    numbers_below,
    trim,
    unite_all,
)
from mirror.util.structs import Struct, replace

_IDENTIFIER = "(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
TAG_FORM = TagForm(most_numbers=3, suffix=rf"{_IDENTIFIER}(?:\.{_IDENTIFIER})*")

_NUMBER = r"(?:[0-9]{1,18}|[xX*])"
_VERSION = rf"v?{_NUMBER}(?:\.{_NUMBER}){{0,2}}(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?"
_OPERATORS = r"!=|>=|=>|<=|=<|~>|[=><~^]"
_HYPHEN = re.compile(rf"\s*({_VERSION})\s+-\s+({_VERSION})\s*")
_PART = re.compile(rf"({_OPERATORS})?\s*({_VERSION})")
_GROUP = re.compile(rf"\s*(?:{_OPERATORS})?\s*{_VERSION}\s*(?:(?:\s|,\s*)(?:{_OPERATORS})?\s*{_VERSION}\s*)*")
_SAME = {"=>": ">=", "=<": "<=", "~>": "~", "": "="}


class _Version(Struct, frozen=True):
    """The version in a comparison of a range.

    given: the count of numbers before the first wildcard. lowest: whether the version has the suffix `-0`."""

    numbers: tuple[int, ...]
    given: int
    lowest: bool


def parse_range(text: str) -> VersionSet:
    """Return the versions in a version range of skopeo. Raises ConfigError if it is invalid or cannot be converted."""
    check_length(text)
    groups = _HYPHEN.sub(r">= \1, <= \2 ", text).split("||")
    return unite_all(_parse_group(group, text) for group in groups)


def _parse_group(group: str, text: str) -> VersionSet:
    """Return the versions that satisfy all comparisons of a group, a part of a range. text: the range, for messages."""
    if not _GROUP.fullmatch(group):
        raise ConfigError(f'skopeo does not accept the range "{printable(text, 80)}"; correct the file')
    parts = _PART.findall(group)
    found = intersect_all(_compare(_SAME.get(operator, operator), _parse_version(one)) for operator, one in parts)
    # Versions with a suffix are selected only if a comparison of the group also has a suffix.
    return found if any("-" in version for _, version in parts) else replace(found, suffixed=NONE)


def _parse_version(text: str) -> _Version:
    """Parse the version in a comparison. Raises ConfigError if the suffix of the version cannot be converted."""
    numbers_text, _, suffix = text.partition("+")[0].removeprefix("v").partition("-")
    if suffix not in ("", "0"):
        what = f'the pre-release in "{printable(text, 80)}" cannot be converted'
        raise ConfigError(what, hint="write a pattern under `tags: {include: [...]}`, or a range under `semver`")
    numbers: list[int] = []
    for part in numbers_text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return _Version(tuple(numbers), len(numbers), bool(suffix))


def _compare(operator: str, version: _Version) -> VersionSet:
    """Return the versions that satisfy one comparison. A wildcard or missing number matches any number."""
    numbers = trim(version.numbers)
    from_version = compare(">=", numbers, lowest=version.lowest)
    if operator == ">=":
        return from_version
    if operator == "<":
        return from_version.complement()
    if operator == "^":
        return from_version.intersection(numbers_below(_caret_end(version)))
    is_tilde = operator == "~" or (operator == "=" and version.given < 3)
    if is_tilde and version.given in (0, 3) and not numbers:
        return from_version  # `*`, and `~0.0.0`, which the library treats like `*`
    if is_tilde:
        return from_version.intersection(numbers_below(_next_numbers(version, min(version.given, 2))))
    if version.lowest:
        raise ConfigError(f'the pre-release after "{operator}" cannot be converted', hint="write `>=` or `<`")
    return _compare_exactly(operator, version)


def _compare_exactly(operator: str, version: _Version) -> VersionSet:
    """Return the versions that satisfy a comparison with `=`, `!=`, `>` or `<=`."""
    numbers = trim(version.numbers)
    if version.given in (1, 2):  # for example `<=1.2`, which includes 1.2.9
        until = numbers_below(_next_numbers(version, version.given))
        same = until.intersection(numbers_below(numbers).complement())
        return {"<=": until, ">": until.complement(), "!=": same.complement()}[operator]
    if version.given == 0 and operator == "<=":
        return numbers_below((0, 1))
    return compare(operator, numbers)


def _next_numbers(version: _Version, count: int) -> tuple[int, ...]:
    """Return the lowest version numbers whose first `count` numbers are higher than those of `version`."""
    kept = version.numbers[:count]
    return (*kept[:-1], kept[-1] + 1)


def _caret_end(version: _Version) -> tuple[int, ...]:
    """Return the lowest version numbers above the range `^version`."""
    major, minor, patch = (*version.numbers, 0, 0, 0)[:3]
    if major or version.given == 1:
        return (major + 1,)
    if minor or version.given == 2:
        return (0, minor + 1)
    return (0, 0, patch + 1)
