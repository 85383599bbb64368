"""Where blobs are, and which way they go: what a run knows of its targets, and whether the spool is needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from mirror.errors import Refused
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.store import Mount
from mirror.util.structs import Struct

MAX_CANDIDATES = 2  # repositories that one blob is tried to be mounted from
# A host that opened sessions instead of mounting what it has, this often and never once mounted, does not mount.
MAX_FAILED_MOUNTS = 4


class Hints(Protocol):
    """What earlier runs learned; may be wrong in every point."""

    def was_held(self, repository: str, digest: Digest) -> bool: ...
    def holders(self, host: str, digest: Digest) -> list[str]: ...
    def forget(self, repository: str) -> None: ...


class Hint(Struct, frozen=True):
    """What the state says of a blob: whether the repository held it; other repositories of the host that did."""

    digest: Digest
    held: bool
    holders: list[str]


class BlobLocations:
    """What the targets hold, as far as this run has asked or done it itself. Hints prove nothing: they only suggest
    where to ask first, and from where to mount.

    mountable: for each host the repositories that the configuration names there, as a source or as a target; wildcards:
    what stands before and after the `*` of those that it names by a pattern. No others are mounted from: not everybody
    who may read the target may be allowed to read them. `allow` adds repositories that a wildcard was found to match.
    Used on the event loop, but for `read_hints`, which does I/O, and `mounts_work`."""

    def __init__(
        self,
        hints: Hints,
        mountable: Mapping[str, Collection[str]],
        wildcards: Mapping[str, Collection[tuple[str, str]]] | None = None,
    ) -> None:
        self._hints = hints
        self._wildcards = wildcards or {}
        self._mountable = defaultdict(set, {host: set(paths) for host, paths in mountable.items()})
        self._held: defaultdict[Repository, set[Digest]] = defaultdict(set)
        self._manifests: defaultdict[Repository, set[Digest]] = defaultdict(set)  # apart: a digest can be both
        self._holders: defaultdict[tuple[str, Digest], list[str]] = defaultdict(list)
        self._suggested: defaultdict[tuple[str, Digest], dict[str, None]] = defaultdict(dict)
        self._expected: defaultdict[Repository, set[Digest]] = defaultdict(set)
        self._distrusted: set[Repository] = set()
        self._sizes: dict[Digest, int] = {}
        self._refused: set[tuple[Repository, str]] = set()
        self._failed: set[tuple[Repository, str]] = set()
        self._mounts: defaultdict[str, int] = defaultdict(int)
        self._missed: defaultdict[str, int] = defaultdict(int)

    def allow_mounts_from(self, repositories: Iterable[Repository]) -> None:
        """These may be mounted from as well."""
        for repository in repositories:
            self._mountable[repository.host].add(repository.path)

    def verify_size(self, blob: Descriptor) -> None:
        """Note the size of a blob whose bytes, or whose size on a target, were seen in this run. Raises Refused
        (size_mismatch) if it was another one before: a digest has one size, so a descriptor lies."""
        if blob.size is None:
            return
        size = self._sizes.setdefault(blob.digest, blob.size)
        if size != blob.size:
            raise Refused(f"{blob.digest} is {size} bytes long, its descriptor says {blob.size}", code="size_mismatch")

    def is_size_known(self, blob: Descriptor) -> bool:
        """Whether the size of a blob is known in this run. Raises Refused (size_mismatch): its descriptor lies."""
        size = self._sizes.get(blob.digest)
        if size is not None:
            self.verify_size(blob)
        return size is not None or blob.size is None

    def add(self, repository: Repository, digest: Digest) -> None:
        """It was proven to be there, in this run."""
        if digest not in self._held[repository]:
            self._held[repository].add(digest)
            self._holders[repository.host, digest].insert(0, repository.path)

    def has_blob(self, repository: Repository, digest: Digest) -> bool:
        """Whether it was proven to be there, in this run."""
        return digest in self._held[repository]

    def add_manifest(self, repository: Repository, digest: Digest) -> None:
        """This run has put it there."""
        self._manifests[repository].add(digest)

    def has_manifest(self, repository: Repository, digest: Digest) -> bool:
        """Whether this run has put it there."""
        return digest in self._manifests[repository]

    def is_expected(self, repository: Repository, digest: Digest) -> bool:
        """Whether the hints say that it is there. It proves nothing: ask before anything else is tried."""
        return digest in self._expected[repository]

    def read_hints(self, repository: Repository, digests: Iterable[Digest]) -> list[Hint]:
        """Read what the state says of these blobs, for `note_hints`. Does I/O; any thread."""
        return [
            Hint(digest, self._hints.was_held(str(repository), digest), self._hints.holders(repository.host, digest))
            for digest in digests
        ]

    def note_hints(self, repository: Repository, hints: Iterable[Hint]) -> None:
        """Expect blobs where the state says that they are."""
        for hint in hints:
            if hint.held:
                self._expected[repository].add(hint.digest)
            if hint.holders:
                self._suggested[repository.host, hint.digest].update(dict.fromkeys(hint.holders))

    def suggest(self, repository: Repository, digests: Iterable[Digest]) -> None:
        """A manifest of that repository names these blobs, so they may be mounted from there."""
        for digest in digests:
            self._suggested[repository.host, digest][repository.path] = None

    def distrust(self, repository: Repository) -> None:
        """The target lacks what was believed to be there: forget all about that repository, in the state, too."""
        self._distrusted.add(repository)
        self._held.pop(repository, None)
        self._manifests.pop(repository, None)
        self._expected.pop(repository, None)
        for holders in self._holders.values():
            if repository.path in holders:
                holders.remove(repository.path)
        self._hints.forget(str(repository))

    def is_distrusted(self, repository: Repository) -> bool:
        """Whether something that was believed of it turned out to be wrong, in this run."""
        return repository in self._distrusted

    def mount_candidates(self, repository: Repository, digest: Digest, also: Iterable[str] = ()) -> list[str]:
        """Repositories of the host to mount from: those where this run proved it, then `also`, then suggestions."""
        sure = self._holders.get((repository.host, digest), ())
        suggested = [
            path
            for path in self._suggested.get((repository.host, digest), ())
            if Repository(repository.host, path) not in self._distrusted
        ]
        return [
            path
            for path in dict.fromkeys([*sure, *also, *suggested])
            if path != repository.path
            and (repository, path) not in self._refused
            and self._may_mount_from(repository.host, path)
        ][:MAX_CANDIDATES]

    def _may_mount_from(self, host: str, path: str) -> bool:
        """Whether the configuration names it."""
        return path in self._mountable[host] or any(
            path.startswith(before) and path.endswith(after) and len(path) > len(before) + len(after)
            for before, after in self._wildcards.get(host, ())
        )

    def find_holder(self, repository: Repository, digest: Digest) -> str | None:
        """Another repository of that host that is sure to hold it."""
        return next((path for path in self._holders[repository.host, digest] if path != repository.path), None)

    def sibling_repositories(self, repository: Repository) -> list[Repository]:
        """The other repositories of that host that may be mounted from."""
        paths = self._mountable[repository.host] - {repository.path}
        return [Repository(repository.host, path) for path in sorted(paths)]

    def note_mount(self, repository: Repository, from_path: str, digest: Digest, outcome: Mount | None) -> None:
        """How a mount ended; None: with an error, after all retries. Only a refusal concerns other blobs, too."""
        pair = (repository, from_path)
        if outcome is Mount.MOUNTED:
            self._mounts[repository.host] += 1
            self._failed.discard(pair)
            return
        if outcome is Mount.REFUSED:
            self._refused.add(pair)
        if outcome is None:
            self._failed.add(pair)
        if outcome is None or from_path in self._holders[repository.host, digest]:
            self._missed[repository.host] += 1

    def has_failed_mount(self, repository: Repository, from_path: str) -> bool:
        """Whether the last mount between the two ended with an error, after all retries."""
        return (repository, from_path) in self._failed

    def is_mount_worthwhile(self, host: str) -> bool:
        """Whether it is worth while to wait for a sibling's upload in order to mount it. Any thread."""
        return self._mounts.get(host, 0) > 0 or self._missed.get(host, 0) < MAX_FAILED_MOUNTS


class Routes:
    """Which blobs go through the spool. Decided from the configuration, before anything is read."""

    def __init__(
        self, pairs: Iterable[tuple[str, str]], *, mounting: Mapping[str, bool], parallel: Mapping[str, int]
    ) -> None:
        """pairs: (source host, target host) of every mirror; mounting: hosts that may be mounted at;
        parallel: requests in flight for each host."""
        self._targets: defaultdict[str, set[str]] = defaultdict(set)
        for source, target in pairs:
            self._targets[source].add(target)
        self._mounting = mounting
        self._parallel = parallel

    def allows_mounts(self, host: str) -> bool:
        """Whether the configuration allows mounts there."""
        return self._mounting.get(host, True)

    def needs_spool(self, source: str, target: str, *, mounts_work: bool) -> bool:
        """A stream straight through serves one upload; the bytes are read once from the source all the same."""
        if len(self._targets[source]) > 1 or not self.allows_mounts(target) or not mounts_work:
            return True
        return not self.can_stream(source, target)

    def can_stream(self, source: str, target: str) -> bool:
        """Whether a stream straight through can get its slots, which it takes at both hosts together."""
        return source != target or self._parallel.get(target, 8) >= 2
