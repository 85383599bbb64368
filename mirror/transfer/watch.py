"""One caller's interest in a piece of work that others may share, and how far that work is."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeAlias, TypeVar

from mirror.errors import Cancelled, MirrorError
from mirror.util.structs import Struct

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Call: TypeAlias = Callable[[], object]

ABANDONED = "nobody waits for it any more"


class Progress(Struct, frozen=True):
    """moved: bytes so far, of all attempts together. total: bytes to move, where it is known."""

    moved: int = 0
    total: int | None = None


class Hub:
    """What the flights of one manager share: the lock under which is decided, and how callbacks are called.

    bugs: what callbacks raised on threads that nobody waits for; the manager raises it when it is closed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.bugs: list[BaseException] = []
        self._ended = 0
        self._thread = threading.local()

    def run(self, calls: Iterable[Call]) -> None:
        """Call all of `calls` on this thread: now, or, inside such a call, after it. So chains of any length fit."""
        waiting: deque[Call] | None = getattr(self._thread, "waiting", None)
        if waiting is not None:
            waiting.extend(calls)
            return
        self._thread.waiting = waiting = deque(calls)
        try:
            while waiting:
                _, bug = kept(waiting.popleft())  # one caller's bug must not reach the work of others
                if bug is not None:
                    self.bugs.append(bug)
        finally:
            self._thread.waiting = None

    def order(self) -> int:
        """Numbers the ends of flights. Under the lock."""
        self._ended += 1
        return self._ended


class Flight(Generic[T]):
    """Work that ends once, with a value or an error. Its attributes are written under the lock of its hub."""

    key: Hashable = None  # by which others may join it
    job: int | None = None  # its number in the scheduler

    def __init__(self, hub: Hub, total: int | None = None) -> None:
        self.hub = hub
        self.total = total
        self.moved = 0
        self.begun = False  # something has moved
        self.ended = 0  # when, as a place among all ends; 0: not yet
        self.abandoned = False  # the last watcher left before the end
        self.watchers = 0
        self.attempts = 0
        self.value: T | None = None
        self.error: BaseException | None = None
        self.news: threading.Condition | None = None  # made for the first who waits
        self.calls: list[Call] = []
        self.first_calls: list[Call] = []

    def end(self, value: T | None = None, error: BaseException | None = None) -> list[Call]:
        """It has ended; -> what is to be called outside of the lock. Under the lock."""
        self.value, self.error = value, error
        self.ended = self.hub.order()
        if error is not None and self.abandoned and not isinstance(error, MirrorError):
            self.hub.bugs.append(error)  # nobody else would see it
        calls = self.first_calls + self.calls if self.first_calls else self.calls
        self.calls, self.first_calls = [], []
        if self.news:
            self.news.notify_all()
        return calls

    def advance(self, count: int) -> None:
        """`count` bytes more have moved. Any thread, without the lock."""
        calls: list[Call] = []
        with self.hub.lock:
            self.moved += count
            if not self.begun:
                self.begun = True
                calls, self.first_calls = self.first_calls, []
            if self.news:
                self.news.notify_all()
        if calls:
            self.hub.run(calls)

    def condition(self) -> threading.Condition:
        """Notified at all that happens. Under the lock."""
        if self.news is None:
            self.news = threading.Condition(self.hub.lock)
        return self.news

    def abandon(self) -> None:
        """The last watcher has left before the end; `abandoned` is set. Called without the lock."""


