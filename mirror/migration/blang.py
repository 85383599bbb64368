"""Parses the version ranges of dregsy, which uses the Go library blang/semver, version 4."""

from __future__ import annotations

import re

from mirror.errors import ConfigError, printable
from mirror.migration.version_patterns import TagForm
from mirror.migration.version_sets import VersionSet, check_length, compare, intersect_all, trim, unite_all

_IDENTIFIER = "(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
TAG_FORM = TagForm(most_numbers=3, suffix=rf"{_IDENTIFIER}(?:\.{_IDENTIFIER})*", short_suffix=False)

_NUMBER = r"(?:0|[1-9][0-9]{0,17})"
_PART = re.compile(rf"(>=|<=|==|!=|[><=!]|)({_NUMBER})\.({_NUMBER}|x)(?:\.({_NUMBER}|x))?(-[0-9A-Za-z.-]+)?(?:\+.*)?")
_SAME = {"": "=", "==": "=", "!": "!="}


def parse_range(text: str) -> VersionSet:
    """Return the versions in a version range of dregsy. Raises ConfigError if it is invalid or cannot be converted."""
    check_length(text)
    alternatives = [re.sub(r"([<>=])\s+", r"\1", one).split() for one in text.split("||")]
    if not all(alternatives):
        raise _invalid_range(text)
    return unite_all(intersect_all(_parse_part(part, text) for part in parts) for parts in alternatives)


def _parse_part(part: str, text: str) -> VersionSet:
    """Return the versions that satisfy one comparison of a range. text: the whole range, for messages."""
    found = _PART.fullmatch(part)
    if found is None or (found[4] is None and found[3] != "x") or (found[3] == "x" and found[4] not in (None, "x")):
        raise _invalid_range(text)
    operator, suffix = _SAME.get(found[1], found[1]), (found[5] or "")[1:]
    if "x" in (found[3], found[4]):
        return _parse_wildcard(operator, found, text)
    if suffix and (suffix != "0" or operator not in (">=", "<")):
        what = f'the pre-release in "{printable(part, 80)}" cannot be converted'
        raise ConfigError(what, hint="write a pattern under `tags: {include: [...]}`, or a range under `semver`")
    numbers = trim(int(found[group]) for group in (2, 3, 4))
    return compare(operator, numbers, lowest=bool(suffix))


def _parse_wildcard(operator: str, found: re.Match[str], text: str) -> VersionSet:
    """Return the versions that satisfy a comparison with a wildcard, such as `1.x` or `>1.2.x`."""
    if found[5] is not None:
        raise _invalid_range(text)
    major = int(found[2])
    minor = 0 if found[3] == "x" else int(found[3])
    # With three parts, the library increases the minor version, even for `1.x.x`.
    following = (major + 1,) if found[4] is None else (major, minor + 1)
    start = compare(">=", trim((major, minor)))
    end = compare(">=", trim(following))
    return {
        ">": end,
        ">=": start,
        "<": start.complement(),
        "<=": end.complement(),
        "=": start.intersection(end.complement()),
        "!=": start.complement().intersection(end),
    }[operator]


def _invalid_range(text: str) -> ConfigError:
    """Return the error for a range that dregsy does not accept."""
    return ConfigError(f'dregsy does not accept the range "{printable(text, 80)}"; correct the file')
