"""What became of each blob and manifest in each target repository: one record of it, for the log."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeAlias

from mirror.errors import Cancelled, MirrorError
from mirror.oci.digest import Digest
from mirror.transfer.orders import Delivered, Order, Outcome
from mirror.transfer.placement import Place

Told: TypeAlias = Callable[[Order, "Delivered | MirrorError"], None]


class Outcomes:
    """Calls `told` once for each (repository, digest): again only if a failure turns into a success, or if the bytes
    had to be brought after all. Thread-safe."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._lock = threading.Lock()
        self._known: dict[tuple[Place, Digest], Outcome | None] = {}  # None: failed
        self._interrupted: dict[tuple[Place, Digest], tuple[Order, Cancelled]] = {}

    def blob(self, order: Order, what: Delivered | MirrorError) -> None:
        """A delivery has ended."""
        if not self._first(order, what, success_is_final=False):
            if isinstance(what, Delivered):
                what.claim()  # the record, and the count of the report, are those of the first
            return
        self._told(order, what)

    def manifest(self, order: Order, what: Delivered | MirrorError) -> None:
        """A manifest was put, was there already, or could not be put; perhaps by several references."""
        if self._first(order, what, success_is_final=True):
            self._told(order, what)

    def failed_after_all(self, order: Order, error: BaseException | None) -> None:
        """What was brought turned out not to be there, if there is an error."""
        if isinstance(error, MirrorError):
            self.blob(order, error)

    def _first(self, order: Order, what: Delivered | MirrorError, *, success_is_final: bool) -> bool:
        key = (order.place, order.blob.digest)
        outcome = what.outcome if isinstance(what, Delivered) else None
        with self._lock:
            if isinstance(what, Cancelled):
                if key not in self._known:
                    self._interrupted.setdefault(key, (order, what))  # another image may still bring it
                return False
            self._interrupted.pop(key, None)
            if key in self._known:
                succeeded = self._known[key] is not None
                if succeeded and (success_is_final or outcome is Outcome.EXISTS):
                    return False
                if not succeeded and outcome is None:
                    return False
            self._known[key] = outcome
            return True

    def close(self) -> None:
        """Nothing will be brought any more: record what was called off."""
        with self._lock:
            left, self._interrupted = self._interrupted, {}
        for order, error in left.values():
            self._told(order, error)
