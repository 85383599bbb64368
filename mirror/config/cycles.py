"""Checks for cycles of mirrors that include wildcards, and that would therefore create repositories with each run."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence

from mirror.config.mirrors import Draft
from mirror.config.problems import KeyPath
from mirror.config.tree import Document
from mirror.oci.reference import Repository
from mirror.selection.locations import MATCHED
from mirror.selection.tag_templates import KEEP_TAG, TagTemplate, common_tag
from mirror.util.structs import Struct, replace

_MOST_STEPS = 1000  # the maximum number of paths that are followed from one target


class _WrittenPath(Struct, frozen=True):
    """A repository path to which a mirror writes, or a pattern for all such paths of a wildcard mirror.

    host: the host of the repository. If `after` is None, `before` is the whole path. Otherwise, a path consists of
    `before`, the text that the `*` in the source matched, and `after`. tags: the tags of images in the repository."""

    host: str
    before: str
    after: str | None = None
    tags: TagTemplate = KEEP_TAG

    @classmethod
    def from_target(cls, target: Repository, tags: TagTemplate = KEEP_TAG) -> _WrittenPath:
        """Return the path or the pattern for a target. It is a pattern if the target contains `{repository}`."""
        before, matched, after = target.path.partition(MATCHED)
        return cls(target.host, before, after if matched else None, tags)


class Readers:
    """An index of mirrors by the repositories from which they read."""

    def __init__(self, drafts: Iterable[Draft]) -> None:
        self._literal: defaultdict[Repository, list[Draft]] = defaultdict(list)
        self.wildcards: defaultdict[str, list[Draft]] = defaultdict(list)
        for draft in drafts:
            if draft.mirror.wildcard:
                self.wildcards[draft.mirror.source.host].append(draft)
            else:
                self._literal[draft.mirror.source].append(draft)

    def readers_of(self, target: Repository) -> list[Draft]:
        """Return the mirrors that read all repositories of a target, whose path may contain `{repository}`."""
        return list(self.readers_of_path(_WrittenPath.from_target(target)))

    def readers_of_path(self, written: _WrittenPath) -> Iterator[Draft]:
        """Yield the mirrors that read the repositories at a path to which another mirror writes."""
        if written.after is None:
            yield from self._literal.get(Repository(written.host, written.before), ())
        yield from (draft for draft in self.wildcards.get(written.host, ()) if _can_read(draft, written))


def check_wildcard_cycles(document: Document, drafts: Sequence[Draft]) -> set[KeyPath]:
    """Report mirrors that would create additional repositories with each run.

    These are wildcard mirrors with a target inside their own source, and mirrors in a cycle that includes a wildcard.
    Return the key paths of all mirrors in the reported cycles of two or more mirrors."""
    readers = Readers(drafts)
    if not readers.wildcards:
        return set()
    reported: set[frozenset[KeyPath]] = set()
    for draft in drafts:
        for target, template, path in draft.targets():
            cycle = _find_cycle(draft, _WrittenPath.from_target(target, template), readers)
            members = frozenset(one.path for one in cycle)
            if not cycle or members in reported or not any(one.mirror.wildcard for one in cycle):
                continue
            if len(cycle) == 1:
                document.add(path, _own_source_message(draft, target))
                continue
            reported.add(members)
            names = " → ".join(one.mirror.path for one in [*cycle, draft])
            document.add((*draft.path, "source"), f"mirrors form a cycle: {names}; remove one of them")
    return {path for members in reported for path in members}


def _find_cycle(start: Draft, first: _WrittenPath, readers: Readers) -> list[Draft]:
    """Return the mirrors of a cycle that begins and ends at the source of `start`, or an empty list.

    first: the path through which the cycle leads: a target of `start`."""
    if (start.mirror.wildcard) != (first.after is not None):
        return []  # the modules `cross_checks` and `mirrors` report this problem
    todo = deque([(first, [start])])
    seen = {first}
    while todo:
        written, chain = todo.popleft()
        for reader in readers.readers_of_path(written):
            if common_tag(chain[-1].mirror.tags, reader.mirror.tags, written.tags) is None:
                continue
            if reader is start:
                return chain
            for following in _copied_paths(reader, written):
                if following not in seen and len(seen) < _MOST_STEPS and reader not in chain:
                    seen.add(following)
                    todo.append((following, [*chain, reader]))
    return []


def _prefix(draft: Draft) -> str:
    """Return the path prefix of the repositories that the wildcard source of a mirror matches."""
    path = draft.mirror.source.path
    return f"{path}/" if path else ""


def _can_read(wildcard: Draft, written: _WrittenPath) -> bool:
    """Return whether the source of a wildcard mirror may select repositories at a path that a mirror writes."""
    prefix, rules = _prefix(wildcard), wildcard.mirror.repositories
    if not written.before.startswith(prefix):
        return False
    matched = written.before.removeprefix(prefix)
    if written.after is None:
        return bool(matched) and rules.selects(matched)
    return rules.may_select(matched, written.after)


def _copied_paths(reader: Draft, written: _WrittenPath) -> Iterator[_WrittenPath]:
    """Yield the target paths to which the mirror `reader` copies the repositories at the source path `written`."""
    for target in map(_WrittenPath.from_target, reader.mirror.targets, reader.mirror.tag_templates):
        if not reader.mirror.wildcard and target.after is None:
            yield target
        elif reader.mirror.wildcard and target.after is not None:
            matched = written.before.removeprefix(_prefix(reader))
            if written.after is None:
                yield replace(target, before=target.before + matched + target.after, after=None)
            else:
                yield replace(target, before=target.before + matched, after=written.after + target.after)


def _own_source_message(draft: Draft, target: Repository) -> str:
    """Return the message for a wildcard mirror whose target is inside its own source."""
    source = draft.mirror.source
    whole = Repository(source.host, f"{_prefix(draft)}*")
    if target.path == f"{_prefix(draft)}{MATCHED}":
        return f"would mirror onto itself: {target} is also the source; use another repository"
    elsewhere = "another registry" if not source.path else f"a target that is not below {source}/"
    before, _, after = target.path.removeprefix(_prefix(draft)).replace(".", r"\.").partition(MATCHED)
    pattern = f"{before}.*" if before else f".*{after}"
    return (
        f"the target is inside its own source {whole}: each run would copy what the last run wrote, one level deeper; "
        f"use {elsewhere}, or add `repositories: {{exclude: ['{pattern}']}}`"
    )
