"""The rules by which mirrors select tags of a source. `plan`, `sync` and `verify` apply the same rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from mirror.oci.digest import Digest
from mirror.selection.patterns import compile_pattern, rejecting_rule
from mirror.util.structs import Struct


class TagRules(Struct, frozen=True):
    """The rules by which a mirror selects tags.

    literal: select exactly these tags, without listing the repository. digest: select only this manifest. If there is
    also a literal tag, the manifest gets this tag on the targets.
    include, exclude: select the tags that match a pattern of `include` and no pattern of `exclude`. If `include` is
    empty, it matches every tag.
    immutable: patterns of tags that are never overwritten. allow_empty: whether a selection without tags is allowed.
    Patterns are regular expressions that match whole tags; `compile_pattern` has checked them."""

    literal: tuple[str, ...] | None = None
    digest: Digest | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    immutable: tuple[str, ...] = ()
    allow_empty: bool = False

    def is_immutable(self, tag: str) -> bool:
        """Return whether `tag` must never be overwritten on a target."""
        return any(compile_pattern(text).matches(tag) for text in self.immutable)

    @property
    def is_literal(self) -> bool:
        """Whether the selection is known without listing the repository's tags."""
        return self.literal is not None or self.digest is not None

    def rejecting_rule(self, tag: str) -> str | None:
        """Return the rule that excludes `tag`, as named in the configuration, or None if the tag is selected."""
        if self.is_literal:
            return None if tag in (self.literal or ()) else "tags"
        return rejecting_rule(tag, self.include, self.exclude)


class Selection(Struct, frozen=True):
    """The tags that the rules select, and how many tags each rule excludes.

    selected: each tag once, in the order of the tag list. rejected: the number of tags that each rule excluded."""

    selected: tuple[str, ...]
    rejected: Mapping[str, int]


def select(rules: TagRules, tags: Iterable[str]) -> Selection:
    """Apply the rules to a list of tags. Literal tags are always selected, even if `tags` does not contain them.

    Whether a literal tag exists is not known until it is resolved."""
    if rules.is_literal:
        return Selection(rules.literal or (), {})
    rejected: Counter[str] = Counter()
    selected: dict[str, None] = {}
    if not rules.include and not rules.exclude:
        return Selection(tuple(dict.fromkeys(tags)), rejected)
    include = [compile_pattern(text).matches for text in rules.include]
    exclude = [(f"exclude {text}", compile_pattern(text).matches) for text in rules.exclude]
    for tag in tags:
        if include and not any(match(tag) for match in include):
            rejected["include"] += 1
            continue
        why = next((rule for rule, match in exclude if match(tag)), None)
        if why is None:
            selected[tag] = None
        else:
            rejected[why] += 1
    return Selection(tuple(selected), rejected)
