"""Waits for room in the spool. If a target that does not respond fills the spool, blobs may be streamed instead."""

from __future__ import annotations

from collections import Counter

from mirror.oci.descriptor import Descriptor
from mirror.transfer.calls import Calls
from mirror.transfer.spool import Spool, SpoolFile, remove_files

POLL_INTERVAL = 0.5  # seconds between two checks for room
WAIT_FOR_ROOM = 2.0  # seconds after which a blob that can be streamed no longer waits for room
MAX_STREAMS = 2  # blobs that are streamed to one host at a time


class SpoolRoom:
    """Assigns spool files to copies, and counts the files in use for each target host.

    All times are in seconds on the event loop's clock."""

    def __init__(self, spool: Spool, calls: Calls) -> None:
        self._spool = spool
        self._calls = calls
        self._files: Counter[str] = Counter()  # number in use, by target host
        self._streams: Counter[str] = Counter()  # number of blobs that are streamed, by target host
        self._full_since: float | None = None  # the time since which no blob has been given a file

    async def acquire(self, blob: Descriptor, host: str, *, may_stream: bool) -> SpoolFile | None:
        """Wait for room in the spool, and return a file for `blob`. The caller must pass the result to `release`.

        may_stream: whether the blob can be streamed to `host` without the spool. If so, this returns None after
        WAIT_FOR_ROOM seconds without room, unless spool files for `host` are in use: then `host` may be the target that
        does not respond, and a stream to it would hold a permit for the source. Raises Cancelled, and LocalError if a
        dropped file cannot be deleted."""
        since = self._calls.now()
        while (file := self._spool.acquire(blob)) is None:
            if may_stream and self._start_stream(host, since):
                return None
            await self._calls.sleep(POLL_INTERVAL)
        self._files[host] += 1
        self._full_since = None
        try:
            if dropped := self._spool.take_dropped():  # their space is needed: delete them first
                await self._calls.call(lambda work: remove_files(dropped))
        except BaseException:
            self.release(file, host)
            raise
        return file

    def release(self, file: SpoolFile | None, host: str) -> None:
        """Release what `acquire` returned: a file, or None for a blob that was streamed."""
        (self._streams if file is None else self._files)[host] -= 1
        if file is not None:
            self._spool.release(file)
            if dropped := self._spool.take_dropped():
                self._calls.tasks.detach(self._calls.call(lambda work: remove_files(dropped)))

    def _start_stream(self, host: str, since: float) -> bool:
        """Return whether to stream a blob to `host` instead of waiting for room any longer. If so, count the stream.

        since: the time at which the blob started to wait."""
        now = self._calls.now()
        if self._full_since is None:
            self._full_since = now
        is_full = now - min(since, self._full_since) >= WAIT_FOR_ROOM
        starts = is_full and not self._files[host] and self._streams[host] < MAX_STREAMS
        self._streams[host] += starts
        return starts
