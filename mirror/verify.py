"""Is every selected image whole on every target? Walks the targets; believes no tag, no hint, no state."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from mirror.backoff import ONCE
from mirror.errors import MirrorError, NotFound, RemoteError
from mirror.findings import Entry, Finding, Reading, TargetEntry, Verdict
from mirror.graph import Manifests
from mirror.limits import Work
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.reading import Image, Reader, resolved
from mirror.store import Source, Target, Version
from mirror.structs import Struct, field
from mirror.transfer.download import Origin, SourceBody
from mirror.transfer.manager import Manager
from mirror.transfer.placement import Place
from mirror.transfer.scheduler import DOWNLOADS, host_permit
from mirror.transfer.steps import Steps, settled
from mirror.transfer.watch import Watch

BUFFER = 256 << 10  # bytes


class Problem(Struct, frozen=True):
    """Something that is not as it should be: which image, and why."""

    name: str
    error: MirrorError


class Account(Struct):
    """What was verified. bytes: hashed, with --deep. uncompared: images that only a transform makes of their source,
    and nobody remembers into what."""

    images: int = 0
    blobs: int = 0
    bytes: int = 0
    uncompared: int = 0
    problems: list[Problem] = field(default_factory=list)


class Verify:
    """Implements plan.Findings: walks each image that a target should have. Thread-safe.

    reader: makes what only a transform can tell, with `deep`."""

    def __init__(self, manager: Manager, targets: Mapping[str, Target], reader: Reader, *, deep: bool) -> None:
        self._manager = manager
        self._reader = reader
        self._manifests = Manifests(manager)
        self._targets = targets
        self._deep = deep
        self._lock = threading.Lock()
        self._checked: set[tuple[Place, Digest, int | None]] = set()
        self._walks: list[Watch[None]] = []
        self.account = Account()

    # ---- plan.Findings

    def found(self, finding: Finding) -> None:
        with self._lock:
            self.account.images += 1
        if finding.error is not None:
            self._problem(finding.name, finding.error)
            self._let_go(finding.reading)
        else:
            walk = self._manager.spawn(self._walk(finding), name=f"verify {finding.name}")
            with self._lock:
                self._walks.append(walk)

    def listing_failed(self, entry: Entry, error: MirrorError) -> None:
        self._problem(entry.name, error)

    def refused_name(self, entry: Entry, error: MirrorError) -> None:
        self._problem(entry.name, error)

    def saw_target(self, place: Place, tag: str, digest: Digest) -> None:
        """Nothing is remembered: what is seen is walked."""

    def selected(self, entry: Entry, count: int, rejected: Mapping[str, int]) -> None:
        """The account counts images."""

    # ---- walking

    def walks(self) -> list[Watch[None]]:
        """What has been begun; after planning has ended, all of it."""
        with self._lock:
            return list(self._walks)

    def _problem(self, name: str, error: MirrorError) -> None:
        with self._lock:
            self.account.problems.append(Problem(name, error))

    def _walk(self, finding: Finding) -> Steps[None]:
        target = finding.target
        try:
            if finding.verdict is Verdict.COPY:
                yield from self._lacks(finding) if finding.old is None else self._differs(finding)
            graph = yield from self._manifests.graph(target.store, target.place.path, finding.reading.tag)
            if graph.root.digest != finding.old:
                what = f"moved while it was looked at: from {finding.old} to {graph.root.digest}"
                raise RemoteError(what, hint="verify again", code="tag_moved")
            checks = [self._check(target, blob) for blob in graph.blobs if self._first(target.place, blob)]
            for check in (yield settled(checks)):
                if check.error is not None:
                    raise check.error
        except MirrorError as error:
            self._problem(finding.name, error)
        finally:
            self._let_go(finding.reading)

    def _let_go(self, reading: Reading) -> None:
        """One target less needs what was read."""
        with self._lock:
            reading.users -= 1
            image = None if reading.users else reading.image
            reading.image = reading.image if reading.users else None
        if image is not None:
            image.release()

    def _lacks(self, finding: Finding) -> Steps[None]:
        """Raises why the target does not have the tag, as far as the source tells."""
        reading = finding.reading
        entry, version = reading.entry, reading.version
        if version is None:
            (version,) = yield self._manager.transfer(
                object(),
                lambda work: list(entry.source.resolve(entry.repository, [reading.reference], work)),
                needs=(host_permit(entry.source.host),),
                policy=ONCE,
            )
        if isinstance(version, MirrorError):
            raise version.told(f"is not on the target, and cannot be had: {version.what}")
        raise NotFound("is not on the target", hint="run `mirror sync`")

    def _differs(self, finding: Finding) -> Steps[None]:
        """Raises if the target has the tag with another digest than the source."""
        reading = finding.reading
        version = reading.version
        if not isinstance(version, Version):
            version = yield from resolved(self._manager, reading)
        theirs = version.digest
        if version.unmade:
            if not self._deep:
                with self._lock:
                    self.account.uncompared += 1
                return
            reading.version = version
            image: Image = yield from self._reader.image(reading)
            theirs = image.graph.root.digest
        if theirs not in (None, finding.old):
            raise RemoteError(
                f"differs: the target has {finding.old}, the source {theirs}",
                hint="run `mirror sync`",
                code="tag_moved",
            )

    def _first(self, place: Place, blob: Descriptor) -> bool:
        key = (place, blob.digest, blob.size)
        with self._lock:
            first = key not in self._checked
            self._checked.add(key)
            self.account.blobs += first
            return first

    def _check(self, target: TargetEntry, blob: Descriptor) -> Watch[None]:
        place = target.place

        def look(work: Work) -> None:
            if not self._targets[place.host].has_blob(place.path, blob, work):
                raise NotFound(f"blob {blob.digest} is missing in {place}", hint="run `mirror sync --deep`")

        def hash_all(work: Work) -> None:
            self._hash(target.store, place, blob, work)

        if self._deep:
            return self._manager.transfer(object(), hash_all, needs=(host_permit(place.host), DOWNLOADS))
        return self._manager.transfer(object(), look, needs=(host_permit(place.host),), policy=ONCE)

    def _hash(self, store: Source, place: Place, blob: Descriptor, work: Work) -> None:
        buffer = memoryview(bytearray(BUFFER))
        count = 0
        with SourceBody(blob, [Origin(store, place.path)]).open(0, work) as reader:
            while got := reader.readinto(buffer):
                count += got
        with self._lock:
            self.account.bytes += count
