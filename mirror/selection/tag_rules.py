"""The rules with which mirrors select tags of a source. `plan`, `sync` and `verify` apply the same rules.

This module applies the rules that need only the names of tags. `sync/digest_rules.py` applies the other rules:
`min-age`, and `newest` with `by: created`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping

from mirror.oci.digest import Digest
from mirror.oci.referrers import is_attachment_tag
from mirror.selection.patterns import compile_pattern
from mirror.selection.versions import VersionRanges, find_newest_versions, parse_version
from mirror.util.structs import Struct


class TagRules(Struct, frozen=True):
    """The rules with which a mirror selects tags. They apply in the order of the fields from `include` to `newest`.

    literal: select exactly these tags, without listing the repository. digest: select only this manifest. If there is
    also a literal tag, the manifest gets this tag on the targets.
    include, exclude: select the tags that match a pattern of `include` and no pattern of `exclude`. An empty `include`
    matches every tag. semver: select the tags whose version is in any of these version ranges.
    min_age: the time in seconds for which a tag must have had its digest. newest: the number of newest tags to select.
    by_created: order tags by the creation date of the image instead of the version.
    min_tags, max_tags: the minimum and maximum number of selected tags.
    immutable: patterns for tags that are never overwritten. allow_empty: whether a selection without tags is allowed.
    Patterns are regular expressions that match whole tags. Patterns and ranges are valid."""

    literal: tuple[str, ...] | None = None
    digest: Digest | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    semver: tuple[str, ...] = ()
    min_age: float = 0.0
    newest: int | None = None
    by_created: bool = False
    min_tags: int = 0
    max_tags: int | None = None
    immutable: tuple[str, ...] = ()
    allow_empty: bool = False

    def is_immutable(self, tag: str) -> bool:
        """Return whether a tag must never be overwritten on a target."""
        return any(compile_pattern(text).matches(tag) for text in self.immutable)

    @property
    def is_literal(self) -> bool:
        """Whether the selection is known without listing the repository's tags."""
        return self.literal is not None or self.digest is not None

    @property
    def needs_digests(self) -> bool:
        """Whether the selection depends on the digests of tags, not only on their names."""
        return self.min_age > 0 or (self.newest is not None and self.by_created)

    @property
    def needs_versions(self) -> bool:
        """Whether only tags that are versions can be selected."""
        return bool(self.semver) or (self.newest is not None and not self.by_created)

    @property
    def attachments_key(self) -> str:
        """A hash of the rules that select tags of attachments by name; empty if the rules cannot select such a tag."""
        if self.is_literal:
            names = [tag for tag in self.literal or () if is_attachment_tag(tag)]
        elif self.needs_digests or self.newest is not None or self.semver or not self._may_include_attachments:
            return ""
        else:
            names = [*self.include, "", *self.exclude]
        return hashlib.sha256(repr(names).encode()).hexdigest()[:16] if names else ""

    @property
    def _may_include_attachments(self) -> bool:
        """Whether `include` may match a tag of attachments."""
        patterns = map(compile_pattern, self.include)
        return not self.include or any(
            pattern.may_match_prefix(prefix) for pattern in patterns for prefix in ("sha256-", "sha512-")
        )

    def rejecting_rule(self, tag: str) -> str | None:
        """Return the rule that excludes a tag because of its name, or None if there is none.

        The rule is named as in the configuration. Because this method does not know the other tags, it returns `newest`
        only for a tag that is not a version or, if tags are ordered by date, for a tag of an attachment."""
        if self.is_literal:
            return None if tag in (self.literal or ()) else "tags"
        return _NameRules(self).rejecting_rule(tag)


class FirstSeen(Struct, frozen=True):
    """The time at which a run first saw a tag of a source with its current image.

    identity: the digest of the image, or its image id in a v1 registry.
    time: when a run first saw the tag with this image, in seconds since the epoch."""

    identity: str
    time: float


class Selection(Struct, frozen=True):
    """The result of applying tag rules: the selected tags, and the number of tags that each rule excludes.

    selected: each tag once, in the order of the tag list. rejected: the number of tags that each rule excluded."""

    selected: tuple[str, ...]
    rejected: Mapping[str, int]


class SelectionSummary(Struct, frozen=True):
    """A summary of the tags that a mirror selects and rejects, which `mirror plan` prints.

    count: the number of selected references. rejected: the number of tags that each rule rejects. wait_ends: when
    `min-age` selects the first of the tags that it rejects now, in seconds since the epoch; None if no tag waits.
    dates_read: the number of images that were read because their creation dates were not recorded. waiting: the tags
    that `min-age` rejects."""

    count: int
    rejected: Mapping[str, int]
    wait_ends: float | None = None
    dates_read: int = 0
    waiting: tuple[str, ...] = ()


def select(rules: TagRules, tags: Iterable[str]) -> Selection:
    """Apply the rules that need only names to a list of tags.

    Literal tags are always selected, even if `tags` does not contain them, because only resolving a tag shows whether
    it exists. `newest` is applied unless `min_age` or `by_created` must be applied first."""
    if rules.is_literal:
        return Selection(rules.literal or (), {})
    rejected: Counter[str] = Counter()
    names = _NameRules(rules)
    if names.exclude_nothing:
        return Selection(tuple(dict.fromkeys(tags)), rejected)
    selected: dict[str, None] = {}
    for tag in tags:
        why = names.rejecting_rule(tag)
        if why is None:
            selected[tag] = None
        else:
            rejected[why] += 1
    if rules.newest is None or rules.needs_digests or len(selected) <= rules.newest:
        return Selection(tuple(selected), rejected)
    newest = find_newest_versions(selected, rules.newest)
    rejected["newest"] = len(selected) - len(newest)
    return Selection(tuple(tag for tag in selected if tag in newest), rejected)


class _NameRules:
    """The compiled rules of a mirror that exclude tags because of their names."""

    def __init__(self, rules: TagRules) -> None:
        self._include = [compile_pattern(text).matches for text in rules.include]
        self._exclude = [(f"exclude {text}", compile_pattern(text).matches) for text in rules.exclude]
        self._ranges = VersionRanges(rules.semver) if rules.semver else None
        self._needs_versions = rules.needs_versions
        # Attachments are copied with their images. As they are newer, `newest` would select them instead of the images.
        self._needs_images = rules.newest is not None and rules.by_created
        self.exclude_nothing = not (self._include or self._exclude or self._needs_versions or self._needs_images)

    def rejecting_rule(self, tag: str) -> str | None:
        """Return the rule that excludes a tag, as named in the configuration, or None if there is none."""
        if self._include and not any(match(tag) for match in self._include):
            return "include"
        for rule, match in self._exclude:
            if match(tag):
                return rule
        if self._needs_images and is_attachment_tag(tag):
            return "newest (attachment)"
        return self._rejecting_version_rule(tag) if self._needs_versions else None

    def _rejecting_version_rule(self, tag: str) -> str | None:
        """Return `semver` or `newest` if this rule excludes a tag, otherwise None.

        If the reason is not that the version is outside of the range, the result contains the reason in parentheses."""
        version = parse_version(tag)
        if self._ranges is None:
            return "newest (no version)" if version is None else None
        if version is None:
            return "semver (no version)"
        if self._ranges.matches(version):
            return None
        only_suffix = version.is_prerelease and self._ranges.matches(version.without_suffix)
        return "semver (pre-release)" if only_suffix else "semver"
