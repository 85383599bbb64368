"""Upload sessions that were opened and are not in use: between two calls of a delivery, or after it was cancelled."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait

from mirror.errors import LocalError
from mirror.store import UploadSession
from mirror.util.cancellation import Stop

CLOSE_THREADS = 32  # sessions


class IdleSessions:
    """Keeps them until a call takes them; what is left at the end is closed. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: dict[UploadSession, None] = {}

    def keep(self, session: UploadSession, stop: Stop | None = None) -> bool:
        """Keep it for a later call; False: `stop` was requested, so the caller closes it."""
        with self._lock:
            if stop is not None and stop.is_requested:  # asked under the lock: `close` comes after a stop
                return False
            self._sessions[session] = None
            return True

    def take(self, session: UploadSession) -> bool:
        """Whether it was kept; the caller owns it from now on."""
        with self._lock:
            return self._sessions.pop(session, self) is None

    def close(self, patience: float) -> None:
        """Close what is left. Does I/O; after a stop. Raises LocalError: not done in `patience` seconds; sessions whose
        turn had not come by then are never closed."""
        with self._lock:
            left, self._sessions = self._sessions, {}
        if not left:
            return
        pool = ThreadPoolExecutor(min(CLOSE_THREADS, len(left)), thread_name_prefix="close")
        done, late = wait([pool.submit(session.__exit__, None, None, None) for session in left], patience)
        pool.shutdown(wait=not late, cancel_futures=True)
        for future in done:
            future.result()
        if late:
            raise LocalError(
                f"{len(late)} upload sessions were not closed within {patience:g} s", hint="the registry hangs"
            )
