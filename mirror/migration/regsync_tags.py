"""Converts the keys `tags` and `tagSets` of regsync, which select tags."""

from __future__ import annotations

import re

from mirror.errors import ConfigError, printable
from mirror.migration.peer_file import ToolMapping
from mirror.migration.tag_patterns import pattern_for_search
from mirror.migration.tag_selection import EVERY_TAG, TagSelection
from mirror.migration.version_patterns import TagForm, version_patterns
from mirror.migration.version_sets import Numbers, VersionSet, check_length, compare, intersect_all, trim, unite_all
from mirror.selection.versions import compile_range

# In regsync, the count of numbers in a version is not limited, and `1.2.3-` is the version 1.2.3.
_FORM = TagForm(most_numbers=None, suffix=".+", after_plain="-?")
# Patterns that match all tags that are not versions.
_NO_VERSION = (r"[^v0-9].*", r"v(?:[^0-9].*)?", r"v?\d+(?:\.\d+)*(?:\.(?:[^0-9].*)?|[^-.0-9].*)")
_PART = re.compile(r"(\^|~|>=|<=|>|<|=|)v?(\d{1,18}(?:\.\d{1,18})*)(-[^+]*)?(?:\+.*)?", re.DOTALL)


def select_tags(entry: ToolMapping) -> TagSelection:
    """Convert the keys `tags` and `tagSets` of an entry. Raises NotConvertible if `mirror` cannot express them."""
    sets = list(entry.mappings("tagSets"))
    tags = entry.mapping("tags")
    if tags is not None:
        rules = [tags.texts(key) for key in ("allow", "deny", "semverRange")]
        tags.note_unknown_keys("regsync")
        if any(rules):
            sets.append(tags)
    if not sets:
        return EVERY_TAG
    result = _select_set(sets[0])
    for one in sets[1:]:
        united = result.union(_select_set(one))
        if united is None:
            what = "left out: the sets exclude different tags, but `tags` has only one list `exclude`; "
            entry.reject("tagSets", what + "write one list of patterns under `tags: {include: [...]}`")
        result = united
    return result


def _select_set(peer: ToolMapping) -> TagSelection:
    """Convert one set of rules that select tags. Raises NotConvertible."""
    allow, deny = _patterns(peer, "allow"), _patterns(peer, "deny")
    ranges = [text for text in peer.texts("semverRange") if text]
    peer.note_unknown_keys("regsync")
    if not ranges:
        return TagSelection(not allow, (), allow, deny)
    try:
        versions = unite_all(_parse_range(text) for text in ranges)
    except ConfigError as error:
        peer.reject("semverRange", f"left out: {error}")
    what = "regsync also selects pre-releases and variants, such as 1.2.3-alpine, and so do the patterns for versions"
    peer.note("semverRange", f"{what}{_suggest_semver(ranges)}")
    if allow:
        others = (*_NO_VERSION, *version_patterns(versions.complement(), _FORM))
        return TagSelection(include=allow, exclude=(*deny, *others))
    return TagSelection(include=tuple(version_patterns(versions, _FORM)), exclude=deny)


def _suggest_semver(ranges: list[str]) -> str:
    """Return a sentence that suggests the key `semver`, or an empty string if the ranges are invalid for this key."""
    try:
        for text in ranges:
            compile_range(text)
    except ConfigError:
        return ""
    ours = ", ".join(f"'{text}'" for text in ranges)
    return f". To copy only releases, replace these patterns with `semver: [{ours}]`"


def _patterns(peer: ToolMapping, key: str) -> tuple[str, ...]:
    """Convert the regular expressions for tags under `allow` or `deny`. Raises NotConvertible.

    regsync adds `^` and `$` to the text of an expression, so in `a|b`, each alternative is anchored only at one end."""
    found = []
    for text in peer.texts(key):
        try:
            pattern = pattern_for_search(f"^{text}$")
        except ConfigError as error:
            peer.reject(key, f"left out: {error}")
        if pattern.startswith(".*(?:^") and "|" in text:
            what = f"regsync anchors only the ends of {printable(text, 80)}, not each alternative; if the alternatives"
            peer.note(key, f"{what} should match whole tags, replace the pattern with this expression")
        found.append(pattern)
    return tuple(found)


def _parse_range(text: str) -> VersionSet:
    """Return the versions in a version range of regsync. Raises ConfigError."""
    check_length(text)
    parts = text.split()
    if not parts:
        raise ConfigError("a version range is empty; correct the file")
    return intersect_all(_parse_part(part) for part in parts)


def _parse_part(part: str) -> VersionSet:
    """Return the versions that satisfy one comparison in a range of regsync. Raises ConfigError."""
    found = _PART.fullmatch(part)
    if found is None:
        raise ConfigError(f'regsync does not accept the range "{printable(part, 80)}"; correct the file')
    operator, numbers, suffix = found[1] or "=", [int(one) for one in found[2].split(".")], (found[3] or "")[1:]
    if suffix and (suffix != "0" or operator not in (">=", "<")):
        what = f'the pre-release in "{printable(part, 80)}" cannot be converted'
        raise ConfigError(what, hint="write a pattern under `tags: {include: [...]}`, or a range under `semver`")
    if operator not in ("^", "~"):
        return compare(operator, trim(numbers), lowest=bool(suffix))
    return compare(">=", trim(numbers)).intersection(compare("<", _upper_bound(operator, numbers)))


def _upper_bound(operator: str, numbers: list[int]) -> Numbers:
    """Return the lowest version numbers above the range `^numbers` or `~numbers`."""
    major, minor, patch = [*numbers, 0, 0][:3]
    if operator == "~":
        return major, minor + 1
    if major:
        return (major + 1,)
    return (0, minor + 1) if minor else (0, 0, patch + 1)
