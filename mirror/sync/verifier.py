"""Check that every selected image is complete on every target. Believes no tag, no hint and no state.

Each finding names the command that repairs it: `sync` copies a tag that is missing or differs, `sync --deep` copies a
blob or manifest that is missing, `sync --repair` sends again what is damaged."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from mirror.errors import AuthError, Cancelled, MirrorError, NetworkError, NotFound, RateLimited, Refused, RemoteError
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.store import DAMAGED, Source, Target, Version
from mirror.sync.image_reader import Image, Reader, resolved
from mirror.sync.manifest_graph import Manifests, Misdescribed
from mirror.sync.plan_model import Entry, Finding, Reading, TargetEntry, Verdict
from mirror.transfer.blob_locations import Place
from mirror.transfer.downloads import Origin, SourceBody
from mirror.transfer.manager import Manager
from mirror.transfer.scheduler import DOWNLOADS, host_permit
from mirror.transfer.steps import Steps, settled
from mirror.transfer.watch import Watch
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE
from mirror.util.structs import Struct, field, replace

BUFFER = 256 << 10  # bytes
SYNC = "run `mirror sync CONFIG`"
DEEP = "run `mirror sync --deep CONFIG`"
REPAIR = "run `mirror sync --repair CONFIG`"


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
    """Implements planner.Findings: walks each image that a target should have. Thread-safe.

    reader: makes what only a transform can tell, with `deep`."""

    def __init__(self, manager: Manager, targets: Mapping[str, Target], reader: Reader, *, deep: bool) -> None:
        self._manager = manager
        self._reader = reader
        self._manifests = Manifests(manager, by_repository=True)
        self._targets = targets
        self._deep = deep
        self._lock = threading.Lock()
        self._checked: dict[tuple[Place, Digest, int | None], MirrorError | None] = {}
        self._walks: list[Watch[None]] = []
        self.account = Account()

    # ---- planner.Findings

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
                if finding.old is None:
                    finding = replace(finding, old=(yield from self._read_unlisted(finding)))
                yield from self._differs(finding)
            try:
                graph = yield from self._manifests.graph(target.store, target.place.path, finding.reading.tag)
            except MirrorError as error:
                raise _with_remedy(error) from error
            if graph.root.digest != finding.old:
                what = f"moved while it was looked at: from {finding.old} to {graph.root.digest}"
                raise RemoteError(what, hint="verify again", code="tag_moved")
            errors = yield from self._check_all(target, graph.blobs)
            if errors:
                raise errors[0]
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

    def _read_unlisted(self, finding: Finding) -> Steps[Digest]:
        """Steps: read a tag of the target that its list lacks, or that it gave no digest for. -> the digest.

        Raises why it cannot be read: it is damaged there, not to be had at the source, or missing."""
        reading = finding.reading
        try:
            # The list of a target may be incomplete, and the plan takes a tag that answers with a server error for
            # missing, since a sync may cure it.
            manifest: Manifest = yield self._manifests.read(
                finding.target.store, finding.target.place.path, reading.tag
            )
            return manifest.digest
        except NotFound:
            pass
        except MirrorError as error:
            raise _with_remedy(error) from error
        entry, version = reading.entry, reading.version
        if version is None:
            (version,) = yield self._manager.transfer(
                object(),
                lambda work: list(entry.source.resolve(entry.repository, [reading.reference], work)),
                needs=(host_permit(entry.source.host),),
                policy=ONCE,
            )
        if isinstance(version, MirrorError):
            raise version.told(f"is not on the target, and cannot be fetched: {version.what}")
        raise NotFound("is not on the target", hint=SYNC)

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
                hint=SYNC,
                code="tag_moved",
            )

    def _check_all(self, target: TargetEntry, blobs: Sequence[Descriptor]) -> Steps[list[MirrorError]]:
        """Steps: what is wrong with the blobs of an image, damage first. Checks each blob of a repository once."""
        keys = {(target.place, blob.digest, blob.size): blob for blob in blobs}
        with self._lock:
            todo = [key for key in keys if key not in self._checked]
        checks = yield settled([self._check(target, keys[key]) for key in todo])
        for key, check in zip(todo, checks, strict=True):
            error = check.error
            if isinstance(error, Cancelled) or not (error is None or isinstance(error, MirrorError)):
                raise error
            with self._lock:
                self.account.blobs += key not in self._checked
                self._checked[key] = _with_remedy(error) if error is not None else None
        with self._lock:
            errors = [error for key in keys if (error := self._checked[key]) is not None]
        return sorted(errors, key=lambda error: isinstance(error, NotFound))

    def _check(self, target: TargetEntry, blob: Descriptor) -> Watch[None]:
        place = target.place
        key = ("verify", place, blob.digest, blob.size)

        left_out = target.store.lacks(blob)

        def look(work: Work) -> None:
            if not self._targets[place.host].has_blob(place.path, blob, work):
                raise NotFound(f"blob {blob.digest} is missing in {place}")

        def hash_all(work: Work) -> None:
            self._hash(target.store, place, blob, work)

        if self._deep and not left_out:
            return self._manager.transfer(key, hash_all, needs=(host_permit(place.host), DOWNLOADS))
        return self._manager.transfer(key, look, needs=(host_permit(place.host),), policy=ONCE)

    def _hash(self, store: Source, place: Place, blob: Descriptor, work: Work) -> None:
        buffer = memoryview(bytearray(BUFFER))
        count = 0
        with SourceBody(blob, [Origin(store, place.path)]).open(0, work) as reader:
            while got := reader.readinto(buffer):
                count += got
        with self._lock:
            self.account.bytes += count


def _with_remedy(error: MirrorError) -> MirrorError:
    """The same error with a hint that says how to repair the target, where it is about what the target holds."""
    told = error.told(error.what)
    if isinstance(error, Misdescribed | AuthError | RateLimited) or "`mirror sync" in error.hint:
        return told
    if isinstance(error, NetworkError):
        # A registry that remembers the size of a file answers so if the file was cut, or is gone.
        if error.code == "truncated":
            told.hint = f"if that lasts, it is damaged there: {REPAIR}"
        return told
    if isinstance(error, NotFound):
        told.hint = DEEP
    elif isinstance(error, Refused) and error.code in DAMAGED:
        told.hint = f"it is damaged there: {REPAIR}"
    elif isinstance(error, RemoteError) and error.status is not None and error.status >= 500:
        told.hint = f"if that lasts, it is damaged there: {REPAIR}"
    return told
