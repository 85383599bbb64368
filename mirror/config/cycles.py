"""Mirrors that read what mirrors write, wildcards included: circles, and wildcards that would grow with each run."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence

from mirror.config.mirrors import Draft
from mirror.config.problems import KeyPath
from mirror.config.tree import Document
from mirror.oci.reference import Repository
from mirror.selection.locations import MATCHED
from mirror.selection.tag_rules import overlap
from mirror.util.structs import Struct

_MOST_STEPS = 1000  # names that are followed from one target


class _Written(Struct, frozen=True):
    """A repository that a mirror writes. after: None: `before` is its whole path; else the path is `before`, what a
    `*` matched, `after`."""

    host: str
    before: str
    after: str | None = None

    @classmethod
    def of(cls, target: Repository) -> _Written:
        before, matched, after = target.path.partition(MATCHED)
        return cls(target.host, before, after if matched else None)


class Readers:
    """Which mirrors read a repository."""

    def __init__(self, drafts: Iterable[Draft]) -> None:
        self._literal: defaultdict[Repository, list[Draft]] = defaultdict(list)
        self.wildcards: defaultdict[str, list[Draft]] = defaultdict(list)
        for draft in drafts:
            if draft.mirror.wildcard:
                self.wildcards[draft.mirror.source.host].append(draft)
            else:
                self._literal[draft.mirror.source].append(draft)

    def of(self, target: Repository) -> list[Draft]:
        """The mirrors that surely read a target."""
        return list(self.of_written(_Written.of(target)))

    def of_written(self, written: _Written) -> Iterator[Draft]:
        if written.after is None:
            yield from self._literal.get(Repository(written.host, written.before), ())
        yield from (draft for draft in self.wildcards.get(written.host, ()) if _reads(draft, written))


def check_growth(document: Document, drafts: Sequence[Draft]) -> set[KeyPath]:
    """Note wildcards whose target lies in their own source, and circles with wildcards in them: with each run there
    would be more. -> the mirrors that are part of a circle."""
    readers = Readers(drafts)
    if not readers.wildcards:
        return set()
    reported: set[frozenset[KeyPath]] = set()
    for draft in drafts:
        for target, path in zip(draft.mirror.targets, draft.target_paths, strict=True):
            circle = _way_back(draft, target, readers)
            members = frozenset(one.path for one in circle)
            if not circle or members in reported or not any(one.mirror.wildcard for one in circle):
                continue
            if len(circle) == 1:
                document.add(path, _own_source(draft, target))
                continue
            reported.add(members)
            names = " → ".join(one.mirror.path for one in [*circle, draft])
            document.add((*draft.path, "source"), f"mirrors write in a circle: {names}; break it at one of them")
    return {path for members in reported for path in members}


def _way_back(start: Draft, target: Repository, readers: Readers) -> list[Draft]:
    """The mirrors over which what `start` writes to `target` comes to be read by `start` again; empty: by none."""
    first = _Written.of(target)
    if (start.mirror.wildcard) != (first.after is not None):
        return []  # which is another problem
    todo = deque([(first, [start])])
    seen = {first}
    while todo:
        written, way = todo.popleft()
        for reader in readers.of_written(written):
            if overlap(way[-1].mirror.tags, reader.mirror.tags) is None:
                continue
            if reader is start:
                return way
            for following in _rewritten(reader, written):
                if following not in seen and len(seen) < _MOST_STEPS and reader not in way:
                    seen.add(following)
                    todo.append((following, [*way, reader]))
    return []


def _prefix(draft: Draft) -> str:
    """What the path of every repository begins with that a wildcard reads."""
    path = draft.mirror.source.path
    return f"{path}/" if path else ""


def _reads(wildcard: Draft, written: _Written) -> bool:
    prefix = _prefix(wildcard)
    return written.before.startswith(prefix) and (written.after is not None or written.before != prefix)


def _rewritten(reader: Draft, written: _Written) -> Iterator[_Written]:
    """Where a reader of `written` brings it."""
    for target in map(_Written.of, reader.mirror.targets):
        if not reader.mirror.wildcard and target.after is None:
            yield target
        elif reader.mirror.wildcard and target.after is not None:
            matched = written.before.removeprefix(_prefix(reader))
            if written.after is None:
                yield _Written(target.host, target.before + matched + target.after)
            else:
                yield _Written(target.host, target.before + matched, written.after + target.after)


def _own_source(draft: Draft, target: Repository) -> str:
    source = draft.mirror.source
    whole = Repository(source.host, f"{_prefix(draft)}*")
    if target.path == f"{_prefix(draft)}{MATCHED}":
        return f"would mirror onto itself: {target} is the source, too; give another repository"
    elsewhere = "another registry" if not source.path else f"a target that is not below {source}/"
    return (
        f"lies within its own source {whole}: each run would copy what the last one wrote, one level deeper; "
        f"give {elsewhere}"
    )
