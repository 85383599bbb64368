"""A value that is made when it is first asked for, once for all who ask."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from mirror.errors import Cancelled, MirrorError
from mirror.limits import Work

T = TypeVar("T")

_LOOK_EVERY = 0.5  # seconds between two looks at a stop while another thread makes it


class Once(Generic[T]):
    """Thread-safe; no lock is held while it is made. A failure is kept as well, but for a stop."""

    def __init__(self, make: Callable[[Work], T]) -> None:
        self._make = make
        self._changed = threading.Condition()
        self._making = False
        self._made: list[T] = []
        self._error: MirrorError | None = None

    def get(self, work: Work) -> T:
        """Raises what making it raises, and Cancelled."""
        while not self._claim():
            work.stop.check()
        if self._error is not None:
            raise self._error
        if self._made:
            return self._made[0]
        try:
            made = self._make(work)
        except Cancelled:
            raise
        except MirrorError as error:
            self._error = error
            raise
        else:
            self._made.append(made)
            return made
        finally:
            with self._changed:
                self._making = False
                self._changed.notify_all()

    def _claim(self) -> bool:
        """Whether it is made, or the caller is to make it."""
        with self._changed:
            if self._making:
                self._changed.wait(_LOOK_EVERY)
                return False
            self._making = not self._made and self._error is None
            return True

    def peek(self) -> T | None:
        """What is there already."""
        return self._made[0] if self._made else None
