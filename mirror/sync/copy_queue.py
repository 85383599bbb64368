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
from mirror.sync.planner_queries import equal_to
from mirror.sync.recorder import BlobCounts, ResultReceiver
from mirror.sync.target_lifecycle import TargetLifecycle, name_there
from mirror.transfer.blob_locations import BlobLocations
from mirror.transfer.calls import RESULT_NOT_NEEDED, Calls
from mirror.transfer.tasks import Coro, run_and_catch, task_group

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

    async def run(self, plan: Coro[None]) -> None:
        """Run the plan, copy what it finds, and close the targets. Each finding has a result then."""
        try:
            async with task_group() as self._workers:
                failure = await run_and_catch(plan)
                if failure is not None:  # a bug: then nothing is begun that has to know all that comes
                    self.halt("the plan could not be finished")
                    self._results.bug(failure)
                trouble = await run_and_catch(self._release())
                for planned in list(self._aside):  # a bug kept them
                    self._end(planned, partial(self._crashed, planned, trouble or RuntimeError("left aside")))
            await self._finish()
        finally:
            for planned in list(self._ahead):
                self._drop_ahead(planned)
            for planned in list(self._open):
                self._failed(planned, Cancelled(self._halted or RESULT_NOT_NEEDED), BlobCounts())

    # ---- planner.Findings

    def found(self, planned: PlanEntry) -> None:
        host, source = planned.target.repository.host, planned.reference.entry.source
        self._open[planned] = None
        if planned.action is Action.FAILED and planned.error is not None:
            self._publishing.note_missing(host, name_there(planned), planned.error)
            self._failed(planned, planned.error, BlobCounts())
            self._reader.release(planned.reference)
        elif self._targets[host].needs_all_images:
            self._set_aside(planned, self._gathered[host])
        elif planned.action is Action.EQUAL and not self._deep and planned.old is not None:
            entry = planned.reference.entry
            if entry.rules.is_immutable(planned.reference.tag):
                name = equal_to(entry, planned.target.repository)
                self._memory.note_tag("source", name, planned.reference.tag, planned.old)
            self._up_to_date(planned, planned.old)
            self._reader.release(planned.reference)
        elif source.partial:
            self._set_aside(planned, self._partial[source.host])
        else:
            self._enqueue(planned)

    def listing_failed(self, entry: MirrorEntry, error: MirrorError) -> None:
        for target in entry.targets:
            # Nobody knows what is missing there: as good as all of it.
            self._publishing.note_missing(target.repository.host, target.repository.path.replace(MATCHED, "*"), error)
        self._results.listing_failed(entry, error)
        self._halt_after(error)

    def reject_name(self, entry: MirrorEntry, error: MirrorError) -> None:
        """No store could ever hold what is called so: a bundle does not lack it."""
        self._results.listing_failed(entry, error)

    def note_target_tag(self, repository: Repository, tag: str, digest: Digest) -> None:
        self._memory.note_tag("target", str(repository), tag, digest)

    def selected(self, entry: MirrorEntry, count: int, rejected: Mapping[str, int]) -> None:
        self._locations.allow_mounts_from(
            [Repository(entry.source.host, entry.repository), *(one.repository for one in entry.targets)]
        )
        text = f"{entry.name}: {count} tags selected"
        self._results.selected(entry, count)
        _log.info("selected", extra={"source": entry.name, "tags": count, "rejected": dict(rejected), "text": text})

    # ---- what has to wait for the end of planning

    def _set_aside(self, planned: PlanEntry, aside: list[PlanEntry]) -> None:
        self._aside[planned] = None
        aside.append(planned)

    async def _release(self) -> None:
        """What was set aside is copied now, unless something keeps it from that."""
        if self._halted:
            for planned in list(self._aside):
                self._end(planned, partial(self._skipped, planned))
            return
        for plan_entries in self._partial.values():
            self._copy_all(plan_entries, await self._errors(self._bases.missing(plan_entries), plan_entries))
        for host, plan_entries in self._gathered.items():
            # Equal tags prove nothing of a bundle made for another base, or without images of another selection.
            store = self._targets[host]
            completable = store.incomplete and not self._publishing.lacking(host)
            unsure = self._deep or store.partial or completable
            if not unsure and all(one.action is Action.EQUAL for one in plan_entries):
                for planned in plan_entries:
                    if planned.old is not None:
                        self._end(planned, partial(self._up_to_date, planned, planned.old))
            else:
                self._copy_all(
                    plan_entries, await self._errors(self._publishing.gather(host, plan_entries), plan_entries)
                )

    async def _errors(
        self, steps: Coro[dict[PlanEntry, MirrorError]], plan_entries: Collection[PlanEntry]
    ) -> dict[PlanEntry, MirrorError]:
        try:
            return await steps
        except MirrorError as error:
            return dict.fromkeys(plan_entries, error)

    def _copy_all(self, plan_entries: Collection[PlanEntry], errors: Mapping[PlanEntry, MirrorError]) -> None:
        """Copy findings that were set aside, but for those with an error."""
        for planned, error in errors.items():
            self._end(planned, partial(self._failed, planned, error, BlobCounts()))
        for planned in plan_entries:
            if planned not in errors:
                del self._aside[planned]
                self._enqueue(planned)

    def _end(self, planned: PlanEntry, tell: Callable[[], None]) -> None:
        """A finding that was set aside has its result."""
        del self._aside[planned]
        tell()
        self._reader.release(planned.reference)

    # ---- copying

    def halt(self, reason: str) -> None:
        """Start nothing new: what waits, and what is found from now on, is skipped."""
        self._halted = self._halted or reason

    def _enqueue(self, planned: PlanEntry) -> None:
        queue = self._queues[planned.target.repository.host]
        queue.waiting.append(planned)
        if queue.workers < self._images:
            queue.workers += 1
            self._workers.create_task(self._work(queue))
        else:
            self._read_ahead(queue)

    async def _work(self, queue: _HostQueue) -> None:
        """Copy what waits, one after another."""
        while queue.waiting:
            planned = queue.waiting.popleft()
            self._read_ahead(queue)
            if self._halted:
                self._drop_ahead(planned)
                self._skipped(planned)
                await asyncio.sleep(0)  # there may be very many
            else:
                counts = BlobCounts()
                failure = await run_and_catch(self._copy(planned, counts))
                if failure is not None:
                    self._crashed(planned, failure)
            self._reader.release(planned.reference)
        queue.workers -= 1

    def _read_ahead(self, queue: _HostQueue) -> None:
        """Read the next few images already, so that each has something to send as soon as it has its turn."""
        if not self._halted:
            for planned in islice(queue.waiting, self._images):
                if planned not in self._ahead:
                    self._ahead[planned] = self._calls.tasks.start(self._reader.image(planned.reference))

    def _drop_ahead(self, planned: PlanEntry) -> None:
        task = self._ahead.pop(planned, None)
        if task is not None:
            task.cancel()
            task.add_done_callback(self._calls.tasks.collect)

    async def _copy(self, planned: PlanEntry, counts: BlobCounts) -> None:
        ahead, host = self._ahead.pop(planned, None), planned.target.repository.host
        try:
            image = await (self._reader.image(planned.reference) if ahead is None else ahead)
            check_immutable(planned, image.graph.root.digest)
            await self._publishing.begin(host)
            changed = await self._sync.copy(planned, image, counts)
        except MirrorError as error:
            self._publishing.note_missing(host, name_there(planned), error)
            self._failed(planned, error, counts)
            return
        digest = image.graph.root.digest
        if self._publishing.hold(planned, digest, counts):
            return
        if changed:
            self._copied(planned, digest, counts)
        else:
            self._up_to_date(planned, digest)

    async def _finish(self) -> None:
        """Close the targets, and give results to what counts only now."""
        held, errors = await self._publishing.finish(incomplete=not self._halted, believe=not self._deep)
        for one in held:
            if one.error is not None:
                self._failed(one.planned, one.error, one.counts)
            elif one.replaced:
                self._copied(one.planned, one.digest, one.counts)
            else:
                self._up_to_date(one.planned, one.digest)
        for error in errors:
            if not isinstance(error, Cancelled):
                self._results.trouble(error)

    def close(self) -> None:
        """Close what a stop left open. Does I/O; after the threads have ended."""
        self._publishing.close()

    # ---- results: one for each finding

    def _up_to_date(self, planned: PlanEntry, digest: Digest) -> None:
        self._open.pop(planned, None)
        self._results.up_to_date(planned, digest)

    def _copied(self, planned: PlanEntry, digest: Digest, counts: BlobCounts) -> None:
        self._open.pop(planned, None)
        self._results.copied(planned, digest, counts)

    def _skipped(self, planned: PlanEntry) -> None:
        self._open.pop(planned, None)
        self._results.skipped(planned, self._halted)

    def _crashed(self, planned: PlanEntry, failure: BaseException) -> None:
        self._open.pop(planned, None)
        self._results.crashed(planned, failure)

    def _failed(self, planned: PlanEntry, error: MirrorError, counts: BlobCounts) -> None:
        self._open.pop(planned, None)
        entry, tag = planned.reference.entry, planned.reference.tag
        if entry.rules.is_immutable(tag) and isinstance(error, Refused):
            # A conflict that --deep has found is found again by each run after it, until it is resolved.
            self._memory.note_tag("source", equal_to(entry, planned.target.repository), tag, None)
        self._results.failed(planned, error, counts)
        self._halt_after(error)

    def _halt_after(self, error: MirrorError) -> None:
        if self._fail_fast and not isinstance(error, Cancelled):
            self.halt("stopped at the first failure (--fail-fast)")
