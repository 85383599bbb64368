"""Threads that are started when there is work; one of them can wake at a time. Named, bounded, joined."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from mirror.errors import LocalError
from mirror.util.retry_policy import Clock

Act: TypeAlias = Callable[[], "Act | None"]

MOST = 256  # threads
IDLE = 30.0  # seconds after which an idle thread ends


class Workers:
    """Runs what is put, each on a thread of its own while there are fewer than `most`, else later. Thread-safe.

    What is put must not raise. What it returns, the same thread calls next."""

    def __init__(self, most: int = MOST, idle: float = IDLE) -> None:
        self._most = most
        self._patience = idle
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._queue: deque[Act] = deque()
        self._threads: list[threading.Thread] = []  # those that have ended may still be among them
        self._alive = 0
        self._idle = 0
        self._started = 0
        self._closing = False

    def put(self, act: Act) -> None:
        with self._lock:
            self._queue.append(act)
            if self._idle >= len(self._queue):
                self._news.notify()
                return
            if self._alive >= self._most:
                return
            self._alive += 1
            self._started += 1
            thread = threading.Thread(target=self._work, name=f"mirror-{self._started}")
        thread.start()
        with self._lock:  # only a started thread can be joined
            self._threads = [thread, *(other for other in self._threads if other.is_alive())]

    def close(self, patience: float) -> None:
        """Join all threads once they have done what was put. Raises LocalError: not done in `patience` seconds."""
        deadline = time.monotonic() + patience
        with self._lock:
            self._closing = True
            self._news.notify_all()
        while True:
            with self._lock:
                alive = self._alive
                thread = self._threads.pop() if self._threads else None
            if thread is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
                if thread.is_alive():
                    raise LocalError(f"{alive} threads did not end within {patience:g} s", hint="the process hangs")
            elif not alive:
                return
            else:  # one is just being started
                with self._lock:
                    self._news.wait(0.01)

    def __len__(self) -> int:
        """Threads there are."""
        return self._alive

    def _work(self) -> None:
        act: Act | None
        while True:
            with self._lock:
                while not self._queue:
                    self._idle += 1
                    notified = not self._closing and self._news.wait(self._patience)
                    self._idle -= 1
                    if not notified and not self._queue:
                        self._alive -= 1
                        return
                act = self._queue.popleft()
            while act is not None:
                act = act()


class Alarm:
    """Calls `ring`, on a worker, when the clock has come to the time it was set to. Thread-safe."""

    def __init__(self, ring: Callable[[], None], clock: Clock, workers: Workers, idle: float = IDLE) -> None:
        self._ring = ring
        self._clock = clock
        self._workers = workers
        self._patience = idle
        self._news = threading.Condition()
        self._at: float | None = None
        self._kept = False  # a worker waits
        self._closing = False

    def set(self, at: float) -> None:
        """Ring at `at`, or earlier if it was set to an earlier time."""
        with self._news:
            if self._closing or (self._at is not None and self._at <= at):
                return
            self._at = at
            if self._kept:
                self._news.notify()
                return
            self._kept = True
        self._workers.put(self._keep)

    def close(self) -> None:
        """Never ring again; give back the worker."""
        with self._news:
            self._closing = True
            self._news.notify()

    def _keep(self) -> None:
        while self._due():
            self._ring()

    def _due(self) -> bool:
        """Wait for the time. False: there was none to wait for, for a while."""
        with self._news:
            while not self._closing:
                if self._at is None:
                    if not self._news.wait(self._patience) and self._at is None:
                        break
                elif (left := self._at - self._clock.now()) > 0:
                    self._news.wait(min(left, self._patience))
                else:
                    self._at = None
                    return True
            self._kept = False
            return False
