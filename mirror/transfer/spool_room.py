"""Room in the spool: deliveries wait for it, and go without it when a target that does not move keeps it."""

from __future__ import annotations

from collections import Counter

from mirror.oci.descriptor import Descriptor
from mirror.transfer.calls import Calls
from mirror.transfer.spool import Spool, SpoolFile, remove_files

POLL_INTERVAL = 0.5  # seconds between two looks whether the spool has room
WAIT_FOR_ROOM = 2.0  # seconds after which a blob that may go without the spool does not wait for room any more
MAX_STREAMS = 2  # at a time, of blobs that go to one host without the spool


class SpoolRoom:
    """Files of the spool for deliveries to hosts. Times are of the loop's clock."""

    def __init__(self, spool: Spool, calls: Calls) -> None:
        self._spool = spool
        self._calls = calls
        self._files: Counter[str] = Counter()  # in use, by target host
        self._streams: Counter[str] = Counter()  # of blobs that go without, by target host
        self._full_since: float | None = None  # no blob has found room since

    async def acquire(self, blob: Descriptor, host: str, *, may_stream: bool) -> SpoolFile | None:
        """The file for `blob` as soon as there is room for it. The caller gives it back to `leave`, also if it is None.

        may_stream: the blob can go to `host` without the spool. Then None: there has been no room for ROOM_WITHIN
        seconds. A host that has files in use waits on, since it may be the one that does not move: its streams would
        stand still as well, with slots of the source."""
        began = self._calls.now()
        while (file := self._spool.acquire(blob)) is None:
            if may_stream and self._goes_without(host, began):
                return None
            await self._calls.sleep(POLL_INTERVAL)
        self._files[host] += 1
        self._full_since = None
        try:
            if gone := self._spool.take_dropped():  # what made room leaves the disk first
                await self._calls.call(lambda work: remove_files(gone))
        except BaseException:
            self.release(file, host)
            raise
        return file

    def release(self, file: SpoolFile | None, host: str) -> None:
        """Done with what `claim` gave for `host`."""
        (self._streams if file is None else self._files)[host] -= 1
        if file is not None:
            self._spool.release(file)
            if gone := self._spool.take_dropped():
                self._calls.tasks.detach(self._calls.call(lambda work: remove_files(gone)))

    def _goes_without(self, host: str, began: float) -> bool:
        """Whether a blob for `host`, which has waited since `began`, goes without the spool; if so it is counted."""
        now = self._calls.now()
        if self._full_since is None:
            self._full_since = now
        full = now - min(began, self._full_since) >= WAIT_FOR_ROOM
        goes = full and not self._files[host] and self._streams[host] < MAX_STREAMS
        self._streams[host] += goes
        return goes
