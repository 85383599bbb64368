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
from mirror.oci.reference import Repository
from mirror.store import DAMAGED, Target, Version
from mirror.sync.image_reader import ImageReader, read_version
from mirror.sync.manifest_graph import ManifestCache, WrongDescriptorError
from mirror.sync.plan_model import Action, MirrorEntry, PlanEntry, TargetEntry
from mirror.transfer.calls import Calls
from mirror.transfer.downloads import BlobSource, SourceBody
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


class VerifyResult(Struct):
    """What was verified. bytes: hashed, with --deep. uncompared: images that only a transform makes of their source,
    and nobody remembers into what."""

    images: int = 0
    blobs: int = 0
    bytes: int = 0
    uncompared: int = 0
    problems: list[Problem] = field(default_factory=list)


class Verifier:
    """Implements planner.Findings: walks each image that a target should have.

    reader: makes what only a transform can tell, with `deep`."""

    def __init__(self, calls: Calls, targets: Mapping[str, Target], reader: ImageReader, *, deep: bool) -> None:
        self._calls = calls
        self._reader = reader
        self._manifests = ManifestCache(calls, by_repository=True)
        self._targets = targets
        self._deep = deep
        self._checked: dict[tuple[Repository, Digest, int | None], MirrorError | None] = {}
        self._checks: Shared[tuple[Repository, Digest, int | None], None] = Shared(calls.tasks)
        self._walks: asyncio.TaskGroup
        self.account = VerifyResult()

    async def run(self, plan: Steps[None]) -> None:
        """Run the plan, and walk what it finds."""
        async with task_group() as self._walks:
            await plan

    # ---- planner.Findings

    def add_plan_entry(self, plan_entry: PlanEntry) -> None:
        self.account.images += 1
        if plan_entry.error is not None:
            self._add_problem(plan_entry.name, plan_entry.error)
            self._reader.release(plan_entry.reference)
        else:
            self._walks.create_task(self._check_image(plan_entry))

    def record_listing_failure(self, entry: MirrorEntry, error: MirrorError) -> None:
        self._add_problem(entry.name, error)

    def record_invalid_name(self, entry: MirrorEntry, error: MirrorError) -> None:
        self._add_problem(entry.name, error)

    def note_target_tag(self, repository: Repository, tag: str, digest: Digest) -> None:
        """Nothing is remembered: what is seen is walked."""

    def record_selection(self, entry: MirrorEntry, count: int, rejected: Mapping[str, int]) -> None:
        """The account counts images."""

    # ---- walking

    def _add_problem(self, name: str, error: MirrorError) -> None:
        self.account.problems.append(Problem(name, error))

    async def _check_image(self, plan_entry: PlanEntry) -> None:
        target = plan_entry.target
        try:
            if plan_entry.action is Action.COPY:
                if plan_entry.old_digest is None:
                    plan_entry = replace(plan_entry, old=await self._read_unlisted(plan_entry))
                await self._compare_with_source(plan_entry)
            try:
                graph = await self._manifests.read_graph(target.store, target.repository.path, plan_entry.reference.tag)
            except MirrorError as error:
                raise _add_remedy(error) from error
            if graph.root.digest != plan_entry.old_digest:
                what = f"moved while it was looked at: from {plan_entry.old_digest} to {graph.root.digest}"
                raise RemoteError(what, hint="verify again", code="tag_moved")
            errors = await self._check_blobs(target, graph.blobs)
            if errors:
                raise errors[0]
        except MirrorError as error:
            self._add_problem(plan_entry.name, error)
        finally:
            self._reader.release(plan_entry.reference)

    async def _read_unlisted(self, plan_entry: PlanEntry) -> Digest:
        """Read a tag of the target that its list lacks, or that it gave no digest for. -> the digest.

        Raises why it cannot be read: it is damaged there, not to be had at the source, or missing."""
        reference = plan_entry.reference
        try:
            # The list of a target may be incomplete, and the plan takes a tag that answers with a server error for
            # missing, since a sync may cure it.
            return (
                await self._manifests.read(plan_entry.target.store, plan_entry.target.repository.path, reference.tag)
            ).digest
        except NotFound:
            pass
        except MirrorError as error:
            raise _add_remedy(error) from error
        entry, version = reference.entry, reference.version
        if version is None:
            (version,) = await self._calls.call(
                lambda work: list(entry.source.resolve(entry.repository, [reference.identifier], work)),
                needs=(host_permit(entry.source.host),),
                policy=ONCE,
            )
        if isinstance(version, MirrorError):
            raise version.with_text(f"is not on the target, and cannot be fetched: {version.what}")
        raise NotFound("is not on the target", hint=SYNC)

    async def _compare_with_source(self, plan_entry: PlanEntry) -> None:
        """Raises if the target has the tag with another digest than the source."""
        reference = plan_entry.reference
        version = reference.version
        if not isinstance(version, Version):
            version = await read_version(self._calls, reference)
        theirs = version.digest
        if version.needs_transform:
            if not self._deep:
                self.account.uncompared += 1
                return
            reference.version = version
            theirs = (await self._reader.read_image(reference)).graph.root.digest
        if theirs not in (None, plan_entry.old_digest):
            raise RemoteError(
                f"differs: the target has {plan_entry.old_digest}, the source {theirs}",
                hint=SYNC,
                code="tag_moved",
            )

    async def _check_blobs(self, target: TargetEntry, blobs: Sequence[Descriptor]) -> list[MirrorError]:
        """What is wrong with the blobs of an image, damage first. Checks each blob of a repository once."""
        keys = {(target.repository, blob.digest, blob.size): blob for blob in blobs}
        todo = [key for key in keys if key not in self._checked]
        checks = await gather_results(
            self._checks.run(key, partial(self._check_blob, target, keys[key])) for key in todo
        )
        for key, error in zip(todo, checks, strict=True):
            if isinstance(error, Cancelled):
                raise error
            self.account.blobs += key not in self._checked
            self._checked[key] = _add_remedy(error) if error is not None else None
        errors = [error for key in keys if (error := self._checked[key]) is not None]
        return sorted(errors, key=lambda error: isinstance(error, NotFound))

    async def _check_blob(self, target: TargetEntry, blob: Descriptor) -> None:
        repository = target.repository

        def look(work: Work) -> None:
            if not self._targets[repository.host].has_blob(repository.path, blob, work):
                raise NotFound(f"blob {blob.digest} is missing in {repository}")

        if self._deep and not target.store.leaves_out(blob):
            run = partial(_hash_blob, blob, BlobSource(target.store, repository.path))
            self.account.bytes += await self._calls.call(run, needs=(host_permit(repository.host), DOWNLOADS))
        else:
            await self._calls.call(look, needs=(host_permit(repository.host),), policy=ONCE)


def _hash_blob(blob: Descriptor, origin: BlobSource, work: Work) -> int:
    """Read a blob and prove its digest. -> its size, bytes."""
    buffer = memoryview(bytearray(BUFFER))
    count = 0
    with SourceBody(blob, [origin]).open(0, work) as reader:
        while got := reader.readinto(buffer):
            count += got
    return count


def _add_remedy(error: MirrorError) -> MirrorError:
    """The same error with a hint that says how to repair the target, where it is about what the target holds."""
    told = error.with_text(error.what)
    if isinstance(error, WrongDescriptorError | AuthError | RateLimited) or "`mirror sync" in error.hint:
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
