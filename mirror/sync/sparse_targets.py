"""Records which target hosts accept sparse images, so that a run makes only one attempt per host."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable

from mirror.errors import SparseRefused
from mirror.transfer.tasks import Coro


class SparseTargets:
    """Records which hosts accept an index although the repository lacks some manifests that the index lists.

    Must be used on the event loop. The first such index is pushed to a host alone, and other pushes wait for the
    response."""

    def __init__(self) -> None:
        self._refusals: dict[str, SparseRefused] = {}
        self._accepting: set[str] = set()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def check(self, host: str, name: str) -> None:
        """Raise SparseRefused if the host has refused a sparse image. name: the image on the target."""
        refusal = self._refusals.get(host)
        if refusal is not None:
            what = f"{name}: {host} does not accept an index that lists manifests that the repository does not have"
            raise SparseRefused(what, hint=refusal.hint, status=refusal.status, registry_code=refusal.registry_code)

    async def push(self, host: str, name: str, push: Callable[[], Coro[None]]) -> None:
        """Push an index of a sparse image by calling `push`.

        Raises SparseRefused if the host has refused a sparse image before, and the errors of `push`."""
        if host in self._accepting:
            await self._push(host, push)
            return
        async with self._locks[host]:
            self.check(host, name)
            await self._push(host, push)

    async def _push(self, host: str, push: Callable[[], Coro[None]]) -> None:
        """Call `push`, and record whether the host accepted the index."""
        try:
            await push()
        except SparseRefused as refusal:
            self._refusals[host] = refusal
            self._accepting.discard(host)
            raise
        self._accepting.add(host)
