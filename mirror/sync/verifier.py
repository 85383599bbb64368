"""Check that every selected image is complete on every target. Believes no tag, no hint and no state.

Each finding names the command that repairs it: `sync` copies a tag that is missing or differs, `sync --deep` copies a
blob or manifest that is missing, `sync --repair` sends again what is damaged."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

from mirror.errors import AuthError, Cancelled, MirrorError, NetworkError, NotFound, RateLimited, Refused, RemoteError
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.store import DAMAGED, Target, Version
from mirror.sync.image_reader import Reader, resolved
from mirror.sync.manifest_graph import Manifests, Misdescribed
from mirror.sync.plan_model import Entry, Finding, TargetEntry, Verdict
from mirror.transfer.blob_locations import Place
from mirror.transfer.calls import Calls
from mirror.transfer.downloads import Origin, SourceBody
from mirror.transfer.permits import DOWNLOADS, host_permit
from mirror.transfer.shared import Shared
from mirror.transfer.tasks import Steps, gather_results, task_group
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
    """Implements planner.Findings: walks each image that a target should have.

    reader: makes what only a transform can tell, with `deep`."""

    def __init__(self, calls: Calls, targets: Mapping[str, Target], reader: Reader, *, deep: bool) -> None:
        self._calls = calls
        self._reader = reader
        self._manifests = Manifests(calls, by_repository=True)
        self._targets = targets
        self._deep = deep
        self._checked: dict[tuple[Place, Digest, int | None], MirrorError | None] = {}
        self._checks: Shared[tuple[Place, Digest, int | None], None] = Shared(calls.tasks)
        self._walks: asyncio.TaskGroup
        self.account = Account()

    async def run(self, plan: Steps[None]) -> None:
        """Run the plan, and walk what it finds."""
        async with task_group() as self._walks:
            await plan

    # ---- planner.Findings

    def found(self, finding: Finding) -> None:
        self.account.images += 1
        if finding.error is not None:
            self._problem(finding.name, finding.error)
            self._reader.let_go(finding.reading)
        else:
            self._walks.create_task(self._walk(finding))

    def listing_failed(self, entry: Entry, error: MirrorError) -> None:
        self._problem(entry.name, error)

    def refused_name(self, entry: Entry, error: MirrorError) -> None:
        self._problem(entry.name, error)

    def saw_target(self, place: Place, tag: str, digest: Digest) -> None:
        """Nothing is remembered: what is seen is walked."""

    def selected(self, entry: Entry, count: int, rejected: Mapping[str, int]) -> None:
        """The account counts images."""

    # ---- walking

    def _problem(self, name: str, error: MirrorError) -> None:
        self.account.problems.append(Problem(name, error))

    async def _walk(self, finding: Finding) -> None:
        target = finding.target
        try:
            if finding.verdict is Verdict.COPY:
                if finding.old is None:
                    finding = replace(finding, old=await self._read_unlisted(finding))
                await self._differs(finding)
            try:
                graph = await self._manifests.graph(target.store, target.place.path, finding.reading.tag)
            except MirrorError as error:
                raise _with_remedy(error) from error
            if graph.root.digest != finding.old:
                what = f"moved while it was looked at: from {finding.old} to {graph.root.digest}"
                raise RemoteError(what, hint="verify again", code="tag_moved")
            errors = await self._check_all(target, graph.blobs)
            if errors:
                raise errors[0]
        except MirrorError as error:
            self._problem(finding.name, error)
        finally:
            self._reader.let_go(finding.reading)

    async def _read_unlisted(self, finding: Finding) -> Digest:
        """Read a tag of the target that its list lacks, or that it gave no digest for. -> the digest.

        Raises why it cannot be read: it is damaged there, not to be had at the source, or missing."""
        reading = finding.reading
        try:
            # The list of a target may be incomplete, and the plan takes a tag that answers with a server error for
            # missing, since a sync may cure it.
            return (await self._manifests.read(finding.target.store, finding.target.place.path, reading.tag)).digest
        except NotFound:
            pass
        except MirrorError as error:
            raise _with_remedy(error) from error
        entry, version = reading.entry, reading.version
        if version is None:
            (version,) = await self._calls.call(
                lambda work: list(entry.source.resolve(entry.repository, [reading.reference], work)),
                needs=(host_permit(entry.source.host),),
                policy=ONCE,
            )
        if isinstance(version, MirrorError):
            raise version.told(f"is not on the target, and cannot be fetched: {version.what}")
        raise NotFound("is not on the target", hint=SYNC)

    async def _differs(self, finding: Finding) -> None:
        """Raises if the target has the tag with another digest than the source."""
        reading = finding.reading
        version = reading.version
        if not isinstance(version, Version):
            version = await resolved(self._calls, reading)
        theirs = version.digest
        if version.unmade:
            if not self._deep:
                self.account.uncompared += 1
                return
            reading.version = version
            theirs = (await self._reader.image(reading)).graph.root.digest
        if theirs not in (None, finding.old):
            raise RemoteError(
                f"differs: the target has {finding.old}, the source {theirs}",
                hint=SYNC,
                code="tag_moved",
            )

    async def _check_all(self, target: TargetEntry, blobs: Sequence[Descriptor]) -> list[MirrorError]:
        """What is wrong with the blobs of an image, damage first. Checks each blob of a repository once."""
        keys = {(target.place, blob.digest, blob.size): blob for blob in blobs}
        todo = [key for key in keys if key not in self._checked]
        checks = await gather_results(self._checks.run(key, partial(self._check, target, keys[key])) for key in todo)
        for key, error in zip(todo, checks, strict=True):
            if isinstance(error, Cancelled):
                raise error
            self.account.blobs += key not in self._checked
            self._checked[key] = _with_remedy(error) if error is not None else None
        errors = [error for key in keys if (error := self._checked[key]) is not None]
        return sorted(errors, key=lambda error: isinstance(error, NotFound))

    async def _check(self, target: TargetEntry, blob: Descriptor) -> None:
        place = target.place

        def look(work: Work) -> None:
            if not self._targets[place.host].has_blob(place.path, blob, work):
                raise NotFound(f"blob {blob.digest} is missing in {place}")

        if self._deep and not target.store.lacks(blob):
            run = partial(_hash, blob, Origin(target.store, place.path))
            self.account.bytes += await self._calls.call(run, needs=(host_permit(place.host), DOWNLOADS))
        else:
            await self._calls.call(look, needs=(host_permit(place.host),), policy=ONCE)


def _hash(blob: Descriptor, origin: Origin, work: Work) -> int:
    """Read a blob and prove its digest. -> its size, bytes."""
    buffer = memoryview(bytearray(BUFFER))
    count = 0
    with SourceBody(blob, [origin]).open(0, work) as reader:
        while got := reader.readinto(buffer):
            count += got
    return count


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
