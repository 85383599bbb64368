"""Helpers for tests of coroutines: an event loop with a fake clock, and calls that a test releases."""

from __future__ import annotations

import asyncio
import functools
import selectors
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from mirror.limits import Limits
from mirror.transfer.calls import Calls
from mirror.transfer.permits import Permits
from mirror.transfer.tasks import Coro
from mirror.util.cancellation import Stop, Work

DEADLINE = 20.0  # seconds after which a wait fails

T = TypeVar("T")


class FakeClock:
    """A clock that only `advance` moves."""

    def __init__(self, now: float = 1000.0) -> None:
        self.time = now

    def now(self) -> float:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += seconds


class FakeLoop(asyncio.SelectorEventLoop):
    """An event loop that uses a fake clock."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(selectors.PollSelector())
        self._clock = clock

    def time(self) -> float:
        return self._clock.now()


class CallEnvironment:
    """Calls on an event loop with a fake clock. Retries take the longest backoff."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.loop = FakeLoop(self.clock)
        self.stop = Stop()
        self.limits = Limits(self.clock)
        self.calls = Calls(self.loop, self.limits, self.stop, downloads=3, draw=lambda: 1.0)

    def run(self, coroutine: Coro[T]) -> T:
        """Run a coroutine on the loop and return its result."""
        return self.loop.run_until_complete(coroutine)

    def start(self, coroutine: Coro[T]) -> asyncio.Task[T]:
        """Start a coroutine as a task."""
        return self.calls.tasks.start(coroutine)

    @contextmanager
    def opened(self) -> Iterator[CallEnvironment]:
        """Close the calls after the block."""
        yield self
        self.calls.close()


def run_on_loop(test: Callable[..., Coro[None]]) -> Callable[..., None]:
    """Run a test that is a coroutine on the loop of its `env`."""

    @functools.wraps(test)
    def run(env: CallEnvironment, **fixtures: object) -> None:
        env.run(test(env, **fixtures))

    return run


class BlockedCall:
    """A call that runs until it is released or stopped.

    moves: bytes that it reports at its start. calls: number of calls; inside: of those that run; most: the largest
    number that ran at a time."""

    def __init__(self, moves: int = 0) -> None:
        self.moves = moves
        self.entered = threading.Event()
        self.calls = 0
        self.most = 0
        self.inside = 0
        self._lock = threading.Lock()
        self._released = threading.Event()

    def __call__(self, work: Work) -> str:
        with self._lock:
            self.calls += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
        if self.moves:
            work.progress(self.moves)
        self.entered.set()
        stopped = threading.Event()
        try:
            with work.stop.callback_on_stop(stopped.set):
                wait_until(lambda: self._released.is_set() or stopped.is_set())
            work.stop.raise_if_requested()
            return "done"
        finally:
            with self._lock:
                self.inside -= 1

    def release(self) -> None:
        """Let all calls return."""
        self._released.set()


class FailingCall:
    """A call that always raises the same error."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, work: Work) -> None:
        raise self.error


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until a condition is true, or fail after DEADLINE seconds. Not on an event loop."""
    end = time.monotonic() + DEADLINE
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, "the condition is still false"
        pause.wait(0.0005)


async def eventually(condition: Callable[[], object]) -> None:
    """Let the event loop run until a condition is true, or fail after DEADLINE seconds."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "the condition is still false"
        await asyncio.sleep(0)
        time.sleep(0.0002)


async def settle() -> None:
    """Let the event loop run all tasks that are ready."""
    for _ in range(8):
        await asyncio.sleep(0)


class NumberedCalls:
    """Calls that acquire permits and hold them until `finish`.

    Each method for an event returns the numbers of the calls that it started, in order."""

    def __init__(self, capacity: Callable[[str], int]) -> None:
        self.clock = FakeClock(0.0)
        self.loop = FakeLoop(self.clock)
        self.permits = Permits(self.loop, capacity, lambda name: 0.0)
        self._waiting: dict[int, asyncio.Task[None]] = {}
        self._running: dict[int, Sequence[str]] = {}
        self._started: list[int] = []

    def submit(self, number: int, needs: Sequence[str]) -> list[int]:
        self._waiting[number] = task = self.loop.create_task(self._call(number, needs))
        started = self._settle()
        if task.done() and (error := task.exception()) is not None:
            del self._waiting[number]
            raise error
        return started

    def finish(self, number: int) -> list[int]:
        self.permits.release(self._running.pop(number))
        return self._settle()

    def cancel(self, number: int) -> list[int]:
        self._waiting.pop(number).cancel()
        return self._settle()

    def finish_and_cancel(self, ended: int, cancelled: int) -> list[int]:
        """End one call and cancel another one before any task runs."""
        self.permits.release(self._running.pop(ended))
        self._waiting.pop(cancelled).cancel()
        return self._settle()

    def hold(self, permit: str, until: float) -> list[int]:
        self.permits.hold(permit, until)
        return self._settle()

    def tick(self, now: float) -> list[int]:
        self.clock.time = now
        return self._settle()

    def is_waiting(self, number: int) -> bool:
        return number in self._waiting

    def close(self) -> None:
        for task in self._waiting.values():
            task.cancel()
        self._settle()
        self.loop.close()

    async def _call(self, number: int, needs: Sequence[str]) -> None:
        await self.permits.acquire(needs)
        self._waiting.pop(number)
        self._running[number] = needs
        self._started.append(number)

    def _settle(self) -> list[int]:
        self.loop.run_until_complete(settle())
        started, self._started = self._started, []
        return started

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)
