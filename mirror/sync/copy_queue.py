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
from mirror.selection.locations import MATCHED
from mirror.store import Target
from mirror.sync.bundle_bases import Bases
from mirror.sync.image_copier import Memory, Sync
from mirror.sync.image_reader import Image, Reader
from mirror.sync.plan_model import Entry, Finding, Verdict, keep_immutable
from mirror.sync.planner_queries import equal_to
from mirror.sync.recorder import Results, Tally
from mirror.sync.target_lifecycle import Publishing, name_there
from mirror.transfer.blob_locations import Inventory, Place
from mirror.transfer.calls import ABANDONED, Calls
from mirror.transfer.tasks import Steps, run_and_catch, task_group

_log = logging.getLogger("mirror.agenda")


class _HostQueue:
    """The images that wait for their turn at one target host."""

    def __init__(self) -> None:
        self.waiting: deque[Finding] = deque()
        self.workers = 0  # tasks that copy one after another


class Agenda:
    """Implements Findings: has what is found copied, at most `images` at a time on each target host."""

    def __init__(
        self,
        calls: Calls,
        reader: Reader,
        sync: Sync,
        inventory: Inventory,
        memory: Memory,
        results: Results,
        targets: Mapping[str, Target],
        publishing: Publishing,
        *,
        images: int,
        deep: bool,
        fail_fast: bool,
    ) -> None:
        self._calls = calls
        self._reader = reader
        self._sync = sync
        self._inventory = inventory
        self._memory = memory
        self._results = results
        self._targets = targets
        self._images = images
        self._deep = deep
        self._fail_fast = fail_fast
        self._publishing = publishing
        self._bases = Bases(calls, reader, inventory, targets)
        self._workers: asyncio.TaskGroup
        self._queues: defaultdict[str, _HostQueue] = defaultdict(_HostQueue)  # by target host
        self._ahead: dict[Finding, asyncio.Task[Image]] = {}  # images that are read while they wait for their turn
        # What has to wait until all others of its kind are planned: by target host, and by source host.
        self._gathered: defaultdict[str, list[Finding]] = defaultdict(list)
        self._partial: defaultdict[str, list[Finding]] = defaultdict(list)
        self._aside: dict[Finding, None] = {}
        self._open: dict[Finding, None] = {}  # findings that have no result yet
        self._halted = ""

    async def run(self, plan: Steps[None]) -> None:
        """Run the plan, copy what it finds, and close the targets. Each finding has a result then."""
        try:
            async with task_group() as self._workers:
                failure = await run_and_catch(plan)
                if failure is not None:  # a bug: then nothing is begun that has to know all that comes
                    self.halt("the plan could not be finished")
                    self._results.bug(failure)
                trouble = await run_and_catch(self._release())
                for finding in list(self._aside):  # a bug kept them
                    self._end(finding, partial(self._crashed, finding, trouble or RuntimeError("left aside")))
            await self._finish()
        finally:
            for finding in list(self._ahead):
                self._drop_ahead(finding)
            for finding in list(self._open):
                self._failed(finding, Cancelled(self._halted or ABANDONED), Tally())

    # ---- planner.Findings

    def found(self, finding: Finding) -> None:
        host, source = finding.target.place.host, finding.reading.entry.source
        self._open[finding] = None
        if finding.verdict is Verdict.FAILED and finding.error is not None:
            self._publishing.lacks(host, name_there(finding), finding.error)
            self._failed(finding, finding.error, Tally())
            self._reader.let_go(finding.reading)
        elif self._targets[host].gathers:
            self._set_aside(finding, self._gathered[host])
        elif finding.verdict is Verdict.EQUAL and not self._deep and finding.old is not None:
            entry = finding.reading.entry
            if entry.rules.is_immutable(finding.reading.tag):
                name = equal_to(entry, finding.target.place)
                self._memory.note_tag("source", name, finding.reading.tag, finding.old)
            self._up_to_date(finding, finding.old)
            self._reader.let_go(finding.reading)
        elif source.partial:
            self._set_aside(finding, self._partial[source.host])
        else:
            self._enqueue(finding)

    def listing_failed(self, entry: Entry, error: MirrorError) -> None:
        for target in entry.targets:
            # Nobody knows what is missing there: as good as all of it.
            self._publishing.lacks(target.place.host, target.place.path.replace(MATCHED, "*"), error)
        self._results.listing_failed(entry, error)
        self._halt_after(error)

    def refused_name(self, entry: Entry, error: MirrorError) -> None:
        """No store could ever hold what is called so: a bundle does not lack it."""
        self._results.listing_failed(entry, error)

    def saw_target(self, place: Place, tag: str, digest: Digest) -> None:
        self._memory.note_tag("target", str(place), tag, digest)

    def selected(self, entry: Entry, count: int, rejected: Mapping[str, int]) -> None:
        self._inventory.allow([Place(entry.source.host, entry.repository), *(one.place for one in entry.targets)])
        text = f"{entry.name}: {count} tags selected"
        self._results.selected(entry, count)
        _log.info("selected", extra={"source": entry.name, "tags": count, "rejected": dict(rejected), "text": text})

    # ---- what has to wait for the end of planning

    def _set_aside(self, finding: Finding, aside: list[Finding]) -> None:
        self._aside[finding] = None
        aside.append(finding)

    async def _release(self) -> None:
        """What was set aside is copied now, unless something keeps it from that."""
        if self._halted:
            for finding in list(self._aside):
                self._end(finding, partial(self._skipped, finding))
            return
        for findings in self._partial.values():
            self._copy_all(findings, await self._errors(self._bases.missing(findings), findings))
        for host, findings in self._gathered.items():
            # Equal tags prove nothing of a bundle made for another base, or without images of another selection.
            store = self._targets[host]
            completable = store.incomplete and not self._publishing.lacking(host)
            unsure = self._deep or store.partial or completable
            if not unsure and all(one.verdict is Verdict.EQUAL for one in findings):
                for finding in findings:
                    if finding.old is not None:
                        self._end(finding, partial(self._up_to_date, finding, finding.old))
            else:
                self._copy_all(findings, await self._errors(self._publishing.gather(host, findings), findings))

    async def _errors(
        self, steps: Steps[dict[Finding, MirrorError]], findings: Collection[Finding]
    ) -> dict[Finding, MirrorError]:
        try:
            return await steps
        except MirrorError as error:
            return dict.fromkeys(findings, error)

    def _copy_all(self, findings: Collection[Finding], errors: Mapping[Finding, MirrorError]) -> None:
        """Copy findings that were set aside, but for those with an error."""
        for finding, error in errors.items():
            self._end(finding, partial(self._failed, finding, error, Tally()))
        for finding in findings:
            if finding not in errors:
                del self._aside[finding]
                self._enqueue(finding)

    def _end(self, finding: Finding, tell: Callable[[], None]) -> None:
        """A finding that was set aside has its result."""
        del self._aside[finding]
        tell()
        self._reader.let_go(finding.reading)

    # ---- copying

    def halt(self, reason: str) -> None:
        """Start nothing new: what waits, and what is found from now on, is skipped."""
        self._halted = self._halted or reason

    def _enqueue(self, finding: Finding) -> None:
        queue = self._queues[finding.target.place.host]
        queue.waiting.append(finding)
        if queue.workers < self._images:
            queue.workers += 1
            self._workers.create_task(self._work(queue))
        else:
            self._read_ahead(queue)

    async def _work(self, queue: _HostQueue) -> None:
        """Copy what waits, one after another."""
        while queue.waiting:
            finding = queue.waiting.popleft()
            self._read_ahead(queue)
            if self._halted:
                self._drop_ahead(finding)
                self._skipped(finding)
                await asyncio.sleep(0)  # there may be very many
            else:
                tally = Tally()
                failure = await run_and_catch(self._copy(finding, tally))
                if failure is not None:
                    self._crashed(finding, failure)
            self._reader.let_go(finding.reading)
        queue.workers -= 1

    def _read_ahead(self, queue: _HostQueue) -> None:
        """Read the next few images already, so that each has something to send as soon as it has its turn."""
        if not self._halted:
            for finding in islice(queue.waiting, self._images):
                if finding not in self._ahead:
                    self._ahead[finding] = self._calls.tasks.start(self._reader.image(finding.reading))

    def _drop_ahead(self, finding: Finding) -> None:
        task = self._ahead.pop(finding, None)
        if task is not None:
            task.cancel()
            task.add_done_callback(self._calls.tasks.collect)

    async def _copy(self, finding: Finding, tally: Tally) -> None:
        ahead, host = self._ahead.pop(finding, None), finding.target.place.host
        try:
            image = await (self._reader.image(finding.reading) if ahead is None else ahead)
            keep_immutable(finding, image.graph.root.digest)
            await self._publishing.begin(host)
            changed = await self._sync.bring(finding, image, tally)
        except MirrorError as error:
            self._publishing.lacks(host, name_there(finding), error)
            self._failed(finding, error, tally)
            return
        digest = image.graph.root.digest
        if self._publishing.hold(finding, digest, tally):
            return
        if changed:
            self._copied(finding, digest, tally)
        else:
            self._up_to_date(finding, digest)

    async def _finish(self) -> None:
        """Close the targets, and give results to what counts only now."""
        held, errors = await self._publishing.finish(incomplete=not self._halted, believe=not self._deep)
        for one in held:
            if one.error is not None:
                self._failed(one.finding, one.error, one.tally)
            elif one.replaced:
                self._copied(one.finding, one.digest, one.tally)
            else:
                self._up_to_date(one.finding, one.digest)
        for error in errors:
            if not isinstance(error, Cancelled):
                self._results.trouble(error)

    def close(self) -> None:
        """Close what a stop left open. Does I/O; after the threads have ended."""
        self._publishing.close()

    # ---- results: one for each finding

    def _up_to_date(self, finding: Finding, digest: Digest) -> None:
        self._open.pop(finding, None)
        self._results.up_to_date(finding, digest)

    def _copied(self, finding: Finding, digest: Digest, tally: Tally) -> None:
        self._open.pop(finding, None)
        self._results.copied(finding, digest, tally)

    def _skipped(self, finding: Finding) -> None:
        self._open.pop(finding, None)
        self._results.skipped(finding, self._halted)

    def _crashed(self, finding: Finding, failure: BaseException) -> None:
        self._open.pop(finding, None)
        self._results.crashed(finding, failure)

    def _failed(self, finding: Finding, error: MirrorError, tally: Tally) -> None:
        self._open.pop(finding, None)
        entry, tag = finding.reading.entry, finding.reading.tag
        if entry.rules.is_immutable(tag) and isinstance(error, Refused):
            # A conflict that --deep has found is found again by each run after it, until it is resolved.
            self._memory.note_tag("source", equal_to(entry, finding.target.place), tag, None)
        self._results.failed(finding, error, tally)
        self._halt_after(error)

    def _halt_after(self, error: MirrorError) -> None:
        if self._fail_fast and not isinstance(error, Cancelled):
            self.halt("stopped at the first failure (--fail-fast)")
