"""What is copied when: each image on each target once, a few at a time on each host, and an end to it all."""

from __future__ import annotations

import logging
import threading
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
from mirror.transfer.manager import Manager
from mirror.transfer.steps import Steps
from mirror.transfer.watch import Watch

_log = logging.getLogger("mirror.agenda")


class Agenda:
    """Implements Findings: has what is found copied, at most `images` at a time on each target host.

    idle: called once, when planning has ended and nothing is left to do. Thread-safe."""

    def __init__(
        self,
        manager: Manager,
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
        idle: Callable[[], None],
    ) -> None:
        self._manager = manager
        self._reader = reader
        self._sync = sync
        self._inventory = inventory
        self._memory = memory
        self._results = results
        self._targets = targets
        self._images = images
        self._deep = deep
        self._fail_fast = fail_fast
        self._idle = idle
        self._publishing = publishing
        self._bases = Bases(manager, reader, inventory, targets)
        self._lock = threading.Lock()
        self._gathered: defaultdict[str, list[Finding]] = defaultdict(list)  # by target host
        self._partial: defaultdict[str, list[Finding]] = defaultdict(list)  # by source host
        self._aside: set[Finding] = set()
        self._ahead: dict[Finding, Watch[Image]] = {}  # images that are read while they wait for their turn
        self._waiting: defaultdict[str, deque[Finding]] = defaultdict(deque)
        self._running: defaultdict[str, int] = defaultdict(int)
        self._in_work: set[Finding] = set()
        self._open = 1  # planning, and each finding that is not done
        self._halted = ""

    # ---- planner.Findings

    def found(self, finding: Finding) -> None:
        host, source = finding.target.place.host, finding.reading.entry.source
        if finding.verdict is Verdict.FAILED and finding.error is not None:
            self._publishing.lacks(host, name_there(finding), finding.error)
            self._failed(finding, finding.error, Tally())
            self._let_go(finding)
        elif self._targets[host].gathers:
            self._set_aside(finding, self._gathered[host])
        elif finding.verdict is Verdict.EQUAL and not self._deep and finding.old is not None:
            entry = finding.reading.entry
            if entry.rules.is_immutable(finding.reading.tag):
                name = equal_to(entry, finding.target.place)
                self._memory.note_tag("source", name, finding.reading.tag, finding.old)
            self._results.up_to_date(finding, finding.old)
            self._let_go(finding)
        elif source.partial:
            self._set_aside(finding, self._partial[source.host])
        else:
            with self._lock:
                self._open += 1
            self._enqueue([finding])

    def _set_aside(self, finding: Finding, aside: list[Finding]) -> None:
        """It has to wait for all others of its kind, until planning has ended."""
        with self._lock:
            self._open += 1
            self._aside.add(finding)
            aside.append(finding)

    def _enqueue(self, findings: Collection[Finding]) -> None:
        with self._lock:
            self._aside.difference_update(findings)
            for finding in findings:
                self._waiting[finding.target.place.host].append(finding)
        for host in {finding.target.place.host for finding in findings}:
            self._start(host)

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

    # ---- what runs when

    def planned(self, *, whole: bool = True) -> None:
        """Planning has ended. whole: all of it was planned; else nothing is begun that has to know all that comes."""
        if not whole:
            self.halt("the plan could not be finished")
        if self._gathered or self._partial:
            self._manager.spawn(self._release(), name="gather").on_done(self._released)
        else:
            self._close_one()

    def _release(self) -> Steps[None]:
        """What had to wait for the end of planning may come now, unless something keeps it from coming."""
        if self._halted:
            for finding in [*self._aside]:
                self._end(finding, partial(self._results.skipped, finding, self._halted))
            return
        for findings in self._partial.values():
            self._let_come(findings, (yield from self._attempted(self._bases.missing(findings), findings)))
        for host, findings in self._gathered.items():
            # Equal tags prove nothing of a bundle made for another base, or without images of another selection.
            store = self._targets[host]
            completable = store.incomplete and not self._publishing.lacking(host)
            unsure = self._deep or store.partial or completable
            if not unsure and all(one.verdict is Verdict.EQUAL for one in findings):
                for finding in findings:
                    if finding.old is not None:
                        self._end(finding, partial(self._results.up_to_date, finding, finding.old))
            else:
                gathering = self._publishing.gather(host, findings)
                self._let_come(findings, (yield from self._attempted(gathering, findings)))

    def _released(self, watch: Watch[None]) -> None:
        with self._lock:
            left = list(self._aside)
        for finding in left:  # a bug kept them
            self._end(finding, partial(self._results.crashed, finding, watch.error or RuntimeError("left aside")))
        self._close_one()

    def _attempted(
        self, steps: Steps[dict[Finding, MirrorError]], findings: Collection[Finding]
    ) -> Steps[dict[Finding, MirrorError]]:
        try:
            return (yield from steps)
        except MirrorError as error:
            return dict.fromkeys(findings, error)

    def _let_come(self, findings: Collection[Finding], errors: Mapping[Finding, MirrorError]) -> None:
        for finding, error in errors.items():
            self._end(finding, partial(self._failed, finding, error, Tally()))
        self._enqueue([finding for finding in findings if finding not in errors])

    def _end(self, finding: Finding, tell: Callable[[], None]) -> None:
        """A finding that never was in work ends."""
        with self._lock:
            self._aside.discard(finding)
        tell()
        self._let_go(finding)
        self._close_one()

    def halt(self, reason: str) -> None:
        """Start nothing new: what waits, and what is found from now on, is skipped."""
        with self._lock:
            self._halted = self._halted or reason
            hosts = list(self._waiting)
        for host in hosts:
            self._start(host)

    def _start(self, host: str) -> None:
        while True:
            with self._lock:
                waiting = self._waiting[host]
                reason = self._halted
                if not waiting or (not reason and self._running[host] >= self._images):
                    break
                finding = waiting.popleft()
                self._running[host] += 1
                self._in_work.add(finding)
            if reason:
                if self._take(finding):
                    self._results.skipped(finding, reason)
                self._let_go(finding)
                self._ended(host)
            else:
                watch = self._manager.spawn(self._copy(finding), name=f"copy {finding.name}")
                watch.on_done(partial(self._copy_ended, finding))
        self._read_ahead(host)

    def _read_ahead(self, host: str) -> None:
        """Read the next few images already, so that whoever gets a turn has something to send at once."""
        with self._lock:
            following = list(islice(self._waiting[host], self._images)) if not self._halted else []
        for finding in following:
            with self._lock:
                known = finding in self._ahead
            if not known:
                watch = self._read(finding)
                with self._lock:
                    kept = self._ahead.setdefault(finding, watch)
                if kept is not watch:
                    watch.release()

    def _read(self, finding: Finding) -> Watch[Image]:
        return self._manager.spawn(self._reader.image(finding.reading), name=f"read {finding.name}")

    def _copy_ended(self, finding: Finding, watch: Watch[None]) -> None:
        if watch.error is not None and self._take(finding):
            # Failures of the image were told by the task itself; this is a bug, or a stop before it began.
            if isinstance(watch.error, MirrorError):
                self._results.failed(finding, watch.error, Tally())
            else:
                self._results.crashed(finding, watch.error)
        self._let_go(finding)
        host = finding.target.place.host
        self._ended(host)
        self._start(host)

    def _take(self, finding: Finding) -> bool:
        """Whether the caller is the one to tell of it: each finding in work is told of once."""
        with self._lock:
            mine = finding in self._in_work
            self._in_work.discard(finding)
            return mine

    def give_up(self, reason: str) -> None:
        """Tell of what is still in work as called off: its threads may hang."""
        with self._lock:
            left = list(self._in_work)
        for finding in left:
            if self._take(finding):
                self._results.failed(finding, Cancelled(reason), Tally())

    def close(self) -> None:
        """Close what a stop left open. Does I/O; after the manager has come to rest."""
        self._publishing.close()

    def _ended(self, host: str) -> None:
        with self._lock:
            self._running[host] -= 1
        self._close_one()

    def _close_one(self) -> None:
        with self._lock:
            self._open -= 1
            last = not self._open
        if last:
            watch = self._manager.spawn(self._finish(), name="finish")
            watch.on_done(lambda done: self._idle())

    def _finish(self) -> Steps[None]:
        """Close the targets, and tell of what counts only now."""
        try:
            results = yield from self._publishing.finish(incomplete=not self._halted, believe=not self._deep)
        except MirrorError as error:
            self._results.trouble(error)
            return
        for one in results:
            if not self._take(one.finding):
                continue
            if one.error is not None:
                self._failed(one.finding, one.error, one.tally)
            elif one.replaced:
                self._results.copied(one.finding, one.digest, one.tally)
            else:
                self._results.up_to_date(one.finding, one.digest)

    def _let_go(self, finding: Finding) -> None:
        """This target needs its reading no longer."""
        reading = finding.reading
        with self._lock:
            ahead = self._ahead.pop(finding, None)
            reading.users -= 1
            image = None
            if not reading.users:
                image, reading.image = reading.image, None
        if ahead is not None:
            ahead.release()
        if image is not None:
            image.release()

    def _failed(self, finding: Finding, error: MirrorError, tally: Tally) -> None:
        entry, tag = finding.reading.entry, finding.reading.tag
        if entry.rules.is_immutable(tag) and isinstance(error, Refused):
            # A conflict that --deep has found is found again by each run after it, until it is resolved.
            self._memory.note_tag("source", equal_to(entry, finding.target.place), tag, None)
        self._results.failed(finding, error, tally)
        self._halt_after(error)

    def _halt_after(self, error: MirrorError) -> None:
        if self._fail_fast and not isinstance(error, Cancelled):
            self.halt("stopped at the first failure (--fail-fast)")

    def _image(self, finding: Finding) -> Watch[Image]:
        with self._lock:
            ahead = self._ahead.pop(finding, None)
        return ahead or self._read(finding)

    def _copy(self, finding: Finding) -> Steps[None]:
        tally = Tally()
        try:
            image = yield self._image(finding)
            keep_immutable(finding, image.graph.root.digest)
            yield from self._publishing.begin(finding.target.place.host)
            changed = yield from self._sync.bring(finding, image, tally)
        except MirrorError as error:
            self._publishing.lacks(finding.target.place.host, name_there(finding), error)
            if self._take(finding):
                self._failed(finding, error, tally)
            return
        digest = image.graph.root.digest
        if self._publishing.hold(finding, digest, tally) or not self._take(finding):
            return
        if changed:
            self._results.copied(finding, digest, tally)
        else:
            self._results.up_to_date(finding, digest)
