"""Which tags of a source are selected. Every code path uses these rules, so that a plan says what a sync does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from mirror.oci.digest import Digest
from mirror.selection.patterns import compile_pattern
from mirror.util.structs import Struct


class TagRules(Struct, frozen=True):
    """What a mirror takes from its source.

    literal: these tags and no listing; digest: this manifest, named on the target by the literal tag if there is
    one; otherwise the tags that match one of `include` (none: every tag) and none of `exclude`. immutable: tags that
    are never overwritten. allow_empty: rejecting every tag is no error. Patterns are regular expressions that match
    whole tags and have been compiled once (`compile_pattern`)."""

    literal: tuple[str, ...] | None = None
    digest: Digest | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    immutable: tuple[str, ...] = ()
    allow_empty: bool = False

    def is_immutable(self, tag: str) -> bool:
        """Whether `tag`, once it is on a target, stays what it is."""
        return any(compile_pattern(text).matches(tag) for text in self.immutable)

    @property
    def is_literal(self) -> bool:
        """Whether all is known without a listing."""
        return self.literal is not None or self.digest is not None

    def rejected_by(self, tag: str) -> str | None:
        """The rule that leaves `tag` out, in the words of the configuration; None: it is selected."""
        if self.is_literal:
            return None if tag in (self.literal or ()) else "tags"
        if self.include and not any(compile_pattern(text).matches(tag) for text in self.include):
            return "include"
        return next((f"exclude {text}" for text in self.exclude if compile_pattern(text).matches(tag)), None)


class Selection(Struct, frozen=True):
    """selected: in the order in which they came, each once. rejected: how many tags each rule left out."""

    selected: tuple[str, ...]
    rejected: Mapping[str, int]


def select(rules: TagRules, tags: Iterable[str]) -> Selection:
    """Those of `tags` that `rules` take. Literal rules take what they name, listed or not: whether it is there
    shows when it is asked for."""
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
    """A tag that both may take, or `*` where patterns leave it open; None: they surely share none."""
    if not (_names_tags(one) and _names_tags(other)):
        return None
    if not one.is_literal and not other.is_literal:
        return "*"
    literal, rules = (one, other) if one.is_literal else (other, one)
    return next((tag for tag in literal.literal or () if rules.rejected_by(tag) is None), None)


def _names_tags(rules: TagRules) -> bool:
    return rules.literal is not None or rules.digest is None
