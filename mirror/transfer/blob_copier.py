"""Bringing blobs to repositories, each once for all who want it there, by the cheapest way that works.

The first of these that applies: nothing is asked where this run has proven that the blob is there; a HEAD where an
earlier run saw it; a mount where another repository of the host has it; a HEAD where the repository may have it; an
upload. Of several repositories of a host that want the same blob the first leads, the others wait for it and mount.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from functools import partial
from weakref import WeakValueDictionary

from mirror.errors import Cancelled, MirrorError, Refused, RemoteError, is_failed_lookup
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.store import Mount, UploadSession
from mirror.transfer.blob_locations import BlobLocations, Routes
from mirror.transfer.blob_recorder import BlobRecorder
from mirror.transfer.blob_request import BlobEffort, BlobOutcome, BlobRequest, BlobResult
from mirror.transfer.blob_sources import BlobSources
from mirror.transfer.calls import CLOSE_TIMEOUT, RESULT_NOT_NEEDED, Calls
from mirror.transfer.downloads import BlobDownload, BlobSource, BufferedBlob
from mirror.transfer.idle_sessions import IdleSessions
from mirror.transfer.mounts import Mounts
from mirror.transfer.permits import DOWNLOADS, UPLOADS, host_permit
from mirror.transfer.retry_budgets import ReadFailures, RetryBudgets
from mirror.transfer.shared_tasks import SharedTasks, result_of
from mirror.transfer.spool import DownloadBroken, Spool, SpoolFile
from mirror.transfer.spool_room import SpoolRoom
from mirror.transfer.tasks import Coro, run_group
from mirror.transfer.uploads import BlobBody, BlobUpload
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE
from mirror.util.structs import replace

SMALL_BLOB = 64 << 10  # bytes up to which a blob is read whole before its upload begins
MAX_BUFFERED = 4 << 20  # bytes of such blobs at once; what does not fit is streamed

_log = logging.getLogger("mirror.transfer")


class BlobCopier:
    """All deliveries of a run. outcomes: where it is recorded how each ended.

    moved: called with bytes as they are sent; before_write: called with a place before it is written to. Both are
    called on threads."""

    def __init__(
        self,
        calls: Calls,
        locations: BlobLocations,
        routes: Routes,
        spool: Spool,
        *,
        recorder: BlobRecorder,
        moved: Callable[[int], None],
        before_write: Callable[[Repository], None],
    ) -> None:
        self._calls = calls
        self._locations = locations
        self._routes = routes
        self._room = SpoolRoom(spool, calls)
        self._recorder = recorder
        self._moved = moved
        self._before_write = before_write
        self._unreadable = ReadFailures()
        self._budgets = RetryBudgets(calls)
        self._origins = BlobSources()
        self._deliveries: SharedTasks[tuple[Repository, Digest, int | None], BlobResult] = SharedTasks(calls.tasks)
        self._downloads: SharedTasks[SpoolFile, None] = SharedTasks(calls.tasks)
        self._begun: dict[SpoolFile, asyncio.Event] = {}  # set when a download has moved bytes, or has ended
        # Held by the delivery that leads; weak, so that one that nobody holds or waits for goes.
        self._leading: WeakValueDictionary[tuple[str, Digest], asyncio.Lock] = WeakValueDictionary()
        self._idle = IdleSessions()
        self._mounts = Mounts(calls, locations, routes, self._idle, before_write)
        self._carrying = 0  # bytes of small blobs in memory, or about to be

    async def copy(self, request: BlobRequest) -> BlobResult:
        """Bring it there; joins a delivery of the same blob to the same repository."""
        key = (request.repository, request.blob.digest, request.blob.size)
        with self._origins.register(request):
            return await self._deliveries.run(key, lambda: self._recorded(request))

    def close(self, patience: float = CLOSE_TIMEOUT) -> None:
        """Close the upload sessions that nobody uses. Does I/O; after a stop.

        What a call has open, or opens from now on, it closes itself. Raises LocalError: not done in `patience` seconds;
        what was not begun by then never is."""
        self._idle.close(patience)

    # ---- one delivery

    async def _recorded(self, request: BlobRequest) -> BlobResult:
        effort = BlobEffort()
        try:
            self._locations.is_size_known(request.blob)
            result = await self._deliver(request, effort)
            self._locations.add(request.repository, request.blob.digest)
            if result.sized:
                self._locations.verify_size(request.blob)
        except MirrorError as error:
            self._recorder.record_blob(request, error, effort.cost())
            raise
        except asyncio.CancelledError:
            self._recorder.record_blob(request, Cancelled(RESULT_NOT_NEEDED))
            raise
        self._recorder.record_blob(request, result)
        return result

    async def _deliver(self, request: BlobRequest, effort: BlobEffort) -> BlobResult:
        digest, repository = request.blob.digest, request.repository
        if self._locations.has_blob(repository, digest):
            return effort.result(BlobOutcome.EXISTS, sized=False)
        effort.asked = request.lookup_first or (request.may_have and self._locations.is_expected(repository, digest))
        if effort.asked and await self._ask(request):
            return effort.result(BlobOutcome.EXISTS)
        if not self._mounts.are_worthwhile(repository.host) or self._locations.is_distrusted(repository):
            # Where a mount may have been a lie, the bytes are sent.
            return await self._head_or_upload(request, effort)
        if not self._locations.find_holder(repository, digest):
            async with self._leading.setdefault((repository.host, digest), asyncio.Lock()):
                if not self._locations.find_holder(repository, digest):
                    brought = await self._bring(request, effort)
                    self._locations.add(repository, digest)  # before the next one leads, and uploads it again
                    return brought
        return await self._bring(request, effort)

    async def _bring(self, request: BlobRequest, effort: BlobEffort) -> BlobResult:
        """Mount it, or else find it there, or upload it."""
        also = [request.source.repository] if request.source.store.host == request.repository.host else []
        for candidate in self._locations.mount_candidates(request.repository, request.blob.digest, also):
            mounted = await self._mounts.mount(request, candidate)
            if mounted is None:
                break
            if mounted is Mount.MOUNTED:
                return effort.result(BlobOutcome.MOUNTED, candidate, sized=False)
            if not isinstance(mounted, Mount):
                return await self._head_or_upload(request, effort, mounted)
        return await self._head_or_upload(request, effort)

    async def _head_or_upload(
        self, request: BlobRequest, effort: BlobEffort, session: UploadSession | None = None
    ) -> BlobResult:
        """Upload the blob unless the repository has it. session: what a refused mount has opened."""
        unused = session
        try:
            # What is on disk keeps what an earlier run left, or another repository has: asking it costs no request.
            if (request.may_have or request.target.on_disk) and not effort.asked and await self._ask(request):
                return effort.result(BlobOutcome.EXISTS)
            unused = None  # the upload closes it
            return await self._upload(request, effort, session=session)
        finally:
            if unused is not None:
                self._abandon(request, unused)

    async def _ask(self, request: BlobRequest) -> bool:
        """Ask the target for the blob. Where it cannot look it up, not even after retries, an upload cures that."""

        def ask(work: Work) -> bool:
            try:
                return request.target.has_blob(request.repository.path, request.blob, work)
            except RemoteError as error:
                if not is_failed_lookup(error):
                    raise
                text = f"{request.repository}: could not look up {request.blob.digest}, uploading it: {error.what}"
                _log.warning(
                    "blob_lookup_failed", extra={"target": str(request.repository), "code": error.code, "text": text}
                )
                return False

        return await self._calls.call(ask, needs=(host_permit(request.repository.host),), policy=ONCE)

    async def _send(self, request: BlobRequest, effort: BlobEffort, sending: BlobUpload, *more: str) -> None:
        def attempt(work: Work) -> None:
            effort.attempts += 1
            sending.attempt(work)

        await self._budgets.call(request.repository.host, request.blob, attempt, (*more, UPLOADS))

    # ---- uploads

    async def _upload(self, request: BlobRequest, effort: BlobEffort, *, session: UploadSession | None) -> BlobResult:
        """Upload it from the first host where it can be read; one that lacks it, or fails for good, is left out."""
        tried: set[BlobSource] = set()
        failure: MirrorError | None = None
        while origins := self._untried(request, tried):
            effort.unread, effort.joined = None, False
            try:
                await self._upload_from(origins, request, effort, session)
                return effort.result(BlobOutcome.COPIED)
            except (RemoteError, Refused) as error:
                if effort.unread is None:
                    raise
                if failure is None or request.source in origins:
                    failure = error
                text = f"{request.blob.digest} could not be read from {', '.join(map(str, origins))}: {error.what}"
                _log.info("blob_unread", extra={"target": str(request.repository), "code": error.code, "text": text})
            session = None
            if not effort.joined:
                tried.update(origins)
        if failure is None:
            raise RuntimeError("an order has an origin")
        raise failure

    async def _upload_from(
        self, origins: list[BlobSource], request: BlobRequest, effort: BlobEffort, session: UploadSession | None
    ) -> None:
        """origins: of one host. If the bytes could not be fetched, effort.unread says why."""
        source, target = origins[0].store.host, request.repository.host
        try:
            if self._routes.needs_spool(source, target, mounts_work=self._locations.is_mount_worthwhile(target)):
                may_stream = self._routes.can_stream(source, target) and not request.target.on_disk
                file = await self._room.acquire(request.blob, target, may_stream=may_stream)
                try:
                    if file is None:
                        await self._directly(request, effort, origins, session)
                    else:
                        await self._by_spool(request, effort, origins, session, file)
                finally:
                    self._room.release(file, target)
            else:
                await self._directly(request, effort, origins, session)
        finally:
            left = effort.sending.end_attempts() if effort.sending is not None else session
            effort.sent += effort.sending.sent if effort.sending is not None else 0
            effort.sending = None
            if left is not None:
                self._abandon(request, left)

    async def _directly(
        self, request: BlobRequest, effort: BlobEffort, origins: list[BlobSource], session: UploadSession | None
    ) -> None:
        """Without the spool: this upload alone gets the bytes."""
        size = request.blob.size
        if size is not None and size <= SMALL_BLOB and self._carrying + size <= MAX_BUFFERED:
            await self._carried(request, effort, origins, session, size)
            return
        body = BlobDownload(request.blob, origins, self._unreadable)
        sending = self._sending(request, effort, body, session)
        try:
            await self._send(request, effort, sending, host_permit(origins[0].store.host), DOWNLOADS)
        finally:
            effort.read += body.read
            effort.unread = body.trouble

    async def _carried(
        self,
        request: BlobRequest,
        effort: BlobEffort,
        origins: list[BlobSource],
        session: UploadSession | None,
        size: int,
    ) -> None:
        """A small blob: read it, then send it, so that neither host waits for the other with a slot in its hand."""
        source, host = BlobDownload(request.blob, origins, self._unreadable), origins[0].store.host
        self._carrying += size
        try:
            carried = await self._budgets.call(
                host, request.blob, partial(BufferedBlob.read_from, source, size), [DOWNLOADS]
            )
            await self._send(request, effort, self._sending(request, effort, carried, session))
        finally:
            effort.read += source.read
            effort.unread = source.trouble
            self._carrying -= size

    def _untried(self, request: BlobRequest, tried: Collection[BlobSource]) -> list[BlobSource]:
        """Where to read it next: from a sibling on the target that has it, if a mount from that was refused; then from
        the source; then from the sources of others who want the blob."""
        sibling = self._locations.find_holder(request.repository, request.blob.digest)
        near = BlobSource(request.target, sibling) if sibling else None
        return [near] if near is not None and near not in tried else self._origins.next_untried(request, tried)

    def _sending(
        self, request: BlobRequest, effort: BlobEffort, body: BlobBody, session: UploadSession | None
    ) -> BlobUpload:
        if session is not None:
            self._idle.take(session)
        mark, path = partial(self._before_write, request.repository), request.repository.path
        effort.sending = sending = BlobUpload(request.target, path, request.blob, body, self._moved, mark, session)
        return sending

    async def _by_spool(
        self,
        request: BlobRequest,
        effort: BlobEffort,
        origins: list[BlobSource],
        session: UploadSession | None,
        file: SpoolFile,
    ) -> None:
        sending = self._sending(request, effort, file, session)
        effort.joined = True  # unless it runs
        async with self._downloads.join(file, lambda: self._download(file, origins, effort)) as download:
            try:
                # Where both ends are one host, an upload that waits for its download could hold the permit it needs.
                if origins[0].store.host != request.repository.host and file in self._begun:
                    await self._begun[file].wait()
                if origins[0].store.host == request.repository.host or download.done():
                    await result_of(download)
                try:
                    await run_group([result_of(download), self._send(request, effort, sending)])
                except DownloadBroken:
                    await result_of(download)
                    await self._send(request, effort, sending)
            except MirrorError:
                effort.unread = download.exception() if download.done() else None
                raise

    def _download(self, file: SpoolFile, origins: list[BlobSource], effort: BlobEffort) -> Coro[None]:
        begun = self._begun[file] = asyncio.Event()

        def run(work: Work) -> None:
            effort.joined = False
            if file.complete:
                return
            body = BlobDownload(file.blob, origins, self._unreadable)

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
                await self._budgets.call(origins[0].store.host, file.blob, run, [DOWNLOADS])
            finally:
                begun.set()
                if self._begun.get(file) is begun:
                    del self._begun[file]

        return download()

    def _abandon(self, request: BlobRequest, session: UploadSession) -> None:
        """Close a session that nobody will use any more, in a call of its own; at the latest in `close`."""
        self._idle.keep(session)

        def run(_: Work) -> None:
            if self._idle.take(session):
                session.__exit__(None, None, None)

        self._calls.tasks.detach(self._calls.call(run, needs=(host_permit(request.repository.host),)))
