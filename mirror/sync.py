"""Carries findings out: the only code that orders writes.

For one image on one target: its blobs; then its manifests, children before parents, by digest; then the root by
its tag, last. So a tag names at every instant its old image or the new one, whole.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Literal, Protocol

from mirror.backoff import ONCE
from mirror.errors import Cancelled, MirrorError, RemoteError
from mirror.findings import Entry, Finding, Reading, Verdict
from mirror.graph import Graph
from mirror.limits import Work
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.reading import Image, Reader
from mirror.store import Target, Version
from mirror.tally import Tally
from mirror.transfer.delivery import Delivered, Deliveries, Order, Outcome
from mirror.transfer.manager import Manager
from mirror.transfer.placement import Inventory, Place
from mirror.transfer.scheduler import host_permit
from mirror.transfer.steps import Steps
from mirror.transfer.watch import Watch

_log = logging.getLogger("mirror.sync")


class Memory(Protocol):
    """What is noted for later runs: takes notes only, writes later."""

    def note_tag(self, side: Literal["source", "target"], repository: str, tag: str, digest: Digest) -> None: ...
    def note_graph(self, repository: str, root: Digest, members: Collection[Digest]) -> None: ...


class Results(Protocol):
    """Who is told of each image, once. Calls come from any thread and must not block."""

    def up_to_date(self, finding: Finding, digest: Digest) -> None: ...
    def copied(self, finding: Finding, digest: Digest, tally: Tally) -> None: ...
    def failed(self, finding: Finding, error: MirrorError, tally: Tally) -> None: ...
    def skipped(self, finding: Finding, reason: str) -> None: ...
    def listing_failed(self, entry: Entry, error: MirrorError) -> None: ...
    def selected(self, entry: Entry, count: int) -> None: ...
    def crashed(self, finding: Finding, error: BaseException) -> None: ...


class Sync:
    """Implements plan.Findings: copies what is found, at most `images` at a time on each target host.

    writing: called in the job that is about to write to a place; idle: called once, when planning has ended and
    nothing is left to do."""

    def __init__(
        self,
        manager: Manager,
        reader: Reader,
        deliveries: Deliveries,
        inventory: Inventory,
        memory: Memory,
        results: Results,
        targets: Mapping[str, Target],
        *,
        images: int,
        deep: bool,
        fail_fast: bool,
        writing: Callable[[Place], None],
        idle: Callable[[], None],
    ) -> None:
        self._manager = manager
        self._reader = reader
        self._deliveries = deliveries
        self._inventory = inventory
        self._memory = memory
        self._results = results
        self._targets = targets
        self._images = images
        self._deep = deep
        self._fail_fast = fail_fast
        self._writing = writing
        self._idle = idle
        self._lock = threading.Lock()
        self._waiting: defaultdict[str, deque[Finding]] = defaultdict(deque)
        self._running: defaultdict[str, int] = defaultdict(int)
        self._in_work: set[Finding] = set()
        self._open = 1  # planning, and each finding that is not done
        self._halted = ""

    # ---- plan.Findings

    def found(self, finding: Finding) -> None:
        if finding.verdict is Verdict.FAILED and finding.error is not None:
            self._failed(finding, finding.error, Tally())
            self._let_go(finding.reading)
        elif finding.verdict is Verdict.EQUAL and not self._deep and finding.old is not None:
            self._results.up_to_date(finding, finding.old)
            self._let_go(finding.reading)
        else:
            host = finding.target.place.host
            with self._lock:
                self._open += 1
                self._waiting[host].append(finding)
            self._start(host)

    def listing_failed(self, entry: Entry, error: MirrorError) -> None:
        self._results.listing_failed(entry, error)
        self._halt_after(error)

    def refused_name(self, entry: Entry, error: MirrorError) -> None:
        self._results.listing_failed(entry, error)

    def saw_target(self, place: Place, tag: str, digest: Digest) -> None:
        self._inventory.saw_root(place, digest)
        self._memory.note_tag("target", str(place), tag, digest)

    def selected(self, entry: Entry, count: int, rejected: Mapping[str, int]) -> None:
        text = f"{entry.name}: {count} tags selected"
        self._results.selected(entry, count)
        _log.info("selected", extra={"source": entry.name, "tags": count, "rejected": dict(rejected), "text": text})

    # ---- what runs when

    def planned(self) -> None:
        """Planning has ended."""
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
                    return
                finding = waiting.popleft()
                self._running[host] += 1
                self._in_work.add(finding)
            if reason:
                if self._take(finding):
                    self._results.skipped(finding, reason)
                self._let_go(finding.reading)
                self._ended(host)
            else:
                watch = self._manager.spawn(self._copy(finding), name=f"copy {finding.name}")
                watch.on_done(partial(self._copy_ended, finding))

    def _copy_ended(self, finding: Finding, watch: Watch[None]) -> None:
        if watch.error is not None and self._take(finding):
            # Failures of the image were told by the task itself; this is a bug, or a stop before it began.
            if isinstance(watch.error, MirrorError):
                self._results.failed(finding, watch.error, Tally())
            else:
                self._results.crashed(finding, watch.error)
        self._let_go(finding.reading)
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

    def _ended(self, host: str) -> None:
        with self._lock:
            self._running[host] -= 1
        self._close_one()

    def _close_one(self) -> None:
        with self._lock:
            self._open -= 1
            last = not self._open
        if last:
            self._idle()

    def _let_go(self, reading: Reading) -> None:
        with self._lock:
            reading.users -= 1
            if not reading.users:
                reading.image = None

    def _failed(self, finding: Finding, error: MirrorError, tally: Tally) -> None:
        self._results.failed(finding, error, tally)
        self._halt_after(error)

    def _halt_after(self, error: MirrorError) -> None:
        if self._fail_fast and not isinstance(error, Cancelled):
            self.halt("stopped at the first failure (--fail-fast)")

    # ---- one image to one target

    def _copy(self, finding: Finding) -> Steps[None]:
        tally = Tally()
        try:
            image = yield from self._reader.image(finding.reading)
            changed = yield from self._bring(finding, image, tally)
        except MirrorError as error:
            if self._take(finding):
                self._failed(finding, error, tally)
            return
        if not self._take(finding):
            return
        digest = image.graph.root.digest
        if changed:
            self._results.copied(finding, digest, tally)
        else:
            self._results.up_to_date(finding, digest)

    def _bring(self, finding: Finding, image: Image, tally: Tally) -> Steps[bool]:
        """Everything under the root, then the root. -> whether anything was missing."""
        place = finding.target.place
        if finding.may_have and not self._deep:
            digests = image.graph.members()
            yield self._aside(lambda: self._inventory.ask_hints(place, digests))
        try:
            return (yield from self._push(finding, image, tally, certain=self._deep))
        except RemoteError as error:
            if error.code != "blob_missing":
                raise
            text = f"{finding.name}: something believed to be on the target is not there; looking again"
            _log.warning("distrust", extra={"target": finding.name, "code": error.code, "text": text})
        yield self._aside(lambda: self._inventory.distrust(place))
        return (yield from self._push(finding, image, tally, certain=True))

    def _push(self, finding: Finding, image: Image, tally: Tally, *, certain: bool) -> Steps[bool]:
        place, graph = finding.target.place, image.graph
        store = self._targets[place.host]
        orders = [
            Order(blob, store, place, image.origin, finding.reading.name, finding.may_have, certain)
            for blob in graph.blobs
        ]
        try:
            delivered: list[Delivered] = yield [self._deliveries.deliver(order) for order in orders]
        except MirrorError:
            tally.failed += 1
            raise
        for order, one in zip(orders, delivered, strict=True):
            tally.add(order.blob.size or 0, one)
        changed = any(one.outcome is not Outcome.EXISTS for one in delivered)
        for level in graph.levels:
            missing = yield from self._missing(store, place, level, certain=certain)
            yield [self._put(store, place, child.digest, child) for child in missing]
            changed = changed or bool(missing)
        root = graph.root
        if changed or finding.old != root.digest:
            yield self._put(store, place, finding.reading.tag, root)
            changed = True
        self._note(place, finding, graph)
        return changed

    def _missing(
        self, store: Target, place: Place, level: Collection[Manifest], *, certain: bool
    ) -> Steps[list[Manifest]]:
        """The manifests of a level that have to be put. A PUT costs no more than asking first."""
        if not certain:
            return [one for one in level if not self._inventory.knows(place, one.digest)]

        def ask(work: Work) -> list[Manifest]:
            answers = store.resolve(place.path, [one.digest for one in level], work)
            return [one for one, answer in zip(level, answers, strict=True) if not isinstance(answer, Version)]

        missing: list[Manifest]
        missing = yield self._manager.transfer(object(), ask, needs=(host_permit(place.host),), policy=ONCE)
        return missing

    def _put(self, store: Target, place: Place, reference: str, manifest: Manifest) -> Watch[None]:
        def run(work: Work) -> None:
            self._writing(place)
            store.put_manifest(place.path, reference, manifest, work)
            self._inventory.add(place, manifest.digest)

        return self._manager.transfer(
            ("put", place, reference, manifest.digest), run, needs=(host_permit(place.host),), policy=ONCE
        )

    def _note(self, place: Place, finding: Finding, graph: Graph) -> None:
        self._inventory.saw_root(place, graph.root.digest)
        self._memory.note_graph(str(place), graph.root.digest, graph.members())
        self._memory.note_tag("target", str(place), finding.reading.tag, graph.root.digest)

    def _aside(self, run: Callable[[], None]) -> Watch[None]:
        """Local I/O in a job of its own, which needs nothing of any host."""
        return self._manager.transfer(object(), lambda work: run(), needs=(), policy=ONCE)
