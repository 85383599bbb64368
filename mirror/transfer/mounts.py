"""Mounting a blob from another repository of its host: never a failure of an image, at worst an upload."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from mirror.errors import RateLimited, RemoteError
from mirror.oci.reference import Repository
from mirror.store import Mount, UploadSession
from mirror.transfer.blob_locations import BlobLocations, Routes
from mirror.transfer.blob_request import BlobRequest
from mirror.transfer.calls import Calls
from mirror.transfer.idle_sessions import IdleSessions
from mirror.transfer.permits import host_permit
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE

_log = logging.getLogger("mirror.transfer")


class Mounts:
    """The mounts of a run. before_write: called with a place, on a thread, before it is written to."""

    def __init__(
        self,
        calls: Calls,
        locations: BlobLocations,
        routes: Routes,
        idle: IdleSessions,
        before_write: Callable[[Repository], None],
    ) -> None:
        self._calls = calls
        self._locations = locations
        self._routes = routes
        self._idle = idle
        self._before_write = before_write

    def are_worthwhile(self, host: str) -> bool:
        """Whether mounts are allowed and worth trying there."""
        return self._routes.allows_mounts(host) and self._locations.is_mount_worthwhile(host)

    async def mount(self, request: BlobRequest, from_path: str) -> Mount | UploadSession | None:
        """Mount it, with retries. -> a session if the target opened one instead, which is kept among those that
        are idle; None: it was not asked for. Raises RateLimited."""
        repository, digest = request.repository, request.blob.digest
        # Where all retries failed once, one attempt is enough for the other blobs.
        policy = ONCE if self._locations.has_failed_mount(repository, from_path) else None
        run = partial(self._mount, request, from_path)
        try:
            mounted = await self._calls.call(run, needs=(host_permit(repository.host),), policy=policy)
        except RemoteError as error:
            if isinstance(error, RateLimited):
                raise
            text = f"{digest} could not be mounted from {from_path}, uploading it to {repository}: {error.what}"
            _log.info("mount_failed", extra={"target": str(repository), "code": error.code, "text": text})
            self._locations.note_mount(repository, from_path, digest, None)
            return Mount.ABSENT
        if mounted is not None:
            outcome = mounted if isinstance(mounted, Mount) else Mount.ABSENT
            self._locations.note_mount(repository, from_path, digest, outcome)
        return mounted

    def _mount(self, request: BlobRequest, from_path: str, work: Work) -> Mount | UploadSession | None:
        if not self.are_worthwhile(request.repository.host):
            return None  # it may have waited for its permit for long; an upload opens its session when it has its own
        self._before_write(request.repository)
        mounted = request.target.mount_blob(request.repository.path, request.blob, from_path, work)
        # Between this call and the one that uses the session, the delivery may be cancelled.
        if not isinstance(mounted, Mount) and not self._idle.keep(mounted, work.stop):
            mounted.__exit__(None, None, None)
            work.stop.raise_if_requested()
        return mounted
