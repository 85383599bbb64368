"""The tags that an entry of another tool selects. Selections can be united, because only one mirror may write a tag."""

from __future__ import annotations

from mirror.migration.tag_patterns import pattern_for_text
from mirror.selection.patterns import compile_pattern
from mirror.util.structs import Struct, replace


class TagSelection(Struct, frozen=True):
    """A selection of tags, by name or by pattern.

    every: whether all tags are selected. literal: the names of selected tags. include: patterns for selected tags.
    exclude: patterns for tags that are left out. newest: the number of newest tags to copy; None for all tags."""

    every: bool = False
    literal: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    newest: int | None = None

    def union(self, other: TagSelection) -> TagSelection | None:
        """Return the union of two selections, or None if the key `tags` cannot express it."""
        if other == self or (self.every and not self.exclude):
            return self
        if other.every and not other.exclude:
            return other
        if self.newest is not None or other.newest is not None:
            return None
        if self.exclude != other.exclude and not (self._excludes_none_of(other) or other._excludes_none_of(self)):
            return None
        exclude = self.exclude or other.exclude
        if self.every or other.every:
            return TagSelection(every=True, exclude=exclude)
        return TagSelection(
            literal=_merge(self.literal, other.literal), include=_merge(self.include, other.include), exclude=exclude
        )

    def as_key(self) -> object:
        """Return the value of the key `tags`, or None if all tags are selected."""
        if self.literal and not (self.include or self.exclude or self.newest or self.every):
            return list(self.literal)
        include = [] if self.every else [*map(pattern_for_text, self.literal), *self.include]
        rules = {"include": include, "exclude": list(self.exclude), "newest": self.newest}
        return {key: value for key, value in rules.items() if value} or None

    def without_order(self) -> TagSelection:
        """Return the selection with its names and patterns in alphabetical order, for comparison."""
        names, include, exclude = (tuple(sorted(set(one))) for one in (self.literal, self.include, self.exclude))
        return replace(self, literal=names, include=include, exclude=exclude)

    def _excludes_none_of(self, other: TagSelection) -> bool:
        """Return whether `other` consists of names of tags, none of which matches a pattern in `exclude`."""
        is_literal = not (other.every or other.include or other.exclude)
        patterns = [compile_pattern(text) for text in self.exclude]
        return is_literal and not any(pattern.matches(tag) for pattern in patterns for tag in other.literal)


EVERY_TAG = TagSelection(every=True)


def _merge(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    """Return the items of two tuples, each item once."""
    return tuple(dict.fromkeys(one + other))
