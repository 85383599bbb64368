"""Uploads blobs: from memory, as a direct stream from the source to the target, or through the spool."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import partial

from mirror.errors import MirrorError, Refused, RemoteError
from mirror.oci.reference import Repository
from mirror.output.progress import Progress
from mirror.store import UploadSession
from mirror.transfer.blob_locations import BlobLocations
from mirror.transfer.blob_request import BlobRequest, BlobResult, BlobSource
from mirror.transfer.blob_sources import BlobSources
from mirror.transfer.calls import Calls
from mirror.transfer.downloads import BlobDownload, BufferedBlob
from mirror.transfer.idle_sessions import IdleSessions
from mirror.transfer.permits import DOWNLOADS, UPLOADS, host_permit
from mirror.transfer.range_threads import RangeThreads
from mirror.transfer.read_failures import ReadFailures
from mirror.transfer.retry_budgets import RetryBudgets
from mirror.transfer.routes import Routes
from mirror.transfer.shared_tasks import result_of
from mirror.transfer.spool import DownloadBroken, Spool, SpoolFile
from mirror.transfer.spool_downloads import SpoolDownloads
from mirror.transfer.spool_room import SpoolRoom
from mirror.transfer.tasks import run_group
from mirror.transfer.uploads import BlobBody, BlobUpload
from mirror.util.cancellation import Work
from mirror.util.structs import Struct

SMALL_BLOB = 64 << 10  # bytes up to which a blob is read into memory before its upload starts
MAX_BUFFERED = 4 << 20  # bytes of small blobs in memory at a time; further small blobs are streamed

_log = logging.getLogger("mirror.transfer")


class UploadState(Struct, eq=False):
    """The state of one upload of a blob from the sources on one host, including its retries.

    session: an open upload session to use, or None.
    result: where bytes and attempts are counted.
    read_error: the error from the source, if the upload failed because the blob could not be read.
    is_shared: whether another upload started the download that provides the bytes, perhaps from different sources."""

    request: BlobRequest
    sources: list[BlobSource]
    session: UploadSession | None
    result: BlobResult
    upload: BlobUpload | None = None
    read_error: BaseException | None = None
    is_shared: bool = False

    @property
    def source_host(self) -> str:
        """The host of all source stores of this upload."""
        return self.sources[0].store.host

    @property
    def target_host(self) -> str:
        """The host of the target repository."""
        return self.request.repository.host


class BlobUploader:
    """Uploads blobs from the first source that can provide them. Its coroutines run on the event loop."""

    def __init__(
        self,
        calls: Calls,
        locations: BlobLocations,
        sources: BlobSources,
        routes: Routes,
        spool: Spool,
        idle: IdleSessions,
        *,
        progress: Progress,
        before_write: Callable[[Repository], None],
    ) -> None:
        """Create an uploader whose requests run through `calls`. progress, before_write: see `BlobCopier`."""
        self._locations = locations
        self._sources = sources
        self._routes = routes
        self._room = SpoolRoom(spool, calls)
        self._idle = idle
        self._before_write = before_write
        self._failures = ReadFailures()
        self._budgets = RetryBudgets(calls)
        self._ranges = RangeThreads(calls)
        self._downloads = SpoolDownloads(calls, self._budgets, self._failures, self._ranges, progress)
        self._buffered = 0  # bytes of small blobs in memory, or about to be read

    async def upload(self, request: BlobRequest, result: BlobResult, session: UploadSession | None) -> None:
        """Upload the blob. If the blob cannot be read from one source host, try the sources on the next host.

        session: an open upload session, or None. The attempt with the first source host uses or closes the session.
        result: where bytes and attempts are counted.

        Raises the errors that the target raises. If the blob cannot be read from any source, raises the error for the
        request's own source."""
        tried: set[BlobSource] = set()
        failure: MirrorError | None = None
        while sources := self._next_sources(request, tried):
            upload_try = UploadState(request, sources, session, result)
            try:
                await self._try_upload(upload_try)
                return
            except (RemoteError, Refused) as error:
                if upload_try.read_error is None:
                    raise
                if failure is None or request.source in sources:
                    failure = error
                text = f"{request.blob.digest} could not be read from {', '.join(map(str, sources))}: {error.what}"
                _log.info("blob_unread", extra={"target": str(request.repository), "code": error.code, "text": text})
            session = None
            if not upload_try.is_shared:
                tried.update(sources)
        if failure is None:
            raise RuntimeError("the copy request has no source")
        raise failure

    def _next_sources(self, request: BlobRequest, tried: Collection[BlobSource]) -> list[BlobSource]:
        """Return the sources to try next, all on one host. Return an empty list if all sources have been tried.

        If another repository on the target's host has the blob, that repository comes first. The request's own source
        comes next, then the sources of other requests."""
        path = self._locations.find_holder(request.repository, request.blob.digest)
        sibling = BlobSource(request.target, path) if path else None
        if sibling is not None and sibling not in tried:
            return [sibling]
        return self._sources.next_untried(request, tried)

    async def _try_upload(self, upload_try: UploadState) -> None:
        """Upload the blob through the spool or directly. If the upload session is still open afterwards, close it."""
        source, target, request = upload_try.source_host, upload_try.target_host, upload_try.request
        try:
            if not self._routes.needs_spool(source, target, mounts_work=self._locations.is_mount_worthwhile(target)):
                await self._upload_directly(upload_try)
                return
            may_stream = self._routes.can_stream(source, target) and not request.target.on_disk
            file = await self._room.acquire(request.blob, target, may_stream=may_stream)
            try:
                if file is None:
                    await self._upload_directly(upload_try)
                else:
                    await self._upload_from_spool(upload_try, file)
            finally:
                self._room.release(file, target)
        finally:
            session = upload_try.session
            if upload_try.upload is not None:
                session = upload_try.upload.end_attempts()
                upload_try.result.bytes_sent += upload_try.upload.bytes_sent
            if session is not None:
                self._idle.discard(session, target)

    async def _upload_directly(self, upload_try: UploadState) -> None:
        """Upload the blob without the spool, so that no other upload of the blob can use the bytes."""
        blob = upload_try.request.blob
        download = BlobDownload(blob, upload_try.sources, self._failures, self._ranges)
        try:
            if blob.size is not None and blob.size <= SMALL_BLOB and self._buffered + blob.size <= MAX_BUFFERED:
                await self._upload_from_memory(upload_try, download, blob.size)
            else:
                upload = self._create_upload(upload_try, download)
                await self._send(upload_try, upload, host_permit(upload_try.source_host), DOWNLOADS)
        finally:
            upload_try.result.bytes_read += download.bytes_read
            upload_try.read_error = download.error

    async def _upload_from_memory(self, upload_try: UploadState, download: BlobDownload, size: int) -> None:
        """Read a small blob into memory, then send it.

        No permit for one host is held while the upload waits for a permit for the other host."""
        self._buffered += size
        try:
            read = partial(BufferedBlob.read_from, download, size)
            body = await self._budgets.call(upload_try.source_host, upload_try.request.blob, read, [DOWNLOADS])
            await self._send(upload_try, self._create_upload(upload_try, body))
        finally:
            self._buffered -= size

    async def _upload_from_spool(self, upload_try: UploadState, file: SpoolFile) -> None:
        """Upload the blob from a spool file, even while the download is still writing the file.

        If the download breaks, upload the blob again once the file is complete."""
        upload = self._create_upload(upload_try, file)
        upload_try.is_shared = True

        def set_not_shared() -> None:
            """Record that this upload started the download itself."""
            upload_try.is_shared = False

        async with self._downloads.join(file, upload_try.sources, upload_try.result, set_not_shared) as download:
            try:
                # On one host, an upload that waits for its download could hold the permit that the download needs.
                one_host = upload_try.source_host == upload_try.target_host
                if not one_host:
                    await self._downloads.wait_for_progress(file)
                if one_host or download.done():
                    await result_of(download)
                try:
                    await run_group([result_of(download), self._send(upload_try, upload)])
                except DownloadBroken:
                    await result_of(download)
                    await self._send(upload_try, upload)
            except MirrorError:
                upload_try.read_error = download.exception() if download.done() else None
                raise

    def _create_upload(self, upload_try: UploadState, body: BlobBody) -> BlobUpload:
        """Return a new BlobUpload for `upload_try`, which takes over the open upload session, if there is one."""
        request, session = upload_try.request, upload_try.session
        if session is not None:
            self._idle.take(session)
        before_write, path = partial(self._before_write, request.repository), request.repository.path
        progress = upload_try.result.progress
        upload = BlobUpload(request.target, path, request.blob, body, progress, before_write, session)
        upload_try.upload = upload
        return upload

    async def _send(self, upload_try: UploadState, upload: BlobUpload, *permits: str) -> None:
        """Run the upload with retries.

        Each attempt needs an upload permit, a permit for the target host, and the additional `permits`."""

        def attempt(work: Work) -> None:
            """Make one attempt to upload the blob, and count it. Runs on a worker thread."""
            upload_try.result.attempts += 1
            upload.attempt(work)

        await self._budgets.call(upload_try.target_host, upload_try.request.blob, attempt, (*permits, UPLOADS))
