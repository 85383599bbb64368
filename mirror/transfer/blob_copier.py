"""Bringing blobs to repositories, each once for all who want it there, by the cheapest way that works.

The first of these that applies: nothing is asked where this run has proven that the blob is there; a HEAD where an
earlier run saw it; a mount where another repository of the host has it; a HEAD where the repository may have it; an
upload. Of several repositories of a host that want the same blob the first leads, the others wait for it and mount.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TypeVar
from weakref import WeakValueDictionary

from mirror.errors import Cancelled, MirrorError, Refused, RemoteError, could_not_look_up
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.store import Mount, UploadSession
from mirror.transfer.blob_locations import Inventory, Place, Routes
from mirror.transfer.blob_outcomes import Outcomes
from mirror.transfer.blob_request import Delivered, Effort, Order, Outcome
from mirror.transfer.blob_sources import Origins
from mirror.transfer.calls import ABANDONED, PATIENCE, Calls
from mirror.transfer.downloads import Carried, Origin, SourceBody
from mirror.transfer.mounts import Mounts
from mirror.transfer.permits import DOWNLOADS, UPLOADS, host_permit
from mirror.transfer.retry_budgets import Budgets, Unreadable
from mirror.transfer.shared import Shared, result_of
from mirror.transfer.spool import Spool, SpoolBroken, SpoolFile
from mirror.transfer.spool_room import Room
from mirror.transfer.tasks import Steps, run_group
from mirror.transfer.upload_sessions import IdleSessions
from mirror.transfer.uploads import Body, Sending
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE
from mirror.util.structs import replace

CARRY = 64 << 10  # bytes up to which a blob is read whole before its upload begins
MOST_CARRIED = 4 << 20  # bytes of such blobs at once; what does not fit is streamed

_log = logging.getLogger("mirror.transfer")

T = TypeVar("T")


class Deliveries:
    """All deliveries of a run. outcomes: where it is recorded how each ended.

    moved: called with bytes as they are sent; before_write: called with a place before it is written to. Both are
    called on threads."""

    def __init__(
        self,
        calls: Calls,
        inventory: Inventory,
        routes: Routes,
        spool: Spool,
        *,
        outcomes: Outcomes,
        moved: Callable[[int], None],
        before_write: Callable[[Place], None],
    ) -> None:
        self._calls = calls
        self._inventory = inventory
        self._routes = routes
        self._room = Room(spool, calls)
        self._outcomes = outcomes
        self._moved = moved
        self._before_write = before_write
        self._unreadable = Unreadable()
        self._budgets = Budgets()
        self._origins = Origins()
        self._deliveries: Shared[tuple[Place, Digest, int | None], Delivered] = Shared(calls.tasks)
        self._downloads: Shared[SpoolFile, None] = Shared(calls.tasks)
        self._begun: dict[SpoolFile, asyncio.Event] = {}  # set when a download has moved bytes, or has ended
        # Held by the delivery that leads; weak, so that one that nobody holds or waits for goes.
        self._leading: WeakValueDictionary[tuple[str, Digest], asyncio.Lock] = WeakValueDictionary()
        self._idle = IdleSessions()
        self._mounts = Mounts(calls, inventory, routes, self._idle, before_write)
        self._carrying = 0  # bytes of small blobs in memory, or about to be

    async def deliver(self, order: Order) -> Delivered:
        """Bring it there; joins a delivery of the same blob to the same repository."""
        key = (order.place, order.blob.digest, order.blob.size)
        with self._origins.wanted(order):
            return await self._deliveries.run(key, lambda: self._recorded(order))

    def close(self, patience: float = PATIENCE) -> None:
        """Close the upload sessions that nobody uses. Does I/O; after a stop.

        What a call has open, or opens from now on, it closes itself. Raises LocalError: not done in `patience` seconds;
        what was not begun by then never is."""
        self._idle.close(patience)

    # ---- one delivery

    async def _recorded(self, order: Order) -> Delivered:
        effort = Effort()
        try:
            self._inventory.fits(order.blob)
            delivered = await self._deliver(order, effort)
            self._inventory.add(order.place, order.blob.digest)
            if delivered.sized:
                self._inventory.proven(order.blob)
        except MirrorError as error:
            self._outcomes.blob(order, error, effort.cost())
            raise
        except asyncio.CancelledError:
            self._outcomes.blob(order, Cancelled(ABANDONED))
            raise
        self._outcomes.blob(order, delivered)
        return delivered

    async def _deliver(self, order: Order, effort: Effort) -> Delivered:
        digest, place = order.blob.digest, order.place
        if self._inventory.knows(place, digest):
            return effort.result(Outcome.EXISTS, sized=False)
        effort.asked = order.certain or (order.may_have and self._inventory.expects(place, digest))
        if effort.asked and await self._ask(order):
            return effort.result(Outcome.EXISTS)
        if not self._mounts.work(place.host) or self._inventory.distrusts(place):
            # Where a mount may have been a lie, the bytes are sent.
            return await self._head_or_upload(order, effort)
        if not self._inventory.holder(place, digest):
            async with self._leading.setdefault((place.host, digest), asyncio.Lock()):
                if not self._inventory.holder(place, digest):
                    brought = await self._bring(order, effort)
                    self._inventory.add(place, digest)  # before the next one leads, and uploads it again
                    return brought
        return await self._bring(order, effort)

    async def _bring(self, order: Order, effort: Effort) -> Delivered:
        """Mount it, or else find it there, or upload it."""
        also = [order.origin.repository] if order.origin.source.host == order.place.host else []
        for candidate in self._inventory.candidates(order.place, order.blob.digest, also):
            mounted = await self._mounts.attempt(order, candidate)
            if mounted is None:
                break
            if mounted is Mount.MOUNTED:
                return effort.result(Outcome.MOUNTED, candidate, sized=False)
            if not isinstance(mounted, Mount):
                return await self._head_or_upload(order, effort, mounted)
        return await self._head_or_upload(order, effort)

    async def _head_or_upload(self, order: Order, effort: Effort, session: UploadSession | None = None) -> Delivered:
        """Upload the blob unless the repository has it. session: what a refused mount has opened."""
        unused = session
        try:
            # What is on disk keeps what an earlier run left, or another repository has: asking it costs no request.
            if (order.may_have or order.target.on_disk) and not effort.asked and await self._ask(order):
                return effort.result(Outcome.EXISTS)
            unused = None  # the upload closes it
            return await self._upload(order, effort, session=session)
        finally:
            if unused is not None:
                self._abandon(order, unused)

    async def _ask(self, order: Order) -> bool:
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

        return await self._calls.call(ask, needs=(host_permit(order.place.host),), policy=ONCE)

    async def _send(self, order: Order, effort: Effort, sending: Sending, *more: str) -> None:
        def attempt(work: Work) -> None:
            effort.attempts += 1
            sending.attempt(work)

        await self._budgeted(order.place.host, order.blob, attempt, (*more, UPLOADS))

    async def _budgeted(self, host: str, blob: Descriptor, run: Callable[[Work], T], needs: Sequence[str]) -> T:
        """Run a call that moves the blob from or to a host. All callers share the retry budget of blob and host."""
        policy = self._budgets.policy(host, blob.digest)
        try:
            result = await self._calls.call(run, needs=(host_permit(host), *needs), policy=policy)
        except MirrorError as error:
            self._budgets.note(host, blob.digest, error)
            raise
        self._budgets.note(host, blob.digest, None)
        return result

    # ---- uploads

    async def _upload(self, order: Order, effort: Effort, *, session: UploadSession | None) -> Delivered:
        """Upload it from the first host where it can be read; one that lacks it, or fails for good, is left out."""
        tried: set[Origin] = set()
        failure: MirrorError | None = None
        while origins := self._untried(order, tried):
            effort.unread, effort.joined = None, False
            try:
                await self._upload_from(origins, order, effort, session)
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

    async def _upload_from(
        self, origins: list[Origin], order: Order, effort: Effort, session: UploadSession | None
    ) -> None:
        """origins: of one host. If the bytes could not be fetched, effort.unread says why."""
        source, target = origins[0].source.host, order.place.host
        try:
            if self._routes.through_spool(source, target, mounts_work=self._inventory.mounts_work(target)):
                may_stream = self._routes.may_stream(source, target) and not order.target.on_disk
                file = await self._room.claim(order.blob, target, may_stream=may_stream)
                try:
                    if file is None:
                        await self._directly(order, effort, origins, session)
                    else:
                        await self._by_spool(order, effort, origins, session, file)
                finally:
                    self._room.leave(file, target)
            else:
                await self._directly(order, effort, origins, session)
        finally:
            left = effort.sending.give_up() if effort.sending is not None else session
            effort.sent += effort.sending.sent if effort.sending is not None else 0
            effort.sending = None
            if left is not None:
                self._abandon(order, left)

    async def _directly(
        self, order: Order, effort: Effort, origins: list[Origin], session: UploadSession | None
    ) -> None:
        """Without the spool: this upload alone gets the bytes."""
        size = order.blob.size
        if size is not None and size <= CARRY and self._carrying + size <= MOST_CARRIED:
            await self._carried(order, effort, origins, session, size)
            return
        body = SourceBody(order.blob, origins, self._unreadable)
        sending = self._sending(order, effort, body, session)
        try:
            await self._send(order, effort, sending, host_permit(origins[0].source.host), DOWNLOADS)
        finally:
            effort.read += body.read
            effort.unread = body.trouble

    async def _carried(
        self, order: Order, effort: Effort, origins: list[Origin], session: UploadSession | None, size: int
    ) -> None:
        """A small blob: read it, then send it, so that neither host waits for the other with a slot in its hand."""
        source, host = SourceBody(order.blob, origins, self._unreadable), origins[0].source.host
        self._carrying += size
        try:
            carried = await self._budgeted(host, order.blob, partial(Carried.of, source, size), [DOWNLOADS])
            await self._send(order, effort, self._sending(order, effort, carried, session))
        finally:
            effort.read += source.read
            effort.unread = source.trouble
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
        mark, path = partial(self._before_write, order.place), order.place.path
        effort.sending = sending = Sending(order.target, path, order.blob, body, self._moved, mark, session)
        return sending

    async def _by_spool(
        self, order: Order, effort: Effort, origins: list[Origin], session: UploadSession | None, file: SpoolFile
    ) -> None:
        sending = self._sending(order, effort, file, session)
        effort.joined = True  # unless it runs
        async with self._downloads.join(file, lambda: self._download(file, origins, effort)) as download:
            try:
                # Where both ends are one host, an upload that waits for its download could hold the permit it needs.
                if origins[0].source.host != order.place.host and file in self._begun:
                    await self._begun[file].wait()
                if origins[0].source.host == order.place.host or download.done():
                    await result_of(download)
                try:
                    await run_group([result_of(download), self._send(order, effort, sending)])
                except SpoolBroken:
                    await result_of(download)
                    await self._send(order, effort, sending)
            except MirrorError:
                effort.unread = download.exception() if download.done() else None
                raise

    def _download(self, file: SpoolFile, origins: list[Origin], effort: Effort) -> Steps[None]:
        begun = self._begun[file] = asyncio.Event()

        def run(work: Work) -> None:
            effort.joined = False
            if file.complete:
                return
            body = SourceBody(file.blob, origins, self._unreadable)

            def progress(count: int) -> None:
                work.progress(count)
                if not begun.is_set():
                    self._calls.post(begun.set)

            try:
                with body.open(0, work) as reader:
                    file.fill(reader, replace(work, progress=progress))
            finally:
                effort.read += body.read

        async def download() -> None:
            try:
                await self._budgeted(origins[0].source.host, file.blob, run, [DOWNLOADS])
            finally:
                begun.set()
                if self._begun.get(file) is begun:
                    del self._begun[file]

        return download()

    def _abandon(self, order: Order, session: UploadSession) -> None:
        """Close a session that nobody will use any more, in a call of its own; at the latest in `close`."""
        self._idle.keep(session)

        def run(_: Work) -> None:
            if self._idle.take(session):
                session.__exit__(None, None, None)

        self._calls.tasks.detach(self._calls.call(run, needs=(host_permit(order.place.host),)))
