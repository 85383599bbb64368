"""Parses tags as versions, and matches them with version ranges.

The order of versions is that of Semantic Versioning 2.0.0 (https://semver.org), and the syntax of ranges is that of npm
(https://github.com/npm/node-semver#ranges). Tags may have fewer or more than three numbers: docs/configuration.md,
"Versions".
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from mirror.errors import ConfigError, printable
from mirror.util.structs import Struct

# The library takes 10 ms or more to import, and most configurations have no ranges. Therefore, the functions that use
# it import it.
if TYPE_CHECKING:
    from semantic_version import NpmSpec

LONGEST = 1000  # maximum length of a range in characters

_NUMBER = "[0-9]{1,18}"
# Tags cannot contain the `+` of build metadata. Like Helm, tools write `_` instead.
_TAG = re.compile(rf"v?({_NUMBER}(?:\.{_NUMBER})*)(?:-([0-9A-Za-z.-]*))?(?:_[0-9A-Za-z._-]*)?")
_OPERATOR = "<=|>=|<|>|=|\\^|~"
_PART = f"(?:[xX*]|{_NUMBER})"
_COMPARATOR = re.compile(rf"({_OPERATOR}|)v?({_PART}(?:\.{_PART}){{0,2}})((?:-[0-9A-Za-z.-]+)?)(?:\+[0-9A-Za-z.-]+)?")
_PESSIMISTIC = re.compile(r"~[>=]\s*v?([0-9]+)\.([0-9]+)(\.[0-9]+)?(?![0-9.])")
_EXAMPLES = 'expected a range like ">=2.50 <4", "^1.2", "1.x" or "1.2 - 1.4", and `||` between alternatives'


class TagVersion(Struct, frozen=True):
    """The version that a tag contains.

    release: the numbers, at least three; zeros are added to a shorter version, and removed from the end of a longer
    one. suffix: the parts after the first `-`, without leading zeros in numbers. written: the count of numbers in the
    tag."""

    release: tuple[int, ...]
    suffix: tuple[str, ...]
    written: int

    @property
    def is_prerelease(self) -> bool:
        """Whether the version has a suffix, as in `1.2.3-rc.1` or `1.2.3-alpine`."""
        return bool(self.suffix)

    @property
    def without_suffix(self) -> TagVersion:
        """The same version without its suffix."""
        return TagVersion(self.release, (), self.written)

    @property
    def precedence(self) -> tuple[object, ...]:
        """A key that orders versions as in Semantic Versioning 2.0.0, section 11."""
        # Numbers are lower than words, and every suffix is lower than none.
        parts = tuple((0, int(one), "") if one.isdigit() else (1, 0, one) for one in self.suffix)
        return self.release, not self.suffix, parts


def parse_version(tag: str) -> TagVersion | None:
    """Return the version in a tag, or None if the tag is not a version."""
    found = _TAG.fullmatch(tag)
    if found is None:
        return None
    numbers, suffix = found.groups()
    parts = suffix.split(".") if suffix is not None else []
    if not all(parts):
        return None
    release = [int(number) for number in numbers.split(".")]
    written = len(release)
    release += [0] * (3 - written)
    while len(release) > 3 and release[-1] == 0:
        release.pop()
    # Semantic Versioning does not allow leading zeros in numbers, but tags have them.
    plain = tuple(str(int(part)) if part.isdigit() else part for part in parts)
    return TagVersion(tuple(release), plain, written)


def find_newest_versions(tags: Iterable[str], count: int) -> set[str]:
    """Return the `count` tags with the highest versions. Tags that are not versions are older than all versions."""
    return set(heapq.nlargest(count, tags, key=version_order))


def version_order(tag: str) -> tuple[object, ...]:
    """Return a sort key that orders tags by version, the newest last. Tags that are not versions come first.

    Of two tags with the same version, the tag with more numbers is newer (`1.2.0` is newer than `1.2`); if they have
    the same count, the tag that is later in alphabetical order is newer (`v1.2.0` is newer than `1.2.0`)."""
    version = parse_version(tag)
    return ((), tag) if version is None else (*version.precedence, version.written, tag)


class VersionRanges:
    """One or more version ranges. A version matches if any of the ranges contains it. Thread-safe."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Compile the ranges. Raises ConfigError if a range is invalid."""
        from semantic_version import Version  # noqa: PLC0415 (see the top of the module)

        self._version_type = Version
        self._ranges = [compile_range(text) for text in texts]

    def matches(self, version: TagVersion) -> bool:
        """Return whether a version is in any of the ranges.

        As in npm, a version with a suffix matches only if the range contains a version with the same three numbers and
        a suffix."""
        major, minor, patch, *_ = version.release
        found = self._version_type(major=major, minor=minor, patch=patch, prerelease=version.suffix)
        return any(one.match(found) for one in self._ranges)


