"""Limits the retries for each blob and host. Once all attempts have failed, later images make one attempt each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from mirror.errors import MirrorError
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.transfer.calls import Calls
from mirror.transfer.permits import host_permit
from mirror.util.cancellation import Work
from mirror.util.retry_policy import Policy

T = TypeVar("T")

# A budget of 0 allows no retries, except after a `Retry-After`, which applies to the host and not to a single caller.
SINGLE_ATTEMPT = Policy(budget=0.0)


class RetryBudgets:
    """Runs the calls that transfer blobs. All calls for the same blob and host share one retry budget."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._exhausted: set[tuple[str, Digest]] = set()

    async def call(self, host: str, blob: Descriptor, run: Callable[[Work], T], needs: Sequence[str]) -> T:
        """Call `run`, which transfers `blob` from or to `host`, with a permit for `host` and the permits `needs`.

        Once all attempts of a call have failed, each later call for the same blob and host makes only one attempt,
        until a call succeeds. Raises the same errors as `Calls.call`."""
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
