"""Converts a set of versions to tag patterns.

The key `semver` cannot express the version ranges of other tools, because it treats suffixes as npm does.
"""

from __future__ import annotations

from typing import TypeAlias

from mirror.migration.version_sets import END, START, Cut, Intervals, Numbers, VersionSet
from mirror.util.structs import Struct

# A bound of an interval: the numbers, and whether the interval includes them. None means that there is no bound.
Bound: TypeAlias = tuple[Numbers, bool] | None

_NONZERO = r"0*[1-9]\d*"


class TagForm(Struct, frozen=True):
    """The syntax of versions in tags, as a tool defines it.

    most_numbers: the maximum count of numbers in a version; None for no limit. suffix: a pattern for the text after the
    first hyphen. short_suffix: whether a version with fewer than three numbers may have a suffix. after_plain: a
    pattern for the text that may follow the numbers of a version without a suffix."""

    most_numbers: int | None
    suffix: str
    short_suffix: bool = True
    after_plain: str = ""


def version_patterns(versions: VersionSet, form: TagForm) -> list[str]:
    """Return patterns that together match exactly the tags whose versions are in a set. form: the syntax of tags."""
    found = [f"v?{numbers}{form.after_plain}" for numbers in _number_patterns(versions.plain, form.most_numbers, 1)]
    least = 1 if form.short_suffix else 3
    numbers_before_suffix = _number_patterns(versions.suffixed, form.most_numbers, least)
    return found + [f"v?{numbers}-{form.suffix}" for numbers in numbers_before_suffix]


def _number_patterns(intervals: Intervals, most: int | None, least: int) -> list[str]:
    """Return a pattern for the version numbers in each interval.

    most, least: the maximum and the minimum count of numbers in a version."""
    found = []
    for start, end in intervals:
        alternatives = _first_number(_lower_bound(start), _upper_bound(end), most, least)
        if alternatives:
            found.append(_group(alternatives))
    return found


def _lower_bound(cut: Cut) -> Bound:
    """Return the lower bound of an interval that starts at a cut."""
    return None if cut == START else (cut[0], cut[1] == 0)


def _upper_bound(cut: Cut) -> Bound:
    """Return the upper bound of an interval that ends at a cut."""
    return None if cut == END else (cut[0], cut[1] == 1)


def _first_number(low: Bound, high: Bound, most: int | None, least: int) -> list[str]:
    """Return alternative patterns for all version numbers between two bounds."""
    if low is None and high is None:
        return [rf"\d+{_any_numbers(_one_less(most), least - 1)}"]
    return _next_number(low, high, most, least, "")


def _remaining_numbers(low: Bound, high: Bound, most: int | None, least: int) -> list[str]:
    """Return alternative patterns for the numbers that follow a number which is equal to that of a bound.

    low, high: the remaining numbers of the bounds. most, least: the maximum and minimum count of following numbers."""
    if high == ((), False):
        return []
    if low == ((), True):
        low = None
    if low is None and high is None:
        return [_any_numbers(most, least)]
    if high == ((), True):
        return [_numbers(r"\.0+", most, least)] if low is None else []
    if most == 0:
        return [""] if low is None else []
    if most is None and low == ((), False) and high is None:
        return [rf"(?:\.\d+)*\.{_NONZERO}(?:\.\d+)*"]
    ends_here = [""] if low is None and least <= 0 else []
    return [*ends_here, *_next_number(low, high, most, least, r"\.")]


def _next_number(low: Bound, high: Bound, most: int | None, least: int, dot: str) -> list[str]:
    """Return alternative patterns for the next number and the numbers after it. dot: the pattern before the number."""
    lowest, low_rest = _split(low)
    highest, high_rest = _split(high)
    most, least = _one_less(most), least - 1
    found: list[str] = []
    if low is not None and high is not None and lowest == highest:
        return _join(f"{dot}{_integers(lowest, lowest)}", _remaining_numbers(low_rest, high_rest, most, least))
    if low is not None:
        found += _join(f"{dot}{_integers(lowest, lowest)}", _remaining_numbers(low_rest, None, most, least))
    first = 0 if low is None else lowest + 1
    last = None if high is None else highest - 1
    if last is None or first <= last:
        found.append(f"{dot}{_integers(first, last)}{_any_numbers(most, least)}")
    if high is not None:
        found += _join(f"{dot}{_integers(highest, highest)}", _remaining_numbers(None, high_rest, most, least))
    return found


