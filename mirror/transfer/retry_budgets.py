"""What failed in this run: a blob that failed all its attempts is not retried by later images."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from mirror.errors import MirrorError, Refused, RemoteError
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.transfer.calls import Calls
from mirror.transfer.permits import host_permit
from mirror.util.cancellation import Work
from mirror.util.retry_policy import Policy

T = TypeVar("T")

# One attempt. Waits that a server asks for still apply: they concern the host, not one caller.
SINGLE_ATTEMPT = Policy(budget=0.0)
_WRONG = frozenset({"digest_mismatch", "size_mismatch"})


class ReadFailures:
    """Why blobs cannot be read from where they should be.

    That the bytes are wrong holds for all repositories of a store, which keeps one content for a digest; that they are
    missing, or not for us, for one repository only. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._errors: dict[tuple[str, str | None, Digest, int | None], MirrorError] = {}

    def note(self, host: str, repository: str, blob: Descriptor, error: MirrorError) -> None:
        """Reading it there failed; what may pass, and what is no fault of that store, is not kept."""
        if not error.retryable and isinstance(error, RemoteError | Refused):
            where = None if error.code in _WRONG else repository
            kept = error.with_text(error.what)  # without its frames, and what they hold
            with self._lock:
                self._errors[host, where, blob.digest, blob.size] = kept

    def why(self, host: str, repository: str, blob: Descriptor) -> MirrorError | None:
        with self._lock:
            for where in (None, repository):
                error = self._errors.get((host, where, blob.digest, blob.size))
                if error is not None:
                    return error.with_text(error.what)
            return None


class RetryBudgets:
    """Runs the calls that move blobs, so that all callers share the retry budget of a blob and a host."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._exhausted: set[tuple[str, Digest]] = set()

    async def call(self, host: str, blob: Descriptor, run: Callable[[Work], T], needs: Sequence[str]) -> T:
        """Run a call that moves `blob` from or to `host`, with the permits `needs` besides that of the host.

        After a call that failed all its attempts, the next callers have one attempt each."""
        key = (host, blob.digest)
        policy = SINGLE_ATTEMPT if key in self._exhausted else None
        try:
            result = await self._calls.call(run, needs=(host_permit(host), *needs), policy=policy)
        except MirrorError as error:
            if error.retryable:
                self._exhausted.add(key)
            raise
        self._exhausted.discard(key)
        return result
