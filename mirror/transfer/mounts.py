"""Mounts blobs from other repositories on the same host. If a mount fails, the caller uploads the blob."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from mirror.errors import RateLimited, RemoteError
from mirror.oci.reference import Repository
from mirror.store import Mount, UploadSession
from mirror.transfer.blob_locations import BlobLocations
from mirror.transfer.blob_request import BlobRequest
from mirror.transfer.calls import Calls
from mirror.transfer.idle_sessions import IdleSessions
from mirror.transfer.permits import host_permit
from mirror.transfer.routes import Routes
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE

_log = logging.getLogger("mirror.transfer")


class Mounts:
    """Mounts blobs, and remembers the hosts and repositories for which mounts have failed."""

    def __init__(
        self,
        calls: Calls,
        locations: BlobLocations,
        routes: Routes,
        idle: IdleSessions,
        before_write: Callable[[Repository], None],
    ) -> None:
        """Prepare to mount blobs, with requests that run through `calls`.

        idle: keeps the upload sessions that registries open instead of mounting a blob.
        before_write: called on a worker thread before each mount request, with the repository."""
        self._calls = calls
        self._locations = locations
        self._routes = routes
        self._idle = idle
        self._before_write = before_write

    def are_worthwhile(self, host: str) -> bool:
        """Return whether mounts on `host` are allowed and likely to succeed. May be called on any thread."""
        return self._routes.allows_mounts(host) and self._locations.is_mount_worthwhile(host)

    async def mount(self, request: BlobRequest, from_path: str) -> Mount | UploadSession | None:
        """Mount the blob from the repository `from_path`, with retries.

        If the registry opened an upload session instead, return the session, which `IdleSessions` keeps. If no request
        was sent because mounts on this host do not work, return None. Raises RateLimited and Cancelled."""
        repository, digest = request.repository, request.blob.digest
        # If all retries failed for one blob, each further blob gets one attempt.
        policy = ONCE if self._locations.has_failed_mount(repository, from_path) else None
        run = partial(self._mount, request, from_path)
        try:
            mounted = await self._calls.call(run, needs=(host_permit(repository.host),), policy=policy)
        except RemoteError as error:
            if isinstance(error, RateLimited):
                raise
            text = f"{digest} could not be mounted from {from_path}: {error.what}; uploading it to {repository}"
            _log.info("mount_failed", extra={"target": str(repository), "code": error.code, "text": text})
            self._locations.remember_mount(repository, from_path, digest, None)
            return Mount.ABSENT
        if mounted is not None:
            outcome = mounted if isinstance(mounted, Mount) else Mount.ABSENT
            self._locations.remember_mount(repository, from_path, digest, outcome)
        return mounted

    def _mount(self, request: BlobRequest, from_path: str, work: Work) -> Mount | UploadSession | None:
        """Send the mount request and return its outcome. Runs on a worker thread.

        Return None, without sending a request, if mounts on the host have meanwhile turned out not to work."""
        if not self.are_worthwhile(request.repository.host):
            return None  # the call may have waited long for its permit; the upload opens its own session
        self._before_write(request.repository)
        mounted = request.target.mount_blob(request.repository.path, request.blob, from_path, work)
        # The copy may be cancelled before another call uses the session.
        if not isinstance(mounted, Mount) and not self._idle.keep(mounted, work.stop):
            mounted.__exit__(None, None, None)
            work.stop.raise_if_requested()
        return mounted
