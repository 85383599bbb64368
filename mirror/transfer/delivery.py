"""Bringing blobs to repositories, each once for all who want it there, by the cheapest way that works.

What a blob costs (design of the order): nothing where it is known to be; a mount where a sibling repository of
the host has it; a HEAD where the repository may have it; an upload. Of several repositories of a host that want
the same blob the first leads, the others wait for it and mount.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import TypeAlias, TypeVar

from mirror.backoff import ONCE
from mirror.errors import LocalError, MirrorError
from mirror.limits import Work
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.store import Mount, UploadSession
from mirror.transfer.download import Carried, Origin, SourceBody
from mirror.transfer.failures import Budgets, Unreadable
from mirror.transfer.manager import PATIENCE, Manager
from mirror.transfer.orders import Delivered, Effort, Order, Outcome
from mirror.transfer.placement import Inventory, Place, Routes
from mirror.transfer.room import Room
from mirror.transfer.scheduler import DOWNLOADS, UPLOADS, host_permit
from mirror.transfer.spool import Spool, SpoolBroken, SpoolFile
from mirror.transfer.steps import Steps, settled
from mirror.transfer.upload import Body, Sending
from mirror.transfer.watch import Watch

STEPPING_DOWN = 0.01  # seconds
CARRY = 64 << 10  # bytes up to which a blob is read whole before its upload begins
CLOSED_AT_ONCE = 32  # sessions
MOST_CARRIED = 4 << 20  # bytes of such blobs at once; what does not fit is streamed

T = TypeVar("T")
Told: TypeAlias = Callable[[Order, "Delivered | MirrorError"], None]


class Deliveries:
    """All deliveries of a run. `told` hears once of each (repository, digest) that was dealt with.

    moved: told of bytes as they are sent; before_write: called with a place by the job that will write there."""

    def __init__(
        self,
        manager: Manager,
        inventory: Inventory,
        routes: Routes,
        spool: Spool,
        *,
        told: Told,
        moved: Callable[[int], None],
        before_write: Callable[[Place], None],
    ) -> None:
        self._manager = manager
        self._inventory = inventory
        self._routes = routes
        self._room = Room(spool, manager)
        self._told = told
        self._moved = moved
        self._before_write = before_write
        self._unreadable = Unreadable()
        self._budgets = Budgets()
        self._lock = threading.Lock()
        self._leaders: dict[tuple[str, Digest], Place] = {}
        self._seen: set[tuple[Place, Digest]] = set()
        self._left_open: dict[UploadSession, None] = {}  # nobody uses them now
        self._carrying = 0  # bytes of small blobs in memory, or about to be

    def deliver(self, order: Order) -> Watch[Delivered]:
        """Bring it there; joins a delivery of the same blob to the same repository."""
        name = f"{order.blob.digest.short()} to {order.place}"
        key = ("deliver", order.place, order.blob.digest, order.blob.size)
        return self._manager.spawn(self._told_of(order), name=name, key=key)

    def close(self, patience: float = PATIENCE) -> None:
        """Close the upload sessions that nobody uses. Does I/O; after the manager was stopped.

        What a job has open, or opens from now on, it closes itself. Raises LocalError: not done in `patience` seconds;
        what was not begun by then never is."""
        with self._lock:
            left, self._left_open = self._left_open, {}
        if not left:
            return
        pool = ThreadPoolExecutor(min(CLOSED_AT_ONCE, len(left)), thread_name_prefix="close")
        done, late = wait([pool.submit(session.__exit__, None, None, None) for session in left], patience)
        pool.shutdown(wait=not late, cancel_futures=True)
        for future in done:
            future.result()
        if late:
            raise LocalError(
                f"{len(late)} upload sessions were not closed within {patience:g} s", hint="the registry hangs"
            )

    # ---- one delivery

    def _told_of(self, order: Order) -> Steps[Delivered]:
        try:
            self._inventory.fits(order.blob)
            delivered = yield from self._deliver(order)
            if delivered.sized:
                self._inventory.proven(order.blob)
        except MirrorError as error:
            self._tell(order, error)
            raise
        self._inventory.add(order.place, order.blob.digest)
        self._tell(order, delivered)
        return delivered

    def _tell(self, order: Order, what: Delivered | MirrorError) -> None:
        key = (order.place, order.blob.digest)
        with self._lock:
            known = key in self._seen and isinstance(what, Delivered) and what.outcome is Outcome.EXISTS
            self._seen.add(key)
        if not known:
            self._told(order, what)
        elif isinstance(what, Delivered):
            what.claim()  # the line of the log and the count of the report are those of the first

    def _deliver(self, order: Order) -> Steps[Delivered]:
        effort = Effort()
        digest, place = order.blob.digest, order.place
        if self._inventory.knows(place, digest):
            return effort.result(Outcome.EXISTS, sized=False)
        if order.certain and (yield self._ask(order)):
            return effort.result(Outcome.EXISTS)
        if not self._mounting(place.host) or self._inventory.distrusts(place):
            # Where a mount may have been a lie, the bytes are sent.
            return (yield from self._head_or_upload(order, effort))
        while not self._inventory.holder(place, digest):
            if self._lead(place, digest):
                try:
                    return (yield from self._bring(order, effort))
                finally:
                    self._lead_no_more(place, digest)
            leader = self._leader(place.host, digest, order.blob.size)
            # A leader that was called off steps down a moment later, maybe on this very thread.
            yield settled([leader]) if leader is not None else self._manager.timer(STEPPING_DOWN)
        return (yield from self._bring(order, effort))

    def _mounting(self, host: str) -> bool:
        return self._routes.mounting(host) and self._inventory.mounts_work(host)

    def _lead(self, place: Place, digest: Digest) -> bool:
        with self._lock:
            return self._leaders.setdefault((place.host, digest), place) == place

    def _lead_no_more(self, place: Place, digest: Digest) -> None:
        with self._lock:
            self._leaders.pop((place.host, digest), None)

    def _leader(self, host: str, digest: Digest, size: int | None) -> Watch[Delivered] | None:
        """An interest in the delivery that leads for that host; None: it has just ended."""
        with self._lock:
            place = self._leaders.get((host, digest))
        return self._manager.join(("deliver", place, digest, size)) if place is not None else None

    def _bring(self, order: Order, effort: Effort) -> Steps[Delivered]:
        """Mount it, or else find it there, or upload it."""
        also = [order.origin.repository] if order.origin.source.host == order.place.host else []
        for candidate in self._inventory.candidates(order.place, order.blob.digest, also):
            mounted = yield self._manager.transfer(
                object(),
                partial(self._mount, order, candidate),
                needs=(host_permit(order.place.host),),
            )
            if mounted is None:
                break
            if mounted is Mount.MOUNTED:
                self._inventory.mounted(order.place)
                return effort.result(Outcome.MOUNTED, candidate, sized=False)
            refused = mounted is Mount.REFUSED
            self._inventory.not_mounted(order.place, candidate, order.blob.digest, refused=refused)
            if not refused:
                return (yield from self._upload(order, effort, session=mounted))
        return (yield from self._head_or_upload(order, effort))

    def _mount(self, order: Order, from_path: str, work: Work) -> Mount | UploadSession | None:
        """None: it was not asked for."""
        if not self._mounting(order.place.host):
            return None  # it may have waited for its turn for long; an upload opens its session when it has its own
        self._before_write(order.place)
        mounted = order.target.mount_blob(order.place.path, order.blob, from_path, work)
        if not isinstance(mounted, Mount):
            # Between this job and the one that uses the session, the delivery may be called off.
            with self._lock:
                called_off = work.stop.requested  # asked under the lock: `close` comes after a stop
                if not called_off:
                    self._left_open[mounted] = None
            if called_off:
                mounted.__exit__(None, None, None)
                work.stop.check()
        return mounted

    def _head_or_upload(self, order: Order, effort: Effort) -> Steps[Delivered]:
        # What is on disk keeps what an earlier run left, or another repository has: asking it costs no request.
        may_have = order.may_have or order.target.on_disk
        if may_have and not order.certain and (yield self._ask(order)):
            return effort.result(Outcome.EXISTS)
        return (yield from self._upload(order, effort, session=None))

    def _ask(self, order: Order) -> Watch[bool]:
        return self._manager.transfer(
            object(),
            lambda work: order.target.has_blob(order.place.path, order.blob, work),
            needs=(host_permit(order.place.host),),
            policy=ONCE,
        )

    def _send(self, order: Order, effort: Effort, sending: Sending, *more: str) -> Watch[None]:
        def attempt(work: Work) -> None:
            effort.attempts += 1
            sending.attempt(work)

        return self._budgeted(order.place.host, order.blob, object(), attempt, (*more, UPLOADS))

    def _budgeted(
        self, host: str, blob: Descriptor, key: Hashable, run: Callable[[Work], T], needs: Sequence[str]
    ) -> Watch[T]:
        """A transfer of the blob from or to a host, which has one retry budget for it, whoever comes."""
        policy = self._budgets.policy(host, blob.digest)
        watch = self._manager.transfer(key, run, needs=(host_permit(host), *needs), policy=policy)
        watch.on_done(lambda watch: self._budgets.note(host, blob.digest, watch.error))
        return watch

    # ---- uploads

    def _upload(self, order: Order, effort: Effort, *, session: UploadSession | None) -> Steps[Delivered]:
        origins = self._origins(order)
        source, target = origins[0].source.host, order.place.host
        try:
            if self._routes.through_spool(source, target, mounts_work=self._inventory.mounts_work(target)):
                may_stream = self._routes.may_stream(source, target) and not order.target.on_disk
                file = yield from self._room.claim(order.blob, target, may_stream=may_stream)
                try:
                    if file is None:
                        yield from self._directly(order, effort, origins, session)
                    else:
                        yield from self._by_spool(order, effort, origins, session, file)
                finally:
                    self._room.leave(file, target)
            else:
                yield from self._directly(order, effort, origins, session)
        finally:
            left = effort.sending.give_up() if effort.sending is not None else session
            if left is not None:
                self._abandon(order, left)
        return effort.result(Outcome.COPIED)

    def _directly(
        self, order: Order, effort: Effort, origins: list[Origin], session: UploadSession | None
    ) -> Steps[None]:
        """Without the spool: this upload alone gets the bytes."""
        size = order.blob.size
        if size is not None and size <= CARRY and self._room_to_carry(size):
            yield from self._carried(order, effort, origins, session, size)
            return
        body = SourceBody(order.blob, origins, self._unreadable)
        sending = self._sending(order, effort, body, session)
        try:
            yield self._send(order, effort, sending, host_permit(origins[0].source.host), DOWNLOADS)
        finally:
            effort.read += body.read

    def _room_to_carry(self, size: int) -> bool:
        with self._lock:
            room = self._carrying + size <= MOST_CARRIED
            self._carrying += size if room else 0
            return room

    def _carried(
        self, order: Order, effort: Effort, origins: list[Origin], session: UploadSession | None, size: int
    ) -> Steps[None]:
        """A small blob: read it, then send it, so that neither host waits for the other with a slot in its hand."""
        source, host = SourceBody(order.blob, origins, self._unreadable), origins[0].source.host
        try:
            carried = yield self._budgeted(host, order.blob, object(), partial(Carried.of, source, size), [DOWNLOADS])
            yield self._send(order, effort, self._sending(order, effort, carried, session))
        finally:
            effort.read += source.read
            with self._lock:
                self._carrying -= size

    def _origins(self, order: Order) -> list[Origin]:
        """Where to read it: a sibling on the target that has it, if a mount from that was refused; then the source."""
        sibling = self._inventory.holder(order.place, order.blob.digest)
        return [Origin(order.target, sibling), order.origin] if sibling else [order.origin]

    def _sending(self, order: Order, effort: Effort, body: Body, session: UploadSession | None) -> Sending:
        with self._lock:
            if session is not None:
                self._left_open.pop(session, None)
        effort.sending = sending = Sending(
            order.target,
            order.place.path,
            order.blob,
            body,
            self._moved,
            lambda: self._before_write(order.place),
            session,
        )
        return sending

    def _by_spool(
        self, order: Order, effort: Effort, origins: list[Origin], session: UploadSession | None, file: SpoolFile
    ) -> Steps[None]:
        source = origins[0].source.host
        sending = self._sending(order, effort, file, session)
        download = self._download(file, origins, effort)
        # Where both ends are one host, an upload that waits for its download could hold the slot it needs.
        yield download if source == order.place.host else download.first_progress()
        try:
            yield [download, self._send(order, effort, sending)]
        except SpoolBroken:
            yield download
            yield self._send(order, effort, sending)

    def _download(self, file: SpoolFile, origins: list[Origin], effort: Effort) -> Watch[None]:
        def run(work: Work) -> None:
            if file.complete:
                return
            body = SourceBody(file.blob, origins, self._unreadable)
            try:
                with body.open(0, work) as reader:
                    file.fill(reader, work)
            finally:
                effort.read += body.read

        return self._budgeted(origins[0].source.host, file.blob, ("download", file), run, [DOWNLOADS])

    def _abandon(self, order: Order, session: UploadSession) -> None:
        """Close a session that nobody will go on with, in a job of its own; at the latest in `close`."""
        with self._lock:
            self._left_open[session] = None

        def run(_: Work) -> None:
            with self._lock:
                mine = session in self._left_open
                self._left_open.pop(session, None)
            if mine:
                session.__exit__(None, None, None)

        self._manager.detached(run, needs=(host_permit(order.place.host),))
