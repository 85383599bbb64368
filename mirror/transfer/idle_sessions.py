"""Keeps upload sessions that are open but idle: between two calls of a copy, or after a copy was cancelled."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait

from mirror.errors import LocalError
from mirror.store import UploadSession
from mirror.transfer.calls import Calls
from mirror.transfer.permits import host_permit
from mirror.util.cancellation import Stop, Work

CLOSE_THREADS = 32  # maximum number of sessions that `close` closes at the same time


class IdleSessions:
    """Owns idle upload sessions until a call takes them. `close` closes all remaining sessions. Thread-safe."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._lock = threading.Lock()
        self._sessions: dict[UploadSession, None] = {}

    def keep(self, session: UploadSession, stop: Stop | None = None) -> bool:
        """Store a session for a later call, and return True.

        If `stop` was requested, return False without storing the session: the caller must close the session."""
        with self._lock:
            if stop is not None and stop.is_requested:  # checked under the lock: `close` is called after the stop
                return False
            self._sessions[session] = None
            return True

    def take(self, session: UploadSession) -> bool:
        """Remove a session from the idle sessions, and return whether it was one of them. If so, the caller owns it."""
        with self._lock:
            return self._sessions.pop(session, self) is None

    def discard(self, session: UploadSession, host: str) -> None:
        """Close a session on `host` in the background, because no upload will use it. Call this on the event loop."""
        self.keep(session)

        def run(_: Work) -> None:
            """Close the session on a worker thread, unless `close` has taken it."""
            if self.take(session):
                session.__exit__(None, None, None)

        self._calls.tasks.detach(self._calls.call(run, needs=(host_permit(host),)))

    def close(self, timeout: float) -> None:
        """Close all idle sessions after a stop. Blocks.

        Raises LocalError if some of them are still open after `timeout` seconds."""
        with self._lock:
            left, self._sessions = self._sessions, {}
        if not left:
            return
        pool = ThreadPoolExecutor(min(CLOSE_THREADS, len(left)), thread_name_prefix="close")
        done, late = wait([pool.submit(session.__exit__, None, None, None) for session in left], timeout)
        pool.shutdown(wait=not late, cancel_futures=True)
        for future in done:
            future.result()
        if late:
            raise LocalError(
                f"{len(late)} upload sessions were not closed within {timeout:g} s",
                hint="the registry does not respond; it deletes abandoned upload sessions by itself after some time",
            )
