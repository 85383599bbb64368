"""Decides whether blobs go through the spool, and on which hosts mounts are allowed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

_PARALLEL = 8  # number of parallel requests to a host that is not configured


class Routes:
    """Decides from the configuration whether blobs go through the spool, and on which hosts mounts are allowed."""

    def __init__(
        self, pairs: Iterable[tuple[str, str]], *, mounting: Mapping[str, bool], parallel: Mapping[str, int]
    ) -> None:
        """Create the routes of a configuration. pairs: the source host and target host of every mirror entry.

        mounting: by host, whether the configuration allows mounts.
        parallel: by host, the maximum number of parallel requests."""
        self._targets: defaultdict[str, set[str]] = defaultdict(set)
        for source, target in pairs:
            self._targets[source].add(target)
        self._mounting = mounting
        self._parallel = parallel

    def allows_mounts(self, host: str) -> bool:
        """Return whether the configuration allows mounts on `host`."""
        return self._mounting.get(host, True)

    def needs_spool(self, source: str, target: str, *, mounts_work: bool) -> bool:
        """Return whether blobs from host `source` to host `target` go through the spool.

        A direct stream serves only one upload. A blob that may be uploaded several times goes through the spool, so
        that it is read from the source only once. mounts_work: whether mounts on the target host are worth trying."""
        if len(self._targets[source]) > 1 or not self.allows_mounts(target) or not mounts_work:
            return True
        return not self.can_stream(source, target)

    def can_stream(self, source: str, target: str) -> bool:
        """Return whether blobs can be streamed directly, which needs permits for both hosts at the same time."""
        return source != target or self._parallel.get(target, _PARALLEL) >= 2
