"""Tracks which blobs this run has verified to be in which repositories, and where earlier runs saw them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

from mirror.errors import Refused
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.store import Mount
from mirror.util.structs import Struct

MAX_CANDIDATES = 2  # maximum number of repositories that are tried for mounting one blob
# Mounts are no longer tried on a host after this many failures without a success.
MAX_FAILED_MOUNTS = 4


class LocationHints(Protocol):
    """Provides hints from earlier runs about which repositories contain which blobs. Any hint may be wrong."""

    def had_blob(self, repository: str, digest: Digest) -> bool:
        """Return whether the repository had the blob in an earlier run."""
        ...

    def repositories_with_blob(self, host: str, digest: Digest) -> list[str]:
        """Return the paths of repositories on `host` that had the blob in an earlier run."""
        ...

    def forget(self, repository: str) -> None:
        """Delete the hints about a repository."""
        ...


class BlobHint(Struct, frozen=True):
    """A hint from earlier runs about one blob and one repository.

    had_blob: whether the repository had the blob. holders: paths of repositories on the same host that had the blob."""

    digest: Digest
    had_blob: bool
    holders: list[str]


class BlobLocations:
    """Tracks which blobs this run has verified to be in which target repositories.

    Hints from earlier runs only decide which lookups and mounts are tried first. All methods except `read_hints` and
    `is_mount_worthwhile` must be called on the event loop."""

    def __init__(
        self,
        hints: LocationHints,
        mountable: Mapping[str, Collection[str]],
        wildcards: Mapping[str, Collection[Callable[[str], bool]]] | None = None,
        login_path: Callable[[Repository], str] = lambda repository: "",
    ) -> None:
        """Start a run, in which no location is known yet. hints: the hints from earlier runs.

        mountable: by host, the paths of the repositories that the configuration names as a source or target.
        wildcards: by host, functions that return whether a wildcard of the configuration selects a path.
        login_path: returns the path whose credentials requests for a repository use, or an empty string if they use
        those of the host.

        Blobs are not mounted from any other repository, because some users who can read the target may not be allowed
        to read that repository."""
        self._hints = hints
        self._wildcards = wildcards or {}
        self._mountable = defaultdict(set, {host: set(paths) for host, paths in mountable.items()})
        self._blobs: defaultdict[Repository, set[Digest]] = defaultdict(set)
        self._manifests: defaultdict[Repository, set[Digest]] = defaultdict(set)  # a digest can be in both
        self._holders: defaultdict[tuple[str, Digest], list[str]] = defaultdict(list)  # paths, last added first
        self._suggested: defaultdict[tuple[str, Digest], dict[str, None]] = defaultdict(dict)  # paths
        self._expected: defaultdict[Repository, set[Digest]] = defaultdict(set)
        self._distrusted: set[Repository] = set()
        self._sizes: dict[Digest, int] = {}
        self._refused_pairs: set[tuple[Repository, str]] = set()  # target, path from which it refuses to mount
        self._failed_pairs: set[tuple[Repository, str]] = set()  # target, path for which all retries failed
        self._mounted: defaultdict[str, int] = defaultdict(int)  # number by host
        self._failed_mounts: defaultdict[str, int] = defaultdict(int)  # number by host
        self._login_path = login_path
        # Failures since the last success, by host and by the login paths of both repositories, if these differ.
        self._failed_across: defaultdict[tuple[str, str, str], int] = defaultdict(int)

    def allow_mounts_from(self, repositories: Iterable[Repository]) -> None:
        """Allow mounts from these repositories, which the configuration names or matches with a pattern."""
        for repository in repositories:
            self._mountable[repository.host].add(repository.path)

    def check_size(self, blob: Descriptor) -> None:
        """Raise Refused (size_mismatch) if the size in the descriptor differs from the known size of the blob."""
        size = self._sizes.get(blob.digest)
        if size is not None and blob.size is not None and size != blob.size:
            raise Refused(
                f"{blob.digest} is {size} bytes long, but its descriptor says {blob.size}", code="size_mismatch"
            )

    def add_size(self, blob: Descriptor) -> None:
        """Remember the verified size of a blob. Raises Refused (size_mismatch) if a different size is already known."""
        self.check_size(blob)
        if blob.size is not None:
            self._sizes[blob.digest] = blob.size

    def add_blob(self, repository: Repository, digest: Digest) -> None:
        """Remember that this run has verified that the repository has the blob."""
        if digest not in self._blobs[repository]:
            self._blobs[repository].add(digest)
            self._holders[repository.host, digest].insert(0, repository.path)

    def has_blob(self, repository: Repository, digest: Digest) -> bool:
        """Return whether this run has verified that the repository has the blob."""
        return digest in self._blobs[repository]

    def add_manifest(self, repository: Repository, digest: Digest) -> None:
        """Remember that this run wrote the manifest to the repository."""
        self._manifests[repository].add(digest)

    def has_manifest(self, repository: Repository, digest: Digest) -> bool:
        """Return whether this run wrote the manifest to the repository."""
        return digest in self._manifests[repository]

    def is_expected(self, repository: Repository, digest: Digest) -> bool:
        """Return whether the repository had the blob in an earlier run, so that a lookup should be tried first."""
        return digest in self._expected[repository]

    def read_hints(self, repository: Repository, digests: Iterable[Digest]) -> list[BlobHint]:
        """Read and return the hints about these blobs in `repository`, to be passed to `add_hints`.

        Blocks. May be called on any thread."""
        return [
            BlobHint(
                digest,
                self._hints.had_blob(str(repository), digest),
                self._hints.repositories_with_blob(repository.host, digest),
            )
            for digest in digests
        ]

    def add_hints(self, repository: Repository, hints: Iterable[BlobHint]) -> None:
        """Keep hints about blobs in memory, so that `is_expected` and `mount_candidates` can use them."""
        for hint in hints:
            if hint.had_blob:
                self._expected[repository].add(hint.digest)
            if hint.holders:
                self._suggested[repository.host, hint.digest].update(dict.fromkeys(hint.holders))

    def add_mount_candidates(self, repository: Repository, digests: Iterable[Digest]) -> None:
        """Make `repository` a mount candidate for these blobs, because it has a manifest that refers to them."""
        for digest in digests:
            self._suggested[repository.host, digest][repository.path] = None

    def distrust(self, repository: Repository) -> None:
        """Mark a repository as distrusted, because it lacks an object that it should have.

        Forget the blobs and manifests that it is known to have, and all hints about it."""
        self._distrusted.add(repository)
        self._blobs.pop(repository, None)
        self._manifests.pop(repository, None)
        self._expected.pop(repository, None)
        for holders in self._holders.values():
            if repository.path in holders:
                holders.remove(repository.path)
        self._hints.forget(str(repository))

    def is_distrusted(self, repository: Repository) -> bool:
        """Return whether `distrust` was called for the repository in this run."""
        return repository in self._distrusted

    def mount_candidates(self, repository: Repository, digest: Digest, extra: Iterable[str] = ()) -> list[str]:
        """Return the paths of the repositories from which mounting the blob should be tried, in order of preference.

        Repositories with the credentials of `repository` come first. Among them, those where this run verified the blob
        come first, then the paths in `extra`, then suggested ones."""
        verified = self._holders.get((repository.host, digest), ())
        suggested = [
            path
            for path in self._suggested.get((repository.host, digest), ())
            if Repository(repository.host, path) not in self._distrusted
        ]
        candidates = [
            path
            for path in dict.fromkeys([*verified, *extra, *suggested])
            if path != repository.path
            and (repository, path) not in self._refused_pairs
            and self._allows_mounts_from(repository.host, path)
            and self._failed_across.get(self._logins(repository, path), 0) < MAX_FAILED_MOUNTS
        ]
        return sorted(candidates, key=lambda path: self._differ(self._logins(repository, path)))[:MAX_CANDIDATES]

    def _logins(self, repository: Repository, from_path: str) -> tuple[str, str, str]:
        """Return the host, and the paths whose credentials are used for `repository` and for the path `from_path`."""
        other = Repository(repository.host, from_path)
        return repository.host, self._login_path(repository), self._login_path(other)

    @staticmethod
    def _differ(logins: tuple[str, str, str]) -> bool:
        """Return whether the two repositories in a result of `_logins` have different credentials."""
        return logins[1] != logins[2]

    def _allows_mounts_from(self, host: str, path: str) -> bool:
        """Return whether the configuration allows mounts from a repository: names it, or selects it with a wildcard."""
        return path in self._mountable[host] or any(selects(path) for selects in self._wildcards.get(host, ()))

    def find_holder(self, repository: Repository, digest: Digest) -> str | None:
        """Return the path of another repository on the host in which this run has verified the blob, or None."""
        return next((path for path in self._holders[repository.host, digest] if path != repository.path), None)

    def sibling_repositories(self, repository: Repository) -> list[Repository]:
        """Return the other repositories on the same host as `repository` that blobs may be mounted from."""
        paths = self._mountable[repository.host] - {repository.path}
        return [Repository(repository.host, path) for path in sorted(paths)]

    def remember_mount(self, repository: Repository, from_path: str, digest: Digest, outcome: Mount | None) -> None:
        """Remember the outcome of an attempt to mount the blob from the repository `from_path` into `repository`.

        outcome: None if the mount still failed after all retries. Only REFUSED prevents other blobs from being mounted
        between the two repositories. If the repositories have different credentials, failures are expected and say
        nothing about other mounts on the host."""
        pair, logins = (repository, from_path), self._logins(repository, from_path)
        if outcome is Mount.MOUNTED:
            self._failed_across.pop(logins, None)
            self._mounted[repository.host] += 1
            self._failed_pairs.discard(pair)
            return
        if outcome is Mount.REFUSED:
            self._refused_pairs.add(pair)
        if outcome is None:
            self._failed_pairs.add(pair)
        if outcome is None or from_path in self._holders[repository.host, digest]:
            if self._differ(logins):
                self._failed_across[logins] += 1
            else:
                self._failed_mounts[repository.host] += 1

    def has_failed_mount(self, repository: Repository, from_path: str) -> bool:
        """Return whether a mount from `from_path` into `repository` failed after all retries, with no success since."""
        return (repository, from_path) in self._failed_pairs

    def is_mount_worthwhile(self, host: str) -> bool:
        """Return whether mounts on `host` are worth trying: one has succeeded, or only few have failed.

        May be called on any thread."""
        return self._mounted.get(host, 0) > 0 or self._failed_mounts.get(host, 0) < MAX_FAILED_MOUNTS
