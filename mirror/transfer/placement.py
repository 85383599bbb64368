"""Where blobs are, and which way they go: what a run knows of its targets, and whether the spool is needed."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from mirror.errors import Refused
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.structs import Struct

MOST_CANDIDATES = 2  # repositories that one blob is tried to be mounted from
# A host that opened sessions instead of mounting what it has, this often and never once mounted, does not mount.
REFUSALS = 4


class Place(Struct, frozen=True, order=True):
    """A repository of a target host."""

    host: str
    path: str

    def __str__(self) -> str:
        return place_name(self.host, self.path)


def place_name(host: str, path: str) -> str:
    """A repository as references name it: `host/path`, or after a colon in what is on disk (`oci:DIR:path`).

    What is on disk has a repository without a name, too, which needs no colon."""
    if not path:
        return host
    return f"{host}:{path}" if "/" in host or host == "-" else f"{host}/{path}"


class Hints(Protocol):
    """What earlier runs learned; may be wrong in every point."""

    def knows(self, repository: str, roots: Collection[Digest], digest: Digest) -> bool: ...
    def holders(self, host: str, digest: Digest) -> list[str]: ...
    def forget(self, repository: str) -> None: ...


class Inventory:
    """What the targets hold, as far as this run has seen or done it itself; hints count only beside that.

    mountable: for each host the repositories that the configuration names there, to which `allow` adds those that
    its wildcards match: no others are mounted from, since who reads the target may not be allowed to read them.
    Thread-safe; only `ask_hints` does I/O."""

    def __init__(self, hints: Hints, mountable: Mapping[str, Collection[str]]) -> None:
        self._hints = hints
        self._lock = threading.Lock()
        self._mountable = defaultdict(set, {host: set(paths) for host, paths in mountable.items()})
        self._held: defaultdict[Place, set[Digest]] = defaultdict(set)
        self._holders: defaultdict[tuple[str, Digest], list[str]] = defaultdict(list)
        self._hinted: defaultdict[tuple[str, Digest], list[str]] = defaultdict(list)
        self._roots: defaultdict[Place, set[Digest]] = defaultdict(set)
        self._distrusted: set[Place] = set()
        self._sizes: dict[Digest, int] = {}
        self._refused: set[tuple[Place, str]] = set()
        self._mounts: defaultdict[str, int] = defaultdict(int)
        self._missed: defaultdict[str, int] = defaultdict(int)

    def allow(self, places: Iterable[Place]) -> None:
        """These may be mounted from as well."""
        with self._lock:
            for place in places:
                self._mountable[place.host].add(place.path)

    def proven(self, blob: Descriptor) -> None:
        """Note the size of a blob whose bytes, or whose size on a target, were seen in this run. Raises Refused
        (size_mismatch) if it was another one before: a digest has one size, so a descriptor lies."""
        if blob.size is None:
            return
        with self._lock:
            size = self._sizes.setdefault(blob.digest, blob.size)
        if size != blob.size:
            raise Refused(f"{blob.digest} is {size} bytes long, its descriptor says {blob.size}", code="size_mismatch")

    def fits(self, blob: Descriptor) -> bool:
        """Whether the size of a blob is known in this run. Raises Refused (size_mismatch): its descriptor lies."""
        with self._lock:
            size = self._sizes.get(blob.digest)
        if size is not None:
            self.proven(blob)
        return size is not None or blob.size is None

    def saw_root(self, place: Place, root: Digest) -> None:
        """A tag there has this digest, seen in this run (or believed of an exclusive target)."""
        with self._lock:
            self._roots[place].add(root)

    def add(self, place: Place, digest: Digest) -> None:
        """It was proven to be there, in this run."""
        with self._lock:
            if digest not in self._held[place]:
                self._held[place].add(digest)
                self._holders[place.host, digest].insert(0, place.path)

    def knows(self, place: Place, digest: Digest) -> bool:
        with self._lock:
            return digest in self._held[place]

    def ask_hints(self, place: Place, digests: Iterable[Digest]) -> None:
        """Take over what the hints say of these blobs, if a root that was seen there vouches for it. Reads state."""
        with self._lock:
            roots = frozenset(self._roots[place]) if place not in self._distrusted else frozenset()
        for digest in digests:
            if roots and self._hints.knows(str(place), roots, digest):
                self.add(place, digest)
            else:
                holders = self._hints.holders(place.host, digest)
                with self._lock:
                    self._hinted[place.host, digest] = holders

    def distrust(self, place: Place) -> None:
        """The target lacks what was believed to be there: forget all about that repository. Writes the state."""
        with self._lock:
            self._distrusted.add(place)
            self._held.pop(place, None)
            for holders in self._holders.values():
                if place.path in holders:
                    holders.remove(place.path)
        self._hints.forget(str(place))

    def distrusts(self, place: Place) -> bool:
        """Whether something that was believed of it turned out to be wrong, in this run."""
        with self._lock:
            return place in self._distrusted

    def candidates(self, place: Place, digest: Digest, also: Iterable[str] = ()) -> list[str]:
        """Repositories of the host to mount from: what this run brought there, then `also`, then hints."""
        with self._lock:
            sure = [path for path in self._holders[place.host, digest] if path != place.path]
            hinted = [
                path for path in self._hinted[place.host, digest] if Place(place.host, path) not in self._distrusted
            ]
            allowed = self._mountable[place.host]
            every = dict.fromkeys([*sure, *also, *hinted])
            return [
                path for path in every if path != place.path and path in allowed and (place, path) not in self._refused
            ][:MOST_CANDIDATES]

    def holder(self, place: Place, digest: Digest) -> str | None:
        """Another repository of that host that is sure to hold it."""
        with self._lock:
            return next((path for path in self._holders[place.host, digest] if path != place.path), None)

    def siblings(self, place: Place) -> list[Place]:
        """The other repositories of that host that may be mounted from."""
        with self._lock:
            paths = self._mountable[place.host] - {place.path}
        return [Place(place.host, path) for path in sorted(paths)]

    def mounted(self, place: Place) -> None:
        with self._lock:
            self._mounts[place.host] += 1

    def not_mounted(self, place: Place, from_path: str, digest: Digest, *, refused: bool) -> None:
        """A mount came to nothing. refused: not even a session was opened, so that pair is not tried again."""
        with self._lock:
            if refused:
                self._refused.add((place, from_path))
            if from_path in self._holders[place.host, digest]:
                self._missed[place.host] += 1

    def mounts_work(self, host: str) -> bool:
        """Whether it is worth while to wait for a sibling's upload in order to mount it."""
        with self._lock:
            return bool(self._mounts[host]) or self._missed[host] < REFUSALS


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

    def mounting(self, host: str) -> bool:
        """Whether the configuration allows mounts there."""
        return self._mounting.get(host, True)

    def through_spool(self, source: str, target: str, *, mounts_work: bool) -> bool:
        """A stream straight through serves one upload; the bytes are read once from the source all the same."""
        if len(self._targets[source]) > 1 or not self.mounting(target) or not mounts_work:
            return True
        return not self.may_stream(source, target)

    def may_stream(self, source: str, target: str) -> bool:
        """Whether a stream straight through can get its slots, which it takes at both hosts together."""
        return source != target or self._parallel.get(target, 8) >= 2
