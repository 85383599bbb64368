"""Builds the inventory of a store by reading its manifests. Blobs are not read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from mirror.errors import Cancelled, MirrorError, NotFound
from mirror.layout.inventory import Inventory, ManifestInfo, RepositoryContents
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.store import Source, Version
from mirror.util.cancellation import Work
from mirror.util.structs import Struct, field

READERS = 8  # maximum number of manifests that are read in parallel


class StoreSurvey(Struct):
    """The inventory of a store, and the errors that occurred when its manifests were read.

    problems: the errors for tags and manifests that could not be read. parts: for each manifest, the digests that it
    refers to, with the sizes of the content in bytes."""

    inventory: Inventory = field(default_factory=Inventory)
    problems: list[MirrorError] = field(default_factory=list)
    parts: dict[Digest, dict[Digest, int]] = field(default_factory=dict)

    def total_size(self, root: Digest) -> int:
        """Return the size in bytes of a root manifest and everything reachable from it, each digest counted once."""
        found: dict[Digest, int] = {}
        todo = [root]
        while todo:
            digest = todo.pop()
            for part, size in self.parts.get(digest, {}).items():
                if part not in found:
                    found[part] = size
                    todo.append(part)
        info = self.inventory.manifests.get(root)
        return sum(found.values()) + ((info.size or 0) if info is not None else 0)


def survey_store(source: Source, repositories: Iterable[str], work: Work) -> StoreSurvey:
    """Build the inventory of `repositories` by reading all tags, all manifests below them, and their referrers.

    Errors for single images are recorded in the result. Errors that affect the whole store, and Cancelled, are
    raised."""
    found = StoreSurvey()
    with ThreadPoolExecutor(READERS, thread_name_prefix="survey") as pool:
        for name in repositories:
            _RepositorySurvey(source, name, found, pool, work).read()
    found.inventory.normalize()
    return found


class _RepositorySurvey:
    """Reads the manifests of one repository, and adds its contents and problems to the StoreSurvey `found`."""

    def __init__(self, source: Source, name: str, found: StoreSurvey, pool: ThreadPoolExecutor, work: Work) -> None:
        self._source, self._name, self._found, self._pool, self._work = source, name, found, pool, work
        self._contents = RepositoryContents()

    def read(self) -> None:
        """Read the tags and manifests of the repository. Does nothing if the repository does not exist."""
        try:
            tags = list(self._tags())
        except NotFound:
            return
        self._found.inventory.repositories[self._name] = self._contents
        for tag, version in zip(tags, self._source.resolve(self._name, tags, self._work), strict=True):
            if isinstance(version, Version) and version.digest is not None:
                self._contents.tags[tag] = version.digest
                if version.platforms:
                    self._contents.platforms[version.digest] = version.platforms
            elif isinstance(version, MirrorError):
                self._found.problems.append(version)
        roots = dict.fromkeys(self._contents.tags.values())
        unreadable = self._read_manifests(list(roots))
        # Leave out the tags of unreadable roots, so that a differential export does not rely on their content.
        self._contents.tags = {tag: root for tag, root in self._contents.tags.items() if root not in unreadable}
        for root in unreadable:
            self._contents.platforms.pop(root, None)
        self._read_referrers(list(self._contents.manifests))

    def _read_referrers(self, subjects: Sequence[Digest]) -> None:
        """Read the referrers of `subjects`, then their referrers, and so on. Add all of them as roots without a tag.

        If the store does not list referrers, nothing is read: they have tags, which have been read before."""
        while subjects:
            listed = list(self._pool.map(self._list_referrers, subjects))
            found = dict.fromkeys(digest for digests in listed for digest in digests)
            new = [digest for digest in found if digest not in self._contents.manifests]
            before = set(self._contents.manifests)
            unreadable = self._read_manifests(new)
            self._contents.roots.update(digest for digest in new if digest not in unreadable)
            subjects = sorted(self._contents.manifests - before)

    def _list_referrers(self, digest: Digest) -> list[Digest]:
        """Return the digests of a manifest's referrers, as the store lists them. Record an error as a problem."""
        self._work.stop.raise_if_requested()
        try:
            return [one.digest for one in self._source.referrers(self._name, digest, self._work) or ()]
        except Cancelled:
            raise
        except MirrorError as error:
            self._found.problems.append(error)
            return []

    def _tags(self) -> Iterator[str]:
        """Iterate over the tags of the repository. Errors that occur while listing them are recorded as problems."""
        for tag in self._source.tags(self._name, self._work):
            if isinstance(tag, str):
                yield tag
            else:
                self._found.problems.append(tag)

    def _read_manifests(self, level: Sequence[Digest]) -> set[Digest]:
        """Read the manifests in `level`, then their children, and so on.

        Return the digests in `level` whose manifests could not be read."""
        unreadable: set[Digest] | None = None
        seen: set[Digest] = set()
        while level:
            seen.update(level)
            read = dict(zip(level, self._pool.map(self._read_manifest, level), strict=True))
            bad = {digest for digest, one in read.items() if isinstance(one, MirrorError)}
            for one in read.values():
                if isinstance(one, Manifest):
                    self._add_manifest(one)
                # A missing child is not a problem: an index may refer to manifests that the repository does not have.
                elif unreadable is None or not isinstance(one, NotFound):
                    self._found.problems.append(one)
            unreadable = bad if unreadable is None else unreadable
            parts = dict.fromkeys(
                child.digest for one in read.values() if isinstance(one, Manifest) for child in one.children
            )
            level = [digest for digest in parts if digest not in seen]
        return unreadable or set()

    def _read_manifest(self, digest: Digest) -> Manifest | MirrorError:
        """Read one manifest and return it. If that fails, return the error instead."""
        self._work.stop.raise_if_requested()
        try:
            return self._source.manifest(self._name, digest, self._work)
        except MirrorError as error:
            return error

    def _add_manifest(self, one: Manifest) -> None:
        """Add a manifest and its blobs to the inventory."""
        inventory, contents = self._found.inventory, self._contents
        inventory.manifests[one.digest] = ManifestInfo(one.media_type, one.size)
        contents.manifests.add(one.digest)
        parts = self._found.parts.setdefault(one.digest, {})
        parts.update({child.digest: child.size or 0 for child in one.children})
        for blob in one.blobs:
            if not blob.foreign and blob.size is not None:
                inventory.blobs[blob.digest] = parts[blob.digest] = blob.size
                contents.blobs.add(blob.digest)
