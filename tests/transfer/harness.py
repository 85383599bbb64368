"""What the tests of the transfer manager share: a clock that is moved by hand, and work that ends when it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from mirror.transfer.manager import Manager
from mirror.util.cancellation import Work

DEADLINE = 20.0  # seconds in which whatever has to happen does


class FakeClock:
    """Moves only by `advance`."""

    def __init__(self, now: float = 1000.0) -> None:
        self.time = now

    def now(self) -> float:
        return self.time

    def advance(self, seconds: float, *managers: Manager) -> None:
        self.time += seconds
        for manager in managers:
            manager.poke()


class Gate:
    """Work that goes on until it is let go, or stopped. moves: bytes that it reports at its start."""

    def __init__(self, moves: int = 0) -> None:
        self.moves = moves
        self.entered = threading.Event()
        self.calls = 0
        self.most = 0  # in it at the same time
        self.inside = 0
        self._lock = threading.Lock()
        self._open = threading.Event()

    def __call__(self, work: Work) -> str:
        with self._lock:
            self.calls += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
        if self.moves:
            work.progress(self.moves)
        self.entered.set()
        left = threading.Event()
        try:
            with work.stop.calls(left.set):
                until(lambda: self._open.is_set() or left.is_set())
            work.stop.check()
            return "done"
        finally:
            with self._lock:
                self.inside -= 1

    def open(self) -> None:
        self._open.set()

    def wait_entered(self) -> None:
        assert self.entered.wait(DEADLINE)


def until(condition: Callable[[], object]) -> None:
    """Wait until `condition` holds; fails after the deadline."""
    end = time.monotonic() + DEADLINE
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        pause.wait(0.0005)
