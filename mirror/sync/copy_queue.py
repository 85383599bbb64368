"""Decides when each planned image is copied, and records exactly one result for every plan entry."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping
from functools import partial
from itertools import islice

from mirror.errors import Cancelled, MirrorError, OtherPlatform, Refused
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.oci.referrers import is_attachment_tag
from mirror.selection.locations import MATCHED
from mirror.selection.tag_rules import SelectionSummary
from mirror.store import Target
from mirror.sync.bundle_bases import BundleBases
from mirror.sync.copy_hints import CopyHintWriter
from mirror.sync.image_copier import ImageCopier
from mirror.sync.image_reader import ImageReader
from mirror.sync.plan_decisions import check_immutable
from mirror.sync.plan_model import Action, MirrorEntry, PlanEntry
from mirror.sync.planner_queries import equality_key
from mirror.sync.read_ahead import ReadAhead
from mirror.sync.recheck import Recheck
from mirror.sync.recorder import BlobCounts, ResultRecorder
from mirror.sync.target_lifecycle import NotReplacedError, TargetLifecycle, name_on_target
from mirror.transfer.blob_locations import BlobLocations
from mirror.transfer.calls import RESULT_NOT_NEEDED, Calls
from mirror.transfer.tasks import Coro, run_and_catch, task_group

_log = logging.getLogger("mirror.sync")


class _HostQueue:
    """The queue of images for one target host. workers: the number of running tasks that copy images in the queue."""

    def __init__(self) -> None:
        self.waiting: deque[PlanEntry] = deque()
        self.workers = 0


class CopyQueue:
    """Copies planned images while planning continues. Implements PlanReceiver.

    images: the maximum number of images that are copied to one target host at the same time.
    deep: whether to check every object on the targets, even if the tag of the image is up to date.
    fail_fast: whether to start no more copies after the first failure."""

    def __init__(
        self,
        calls: Calls,
        reader: ImageReader,
        copier: ImageCopier,
        locations: BlobLocations,
        notes: CopyHintWriter,
        recorder: ResultRecorder,
        targets: Mapping[str, Target],
        lifecycle: TargetLifecycle,
        *,
        images: int,
        deep: bool,
        fail_fast: bool,
    ) -> None:
        self._calls = calls
        self._reader = reader
        self._copier = copier
        self._locations = locations
        self._notes = notes
        self._recorder = recorder
        self._targets = targets
        self._images = images
        self._deep = deep
        self._fail_fast = fail_fast
        self._lifecycle = lifecycle
        self._bases = BundleBases(calls, reader, locations, targets)
        self._recheck = Recheck(reader.attachments, copier, notes, lifecycle)
        self._workers: asyncio.TaskGroup
        self._queues: defaultdict[str, _HostQueue] = defaultdict(_HostQueue)  # by target host
        self._read_ahead = ReadAhead(calls, reader)
        # Plan entries that are deferred until the plan is complete. `_for_bundles` groups them by target host,
        # `_from_partial` groups them by source host, and `_deferred` contains all of them.
        self._for_bundles: defaultdict[str, list[PlanEntry]] = defaultdict(list)
        self._from_partial: defaultdict[str, list[PlanEntry]] = defaultdict(list)
        self._deferred: dict[PlanEntry, None] = {}
        # Images that were written to bundles; `_finish` records their results.
        self._written: dict[PlanEntry, tuple[Digest, BlobCounts]] = {}
        self._without_result: dict[PlanEntry, None] = {}
        self._halted: Cancelled | None = None

    async def run(self, plan: Coro[None]) -> None:
        """Run the coroutine `plan`, copy the images that it plans, and close the targets.

        When this returns, a result has been recorded for every plan entry."""
        try:
            async with task_group() as self._workers:
                failure = await run_and_catch(plan)
                if failure is not None:  # a bug: the plan is incomplete, so no bundle is written
                    self.halt(Cancelled("planning stopped at an internal error"))
                    self._recorder.record_bug(failure)
                failure = await run_and_catch(self._copy_deferred())
                for plan_entry in list(self._deferred):  # empty unless there was a bug
                    cause = failure or RuntimeError("the image was not copied")
                    self._end_deferred(plan_entry, partial(self._record_crash, plan_entry, cause))
            await self._finish()
        finally:
            self._read_ahead.close()
            for plan_entry in list(self._without_result):
                self._record_failure(plan_entry, self._halted or Cancelled(RESULT_NOT_NEEDED), BlobCounts())

    # ---- the methods of PlanReceiver

    def add_plan_entry(self, plan_entry: PlanEntry) -> None:
        """Queue a planned image for copying or, if it is not copied, record its result."""
        host, source = plan_entry.target.repository.host, plan_entry.reference.entry.source
        self._without_result[plan_entry] = None
        if plan_entry.action is Action.FAIL and plan_entry.error is not None:
            self._lifecycle.add_missing(host, name_on_target(plan_entry), plan_entry.error)
            self._record_failure(plan_entry, plan_entry.error, BlobCounts())
            self._reader.release(plan_entry.reference)
        elif self._targets[host].needs_all_images:
            self._defer(plan_entry, self._for_bundles[host])
        elif plan_entry.action is Action.SKIP and not self._deep and plan_entry.old_digest is not None:
            entry = plan_entry.reference.entry
            if is_attachment_tag(plan_entry.tag):
                protection = self._reader.attachments.protection
                protection.record(entry, plan_entry.target.repository, plan_entry.tag, plan_entry.old_digest)
            if entry.rules.is_immutable(plan_entry.tag):
                name = equality_key(plan_entry.reference, plan_entry.target.repository)
                self._notes.record_tag("source", name, plan_entry.tag, plan_entry.old_digest)
            if plan_entry.recheck:
                self._enqueue(plan_entry)
            else:
                self._record_success(plan_entry, plan_entry.old_digest, BlobCounts(), changed=False)
                self._reader.release(plan_entry.reference)
        elif source.partial:
            self._defer(plan_entry, self._from_partial[source.host])
        else:
            self._enqueue(plan_entry)

    def record_mirror_failure(self, entry: MirrorEntry, error: MirrorError) -> None:
        """Record that a mirror cannot be planned, so that bundles among its targets are incomplete."""
        for target in entry.targets:
            name = target.repository.path.replace(MATCHED, "*")
            self._lifecycle.add_missing(target.repository.host, name, error)
        self._recorder.record_mirror_failure(entry, error)
        self._halt_if_fail_fast(error)

    def record_invalid_name(self, entry: MirrorEntry, error: MirrorError) -> None:
        """Record an invalid tag or repository name. A bundle is complete without it, because no store accepts it."""
        self._recorder.record_mirror_failure(entry, error)

    def record_target_tag(self, repository: Repository, tag: str, digest: Digest) -> None:
        """Record the digest of a tag on a target for later runs."""
        self._notes.record_tag("target", str(repository), tag, digest)

    def record_selection(self, entry: MirrorEntry, selection: SelectionSummary) -> None:
        """Record the number of references that a mirror selects, and allow mounts between its repositories."""
        source = Repository(entry.source.host, entry.repository)
        self._locations.allow_mounts_from([source, *(target.repository for target in entry.targets)])
        self._recorder.record_selection(entry, selection)

    def record_repositories(self, entry: MirrorEntry, count: int, rejected: Mapping[str, int]) -> None:
        """Log the number of repositories that a wildcard selects."""
        text = f"{entry.name}: {count} repositories selected"
        extra = {"source": entry.name, "repositories": count, "rejected": dict(rejected), "text": text}
        _log.info("repositories_selected", extra=extra)

    # ---- images that are copied after the plan is complete

    def _defer(self, plan_entry: PlanEntry, group: list[PlanEntry]) -> None:
        """Defer an image until the plan is complete. group: the list of deferred images to which it is added."""
        self._deferred[plan_entry] = None
        group.append(plan_entry)

    async def _copy_deferred(self) -> None:
        """Check the deferred images when the plan is complete, and queue the images that pass the checks.

        If the queue was halted, record the images as skipped instead."""
        if self._halted:
            for plan_entry in list(self._deferred):
                self._end_deferred(plan_entry, partial(self._record_skipped, plan_entry, self._halted))
            return
        for group in self._from_partial.values():
            self._enqueue_deferred(group, await self._run_check(self._bases.find_missing(group), group))
        for host, group in self._for_bundles.items():
            # Equal tags are not enough if the bundle was written with a different base, or if it lacks images because
            # it was written for a different selection.
            store = self._targets[host]
            completable = store.incomplete and not self._lifecycle.missing_images(host)
            must_rewrite = self._deep or store.partial or completable
            equal = not must_rewrite and all(plan_entry.action is Action.SKIP for plan_entry in group)
            if equal and await self._recheck.are_complete(group):
                for plan_entry in group:
                    if (digest := plan_entry.old_digest) is not None:
                        record = partial(self._record_success, plan_entry, digest, BlobCounts(), changed=False)
                        self._end_deferred(plan_entry, record)
            else:
                errors = await self._run_check(self._lifecycle.begin_with_images(host, group), group)
                self._enqueue_deferred(group, errors)

    async def _run_check(
        self, check: Coro[dict[PlanEntry, MirrorError]], plan_entries: Collection[PlanEntry]
    ) -> dict[PlanEntry, MirrorError]:
        """Run a check and return the errors that it found, by plan entry.

        If the check itself raises an error, return this error for every plan entry."""
        try:
            return await check
        except MirrorError as error:
            return dict.fromkeys(plan_entries, error)

    def _enqueue_deferred(self, plan_entries: Collection[PlanEntry], errors: Mapping[PlanEntry, MirrorError]) -> None:
        """Queue the deferred images that passed the check, and record a failure for each image in `errors`."""
        for plan_entry, error in errors.items():
            self._end_deferred(plan_entry, partial(self._record_failure, plan_entry, error, BlobCounts()))
        for plan_entry in plan_entries:
            if plan_entry not in errors:
                del self._deferred[plan_entry]
                self._enqueue(plan_entry)

    def _end_deferred(self, plan_entry: PlanEntry, record: Callable[[], None]) -> None:
        """Record the result for a deferred image that is not copied by calling `record`, and release the image."""
        del self._deferred[plan_entry]
        record()
        self._reader.release(plan_entry.reference)

    # ---- copying

    def halt(self, error: Cancelled) -> None:
        """Stop starting copies. All images that are queued now or later are skipped with this error."""
        self._halted = self._halted or error

    def _enqueue(self, plan_entry: PlanEntry) -> None:
        """Queue an image for its target host. Start a worker if fewer than `images` workers copy to this host."""
        queue = self._queues[plan_entry.target.repository.host]
        queue.waiting.append(plan_entry)
        if queue.workers < self._images:
            queue.workers += 1
            self._workers.create_task(self._run_worker(queue))
        else:
            self._read_next(queue)

    async def _run_worker(self, queue: _HostQueue) -> None:
        """Copy images from a queue, one after another, until the queue is empty."""
        while queue.waiting:
            plan_entry = queue.waiting.popleft()
            self._read_next(queue)
            if self._halted:
                self._read_ahead.cancel(plan_entry)
                self._record_skipped(plan_entry, self._halted)
                await asyncio.sleep(0)  # let other tasks run: the queue may be very long
            else:
                failure = await run_and_catch(self._copy(plan_entry, BlobCounts()))
                if failure is not None:
                    self._record_crash(plan_entry, failure)
            self._reader.release(plan_entry.reference)
        queue.workers -= 1

    def _read_next(self, queue: _HostQueue) -> None:
        """Start reading the next images in a queue."""
        if not self._halted:
            self._read_ahead.start(islice(queue.waiting, self._images))

    async def _copy(self, plan_entry: PlanEntry, counts: BlobCounts) -> None:
        """Copy one image and record the result. If the target is a bundle, `_finish` records the result instead."""
        host = plan_entry.target.repository.host
        try:
            digest = plan_entry.old_digest
            if plan_entry.recheck and not self._targets[host].needs_all_images and digest is not None:
                changed = await self._recheck.copy_missing(plan_entry, digest, counts)
            else:
                image = await self._read_ahead.read(plan_entry)
                digest = image.graph.root.digest
                check_immutable(plan_entry, digest)
                await self._lifecycle.begin(host)
                self._recorder.record_copy_start(plan_entry)
                changed = await self._copier.copy(plan_entry, image, counts)
        except MirrorError as error:
            self._lifecycle.add_missing(host, name_on_target(plan_entry), error)
            self._record_failure(plan_entry, error, counts)
            return
        if self._targets[host].needs_all_images:
            self._written[plan_entry] = (digest, counts)
            self._recorder.record_written(plan_entry)
        else:
            self._recheck.record_complete(plan_entry, digest)
            self._record_success(plan_entry, digest, counts, changed=changed)

    async def _finish(self) -> None:
        """Close the targets, and record the results for images in bundles.

        If a bundle is not replaced, the images that the old bundle contains are recorded as up to date or, with `deep`,
        or if the old bundle may lack some of their blobs, as failed."""
        self._recorder.record_finishing()
        errors = await self._lifecycle.finish(self._written, incomplete=not self._halted)
        for plan_entry, (digest, counts) in self._written.items():
            error = errors.get(host := plan_entry.target.repository.host)
            trust_tags = not (self._deep or self._targets[host].partial)
            if error is None:
                self._recheck.record_complete(plan_entry, digest)
                self._record_success(plan_entry, digest, counts, changed=True)
            elif isinstance(error, NotReplacedError) and plan_entry.action is Action.SKIP and trust_tags:
                self._record_success(plan_entry, digest, BlobCounts(), changed=False)
            else:
                self._record_failure(plan_entry, error, counts)
        for host, error in errors.items():
            if not self._targets[host].needs_all_images and not isinstance(error, Cancelled):
                self._recorder.record_error(error)

    def close(self) -> None:
        """Close the targets that a stopped run left open. Blocks. Call this only after all writes have ended."""
        self._lifecycle.close()

    # ---- results: one for each plan entry

    def _record_success(self, plan_entry: PlanEntry, digest: Digest, counts: BlobCounts, *, changed: bool) -> None:
        """Record that the target has an image. changed: whether the target lacked any part of the image before."""
        self._without_result.pop(plan_entry, None)
        record = self._recorder.record_copied if changed else self._recorder.record_up_to_date
        record(plan_entry, digest, counts)

    def _record_skipped(self, plan_entry: PlanEntry, error: Cancelled) -> None:
        """Record that an image was not copied because the queue was halted. error: the reason."""
        self._without_result.pop(plan_entry, None)
        self._recorder.record_skipped(plan_entry, error)

    def _record_crash(self, plan_entry: PlanEntry, failure: BaseException) -> None:
        """Record that an image failed because of a bug."""
        self._without_result.pop(plan_entry, None)
        self._recorder.record_crash(plan_entry, failure)

    def _record_failure(self, plan_entry: PlanEntry, error: MirrorError, counts: BlobCounts) -> None:
        """Record that an image failed."""
        self._without_result.pop(plan_entry, None)
        reference, tag = plan_entry.reference, plan_entry.tag
        if reference.entry.rules.is_immutable(tag) and isinstance(error, Refused):
            # Remove the record that the tag was equal, so that later runs find the conflict even without --deep.
            self._notes.record_tag("source", equality_key(reference, plan_entry.target.repository), tag, None)
        self._recorder.record_failure(plan_entry, error, counts)
        self._halt_if_fail_fast(error)

    def _halt_if_fail_fast(self, error: MirrorError) -> None:
        """Halt after a failure if `--fail-fast` is set."""
        if self._fail_fast and not isinstance(error, Cancelled | OtherPlatform):
            self.halt(Cancelled("stopped at the first failure (--fail-fast)"))
