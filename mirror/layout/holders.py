"""Which repositories of a layout have a manifest: as a root, or below one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mirror.errors import NotFound, Refused
from mirror.layout.index import Root
from mirror.limits import Work
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest


def holders(
    digest: Digest, roots: Iterable[Root], read: Callable[[Digest], Manifest], work: Work
) -> tuple[set[str | None], set[str | None]]:
    """-> the repositories in which `digest` is a root, and those in which an index refers to it.

    None: a root of no repository in particular. read: reads a manifest; what is missing or damaged leads nowhere.
    Raises Cancelled, LocalError."""
    children: dict[Digest, tuple[Digest, ...]] = {}
    named: set[str | None] = set()
    below: set[str | None] = set()
    todo = list(dict.fromkeys((root.repository, root.descriptor.digest) for root in roots))
    named.update(repository for repository, root in todo if root == digest)
    seen = set(todo)
    while todo:
        work.stop.check()
        repository, parent = todo.pop()
        if parent not in children:
            children[parent] = _children(parent, read)
        for child in children[parent]:
            if child == digest:
                below.add(repository)
            if (repository, child) not in seen:
                seen.add((repository, child))
                todo.append((repository, child))
    return named, below


def _children(digest: Digest, read: Callable[[Digest], Manifest]) -> tuple[Digest, ...]:
    try:
        return tuple(child.digest for child in read(digest).children)
    except (NotFound, Refused):
        return ()