def _split(bound: Bound) -> tuple[int, Bound]:
    """Split a bound into its next number, and the bound of the numbers after it."""
    if bound is None:
        return 0, None
    numbers, inside = bound
    return (numbers[0] if numbers else 0), (numbers[1:], inside)


def _one_less(most: int | None) -> int | None:
    """Return the limit for the count of numbers after the next number: `most - 1`, or None for no limit."""
    return None if most is None else most - 1


def _any_numbers(most: int | None, least: int) -> str:
    """Return a pattern for at most `most` and at least `least` further numbers of any value."""
    return _numbers(r"\.\d+", most, least)


def _numbers(number: str, most: int | None, least: int) -> str:
    """Return a pattern for at most `most` and at least `least` repetitions of the pattern `number`."""
    least = max(least, 0)
    if most == 0:
        return ""
    if most == least:
        return number if most == 1 else f"(?:{number}){{{most}}}"
    if most == 1:
        return f"(?:{number})?"
    if most is None:
        return f"(?:{number})*" if least == 0 else f"(?:{number}){{{least},}}"
    return f"(?:{number}){{{least},{most}}}"


def _join(before: str, alternatives: list[str]) -> list[str]:
    """Return a list with one pattern, `before` followed by the alternatives, or an empty list without alternatives."""
    return [before + _group(alternatives)] if alternatives else []


def _group(alternatives: list[str]) -> str:
    """Return a pattern that matches any of the alternative patterns."""
    if len(alternatives) == 1:
        return alternatives[0]
    if alternatives[0] == "":
        return f"(?:{'|'.join(alternatives[1:])})?"
    return f"(?:{'|'.join(alternatives)})"


def _integers(low: int, high: int | None) -> str:
    """Return a pattern for the integers from `low` to `high`, with any number of leading zeros."""
    if low == 0 and high is None:
        return r"\d+"
    if low == 1 and high is None:
        return _NONZERO
    if low == high == 0:
        return "0+"
    found: list[str] = []
    longest = len(str(low)) if high is None else len(str(high))
    for length in range(len(str(low)), longest + 1):
        least = max(low, 10 ** (length - 1) if length > 1 else 0)
        most = 10**length - 1 if high is None else min(high, 10**length - 1)
        found += _same_length_integers(str(least), str(most))
    if high is None:
        found.append(rf"[1-9]{_digits(longest, open_ended=True)}")
    return f"0*{_group(found)}"


def _same_length_integers(low: str, high: str) -> list[str]:
    """Return alternative patterns for the integers from `low` to `high`, which must have the same number of digits."""
    if low == high:
        return [low]
    left = len(low) - 1
    if low[0] == high[0]:
        return [low[0] + rest for rest in _same_length_integers(low[1:], high[1:])]
    first, last = int(low[0]), int(high[0])
    before: list[str] = []
    after: list[str] = []
    if low[1:] != "0" * left:
        before = [low[0] + rest for rest in _same_length_integers(low[1:], "9" * left)]
        first += 1
    if high[1:] != "9" * left:
        after = [high[0] + rest for rest in _same_length_integers("0" * left, high[1:])]
        last -= 1
    between = []
    if first <= last:
        digit = r"\d" if (first, last) == (0, 9) else str(first) if first == last else f"[{first}-{last}]"
        between = [digit + _digits(left)]
    return before + between + after


def _digits(count: int, *, open_ended: bool = False) -> str:
    """Return a pattern for `count` digits. open_ended: whether the pattern also matches more digits."""
    if open_ended:
        return rf"\d{{{count},}}" if count > 1 else r"\d+"
    return {0: "", 1: r"\d"}.get(count, rf"\d{{{count}}}")