class Watch(AbstractContextManager["Watch[T_co]"], Generic[T_co]):
    """One caller's interest in a flight: while anybody has one, the work goes on. Any thread may use it.

    Leaving its `with` releases it."""

    __slots__ = ("_flight", "_released")

    def __init__(self, flight: Flight[T_co]) -> None:
        """Under the lock of the flight's hub, or before others know the flight."""
        self._flight = flight
        self._released = False
        flight.watchers += 1

    @property
    def done(self) -> bool:
        """The work has ended: not merely been cancelled, but stopped."""
        return self._flight.ended > 0

    @property
    def error(self) -> BaseException | None:
        """Why it failed; None before the end, and after success."""
        return self._flight.error

    @property
    def attempts(self) -> int:
        return self._flight.attempts

    @property
    def progress(self) -> Progress:
        """The latest. Never blocks for long."""
        with self._flight.hub.lock:
            return Progress(self._flight.moved, self._flight.total)

    @property
    def ended(self) -> int:
        """What ended earlier has the smaller number; 0 before the end."""
        return self._flight.ended

    @property
    def job(self) -> int | None:
        """Its number in the scheduler, if its end is a job's end."""
        return self._flight.job

    @property
    def origin(self) -> Watch[Any] | None:
        """The watch of the whole, if it is one of a part."""
        return None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end, at most `timeout` seconds. -> whether it has ended."""
        if self.done:
            return True
        with self._flight.hub.lock:
            return self._flight.condition().wait_for(lambda: self.done, timeout)

    def result(self) -> T_co:
        """The value. Raises what the work raised; only after the end."""
        self._fail()
        return self._flight.value  # type: ignore[return-value]  # ended without an error: it is a T_co

    def release(self) -> None:
        """Lose interest. If nobody else has any, the work is cancelled. May be called again."""
        flight = self._flight
        if flight.ended:
            self._released = True
            return
        with flight.hub.lock:
            if self._released:
                return
            self._released = True
            flight.watchers -= 1
            last = not flight.watchers and not flight.ended
            if last:
                flight.abandoned = True
            if flight.news:
                flight.news.notify_all()
        if last:
            flight.abandon()

    def on_done(self, callback: Callable[[Watch[T_co]], object]) -> None:
        """Call `callback(self)` once at the end, released or not: on the thread that ended it, or, if it has, at once.

        It must not block. What it raises later, on a thread of the manager, is raised by the manager's close()."""
        if not self.done:
            with self._flight.hub.lock:
                if not self.done:
                    self._calls().append(lambda: callback(self))
                    return
        callback(self)

    def changes(self, timeout: float) -> Iterator[Progress]:
        """How far it is: the last value at once, then newer ones. A slow reader misses some, but not the final one.

        Ends after the final value, when the watch is released, or after `timeout` seconds without news."""
        flight = self._flight
        seen: int | None = None
        while True:
            with flight.hub.lock:
                deadline = time.monotonic() + timeout
                while flight.moved == seen:
                    left = deadline - time.monotonic()
                    if flight.ended or self._released or left <= 0:
                        return
                    flight.condition().wait(left)
                seen = flight.moved
                progress = Progress(seen, flight.total)
            yield progress

    def first_progress(self) -> Watch[None]:
        """An interest of its own that ends when the first bytes have moved, or with the work if that ends before."""
        with self._flight.hub.lock:
            return _FirstProgress(self._flight, self)

    def _calls(self) -> list[Call]:
        return self._flight.calls

    def _fail(self) -> None:
        if not self.done:
            raise RuntimeError("the work has not ended yet")
        if (error := self.error) is not None:
            raise fresh(error)

    def __exit__(self, *_: object) -> None:
        self.release()


class _FirstProgress(Watch[None]):
    __slots__ = ("_origin",)

    def __init__(self, flight: Flight[Any], origin: Watch[Any]) -> None:
        super().__init__(flight)
        self._origin = origin

    @property
    def origin(self) -> Watch[Any]:
        return self._origin

    @property
    def done(self) -> bool:
        return self._flight.begun or self._flight.ended > 0

    @property
    def error(self) -> BaseException | None:
        return None if self._flight.begun else self._flight.error

    @property
    def job(self) -> int | None:
        return None

    def result(self) -> None:
        self._fail()

    def _calls(self) -> list[Call]:
        return self._flight.first_calls


def kept(call: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """What `call` returned, or what it raised, whatever that is: it is for those who wait, on other threads."""
    try:
        return call(), None
    except BaseException as error:  # noqa: BLE001 see above
        return None, error


def fresh(error: BaseException) -> BaseException:
    """`error` as it can be raised to many. Else each raise would add frames to it, and keep alive what they hold."""
    return error.with_traceback(None) if isinstance(error, MirrorError) else error


def abandoned() -> Cancelled:
    return Cancelled(ABANDONED)