@lru_cache(maxsize=10_000)
def compile_range(text: str) -> NpmSpec:
    """Compile a version range. Raises ConfigError if it is invalid. The hint shows the correct form if it is known."""
    from semantic_version import NpmSpec  # noqa: PLC0415 (see the top of the module)

    if len(text) > LONGEST:
        raise ConfigError(f"the version range is too long: {len(text)} characters; at most {LONGEST} are allowed")
    try:
        return NpmSpec(_normalize_range(text))
    except ValueError as error:
        what = f'not a version range: "{printable(text, 80)}"'
        if "!=" in text:
            raise ConfigError(what, hint="list patterns for the versions to leave out under `exclude`") from None
        instead = _range_of_other_tool(text)
        if instead is not None:
            raise ConfigError(f'{what}; write "{instead}"') from None
        raise ConfigError(f"{what}{error if isinstance(error, _RangeError) else ''}", hint=_EXAMPLES) from None


class _RangeError(ValueError):
    """Raised for an invalid version range. The text of the exception is the end of a message: the reason."""


def _normalize_range(text: str) -> str:
    """Convert a version range to the form that the library accepts. Raises _RangeError if the syntax is invalid.

    The library does not accept some syntax that npm allows: spaces after an operator, several spaces, and a `v` after
    an operator. Ranges may contain leading zeros, because tags such as `22.04` do."""
    alternatives = []
    for alternative in text.split("||"):
        joined = re.sub(rf"(^|\s)({_OPERATOR})\s+", r"\1\2", alternative.strip())
        tokens = joined.split()
        if not tokens:
            raise _RangeError('; an alternative is empty; write "*" to match all versions')
        if len(tokens) == 3 and tokens[1] == "-":
            low, high = _normalize_comparator(tokens[0]), _normalize_comparator(tokens[2])
            if not (low[0].isdigit() and high[0].isdigit()):
                raise _RangeError('; a range such as "1.2 - 1.4" has no operators')
            alternatives.append(f"{low} - {high}")
        else:
            alternatives.append(" ".join(_normalize_comparator(token) for token in tokens))
    return " || ".join(alternatives)


def _normalize_comparator(token: str) -> str:
    """Return one comparator of a range, such as `>=1.2`, without a `v`, leading zeros or build metadata.

    Raises _RangeError."""
    found = _COMPARATOR.fullmatch(token)
    if found is None:
        raise _RangeError(f"; {printable(token, 40)} is not a valid comparator")
    operator, numbers, suffix = found.groups()
    parts = [str(int(part)) if part.isdigit() else part for part in numbers.split(".")]
    return f"{operator}{'.'.join(parts)}{suffix}"


def _range_of_other_tool(text: str) -> str | None:
    """Convert a version range from the syntax of another tool. Return None if this is not possible."""
    meant = _PESSIMISTIC.sub(_expand_pessimistic, text)
    meant = re.sub(r"\s*(?:\bor\b|\|\|?)\s*", " || ", meant)
    meant = re.sub(r"\s*(?:\band\b|&&?|[,;])\s*", " ", meant)
    for theirs, ours in (("=>", ">="), ("=<", "<="), ("===", "="), ("==", "=")):
        meant = meant.replace(theirs, ours)
    meant = re.sub(rf"({_OPERATOR})\s+", r"\1", " ".join(meant.split()))
    from semantic_version import NpmSpec  # noqa: PLC0415 (see the top of the module)

    try:
        NpmSpec(_normalize_range(meant))
    except ValueError:
        return None
    return meant


def _expand_pessimistic(found: re.Match[str]) -> str:
    """Return the npm range for `~> 1.2` (Ruby, Terraform) or `~=1.2` (Python): the last number may increase."""
    major, minor, patch = found.groups()
    limit = f"{major}.{int(minor) + 1}" if patch else str(int(major) + 1)
    return f">={major}.{minor}{patch or ''} <{limit}"
