"""What is copied when: each image on each target once, a few at a time on each host, and an end to it all."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping
from functools import partial
from itertools import islice

from mirror.errors import Cancelled, MirrorError, Refused
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.selection.locations import MATCHED
from mirror.store import Target
from mirror.sync.bundle_bases import BundleBases
from mirror.sync.image_copier import CopyNotes, ImageCopier
from mirror.sync.image_reader import Image, ImageReader
from mirror.sync.plan_model import Action, MirrorEntry, PlanEntry, check_immutable
from mirror.sync.planner_queries import equality_key
from mirror.sync.recorder import BlobCounts, ResultReceiver
from mirror.sync.target_lifecycle import TargetLifecycle, name_on_target
from mirror.transfer.blob_locations import BlobLocations
from mirror.transfer.calls import ABANDONED, Calls
from mirror.transfer.tasks import Steps, run_and_catch, task_group

_log = logging.getLogger("mirror.agenda")


class _HostQueue:
    """The images that wait for their turn at one target host."""

    def __init__(self) -> None:
        self.waiting: deque[PlanEntry] = deque()
        self.workers = 0  # tasks that copy one after another


class CopyQueue:
    """Implements Findings: has what is found copied, at most `images` at a time on each target host."""

    def __init__(
        self,
        calls: Calls,
        reader: ImageReader,
        sync: ImageCopier,
        locations: BlobLocations,
        memory: CopyNotes,
        results: ResultReceiver,
        targets: Mapping[str, Target],
        publishing: TargetLifecycle,
        *,
        images: int,
        deep: bool,
        fail_fast: bool,
    ) -> None:
        self._calls = calls
        self._reader = reader
        self._sync = sync
        self._locations = locations
        self._memory = memory
        self._results = results
        self._targets = targets
        self._images = images
        self._deep = deep
        self._fail_fast = fail_fast
        self._publishing = publishing
        self._bases = BundleBases(calls, reader, locations, targets)
        self._workers: asyncio.TaskGroup
        self._queues: defaultdict[str, _HostQueue] = defaultdict(_HostQueue)  # by target host
        self._ahead: dict[PlanEntry, asyncio.Task[Image]] = {}  # images that are read while they wait for their turn
        # What has to wait until all others of its kind are planned: by target host, and by source host.
        self._gathered: defaultdict[str, list[PlanEntry]] = defaultdict(list)
        self._partial: defaultdict[str, list[PlanEntry]] = defaultdict(list)
        self._aside: dict[PlanEntry, None] = {}
        self._open: dict[PlanEntry, None] = {}  # findings that have no result yet
        self._halted = ""

    async def run(self, plan: Steps[None]) -> None:
        """Run the plan, copy what it finds, and close the targets. Each finding has a result then."""
        try:
            async with task_group() as self._workers:
                failure = await run_and_catch(plan)
                if failure is not None:  # a bug: then nothing is begun that has to know all that comes
                    self.halt("the plan could not be finished")
                    self._results.record_bug(failure)
                trouble = await run_and_catch(self._copy_deferred())
                for plan_entry in list(self._aside):  # a bug kept them
                    self._end_deferred(
                        plan_entry, partial(self._record_crash, plan_entry, trouble or RuntimeError("left aside"))
                    )
            await self._finish()
        finally:
            for plan_entry in list(self._ahead):
                self._cancel_read_ahead(plan_entry)
            for plan_entry in list(self._open):
                self._record_failure(plan_entry, Cancelled(self._halted or ABANDONED), BlobCounts())

    # ---- planner.Findings

    def add_plan_entry(self, plan_entry: PlanEntry) -> None:
        host, source = plan_entry.target.repository.host, plan_entry.reference.entry.source
        self._open[plan_entry] = None
        if plan_entry.action is Action.FAIL and plan_entry.error is not None:
            self._publishing.note_missing(host, name_on_target(plan_entry), plan_entry.error)
            self._record_failure(plan_entry, plan_entry.error, BlobCounts())
            self._reader.release(plan_entry.reference)
        elif self._targets[host].needs_all_images:
            self._defer(plan_entry, self._gathered[host])
        elif plan_entry.action is Action.SKIP and not self._deep and plan_entry.old_digest is not None:
            entry = plan_entry.reference.entry
            if entry.rules.is_immutable(plan_entry.reference.tag):
                name = equality_key(entry, plan_entry.target.repository)
                self._memory.note_tag("source", name, plan_entry.reference.tag, plan_entry.old_digest)
            self._record_up_to_date(plan_entry, plan_entry.old_digest)
            self._reader.release(plan_entry.reference)
        elif source.partial:
            self._defer(plan_entry, self._partial[source.host])
        else:
            self._enqueue(plan_entry)

    def record_listing_failure(self, entry: MirrorEntry, error: MirrorError) -> None:
        for target in entry.targets:
            # Nobody knows what is missing there: as good as all of it.
            self._publishing.note_missing(target.repository.host, target.repository.path.replace(MATCHED, "*"), error)
        self._results.record_listing_failure(entry, error)
        self._halt_after(error)

    def record_invalid_name(self, entry: MirrorEntry, error: MirrorError) -> None:
        """No store could ever hold what is called so: a bundle does not lack it."""
        self._results.record_listing_failure(entry, error)

    def note_target_tag(self, repository: Repository, tag: str, digest: Digest) -> None:
        self._memory.note_tag("target", str(repository), tag, digest)

    def record_selection(self, entry: MirrorEntry, count: int, rejected: Mapping[str, int]) -> None:
        self._locations.allow(
            [Repository(entry.source.host, entry.repository), *(one.repository for one in entry.targets)]
        )
        text = f"{entry.name}: {count} tags selected"
        self._results.expect_images(entry, count)
        _log.info("selected", extra={"source": entry.name, "tags": count, "rejected": dict(rejected), "text": text})

    # ---- what has to wait for the end of planning

    def _defer(self, plan_entry: PlanEntry, aside: list[PlanEntry]) -> None:
        self._aside[plan_entry] = None
        aside.append(plan_entry)

    async def _copy_deferred(self) -> None:
        """What was set aside is copied now, unless something keeps it from that."""
        if self._halted:
            for plan_entry in list(self._aside):
                self._end_deferred(plan_entry, partial(self._record_skipped, plan_entry))
            return
        for plan_entries in self._partial.values():
            self._enqueue_deferred(
                plan_entries, await self._errors_of(self._bases.find_missing(plan_entries), plan_entries)
            )
        for host, plan_entries in self._gathered.items():
            # Equal tags prove nothing of a bundle made for another base, or without images of another selection.
            store = self._targets[host]
            completable = store.incomplete and not self._publishing.missing_images(host)
            unsure = self._deep or store.partial or completable
            if not unsure and all(one.action is Action.SKIP for one in plan_entries):
                for plan_entry in plan_entries:
                    if plan_entry.old_digest is not None:
                        self._end_deferred(
                            plan_entry, partial(self._record_up_to_date, plan_entry, plan_entry.old_digest)
                        )
            else:
                self._enqueue_deferred(
                    plan_entries,
                    await self._errors_of(self._publishing.begin_with_images(host, plan_entries), plan_entries),
                )

    async def _errors_of(
        self, steps: Steps[dict[PlanEntry, MirrorError]], plan_entries: Collection[PlanEntry]
    ) -> dict[PlanEntry, MirrorError]:
        try:
            return await steps
        except MirrorError as error:
            return dict.fromkeys(plan_entries, error)

    def _enqueue_deferred(self, plan_entries: Collection[PlanEntry], errors: Mapping[PlanEntry, MirrorError]) -> None:
        """Copy findings that were set aside, but for those with an error."""
        for plan_entry, error in errors.items():
            self._end_deferred(plan_entry, partial(self._record_failure, plan_entry, error, BlobCounts()))
        for plan_entry in plan_entries:
            if plan_entry not in errors:
                del self._aside[plan_entry]
                self._enqueue(plan_entry)

    def _end_deferred(self, plan_entry: PlanEntry, tell: Callable[[], None]) -> None:
        """A finding that was set aside has its result."""
        del self._aside[plan_entry]
        tell()
        self._reader.release(plan_entry.reference)

    # ---- copying

    def halt(self, reason: str) -> None:
        """Start nothing new: what waits, and what is found from now on, is skipped."""
        self._halted = self._halted or reason

    def _enqueue(self, plan_entry: PlanEntry) -> None:
        queue = self._queues[plan_entry.target.repository.host]
        queue.waiting.append(plan_entry)
        if queue.workers < self._images:
            queue.workers += 1
            self._workers.create_task(self._run_worker(queue))
        else:
            self._read_ahead(queue)

    async def _run_worker(self, queue: _HostQueue) -> None:
        """Copy what waits, one after another."""
        while queue.waiting:
            plan_entry = queue.waiting.popleft()
            self._read_ahead(queue)
            if self._halted:
                self._cancel_read_ahead(plan_entry)
                self._record_skipped(plan_entry)
                await asyncio.sleep(0)  # there may be very many
            else:
                counts = BlobCounts()
                failure = await run_and_catch(self._copy(plan_entry, counts))
                if failure is not None:
                    self._record_crash(plan_entry, failure)
            self._reader.release(plan_entry.reference)
        queue.workers -= 1

    def _read_ahead(self, queue: _HostQueue) -> None:
        """Read the next few images already, so that each has something to send as soon as it has its turn."""
        if not self._halted:
            for plan_entry in islice(queue.waiting, self._images):
                if plan_entry not in self._ahead:
                    self._ahead[plan_entry] = self._calls.tasks.start(self._reader.read_image(plan_entry.reference))

    def _cancel_read_ahead(self, plan_entry: PlanEntry) -> None:
        task = self._ahead.pop(plan_entry, None)
        if task is not None:
            task.cancel()
            task.add_done_callback(self._calls.tasks.collect)

    async def _copy(self, plan_entry: PlanEntry, counts: BlobCounts) -> None:
        ahead, host = self._ahead.pop(plan_entry, None), plan_entry.target.repository.host
        try:
            image = await (self._reader.read_image(plan_entry.reference) if ahead is None else ahead)
            check_immutable(plan_entry, image.graph.root.digest)
            await self._publishing.begin(host)
            changed = await self._sync.copy(plan_entry, image, counts)
        except MirrorError as error:
            self._publishing.note_missing(host, name_on_target(plan_entry), error)
            self._record_failure(plan_entry, error, counts)
            return
        digest = image.graph.root.digest
        if self._publishing.hold_result(plan_entry, digest, counts):
            return
        if changed:
            self._record_copied(plan_entry, digest, counts)
        else:
            self._record_up_to_date(plan_entry, digest)

    async def _finish(self) -> None:
        """Close the targets, and give results to what counts only now."""
        held, errors = await self._publishing.finish(incomplete=not self._halted, believe=not self._deep)
        for one in held:
            if one.error is not None:
                self._record_failure(one.plan_entry, one.error, one.counts)
            elif one.replaced:
                self._record_copied(one.plan_entry, one.digest, one.counts)
            else:
                self._record_up_to_date(one.plan_entry, one.digest)
        for error in errors:
            if not isinstance(error, Cancelled):
                self._results.record_error(error)

    def close(self) -> None:
        """Close what a stop left open. Does I/O; after the threads have ended."""
        self._publishing.close()

    # ---- results: one for each finding

    def _record_up_to_date(self, plan_entry: PlanEntry, digest: Digest) -> None:
        self._open.pop(plan_entry, None)
        self._results.record_up_to_date(plan_entry, digest)

    def _record_copied(self, plan_entry: PlanEntry, digest: Digest, counts: BlobCounts) -> None:
        self._open.pop(plan_entry, None)
        self._results.record_copied(plan_entry, digest, counts)

    def _record_skipped(self, plan_entry: PlanEntry) -> None:
        self._open.pop(plan_entry, None)
        self._results.record_skipped(plan_entry, self._halted)

    def _record_crash(self, plan_entry: PlanEntry, failure: BaseException) -> None:
        self._open.pop(plan_entry, None)
        self._results.record_crash(plan_entry, failure)

    def _record_failure(self, plan_entry: PlanEntry, error: MirrorError, counts: BlobCounts) -> None:
        self._open.pop(plan_entry, None)
        entry, tag = plan_entry.reference.entry, plan_entry.reference.tag
        if entry.rules.is_immutable(tag) and isinstance(error, Refused):
            # A conflict that --deep has found is found again by each run after it, until it is resolved.
            self._memory.note_tag("source", equality_key(entry, plan_entry.target.repository), tag, None)
        self._results.record_failure(plan_entry, error, counts)
        self._halt_after(error)

    def _halt_after(self, error: MirrorError) -> None:
        if self._fail_fast and not isinstance(error, Cancelled):
            self.halt("stopped at the first failure (--fail-fast)")
