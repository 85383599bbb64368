"""The result of a conversion: mirrors, registry settings, and notes about differences between the old and new file."""

from __future__ import annotations

from collections.abc import Iterable

from mirror.migration.peer_file import Note
from mirror.migration.tag_patterns import pattern_for_text
from mirror.migration.tag_selection import EVERY_TAG, TagSelection
from mirror.selection.locations import MATCHED
from mirror.selection.repository_rules import RepositoryRules
from mirror.util.structs import Struct, field, replace


class ConvertedMirror(Struct, frozen=True):
    """An entry of `mirrors` in the new file.

    line: the line of the entry in the old file, counted from 1. repositories: for a wildcard source, the patterns for
    `repositories.include` and `repositories.exclude`. options: other keys and their values. notes: the notes that are
    written as comments before the entry."""

    line: int
    source: str
    targets: tuple[str, ...]
    tags: TagSelection = EVERY_TAG
    repositories: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    options: tuple[tuple[str, object], ...] = ()
    notes: tuple[Note, ...] = ()

    def as_keys(self) -> dict[str, object]:
        """Return the keys of the entry and their values."""
        keys: dict[str, object] = {"source": self.source, "targets": list(self.targets)}
        include, exclude = self.repositories
        rules = {name: list(one) for name, one in (("include", include), ("exclude", exclude)) if one}
        tags = self.tags.as_key()
        return keys | ({"repositories": rules} if rules else {}) | ({"tags": tags} if tags else {}) | dict(self.options)


class Conversion(Struct):
    """The content of the new file, before it is written.

    top: top-level keys except `registries` and `mirrors`. registries: the settings of registries, by host. notes: the
    notes about the whole file, and about parts of the old file that were not converted."""

    mirrors: list[ConvertedMirror] = field(default_factory=list)
    registries: dict[str, dict[str, object]] = field(default_factory=dict)
    top: dict[str, object] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def all_notes(self) -> list[Note]:
        """Return all notes, each once, in the order of the old file."""
        return sorted({*self.notes, *(note for mirror in self.mirrors for note in mirror.notes)})

    @property
    def has_losses(self) -> bool:
        """Whether the other tool copies images that a sync with the new file does not copy."""
        return any(note.lost for note in self.all_notes())


def merge_mirrors(mirrors: Iterable[ConvertedMirror], notes: list[Note]) -> list[ConvertedMirror]:
    """Merge entries that differ only in their tags or only in their targets.

    Each entry in `mirrors` has one target. Entries are merged because two mirrors must not write the same tag, and
    because a mirror with several targets reads its source only once. If two entries for the same source and target
    cannot be merged, the second entry is left out, and a note is added to `notes`."""
    by_target: dict[object, ConvertedMirror] = {}
    for mirror in mirrors:
        own_tag = mirror.tags if _has_own_tag(mirror) else None
        key = (mirror.source, mirror.targets, mirror.repositories, str(mirror.options), own_tag)
        earlier = by_target.setdefault(key, mirror)
        merged = mirror if earlier is mirror else _unite(earlier, mirror, notes)
        by_target[key] = merged or earlier
    by_images: dict[object, ConvertedMirror] = {}
    for mirror in _separate_wildcards(list(by_target.values()), notes):
        images = (mirror.source, mirror.tags.without_order(), mirror.repositories, str(mirror.options))
        earlier = by_images.setdefault(images, mirror)
        if earlier is not mirror:
            targets = tuple(dict.fromkeys(earlier.targets + mirror.targets))
            by_images[images] = replace(earlier, targets=targets, notes=(*earlier.notes, *mirror.notes))
    return list(by_images.values())


def _has_own_tag(mirror: ConvertedMirror) -> bool:
    """Return whether the target of an entry ends with a tag, so that the entry can copy only one image."""
    return any(":" in target.rpartition("/")[2] for target in mirror.targets)


def _unite(one: ConvertedMirror, other: ConvertedMirror, notes: list[Note]) -> ConvertedMirror | None:
    """Combine two entries into one with the tags of both. If this is impossible, add a note and return None."""
    tags = one.tags.union(other.tags)
    if tags is not None and str(one.options) == str(other.options):
        return replace(one, tags=tags, notes=(*one.notes, *other.notes))
    what = f"left out: the entry on line {one.line} writes to the same repository, and the two cannot be combined; "
    what += "write one list of patterns and the same settings for both, or use another target"
    notes += [*other.notes, Note(other.line, other.source, what, lost=True)]
    return None


def _separate_wildcards(mirrors: list[ConvertedMirror], notes: list[Note]) -> list[ConvertedMirror]:
    """Change entries so that no wildcard copies a repository that another entry copies to the same target.

    The repository is excluded from the wildcard, and the other entry selects the tags of both."""
    wildcards = [at for at, mirror in enumerate(mirrors) if mirror.source.endswith("/*")]
    for at, mirror in enumerate(mirrors):
        for wildcard_at in wildcards:
            wildcard = mirrors[wildcard_at]
            prefix = wildcard.source.removesuffix("*")
            name = mirror.source.removeprefix(prefix)
            target = wildcard.targets[0].replace(MATCHED, name)
            include, exclude = wildcard.repositories
            is_shared = mirror.source == f"{prefix}{name}" and mirror.targets == (target,) and at not in wildcards
            if is_shared and RepositoryRules(include, exclude).selects(name):
                mirrors[at] = _unite(mirrors[at], replace(wildcard, notes=()), notes) or mirrors[at]
                excluded = (include, (*exclude, pattern_for_text(name)))
                mirrors[wildcard_at] = replace(wildcard, repositories=excluded)
    return mirrors
