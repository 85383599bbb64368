"""Bringing blobs to repositories, each once for all who want it there, by the cheapest way that works.

The first of these that applies: nothing is asked where this run has proven that the blob is there; a HEAD where an
earlier run saw it; a mount where another repository of the host has it; a HEAD where the repository may have it; an
upload. Of several repositories of a host that want the same blob the first leads, the others wait for it and mount.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Hashable, Sequence
from functools import partial
from typing import TypeVar

from mirror.errors import Cancelled, MirrorError, Refused, RemoteError, could_not_look_up
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.store import Mount, UploadSession
from mirror.transfer.blob_locations import Inventory, Place, Routes
from mirror.transfer.blob_outcomes import Outcomes
from mirror.transfer.blob_request import Delivered, Effort, Order, Outcome
from mirror.transfer.blob_sources import Origins
from mirror.transfer.downloads import Carried, Origin, SourceBody
from mirror.transfer.manager import PATIENCE, Manager
from mirror.transfer.mounts import Mounts
from mirror.transfer.retry_budgets import Budgets, Unreadable
from mirror.transfer.scheduler import DOWNLOADS, UPLOADS, host_permit
from mirror.transfer.spool import Spool, SpoolBroken, SpoolFile
from mirror.transfer.spool_room import Room
from mirror.transfer.steps import Steps, settled
from mirror.transfer.upload_sessions import IdleSessions
from mirror.transfer.uploads import Body, Sending
from mirror.transfer.watch import ABANDONED, Watch
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE

STEPPING_DOWN = 0.01  # seconds
CARRY = 64 << 10  # bytes up to which a blob is read whole before its upload begins
MOST_CARRIED = 4 << 20  # bytes of such blobs at once; what does not fit is streamed

_log = logging.getLogger("mirror.transfer")

T = TypeVar("T")


class Deliveries:
    """All deliveries of a run. outcomes: where it is recorded how each ended.

    moved: told of bytes as they are sent; before_write: called with a place by the job that will write there."""

    def __init__(
        self,
        manager: Manager,
        inventory: Inventory,
        routes: Routes,
        spool: Spool,
        *,
        outcomes: Outcomes,
        moved: Callable[[int], None],
        before_write: Callable[[Place], None],
    ) -> None:
        self._manager = manager
        self._inventory = inventory
        self._routes = routes
        self._room = Room(spool, manager)
        self._outcomes = outcomes
        self._moved = moved
        self._before_write = before_write
        self._unreadable = Unreadable()
        self._budgets = Budgets()
        self._origins = Origins()
        self._lock = threading.Lock()
        self._leaders: dict[tuple[str, Digest], Place] = {}
        self._idle = IdleSessions()
        self._mounts = Mounts(manager, inventory, routes, self._idle, before_write)
        self._carrying = 0  # bytes of small blobs in memory, or about to be

    def deliver(self, order: Order) -> Watch[Delivered]:
        """Bring it there; joins a delivery of the same blob to the same repository."""
        name = f"{order.blob.digest.short()} to {order.place}"
        key = ("deliver", order.place, order.blob.digest, order.blob.size)
        self._origins.add(order)
        return self._manager.spawn(self._told_of(order), name=name, key=key)

    def close(self, patience: float = PATIENCE) -> None:
        """Close the upload sessions that nobody uses. Does I/O; after the manager was stopped.

        What a job has open, or opens from now on, it closes itself. Raises LocalError: not done in `patience` seconds;
        what was not begun by then never is."""
        self._idle.close(patience)

    # ---- one delivery

    def _told_of(self, order: Order) -> Steps[Delivered]:
        effort = Effort()
        try:
            self._inventory.fits(order.blob)
            with self._origins.wanted(order):
                delivered = yield from self._deliver(order, effort)
            self._inventory.add(order.place, order.blob.digest)
            if delivered.sized:
                self._inventory.proven(order.blob)
        except MirrorError as error:
            self._outcomes.blob(order, error, effort.cost())
            raise
        except GeneratorExit:
            self._outcomes.blob(order, Cancelled(ABANDONED))
            raise
        self._outcomes.blob(order, delivered)
        return delivered

    def _deliver(self, order: Order, effort: Effort) -> Steps[Delivered]:
        digest, place = order.blob.digest, order.place
        if self._inventory.knows(place, digest):
            return effort.result(Outcome.EXISTS, sized=False)
        effort.asked = order.certain or (order.may_have and self._inventory.expects(place, digest))
        if effort.asked and (yield self._ask(order)):
            return effort.result(Outcome.EXISTS)
        if not self._mounts.work(place.host) or self._inventory.distrusts(place):
            # Where a mount may have been a lie, the bytes are sent.
            return (yield from self._head_or_upload(order, effort))
        while not self._inventory.holder(place, digest):
            if self._lead(place, digest):
                try:
                    brought = yield from self._bring(order, effort)
                    self._inventory.add(place, digest)  # before others find that nobody leads, and upload it again
                    return brought
                finally:
                    self._lead_no_more(place, digest)
            leader = self._leader(place.host, digest, order.blob.size)
            # A leader that was called off steps down a moment later, maybe on this very thread.
            yield settled([leader]) if leader is not None else self._manager.timer(STEPPING_DOWN)
        return (yield from self._bring(order, effort))

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
            mounted = yield from self._mounts.attempt(order, candidate)
            if mounted is None:
                break
            if mounted is Mount.MOUNTED:
                return effort.result(Outcome.MOUNTED, candidate, sized=False)
            if not isinstance(mounted, Mount):
                return (yield from self._upload(order, effort, session=mounted))
        return (yield from self._head_or_upload(order, effort))

    def _head_or_upload(self, order: Order, effort: Effort) -> Steps[Delivered]:
        # What is on disk keeps what an earlier run left, or another repository has: asking it costs no request.
        if (order.may_have or order.target.on_disk) and not effort.asked and (yield self._ask(order)):
            return effort.result(Outcome.EXISTS)
        return (yield from self._upload(order, effort, session=None))

    def _ask(self, order: Order) -> Watch[bool]:
        """Ask the target for the blob. Where it cannot look it up, not even after retries, an upload cures that."""

        def ask(work: Work) -> bool:
            try:
                return order.target.has_blob(order.place.path, order.blob, work)
            except RemoteError as error:
                if not could_not_look_up(error):
                    raise
                text = f"{order.place}: could not look up {order.blob.digest}, uploading it: {error.what}"
                _log.warning("blob_lookup_failed", extra={"target": str(order.place), "code": error.code, "text": text})
                return False

        return self._manager.transfer(object(), ask, needs=(host_permit(order.place.host),), policy=ONCE)

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
        """Upload it from the first host where it can be read; one that lacks it, or fails for good, is left out."""
        tried: set[Origin] = set()
        failure: MirrorError | None = None
        while origins := self._untried(order, tried):
            effort.unread, effort.joined = None, False
            try:
                yield from self._upload_from(origins, order, effort, session)
                return effort.result(Outcome.COPIED)
            except (RemoteError, Refused) as error:
                if effort.unread is None:
                    raise
                if failure is None or order.origin in origins:
                    failure = error
                text = f"{order.blob.digest} could not be read from {', '.join(map(str, origins))}: {error.what}"
                _log.info("blob_unread", extra={"target": str(order.place), "code": error.code, "text": text})
            session = None
            if not effort.joined:
                tried.update(origins)
        if failure is None:
            raise RuntimeError("an order has an origin")
        raise failure

    def _upload_from(
        self, origins: list[Origin], order: Order, effort: Effort, session: UploadSession | None
    ) -> Steps[None]:
        """origins: of one host. If the bytes could not be fetched, effort.unread says why."""
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
            effort.sent += effort.sending.sent if effort.sending is not None else 0
            effort.sending = None
            if left is not None:
                self._abandon(order, left)

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
            effort.unread = body.trouble

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
            effort.unread = source.trouble
            with self._lock:
                self._carrying -= size

    def _untried(self, order: Order, tried: Collection[Origin]) -> list[Origin]:
        """Where to read it next: from a sibling on the target that has it, if a mount from that was refused; then from
        the source; then from the sources of others who want the blob."""
        sibling = self._inventory.holder(order.place, order.blob.digest)
        near = Origin(order.target, sibling) if sibling else None
        return [near] if near is not None and near not in tried else self._origins.untried(order, tried)

    def _sending(self, order: Order, effort: Effort, body: Body, session: UploadSession | None) -> Sending:
        if session is not None:
            self._idle.take(session)
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
        download: Watch[None] | None = None
        try:
            sending = self._sending(order, effort, file, session)
            download = self._download(file, origins, effort)
            # Where both ends are one host, an upload that waits for its download could hold the slot it needs.
            yield download if source == order.place.host else download.first_progress()
            try:
                yield [download, self._send(order, effort, sending)]
            except SpoolBroken:
                yield download
                yield self._send(order, effort, sending)
        except MirrorError:
            effort.unread = download.error if download is not None else None
            raise

    def _download(self, file: SpoolFile, origins: list[Origin], effort: Effort) -> Watch[None]:
        effort.joined = True  # unless it runs

        def run(work: Work) -> None:
            effort.joined = False
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
        self._idle.keep(session)

        def run(_: Work) -> None:
            if self._idle.take(session):
                session.__exit__(None, None, None)

        self._manager.detached(run, needs=(host_permit(order.place.host),))
