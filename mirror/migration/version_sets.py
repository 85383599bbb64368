"""Sets of versions, to which the version ranges of other tools are converted.

Tools differ in whether a range selects versions with a suffix, such as `1.2.3-rc.1`. A set therefore has two parts:
intervals of plain versions, and intervals of the numbers of versions with a suffix.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import TypeAlias

from mirror.errors import ConfigError
from mirror.selection.versions import LONGEST
from mirror.util.structs import Struct

Numbers: TypeAlias = tuple[int, ...]  # the numbers of a version, without zeros at the end
# A position between versions: (numbers, 0) is immediately before the version with these numbers, (numbers, 1) after it.
Cut: TypeAlias = tuple[Numbers, int]
Intervals: TypeAlias = tuple[tuple[Cut, Cut], ...]  # disjoint, in ascending order

START: Cut = ((), 0)
END: Cut = ((1 << 63,), 0)
ALL: Intervals = ((START, END),)
NONE: Intervals = ()


class VersionSet(Struct, frozen=True):
    """A set of versions, as intervals.

    plain: the versions without a suffix. suffixed: the numbers of the versions that have a suffix."""

    plain: Intervals
    suffixed: Intervals

    def intersection(self, other: VersionSet) -> VersionSet:
        """Return the versions that are in both sets."""
        return VersionSet(_intersect(self.plain, other.plain), _intersect(self.suffixed, other.suffixed))

    def complement(self) -> VersionSet:
        """Return the versions that are not in this set."""
        return VersionSet(_invert(self.plain), _invert(self.suffixed))


EVERY_VERSION = VersionSet(ALL, ALL)


def check_length(text: str) -> None:
    """Raise ConfigError if a version range is longer than `LONGEST`."""
    if len(text) > LONGEST:
        raise ConfigError(f"the version range is too long: {len(text)} characters; at most {LONGEST} are allowed")


def trim(numbers: Iterable[int]) -> Numbers:
    """Return the numbers of a version without trailing zeros, which do not affect the order of versions."""
    kept = list(numbers)
    while kept and kept[-1] == 0:
        kept.pop()
    return tuple(kept)


def compare(operator: str, numbers: Numbers, *, lowest: bool = False) -> VersionSet:
    """Return the versions that satisfy a comparison with a version.

    A version with a suffix is lower than the version with the same numbers and no suffix. operator: `>=`, `>`, `<=`,
    `<`, `=` or `!=`. numbers: the numbers of the version to compare with. lowest: whether this version has the suffix
    `-0`, which is lower than all other suffixes. In that case, the operator must be `>=` or `<`."""
    if operator in ("<", "<=", "!="):
        return compare({"<": ">=", "<=": ">", "!=": "="}[operator], numbers, lowest=lowest).complement()
    before, after = (numbers, 0), (numbers, 1)
    if operator == "=":
        return VersionSet(((before, after),), NONE)
    plain = before if operator == ">=" else after
    return VersionSet(((plain, END),), ((before if lowest else after, END),))


def numbers_below(numbers: Numbers) -> VersionSet:
    """Return the versions whose numbers are lower than `numbers`, with any suffix: `2.0.0-rc.1` is not below 2."""
    intervals = ((START, (numbers, 0)),)
    return VersionSet(intervals, intervals)


def unite_all(sets: Iterable[VersionSet]) -> VersionSet:
    """Return the versions that are in at least one of the sets."""
    found = list(sets)
    return VersionSet(
        _unite([interval for one in found for interval in one.plain]),
        _unite([interval for one in found for interval in one.suffixed]),
    )


def intersect_all(sets: Iterable[VersionSet]) -> VersionSet:
    """Return the versions that are in all of the sets."""
    return reduce(VersionSet.intersection, sets, EVERY_VERSION)


def _unite(intervals: Iterable[tuple[Cut, Cut]]) -> Intervals:
    """Return the union of intervals, which may be in any order."""
    merged: list[tuple[Cut, Cut]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return tuple(merged)


def _invert(intervals: Intervals) -> Intervals:
    """Return the complement of a set of intervals."""
    cuts = [START, *(cut for interval in intervals for cut in interval), END]
    pairs = zip(cuts[::2], cuts[1::2], strict=True)
    return tuple((start, end) for start, end in pairs if start < end)


def _intersect(one: Intervals, other: Intervals) -> Intervals:
    """Return the intersection of two sets of intervals."""
    return _invert(_unite([*_invert(one), *_invert(other)]))
