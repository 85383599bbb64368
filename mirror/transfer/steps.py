"""Tasks that wait without a thread: generators that yield what they wait for.

    def copy(manager: Manager, ...) -> Steps[Outcome]:
        fetched = manager.transfer(...)
        yield fetched.first_progress()
        sent, _ = yield [manager.transfer(...), fetched]   # both; fails as soon as one does
        return Outcome(...)

What a task yields: a watch (its result is sent in, or its error thrown), a sequence of watches (the list of their
results, or the error of the first that fails), or `settled(watches)` (their list, when all have ended). The code
between two yields runs on the thread that ended what was waited for; it must not block. Watches that were yielded
and not released are released when the task ends. `yield from` composes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

from mirror.transfer.watch import Flight, Hub, Watch, abandoned, fresh, kept
from mirror.util.structs import Struct

R = TypeVar("R")


class Settled(Struct, frozen=True):
    """To wait for all of `watches`, however they end."""

    watches: tuple[Watch[Any], ...]


def settled(watches: Iterable[Watch[Any]]) -> Settled:
    """Yield it to get the list of `watches` when all have ended; errors are not raised."""
    return Settled(tuple(watches))


Awaited: TypeAlias = Watch[Any] | Sequence[Watch[Any]] | Settled
Steps: TypeAlias = Generator[Awaited, Any, R]


def afterwards(before: Watch[Any], steps: Steps[R]) -> Steps[R]:
    """The same task, begun when `before` has ended, however it did."""
    yield settled([before])
    return (yield from steps)


class Task(Flight[R]):
    """Drives a generator. At any time one thread does, or none while it waits. All inside of the hub's `run`."""

    def __init__(
        self, hub: Hub, steps: Steps[R], forget: Callable[[Task[Any]], None], *, name: str, key: Hashable = None
    ) -> None:
        """forget: called at the end, under the lock."""
        super().__init__(hub)
        self.name = name
        self.key = key
        self._steps = steps
        self._forget = forget
        self._tracked: dict[Watch[Any], None] = {}
        self.waits_for: _Wait | None = None
        self.pending: BaseException | None = None  # to be thrown in as soon as it waits

    def begin(self) -> None:
        """Run it up to its first wait. Once."""
        self._drive(self._take_interrupt())

    def abandon(self) -> None:
        """Close the generator where it waits."""
        self.interrupt(GeneratorExit())

    def interrupt(self, error: BaseException) -> None:
        """Throw `error` in where it waits; if it runs just now: where it waits next. Any thread."""
        with self.hub.lock:
            if self.ended or isinstance(self.pending, GeneratorExit):
                return
            if self.waits_for is None or self.waits_for.over:
                self.pending = error
                return
            self.waits_for.over = True
        self.hub.run([partial(self._drive, error)])

    def resume(self, wait: _Wait) -> None:
        """What it waited for has come."""
        self._drive(*self._outcome(wait))

    def _drive(self, error: BaseException | None = None, value: object = None) -> None:
        """Send in `value`, or throw `error`, and go on until it has to wait, or ends."""
        while True:
            awaited, failure = kept(partial(self._step, error, value))
            if isinstance(failure, StopIteration):
                self._finish(failure.value, None)
                return
            if failure is not None:
                self._finish(None, failure)
                return
            wait = _Wait(self, awaited)
            for watch in wait.watches:
                self._tracked[watch] = None
                if watch.origin is not None:
                    self._tracked[watch.origin] = None
            if not wait.begin():
                return
            error, value = self._outcome(wait)

    def _step(self, error: BaseException | None, value: object) -> Awaited:
        if error is None:
            return self._steps.send(value)
        if isinstance(error, GeneratorExit):
            self._steps.close()
            raise abandoned()
        return self._steps.throw(fresh(error))

    def _outcome(self, wait: _Wait) -> tuple[BaseException | None, object]:
        for watch in wait.watches:
            if watch.done:
                watch.release()
                self._tracked.pop(watch, None)
        interrupt = self._take_interrupt()
        return (interrupt, None) if interrupt is not None else wait.outcome()

    def _take_interrupt(self) -> BaseException | None:
        with self.hub.lock:
            error, self.pending = self.pending, None
        return error

    def _finish(self, value: R | None, error: BaseException | None) -> None:
        for watch in self._tracked:
            watch.release()
        self._tracked.clear()
        with self.hub.lock:
            self._forget(self)
            calls = self.end(value, error)
        self.hub.run(calls)


class _Wait:
    """What a task waits for, once."""

    __slots__ = ("_failed", "_left", "_shape", "_task", "over", "watches")

    def __init__(self, task: Task[Any], awaited: object) -> None:
        self._task = task
        self._shape: type[Watch[Any]] | type[Settled] | type[Sequence[Any]] | type[None]
        self.watches: tuple[Watch[Any], ...]
        if isinstance(awaited, Watch):
            self._shape, self.watches = Watch, (awaited,)
        elif isinstance(awaited, Settled):
            self._shape, self.watches = Settled, awaited.watches
        elif isinstance(awaited, Sequence) and all(isinstance(watch, Watch) for watch in awaited):
            self._shape, self.watches = Sequence, tuple(awaited)
        else:
            self._shape, self.watches = type(None), ()
        self._left = 0
        self._failed: Watch[Any] | None = None
        self.over = False  # whoever sets it drives the task on. Under the lock

    def begin(self) -> bool:
        """Start to wait. True: there is nothing to wait for; False: the task is resumed, perhaps already."""
        waiting = [watch for watch in self.watches if not watch.done]
        if len(waiting) < len(self.watches) and self._shape is not Settled:
            failed = [watch for watch in self.watches if watch.error is not None and watch.done]
            self._failed = min(failed, key=lambda watch: watch.ended, default=None)
        with self._task.hub.lock:
            if not waiting or self._failed or self._task.pending is not None:
                self.over = True
                return True
            self._left = len(waiting)
            self._task.waits_for = self
        for watch in waiting:
            watch.on_done(self._one)
        return False

    def outcome(self) -> tuple[BaseException | None, object]:
        """What to throw, or else to send in."""
        if self._failed:
            return self._failed.error, None
        if self._shape is type(None):
            return TypeError("a task yields a watch, a sequence of watches, or settled(watches)"), None
        if self._shape is Settled:
            return None, list(self.watches)
        results = [watch.result() for watch in self.watches]
        return None, results[0] if self._shape is Watch else results

    def _one(self, watch: Watch[Any]) -> None:
        with self._task.hub.lock:
            if self.over:
                return
            self._left -= 1
            if self._shape is not Settled and watch.error is not None:
                self._failed = watch
            elif self._left:
                return
            self.over = True
        self._task.hub.run([partial(self._task.resume, self)])
