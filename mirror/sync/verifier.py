"""Checks that every selected image is complete on every target, without trusting tags, hints or the state.

Each problem names the command that fixes it. `sync` copies a tag that is missing or differs, `sync --deep` copies a
missing blob or manifest, and `sync --repair` sends damaged content again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from mirror.errors import (
    AuthError,
    Cancelled,
    MirrorError,
    NetworkError,
    NotFound,
    OtherPlatform,
    RateLimited,
    Refused,
    RemoteError,
)
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.output.progress import Progress
from mirror.output.report import FailedImage, ImageEntry, Result
from mirror.selection.tag_rules import SelectionSummary
from mirror.store import DAMAGED, Target
from mirror.sync.attachment_verifier import AttachmentVerifier
from mirror.sync.image_reader import ImageReader
from mirror.sync.manifest_graph import ManifestCache, WrongDescriptorError
from mirror.sync.plan_model import Action, MirrorEntry, PlanEntry, SourceReference, TargetEntry
from mirror.sync.platform_reader import PlatformReader
from mirror.sync.report_entries import image_entry, image_failure, mirror_entry, mirror_failure
from mirror.transfer.blob_request import BlobSource
from mirror.transfer.calls import Calls
from mirror.transfer.downloads import BlobDownload
from mirror.transfer.permits import DOWNLOADS, host_permit
from mirror.transfer.shared_tasks import SharedTasks
from mirror.transfer.tasks import Coro, gather_results, task_group
from mirror.util.cancellation import Work
from mirror.util.structs import Struct, field, replace

BUFFER = 256 << 10  # bytes
SYNC = "run `mirror sync CONFIG`"
DEEP = "run `mirror sync --deep CONFIG`"
REPAIR = "run `mirror sync --repair CONFIG`"


class VerifyResult(Struct):
    """The result of a verification.

    images, blobs, attachments: the numbers of images, blobs and attachments that were checked. bytes: the number of
    bytes that were hashed.
    other_platforms: the number of images that were not checked because they are for platforms that are not wanted.
    uncompared: the number of images that were not compared with their source, because they need a transform whose
    result the state does not contain."""

    images: int = 0
    blobs: int = 0
    attachments: int = 0
    bytes: int = 0
    uncompared: int = 0
    other_platforms: int = 0
    problems: list[FailedImage] = field(default_factory=list)


class Verifier:
    """Checks each image that a target should have. Implements PlanReceiver.

    reader: runs the transforms if `deep` is set, checks signatures, and finds the attachments of images.
    progress: the progress of the run, in which images are counted.
    deep: whether to hash every blob, to run transforms in order to compare their results with the targets, and to check
    the signatures of all images.
    receive_entry: a function that receives the result of each image and mirror, as an entry for the report.
    result: the result, which is complete after `run`."""

    def __init__(
        self,
        calls: Calls,
        targets: Mapping[str, Target],
        reader: ImageReader,
        progress: Progress,
        *,
        deep: bool,
        receive_entry: Callable[[ImageEntry], None],
    ) -> None:
        self.result = VerifyResult()
        self._progress = progress
        self._receive_entry = receive_entry
        self._calls = calls
        self._reader = reader
        self._manifests = ManifestCache(calls, by_repository=True)
        self._attachments = AttachmentVerifier(
            calls, reader.attachments, self._manifests, self._check_blobs, _add_remedy
        )
        self._platforms = PlatformReader(calls, self._manifests)
        self._targets = targets
        self._deep = deep
        self._checked: dict[tuple[Repository, Digest, int | None], MirrorError | None] = {}
        self._checks: SharedTasks[tuple[Repository, Digest, int | None], None] = SharedTasks(calls.tasks)
        self._tasks: asyncio.TaskGroup

    async def run(self, plan: Coro[None]) -> None:
        """Run the coroutine `plan`, and check each image that it plans."""
        async with task_group() as self._tasks:
            await plan
        self.result.attachments = self._attachments.checked

    # ---- the methods of PlanReceiver

    def add_plan_entry(self, plan_entry: PlanEntry) -> None:
        """Start checking one image on one target. If it could not be planned, add the error to the problems instead."""
        self.result.images += 1
        if plan_entry.error is not None:
            self._record(plan_entry, [plan_entry.error], time.monotonic())
            self._reader.release(plan_entry.reference)
        else:
            self._tasks.create_task(self._check_image(plan_entry))

    def record_mirror_failure(self, entry: MirrorEntry, error: MirrorError) -> None:
        """Record that a mirror cannot be planned, so that its images cannot be verified."""
        self._record_mirror_problem(entry, error)

    def record_invalid_name(self, entry: MirrorEntry, error: MirrorError) -> None:
        """Record an invalid tag or repository name."""
        self._record_mirror_problem(entry, error)

    def record_target_tag(self, repository: Repository, tag: str, digest: Digest) -> None:
        """Do nothing, because a verification does not write to the state."""

    def record_selection(self, entry: MirrorEntry, selection: SelectionSummary) -> None:
        """Add the selected references to the total of the progress display."""
        self._progress.add_images(selection.count * len(entry.targets))

    def record_repositories(self, entry: MirrorEntry, count: int, rejected: Mapping[str, int]) -> None:
        """Do nothing, because the result does not include the number of selected repositories."""

    # ---- checking

    def _record(
        self, plan_entry: PlanEntry, errors: Sequence[MirrorError], started: float, *, compared: bool = True
    ) -> None:
        """Record the result for one image on one target. errors: the problems. started: when the check started."""
        problems = [image_failure(plan_entry, error, on_target=True) for error in errors]
        self.result.problems += problems
        self._progress.count_image(failed=bool(problems))
        is_stopped = bool(errors) and isinstance(errors[0], Cancelled)
        result: Result = "skipped" if is_stopped else problems[0].result if problems else "up-to-date"
        failures = [problem.failure for problem in problems]
        self._receive_entry(
            replace(
                image_entry(plan_entry, result, plan_entry.old_digest),
                error=failures[0] if failures else None,
                more_errors=tuple(failures[1:]),
                seconds=time.monotonic() - started,
                compared=compared,
            )
        )

    def _record_mirror_problem(self, entry: MirrorEntry, error: MirrorError) -> None:
        """Record a problem with a whole mirror, or with a name that its source lists."""
        failed = mirror_failure(entry, error)
        self.result.problems.append(failed)
        self._receive_entry(mirror_entry(failed, error, entry.mirror_name))

    async def _check_image(self, plan_entry: PlanEntry) -> None:
        """Check that an image on a target is complete and equal to the image at the source."""
        started, errors, compared = time.monotonic(), list[MirrorError](), True
        try:
            if plan_entry.action is Action.COPY or self._deep:
                await self._check_signature(plan_entry.reference)
            if plan_entry.action is Action.COPY:
                await self._check_platform(plan_entry)
                if plan_entry.old_digest is None:
                    plan_entry = replace(plan_entry, old_digest=await self._read_unlisted(plan_entry))
                compared = await self._compare_with_source(plan_entry)
            errors += await self._check_content(plan_entry)
        except OtherPlatform as error:
            self.result.images -= 1
            self.result.other_platforms += 1
            self._progress.count_image()
            self._receive_entry(image_entry(plan_entry, "skipped", plan_entry.old_digest, error))
            return
        except MirrorError as error:
            errors.append(error)
        finally:
            self._reader.release(plan_entry.reference)
        self._record(plan_entry, errors, started, compared=compared)

    async def _check_content(self, plan_entry: PlanEntry) -> list[MirrorError]:
        """Check that a target has all content of an image and of its attachments. Return the errors of attachments.

        Raises an error if the image itself is not complete."""
        try:
            graph = await self._platforms.read_target_graph(plan_entry)
        except MirrorError as error:
            raise _add_remedy(error) from error
        if graph.root.digest != plan_entry.old_digest:
            what = f"the tag changed during the verification, from {plan_entry.old_digest} to {graph.root.digest}"
            raise RemoteError(what, hint="run `mirror verify CONFIG` again", code="tag_moved")
        errors = await self._check_blobs(plan_entry.target, graph.blobs)
        if errors:
            raise errors[0]
        return await self._attachments.find_problems(plan_entry, graph)

    async def _check_platform(self, plan_entry: PlanEntry) -> None:
        """Raise OtherPlatform if the mirror does not copy the platform of an image.

        Other errors are ignored here, because the later comparison with the source reports them. Raises Cancelled."""
        reference = plan_entry.reference
        if reference.entry.platforms is None:
            return
        try:
            version = await self._reader.resolve(reference)
            if self._deep or version.transform is None:
                await self._reader.find_digest(reference)
        except (OtherPlatform, Cancelled):
            raise
        except MirrorError:
            pass

    async def _check_signature(self, reference: SourceReference) -> None:
        """Raise Refused (not_signed) if a sync would not copy an image because of its signature.

        If the source does not have the image, do nothing, because the comparison with the source reports the error."""
        if reference.entry.signature_policy is None:
            return
        try:
            await self._reader.resolve(reference)
        except NotFound:
            return
        await self._reader.check_signature(reference)

    async def _read_unlisted(self, plan_entry: PlanEntry) -> Digest:
        """Read a tag from the target, and return its digest, which the plan entry does not contain.

        Raises an error if the tag is damaged or missing. If the tag is missing and cannot be read from the source
        either, the error states both."""
        reference = plan_entry.reference
        repository = plan_entry.target.repository.path
        try:
            # The target's tag list may be incomplete. If the target responded to the lookup of the tag with a server
            # error, the plan entry also has no digest.
            return (await self._manifests.read(plan_entry.target.store, repository, plan_entry.tag)).digest
        except NotFound:
            pass
        except MirrorError as error:
            raise _add_remedy(error) from error
        entry, version = reference.entry, reference.version
        if version is None:
            (version,) = await self._calls.call_host(
                entry.source.host,
                lambda work: list(entry.source.resolve(entry.repository, [reference.identifier], work)),
            )
        if isinstance(version, MirrorError):
            raise version.with_text(
                f"the image is not on the target, and cannot be read from the source: {version.what}"
            )
        raise NotFound("the image is not on the target", hint=SYNC)

    async def _compare_with_source(self, plan_entry: PlanEntry) -> bool:
        """Compare an image with its source. Return False if this is not possible.

        Raises RemoteError (tag_moved) if the digests on the target and at the source differ. The digest at the source
        is that after the transform and the selection of platforms. Only `deep` runs transforms. To select platforms,
        only the index or config of the image is read."""
        reference = plan_entry.reference
        version = await self._reader.resolve(reference)
        if version.is_unknown and version.transform is not None and not self._deep:
            self.result.uncompared += 1
            return False
        source_digest = await self._reader.find_digest(reference)
        if source_digest != plan_entry.old_digest:
            raise RemoteError(
                f"the digests differ: the target has {plan_entry.old_digest}, but the source has {source_digest}",
                hint=SYNC,
                code="tag_moved",
            )
        return True

    async def _check_blobs(self, target: TargetEntry, blobs: Sequence[Descriptor]) -> list[MirrorError]:
        """Check the blobs of an image, and return the errors. Errors for missing blobs come last.

        Each blob is checked only once per repository. Raises Cancelled."""
        keys = {(target.repository, blob.digest, blob.size): blob for blob in blobs}
        unchecked = [key for key in keys if key not in self._checked]
        results = await gather_results(
            self._checks.run(key, partial(self._check_blob, target, keys[key])) for key in unchecked
        )
        for key, error in zip(unchecked, results, strict=True):
            if isinstance(error, Cancelled):
                raise error
            self.result.blobs += key not in self._checked
            self._checked[key] = _add_remedy(error) if error is not None else None
        errors = [error for key in keys if (error := self._checked[key]) is not None]
        return sorted(errors, key=lambda error: isinstance(error, NotFound))

    async def _check_blob(self, target: TargetEntry, blob: Descriptor) -> None:
        """Raise an error unless a repository has a blob and, if `deep` is set, its bytes match the digest."""
        repository = target.repository

        def look_up(work: Work) -> None:
            """Look up the blob. Runs on a worker thread."""
            if not self._targets[repository.host].has_blob(repository.path, blob, work):
                raise NotFound(f"blob {blob.digest} is missing in {repository}")

        if self._deep and not target.store.omits_blob(blob):
            run = partial(_hash_blob, blob, BlobSource(target.store, repository.path), self._progress)
            size = await self._calls.call(run, needs=(host_permit(repository.host), DOWNLOADS))
            self.result.bytes += size  # after the wait, during which other blobs are counted
        else:
            await self._calls.call_host(repository.host, look_up)


def _hash_blob(blob: Descriptor, blob_source: BlobSource, progress: Progress, work: Work) -> int:
    """Read a blob and verify its digest. Return its size in bytes. Raises Refused (digest_mismatch, size_mismatch)."""
    buffer = memoryview(bytearray(BUFFER))
    with (
        progress.running_blob(str(blob_source), blob.digest, blob.size, "hash") as shown,
        BlobDownload(blob, [blob_source]).open(0, work) as reader,
    ):
        while count := reader.readinto(buffer):
            shown.add(count)
    return shown.position


def _add_remedy(error: MirrorError) -> MirrorError:
    """Return a copy of an error, with the repair command as its hint if the error shows wrong content on a target."""
    copy = error.with_text(error.what)
    if isinstance(error, WrongDescriptorError | AuthError | RateLimited) or "`mirror sync" in error.hint:
        return copy
    if isinstance(error, NetworkError):
        # A registry that caches sizes sends such a response if the file of a blob was truncated or deleted.
        if error.code == "truncated":
            copy.hint = f"if this persists, the target's copy is damaged: {REPAIR}"
        return copy
    if isinstance(error, NotFound):
        copy.hint = DEEP
    elif isinstance(error, Refused) and error.code in DAMAGED:
        copy.hint = f"the target's copy is damaged: {REPAIR}"
    elif isinstance(error, RemoteError) and error.status is not None and error.status >= 500:
        copy.hint = f"if this persists, the target's copy is damaged: {REPAIR}"
    return copy
