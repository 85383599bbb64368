"""Copies each blob at most once to each repository, for all images that need it, in the cheapest way that works.

For each blob and repository, the copier tries these steps in order until one succeeds:

1. If this run has already verified that the repository has the blob, send no request.
2. If an earlier run saw the blob in the repository, look up the blob with HEAD.
3. If another repository on the same host has the blob, mount the blob from that repository.
4. If the repository may have the blob, and step 2 did not apply, look up the blob with HEAD.
5. Upload the blob.

If several repositories on one host need the same blob, the first copy to that host is the leader. The other copies wait
until the leader has finished, then mount the blob.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from weakref import WeakValueDictionary

from mirror.errors import Cancelled, MirrorError, RemoteError, is_failed_lookup
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.output.progress import Progress
from mirror.store import Mount, UploadSession
from mirror.transfer.blob_locations import BlobLocations
from mirror.transfer.blob_recorder import BlobRecorder
from mirror.transfer.blob_request import BlobOutcome, BlobRequest, BlobResult
from mirror.transfer.blob_sources import BlobSources
from mirror.transfer.blob_uploader import BlobUploader
from mirror.transfer.calls import CLOSE_TIMEOUT, RESULT_NOT_NEEDED, Calls
from mirror.transfer.idle_sessions import IdleSessions
from mirror.transfer.mounts import Mounts
from mirror.transfer.routes import Routes
from mirror.transfer.shared_tasks import SharedTasks
from mirror.transfer.spool import Spool
from mirror.util.cancellation import Work

_log = logging.getLogger("mirror.transfer")


class BlobCopier:
    """Copies each blob once to each repository that needs it. Its coroutines run on the event loop."""

    def __init__(
        self,
        calls: Calls,
        locations: BlobLocations,
        routes: Routes,
        spool: Spool,
        *,
        recorder: BlobRecorder,
        progress: Progress,
        before_write: Callable[[Repository], None],
    ) -> None:
        """Create a copier whose requests run through `calls`.

        recorder: records the result of each copy.
        progress: the progress of the run, to which each copy is added.
        before_write: called on a worker thread before each write to a repository, with the repository."""
        self._calls = calls
        self._locations = locations
        self._recorder = recorder
        self._progress = progress
        self._sources = BlobSources()
        self._copies: SharedTasks[tuple[Repository, Digest, int | None], BlobResult] = SharedTasks(calls.tasks)
        # The leader holds the lock. The references are weak, so a lock is deleted when no copy holds or awaits it.
        self._leader_locks: WeakValueDictionary[tuple[str, Digest], asyncio.Lock] = WeakValueDictionary()
        self._idle = IdleSessions(calls)
        self._mounts = Mounts(calls, locations, routes, self._idle, before_write)
        self._uploader = BlobUploader(
            calls,
            locations,
            self._sources,
            routes,
            spool,
            self._idle,
            progress=progress,
            before_write=before_write,
        )

    async def copy(self, request: BlobRequest) -> BlobResult:
        """Copy the requested blob, and return the result.

        If the same blob is already being copied to the same repository, wait for that copy instead. Raises the
        errors that the stores raise."""
        key = (request.repository, request.blob.digest, request.blob.size)
        with self._sources.register(request):
            return await self._copies.run(key, lambda: self._copy_and_record(request))

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Close all idle upload sessions. Calls that are still running close their own sessions.

        Blocks. Call this after a stop. Raises LocalError if it takes longer than `timeout` seconds."""
        self._idle.close(timeout)

    async def _copy_and_record(self, request: BlobRequest) -> BlobResult:
        """Copy the blob, and record the result, the blob's location and its size.

        Raises the errors that the stores raise."""
        blob, repository = request.blob, request.repository
        result = BlobResult(progress=self._progress.start_blob(str(repository), blob.digest, blob.size))
        try:
            self._locations.check_size(request.blob)
            await self._copy(request, result)
            self._locations.add_blob(request.repository, request.blob.digest)
            if result.size_verified:
                self._locations.add_size(request.blob)
        except MirrorError as error:
            self._recorder.record_blob(request, result.end(), error)
            raise
        except asyncio.CancelledError:
            self._recorder.record_blob(request, BlobResult(), Cancelled(RESULT_NOT_NEEDED))
            raise
        finally:
            self._progress.end_blob(result.progress, complete=result.outcome is BlobOutcome.COPIED)
        self._recorder.record_blob(request, result)
        return result

    async def _copy(self, request: BlobRequest, result: BlobResult) -> None:
        """Copy the blob in the cheapest way that works, and set the outcome in `result`."""
        digest, repository = request.blob.digest, request.repository
        if self._locations.has_blob(repository, digest):
            result.end(BlobOutcome.EXISTS, size_verified=False)
            return
        # Lookups in stores on disk cost no request, and find blobs of an earlier run or of another repository.
        may_exist = request.may_exist or request.target.on_disk
        if request.lookup_first or (request.may_exist and self._locations.is_expected(repository, digest)):
            if await self._exists(request):
                result.end(BlobOutcome.EXISTS)
                return
            may_exist = False
        if not self._mounts.are_worthwhile(repository.host) or self._locations.is_distrusted(repository):
            # A distrusted repository may have reported an earlier mount without performing it, so send the bytes.
            await self._look_up_or_upload(request, result, may_exist=may_exist)
            return
        if not self._locations.find_holder(repository, digest):
            async with self._leader_locks.setdefault((repository.host, digest), asyncio.Lock()):
                if not self._locations.find_holder(repository, digest):
                    await self._mount_or_upload(request, result, may_exist=may_exist)
                    self._locations.add_blob(repository, digest)  # before the next copy gets the lock
                    return
        await self._mount_or_upload(request, result, may_exist=may_exist)

    async def _mount_or_upload(self, request: BlobRequest, result: BlobResult, *, may_exist: bool) -> None:
        """Mount the blob from a mount candidate. If no mount succeeds, upload the blob unless the repository has it."""
        source, repository = request.source, request.repository
        also = [source.repository] if source.store.host == repository.host else []
        session: UploadSession | None = None
        for candidate in self._locations.mount_candidates(repository, request.blob.digest, also):
            mounted = await self._mounts.mount(request, candidate)
            if mounted is Mount.MOUNTED:
                result.end(BlobOutcome.MOUNTED, candidate, size_verified=False)
                return
            if mounted is None:
                break
            if not isinstance(mounted, Mount):
                session = mounted
                break
        await self._look_up_or_upload(request, result, may_exist=may_exist, session=session)

    async def _look_up_or_upload(
        self, request: BlobRequest, result: BlobResult, *, may_exist: bool, session: UploadSession | None = None
    ) -> None:
        """Upload the blob unless the repository already has it.

        may_exist: whether the repository may have the blob, which has not been looked up yet.
        session: an upload session that the registry opened instead of mounting the blob. This method uses or closes
        the session."""
        unused = session
        try:
            if may_exist and await self._exists(request):
                result.end(BlobOutcome.EXISTS)
                return
            unused = None  # the upload uses or closes it
            await self._uploader.upload(request, result, session)
            result.end(BlobOutcome.COPIED)
        finally:
            if unused is not None:
                self._idle.discard(unused, request.repository.host)

    async def _exists(self, request: BlobRequest) -> bool:
        """Return whether the repository has the blob.

        If the lookup still fails after all retries, log a warning and return False, so that the blob is uploaded."""

        def look_up(work: Work) -> bool:
            """Look up the blob in the target repository. Runs on a worker thread."""
            try:
                return request.target.has_blob(request.repository.path, request.blob, work)
            except RemoteError as error:
                if not is_failed_lookup(error):
                    raise
                text = f"could not look up {request.blob.digest} in {request.repository}: {error.what}; uploading it"
                _log.warning(
                    "blob_lookup_failed", extra={"target": str(request.repository), "code": error.code, "text": text}
                )
                return False

        return await self._calls.call_host(request.repository.host, look_up)
