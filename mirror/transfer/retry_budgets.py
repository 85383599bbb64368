"""What failed in this run: a blob that failed all its attempts is not retried by later images."""

from __future__ import annotations

import threading

from mirror.errors import MirrorError, Refused, RemoteError
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.util.retry_policy import Policy

# One attempt. Waits that a server asks for still apply: they concern the host, not one caller.
ONE_MORE = Policy(budget=0.0)
_WRONG = frozenset({"digest_mismatch", "size_mismatch"})


class Unreadable:
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
            kept = error.told(error.what)  # without its frames, and what they hold
            with self._lock:
                self._errors[host, where, blob.digest, blob.size] = kept

    def why(self, host: str, repository: str, blob: Descriptor) -> MirrorError | None:
        with self._lock:
            for where in (None, repository):
                error = self._errors.get((host, where, blob.digest, blob.size))
                if error is not None:
                    return error.told(error.what)
            return None


class Budgets:
    """For which blobs a host has had all the attempts that there are for one."""

    def __init__(self) -> None:
        self._spent: set[tuple[str, Digest]] = set()

    def policy(self, host: str, digest: Digest) -> Policy | None:
        """For the next who needs it there; None: the usual one."""
        return ONE_MORE if (host, digest) in self._spent else None

    def note(self, host: str, digest: Digest, error: MirrorError | None) -> None:
        """How it ended; None: well."""
        if error is None:
            self._spent.discard((host, digest))
        elif error.retryable:
            self._spent.add((host, digest))
