"""Runs transfers on threads, each key once for all who ask for it, when the scheduler says so.

One lock; what is decided under it is done outside of it. Callers wait for a `Watch`, or write tasks (`steps`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any, TypeVar

from mirror.errors import MirrorError
from mirror.limits import Limits
from mirror.transfer.engine import Engine
from mirror.transfer.jobs import Job, Transfer
from mirror.transfer.scheduler import DOWNLOADS, LARGE, LOCAL, UPLOADS
from mirror.transfer.steps import Steps, Task, afterwards
from mirror.transfer.watch import Flight, Hub, Watch
from mirror.util.cancellation import Stop, Work
from mirror.util.retry_policy import Policy

T = TypeVar("T")

PATIENCE = 60.0  # seconds that close() waits for its threads
USUAL = Policy()
LOCAL_JOBS = 4  # at a time, of those that need no host
LARGE_MANIFESTS = 2  # in memory at once, beside those that are kept


class Manager(AbstractContextManager["Manager"]):
    """All methods may be called from any thread, and from inside of tasks and callbacks; none blocks but close()."""

    def __init__(
        self,
        *,
        limits: Limits,
        stop: Stop,
        downloads: int = 6,
        uploads: int = 8,
        policy: Policy = USUAL,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """stop: nothing starts after it, queued work ends, what runs is stopped.

        The clock is that of the limits; poke() tells that one other than the machine's has moved. draw: see Policy."""
        self._hub = Hub()
        self._lock = self._hub.lock
        self._policy = policy
        self._keys: dict[Hashable, Flight[Any]] = {}
        self._tasks: dict[Task[Any], None] = {}
        self._stop = Stop(stop)
        fixed = {DOWNLOADS: downloads, UPLOADS: uploads, LARGE: LARGE_MANIFESTS, LOCAL: LOCAL_JOBS}
        self._engine = Engine(self._hub, limits, self._stop, fixed=fixed, draw=draw)
        self._exit = ExitStack()
        self._exit.callback(self._stop.close)
        self._exit.enter_context(self._stop.calls(self._on_stop))

    def transfer(
        self,
        key: Hashable,
        run: Callable[[Work], T],
        *,
        needs: Sequence[str],
        policy: Policy | None = None,
        after: Sequence[Watch[Any]] = (),
        total: int | None = None,
    ) -> Watch[T]:
        """Have `run` called once for all who ask for `key` while it is in flight; `object()` is a key of its own.

        It runs on a worker with all of `needs`, the lane first (see scheduler), when all of `after` have ended, however
        they did. If it raises a retryable error, it is called again by `policy`; meanwhile it has no permit and no
        thread. What is cancelled and has not ended is not joined, but waited for. total: bytes, for progress.
        Raises Impossible: `needs` can never be had."""
        engine = self._engine
        with self._lock:
            earlier = self._keys.get(key)
            if earlier is not None:
                if not earlier.abandoned:
                    return Watch(earlier)
                after = [*after, Watch(earlier)]
            fresh = Transfer(
                self._hub,
                engine,
                engine.number(),
                key=key,
                run=run,
                policy=policy or self._policy,
                total=total,
                forget=self._forget,
            )
            watch = Watch(fresh)
            jobs, others = self._before(after) if after else ([], [])
            starts = engine.submit(fresh, needs or (LOCAL,), after=jobs)
            if not fresh.ended:
                self._keys[key] = fresh
            wakeup = engine.wakeup()
        engine.launch(starts, wakeup)
        for other, job in others:
            other.on_done(partial(self._other_ended, job))
        return watch

    def detached(self, run: Callable[[Work], object], *, needs: Sequence[str], policy: Policy | None = None) -> None:
        """A transfer that nobody waits for, and that only a stop calls off. A MirrorError that it raises is lost."""
        watch = self.transfer(object(), run, needs=needs, policy=policy)
        watch.on_done(lambda watch: self._hub.run([partial(_complain, watch)]))

    def timer(self, seconds: float) -> Watch[None]:
        """Ends in `seconds`."""
        engine = self._engine
        job: Job[None] = Job(self._hub, engine, engine.number())
        watch = Watch(job)
        at = engine.clock.now() + seconds
        engine.decide(lambda: engine.submit(job, (), not_before=at))
        return watch

    def now(self) -> float:
        """The time of its clock, in seconds."""
        return self._engine.clock.now()

    def spawn(self, steps: Steps[T], *, name: str, key: Hashable = None) -> Watch[T]:
        """Run a task. Its first steps run on this thread; before this returns, if it is not called from a task.

        key: if it is given and a task or transfer of that key is in flight, that is joined, and `steps` are not run."""
        with self._lock:
            if key is not None and (earlier := self._keys.get(key)) is not None:
                if not earlier.abandoned:
                    return Watch(earlier)
                steps = afterwards(Watch(earlier), steps)
            task = Task(self._hub, steps, self._task_ended, name=name, key=key)
            watch = Watch(task)
            if self._stop.requested:
                task.pending = self._engine.called_off()
            self._tasks[task] = None
            if key is not None:
                self._keys[key] = task
        self._hub.run([task.begin])
        return watch

    def join(self, key: Hashable) -> Watch[Any] | None:
        """An interest in the task or transfer of that key, if one is in flight and not cancelled."""
        with self._lock:
            flight = self._keys.get(key)
            return None if flight is None or flight.abandoned else Watch(flight)

    def poke(self) -> None:
        """Look at the clock."""
        self._engine.poke()

    def close(self, patience: float = PATIENCE) -> None:
        """Stop all that is left and join the threads. Not from a task or callback. May be called again.

        Raises LocalError (threads hang), and what was raised where nobody could be told of it (bugs in callbacks)."""
        self._stop.request("closed")
        self._engine.close(patience)
        self._exit.close()
        for task in list(self._tasks):  # they wait for what is not of this manager
            task.abandon()
        bugs, self._hub.bugs = self._hub.bugs, []
        if bugs:
            for other in bugs[1:]:
                bugs[0].add_note(f"and elsewhere: {other!r}")
            raise bugs[0]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            self.close()
        except BaseException as trouble:
            if error is None:
                raise
            error.add_note(f"closing the manager failed as well: {trouble!r}")

    def _on_stop(self) -> None:
        """Tasks are told, queued jobs end. What runs has its own stop."""
        with self._lock:
            error, tasks = self._engine.called_off(), list(self._tasks)
        for task in tasks:
            task.interrupt(error)
        self._engine.drop_all(error)

    def _other_ended(self, stand_in: int, _: Watch[Any]) -> None:
        self._engine.decide(lambda: self._engine.stand_in_ended(stand_in))

    # Under the lock:

    def _forget(self, flight: Flight[Any]) -> None:
        if self._keys.get(flight.key) is flight:
            del self._keys[flight.key]

    def _task_ended(self, task: Task[Any]) -> None:
        self._tasks.pop(task)
        self._forget(task)

    def _before(self, after: Iterable[Watch[Any]]) -> tuple[list[int], list[tuple[Watch[Any], int]]]:
        """-> the jobs that end with `after`; and those of them that stand in for what is no job, a task."""
        jobs: list[int] = []
        others: list[tuple[Watch[Any], int]] = []
        for watch in after:
            if watch.job is not None:
                jobs.append(watch.job)
            elif not watch.done:
                others.append((watch, self._engine.stand_in()))
        return jobs + [number for _, number in others], others


def _complain(watch: Watch[object]) -> None:
    if watch.error is not None and not isinstance(watch.error, MirrorError):
        raise watch.error
