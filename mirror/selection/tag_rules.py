"""Rules that select tags of a source. `plan`, `sync` and `verify` all use them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from mirror.oci.digest import Digest
from mirror.selection.patterns import compile_pattern
from mirror.util.structs import Struct


class TagRules(Struct, frozen=True):
    """The tags that a mirror selects.

    literal: only these tags, without a listing. digest: only this manifest; the literal tag, if any, names it on
    targets.
    include, exclude: tags that match one of `include` (empty: every tag) and none of `exclude`.
    immutable: tags that are never overwritten. allow_empty: it is not an error if no tag is selected.
    Patterns are regular expressions that match whole tags; `compile_pattern` has checked them."""

    literal: tuple[str, ...] | None = None
    digest: Digest | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    immutable: tuple[str, ...] = ()
    allow_empty: bool = False

    def is_immutable(self, tag: str) -> bool:
        """Return whether `tag` is never overwritten on a target."""
        return any(compile_pattern(text).matches(tag) for text in self.immutable)

    @property
    def is_literal(self) -> bool:
        """Whether the selection needs no listing."""
        return self.literal is not None or self.digest is not None

    def rejected_by(self, tag: str) -> str | None:
        """Return the rule that excludes `tag`, as the configuration names it; None if the tag is selected."""
        if self.is_literal:
            return None if tag in (self.literal or ()) else "tags"
        if self.include and not any(compile_pattern(text).matches(tag) for text in self.include):
            return "include"
        return next((f"exclude {text}" for text in self.exclude if compile_pattern(text).matches(tag)), None)


class Selection(Struct, frozen=True):
    """The result of `select`.

    selected: in the order of the list, each tag once. rejected: the number of tags that each rule excluded."""

    selected: tuple[str, ...]
    rejected: Mapping[str, int]


def select(rules: TagRules, tags: Iterable[str]) -> Selection:
    """Select tags from a list. Literal rules select the tags that they name, even if they are not listed.

    Whether such a tag exists is found out when it is resolved."""
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


def overlap(one: TagRules, other: TagRules) -> str | None:
    """Return a tag that both rules may select, or `*` if that depends on the tags; None if they cannot share a tag."""
    if not (_names_tags(one) and _names_tags(other)):
        return None
    if not one.is_literal and not other.is_literal:
        return "*"
    literal, rules = (one, other) if one.is_literal else (other, one)
    return next((tag for tag in literal.literal or () if rules.rejected_by(tag) is None), None)


def _names_tags(rules: TagRules) -> bool:
    """Return whether the rules may write tags: a digest alone writes none."""
    return rules.literal is not None or rules.digest is None
