"""Converts the key `tags` of a mapping of dregsy: tags, digests, and the filters `semver:`, `regex:` and `keep:`."""

from __future__ import annotations

import re

from mirror.errors import ConfigError, Refused, printable
from mirror.migration import blang
from mirror.migration.peer_file import ToolMapping
from mirror.migration.tag_patterns import complete_anchors, pattern_for_search
from mirror.migration.tag_selection import EVERY_TAG, TagSelection
from mirror.migration.version_patterns import version_patterns
from mirror.oci.digest import Digest
from mirror.oci.reference import is_tag, tag_hint
from mirror.util.structs import replace

_LATEST = re.compile(r"latest\s+([1-9][0-9]{0,8})")
_COMBINED = "write one list of patterns under `tags: {include: [...]}` of the new file"


def select_tags(peer: ToolMapping) -> tuple[TagSelection | None, list[str]]:
    """Convert the key `tags`. Return the selection of tags, and the selected digests in the form `[:TAG]@DIGEST`.

    If the key is missing or empty, all tags are selected. If it contains only digests, the selection of tags is None.
    Raises NotConvertible if the rules of `mirror` cannot express the selection."""
    literal: list[str] = []
    pinned: list[str] = []
    filters: list[TagSelection] = []
    keep: list[str] = []
    for text in peer.texts("tags"):
        kind, colon, value = text.partition(":")
        if colon and kind in ("semver", "regex", "keep", "js"):
            if kind == "keep":
                keep.append(value.strip())
            else:
                filters.append(_convert_filter(peer, kind, value))
        elif "sha256:" in text:
            pinned.append(_parse_digest(peer, text))
        elif is_tag(text):
            literal.append(text)
        else:
            peer.reject("tags", f"left out: not a tag: {printable(text, 80)}; {tag_hint(text)}")
    if pinned and not (literal or filters):
        return None, pinned
    # Filters without exclusions are collected in one selection, so that combining many of them takes linear time.
    include = tuple(pattern for one in filters if not one.every for pattern in one.include)
    filters = [*([TagSelection(include=include)] if include else []), *(one for one in filters if one.every)]
    found = [*filters, *([TagSelection(literal=tuple(dict.fromkeys(literal)))] if literal else [])] or [EVERY_TAG]
    return _apply_keep(peer, found, keep), pinned


def _convert_filter(peer: ToolMapping, kind: str, value: str) -> TagSelection:
    """Convert a filter to a selection of tags. kind: `semver`, `regex` or `js`. Raises NotConvertible."""
    if kind == "js":
        peer.reject("tags", f"left out: JavaScript cannot be converted; {_COMBINED}")
    try:
        if kind == "regex":
            inverted, pattern = _parse_expression(value)
            return TagSelection(every=True, exclude=(pattern,)) if inverted else TagSelection(include=(pattern,))
        patterns = version_patterns(blang.parse_range(value), blang.TAG_FORM)
    except ConfigError as error:
        peer.reject("tags", f"left out: {error}")
    what = f"the patterns select exactly the tags of the range {printable(value.strip(), 100)}, with pre-releases"
    peer.note("tags", f"{what}. The key `semver` takes ranges of npm, which select releases: see docs/migration.md")
    return TagSelection(include=tuple(patterns))


def _parse_expression(value: str) -> tuple[bool, str]:
    """Return whether a leading `!` inverts a regular expression, and the pattern for it. Raises ConfigError."""
    text = value.strip()
    return text.startswith("!"), pattern_for_search(complete_anchors(text.removeprefix("!")))


def _parse_digest(peer: ToolMapping, text: str) -> str:
    """Convert an item of `tags` with a digest to the form `[:TAG]@DIGEST`. Raises NotConvertible."""
    tag, _, digest = text.rpartition("@")
    try:
        parsed = Digest.parse(digest)
    except Refused as error:
        peer.reject("tags", f"left out: {error}")
    return f"{f':{tag}' if tag else ''}@{parsed}"


def _apply_keep(peer: ToolMapping, found: list[TagSelection], keep: list[str]) -> TagSelection:
    """Return the union of selections, restricted by the filters `keep:` of dregsy. Raises NotConvertible."""
    newest: int | None = None
    exclude: list[str] = []
    for value in keep:
        latest = _LATEST.fullmatch(value)
        if latest:
            newest = int(latest[1])
            continue
        try:
            inverted, pattern = _parse_expression(value)
        except ConfigError as error:
            peer.reject("tags", f"left out: {error}")
        if inverted:
            exclude.append(pattern)
        elif all(one.every and not one.exclude for one in found):
            found = [TagSelection(include=(pattern,))]
        elif any(one.every or one.include for one in found):
            peer.reject("tags", f"left out: no rule can require a tag to match two patterns; {_COMBINED}")
    # `keep:` with an expression does not apply to tags that are listed by name.
    restricted = [one if one.literal else replace(one, exclude=(*one.exclude, *exclude)) for one in found]
    united: TagSelection | None = restricted[0]
    for one in restricted[1:]:
        united = united.union(one) if united is not None else None
    if united is None:
        what = "left out: the filters exclude different tags, but `tags` has only one list `exclude`"
        peer.reject("tags", f"{what}; {_COMBINED}")
    if newest is None:
        return united
    peer.note("tags", "`newest` selects only tags that are versions; dregsy keeps all other tags", lost=True)
    return replace(united, newest=newest)
