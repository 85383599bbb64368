"""The complete content of a target repository: its tags with their digests, and the manifests that each index lists."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import partial

from mirror.errors import MirrorError, NotFound
from mirror.oci.digest import Digest
from mirror.oci.manifest import INDEX_TYPES, Manifest, is_manifest_type
from mirror.oci.reference import Repository
from mirror.store import Source, Version
from mirror.sync.planner_queries import resolve_all
from mirror.sync.prune_plan import PruneRefused
from mirror.transfer.calls import Calls
from mirror.transfer.tasks import run_group
from mirror.util.cancellation import Work

_BATCH = 64  # maximum number of tags that one call resolves


class RepositoryContent:
    """The tags and indexes of one target repository.

    tags: the digest of each tag. Indexes are read when they are needed, each once."""

    def __init__(self, calls: Calls, store: Source, path: str) -> None:
        self.store = store
        self.path = path
        self.tags: dict[str, Digest] = {}
        self._calls = calls
        self._media_types: dict[Digest, str] = {}
        self._children: dict[Digest, tuple[Digest, ...]] = {}

    async def read_tags(self, expected: Collection[str]) -> None:
        """List all tags of the repository and resolve them. A repository that does not exist has no tags.

        expected: tags that are also resolved if the list lacks them. If one of them exists, the list is incomplete.
        Raises PruneRefused for an incomplete list, and the first error for a name or tag."""
        listed = await self.list_tags()
        unlisted = sorted(set(expected).difference(listed))
        self.tags = {}
        for tag, version in zip((*listed, *unlisted), await self._resolve_all([*listed, *unlisted]), strict=True):
            if isinstance(version, Version) and version.digest is not None:
                self.tags[tag] = version.digest
                self._media_types[version.digest] = version.media_type
            elif isinstance(version, MirrorError) and not isinstance(version, NotFound):
                raise version
        hidden = next((tag for tag in unlisted if tag in self.tags), None)
        if hidden is not None:
            name = Repository(self.store.host, self.path)
            what = f"the tag list of the target {name} is incomplete: it lacks `{hidden}`, which the target has"
            raise PruneRefused(what, hint="check the registry, and the proxies between it and this machine")

    async def list_tags(self) -> list[str]:
        """List all tags. Raises the first error for a name."""
        return await self._calls.call_host(self.store.host, self._list_tags)

    async def _resolve_all(self, tags: Sequence[str]) -> list[Version | MirrorError]:
        """Resolve tags, several batches at the same time. Return a version or an error for each tag."""
        batches = [tags[start : start + _BATCH] for start in range(0, len(tags), _BATCH)]
        return [version for versions in await run_group(map(self._resolve, batches)) for version in versions]

    def _list_tags(self, work: Work) -> list[str]:
        """List all tags. Raises the first error, which may be that of an invalid name. Runs on a worker thread."""
        tags = []
        try:
            for tag in self.store.tags(self.path, work):
                if isinstance(tag, MirrorError):
                    raise tag
                tags.append(tag)
        except NotFound:
            return []
        return tags

    async def _resolve(self, tags: Sequence[str]) -> list[Version | MirrorError]:
        """Resolve a batch of tags. Return a version or an error for each tag."""
        run = partial(resolve_all, self.store, self.path, tags)
        return await self._calls.call_host(self.store.host, run)

    async def read_manifest(self, digest: Digest) -> Manifest | None:
        """Return a manifest, or None if the repository does not have it.

        Raises PruneRefused if the manifest is missing although a tag refers to it, and the errors of the store."""

        def read(work: Work) -> Manifest | None:
            """Read the manifest on a worker thread."""
            try:
                return self.store.manifest(self.path, digest, work)
            except NotFound:
                return None

        manifest = await self._calls.call_host(self.store.host, read)
        if manifest is None and digest in self.tags.values():
            tag = next(tag for tag, other in self.tags.items() if other == digest)
            what = f"{Repository(self.store.host, self.path)}:{tag} exists, but its manifest {digest} was not found"
            raise PruneRefused(what, hint="run `mirror verify CONFIG`, and check the registry")
        children = manifest.children if manifest is not None else ()
        for child in children:
            self._media_types.setdefault(child.digest, child.media_type)
        self._children[digest] = tuple(child.digest for child in children)
        return manifest

    async def reachable(self, roots: Iterable[Digest]) -> set[Digest]:
        """Return manifests and all manifests below them. Only indexes and manifests of unknown types are read.

        Raises the errors of the store."""
        found: set[Digest] = set()
        todo = list(dict.fromkeys(roots))
        while todo:
            found.update(todo)
            levels = await run_group(map(self.children, todo))
            todo = list(dict.fromkeys(child for children in levels for child in children if child not in found))
        return found

    async def children(self, digest: Digest) -> tuple[Digest, ...]:
        """Return the digests of the child manifests of a manifest. Raises the errors of the store."""
        media_type = self._media_types.get(digest, "")
        if is_manifest_type(media_type) and media_type not in INDEX_TYPES:
            return ()
        if digest not in self._children:
            await self.read_manifest(digest)
        return self._children[digest]
