"""Room in the spool: deliveries wait for it, and go without it when a target that does not move keeps it."""

from __future__ import annotations

import threading
from collections import Counter

from mirror.oci.descriptor import Descriptor
from mirror.transfer.manager import Manager
from mirror.transfer.spool import Spool, SpoolFile
from mirror.transfer.steps import Steps

LOOK_FOR_ROOM = 0.5  # seconds between two looks whether the spool has room
ROOM_WITHIN = 2.0  # seconds after which a blob that may go without the spool does not wait for room any more
STREAMS = 2  # at a time, of blobs that go to one host without the spool


class Room:
    """Files of the spool for deliveries to hosts. Thread-safe; times are of the manager's clock."""

    def __init__(self, spool: Spool, manager: Manager) -> None:
        self._spool = spool
        self._manager = manager
        self._lock = threading.Lock()
        self._files: Counter[str] = Counter()  # in use, by target host
        self._streams: Counter[str] = Counter()  # of blobs that go without, by target host
        self._full_since: float | None = None  # no blob has found room since

    def claim(self, blob: Descriptor, host: str, *, may_stream: bool) -> Steps[SpoolFile | None]:
        """The file for `blob` as soon as there is room for it. The caller gives it back to `leave`, also if it is None.

        may_stream: the blob can go to `host` without the spool. Then None: there has been no room for ROOM_WITHIN
        seconds. A host that has files in use waits on, since it may be the one that does not move: its streams would
        stand still as well, with slots of the source."""
        began = self._manager.now()
        while (file := self._spool.claim(blob)) is None:
            if may_stream and self._goes_without(host, began):
                return None
            yield self._manager.timer(LOOK_FOR_ROOM)
        with self._lock:
            self._files[host] += 1
            self._full_since = None
        return file

    def leave(self, file: SpoolFile | None, host: str) -> None:
        """Done with what `claim` gave for `host`."""
        with self._lock:
            (self._streams if file is None else self._files)[host] -= 1
        if file is not None:
            self._spool.leave(file)

    def _goes_without(self, host: str, began: float) -> bool:
        """Whether a blob for `host`, which has waited since `began`, goes without the spool; if so it is counted."""
        now = self._manager.now()
        with self._lock:
            if self._full_since is None:
                self._full_since = now
            full = now - min(began, self._full_since) >= ROOM_WITHIN
            goes = full and not self._files[host] and self._streams[host] < STREAMS
            self._streams[host] += goes
        return goes
