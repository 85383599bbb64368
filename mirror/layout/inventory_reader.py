"""What a store has, found out by reading its manifests and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from mirror.errors import MirrorError, NotFound
from mirror.layout.inventory import Described, Holdings, Inventory
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.store import Source, Version
from mirror.util.cancellation import Work
from mirror.util.structs import Struct, field

READERS = 8  # manifests that are read at a time


class Survey(Struct):
    """inventory: of what was read; problems: what could not be; below: of each manifest, all under it with sizes."""

    inventory: Inventory = field(default_factory=Inventory)
    problems: list[MirrorError] = field(default_factory=list)
    below: dict[Digest, dict[Digest, int]] = field(default_factory=dict)

    def size(self, root: Digest) -> int:
        """Bytes of everything under a root, itself included, each once."""
        found: dict[Digest, int] = {}
        todo = [root]
        while todo:
            digest = todo.pop()
            for part, size in self.below.get(digest, {}).items():
                if part not in found:
                    found[part] = size
                    todo.append(part)
        described = self.inventory.manifests.get(root)
        return sum(found.values()) + ((described.size or 0) if described is not None else 0)


def survey(source: Source, repositories: Iterable[str], work: Work) -> Survey:
    """Read all tags of `repositories`, and all manifests under them. Raises what concerns all of them, Cancelled."""
    found = Survey()
    with ThreadPoolExecutor(READERS, thread_name_prefix="survey") as pool:
        for name in repositories:
            _Repository(source, name, found, pool, work).read()
    found.inventory.settle()
    return found


class _Repository:
    def __init__(self, source: Source, name: str, found: Survey, pool: ThreadPoolExecutor, work: Work) -> None:
        self._source, self._name, self._found, self._pool, self._work = source, name, found, pool, work
        self._holdings = Holdings()

    def read(self) -> None:
        try:
            tags = list(self._tags())
        except NotFound:
            return
        self._found.inventory.repositories[self._name] = self._holdings
        for tag, version in zip(tags, self._source.resolve(self._name, tags, self._work), strict=True):
            if isinstance(version, Version) and version.digest is not None:
                self._holdings.tags[tag] = version.digest
            elif isinstance(version, MirrorError):
                self._found.problems.append(version)
        roots = dict.fromkeys(self._holdings.tags.values())
        lost = self._walk(list(roots))
        # Who needs what a broken root lists shall not take it for being there.
        self._holdings.tags = {tag: root for tag, root in self._holdings.tags.items() if root not in lost}

    def _tags(self) -> Iterator[str]:
        for tag in self._source.tags(self._name, self._work):
            if isinstance(tag, str):
                yield tag
            else:
                self._found.problems.append(tag)

    def _walk(self, level: Sequence[Digest]) -> set[Digest]:
        """-> those of the first level that could not be read."""
        lost: set[Digest] | None = None
        seen: set[Digest] = set()
        while level:
            seen.update(level)
            read = dict(zip(level, self._pool.map(self._manifest, level), strict=True))
            bad = {digest for digest, one in read.items() if isinstance(one, MirrorError)}
            for one in read.values():
                if isinstance(one, Manifest):
                    self._add(one)
                elif lost is None or not isinstance(one, NotFound):  # an index may leave children out
                    self._found.problems.append(one)
            lost = bad if lost is None else lost
            below = dict.fromkeys(
                child.digest for one in read.values() if isinstance(one, Manifest) for child in one.children
            )
            level = [digest for digest in below if digest not in seen]
        return lost or set()

    def _manifest(self, digest: Digest) -> Manifest | MirrorError:
        self._work.stop.check()
        try:
            return self._source.manifest(self._name, digest, self._work)
        except MirrorError as error:
            return error

    def _add(self, one: Manifest) -> None:
        inventory, holdings = self._found.inventory, self._holdings
        inventory.manifests[one.digest] = Described(one.media_type, one.size)
        holdings.manifests.add(one.digest)
        parts = self._found.below.setdefault(one.digest, {})
        parts.update({child.digest: child.size or 0 for child in one.children})
        for blob in one.blobs:
            if not blob.foreign and blob.size is not None:
                inventory.blobs[blob.digest] = parts[blob.digest] = blob.size
                holdings.blobs.add(blob.digest)
