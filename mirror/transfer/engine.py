"""The jobs of a manager: when the scheduler says so they are put on threads, and it is told how they end.

One lock, the hub's; what is decided under it is done outside of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count
from typing import Any, TypeVar

from mirror.errors import Cancelled, MirrorError
from mirror.limits import Limits
from mirror.transfer.jobs import Job, Transfer
from mirror.transfer.scheduler import HOST, Impossible, Scheduler
from mirror.transfer.watch import ABANDONED, Call, Hub, abandoned, kept
from mirror.transfer.workers import Act, Alarm, Workers
from mirror.util.cancellation import Stop, Work

T = TypeVar("T")


class Engine:
    """Any thread may call its methods, but for those at the end, under the lock."""

    def __init__(
        self, hub: Hub, limits: Limits, stop: Stop, *, fixed: dict[str, int], draw: Callable[[], float]
    ) -> None:
        """fixed: the capacities of the permits that are not hosts'."""
        self.hub = hub
        self.clock = limits.clock
        self._lock = hub.lock
        self._limits = limits
        self._stop = stop
        self._fixed = fixed
        self._draw = draw
        self._scheduler = Scheduler(self._capacity, self.clock.now())
        self._workers = Workers()
        self._alarm = Alarm(self.poke, self.clock, self._workers)
        self._jobs: dict[int, Job[Any]] = {}
        self._known: set[str] = set()  # permits; to the hosts among them we listen
        self._numbers = count(1)

    def number(self) -> int:
        """Of a new job. Any thread."""
        return next(self._numbers)

    def decide(self, event: Callable[[], list[int]]) -> None:
        """Tell the scheduler of an event, under the lock, and start what it says."""
        with self._lock:
            starts, wakeup = event(), self.wakeup()
        self.launch(starts, wakeup)

    def launch(self, starts: Iterable[int], wakeup: float | None = None, *, keep: bool = False) -> Act | None:
        """Start them. keep: but for one transfer, which is returned for this worker to go on with."""
        following: Act | None = None
        for number in starts:
            job = self._jobs.get(number)  # none: it stands for a task
            if keep and following is None and isinstance(job, Transfer):
                following = partial(self._attempt, job)
            elif job is not None:
                job.launch()
        if wakeup is not None:
            self._alarm.set(wakeup)
        return following

    def poke(self) -> None:
        """Look at the clock."""
        self.decide(lambda: self._scheduler.tick(self.clock.now()))

    def drop_all(self, error: Cancelled) -> None:
        """Whatever is queued ends with `error`."""
        starts: list[int] = []
        calls: list[Call] = []
        with self._lock:
            for job in reversed(list(self._jobs.values())):  # what comes after others goes before them
                starts += self._drop(job, error, calls)
        self.launch(starts)
        self.hub.run(calls)

    def close(self, patience: float) -> None:
        """Join the threads. Raises LocalError: they did not end in `patience` seconds."""
        self._alarm.close()
        self._workers.close(patience)

    # What jobs call (see jobs.Owner):

    def dispatch(self, transfer: Transfer[Any]) -> None:
        self._workers.put(partial(self._attempt, transfer))

    def settle(self, job: Job[Any]) -> None:
        starts, calls = self._ended(job, None, None)
        self.launch(starts)
        self.hub.run(calls)

    def abandon(self, job: Job[Any]) -> None:
        calls: list[Call] = []
        with self._lock:
            stop = job.stop if isinstance(job, Transfer) else None
            starts = self._drop(job, abandoned(), calls)
        self.launch(starts)
        self.hub.run(calls)
        if stop is not None:
            stop.request(ABANDONED)

    # One attempt, on a worker:

    def _attempt(self, transfer: Transfer[T]) -> Act | None:
        """Run it once. -> what this worker is to do next."""
        stop = Stop(self._stop)
        moved, begun = transfer.moved, self.clock.now() - self._limits.queued()
        value, error = kept(partial(self._run, transfer, stop))
        stop.close()
        # An attempt that moved bytes is not waiting, however long it took: after it the time budget begins anew.
        idle = max(0.0, self.clock.now() - self._limits.queued() - begun)
        transfer.waited = transfer.waited + idle if transfer.moved == moved else 0.0
        if isinstance(error, MirrorError) and error.retryable:
            if self._again(transfer, error, stop):
                return None
            if stop.requested or self._halted(transfer):  # this is how it felt the stop
                error = _called_off(stop.reason or self._stop.reason, error)
        starts, calls = self._ended(transfer, value, error)
        following = self.launch(starts, keep=True)
        self.hub.run(calls)
        return following

    def _run(self, transfer: Transfer[T], stop: Stop) -> T:
        with self._lock:
            if transfer.abandoned:
                raise abandoned()
            stop.check()
            transfer.stop = stop
            transfer.attempts += 1
        return transfer.run(Work(stop, transfer.advance, transfer.policy.attempts == 1))

    def _again(self, transfer: Transfer[Any], error: MirrorError, stop: Stop) -> bool:
        """Whether it will be tried again."""
        policy, now = transfer.policy, self.clock.now()
        wait = policy.wait_before_next(transfer.attempts, error, transfer.waited, self._draw)
        if error.host and self._limits.host(error.host).down:
            return False  # the work of a host that is down fails at once
        if wait is None:
            if error.retry_after is not None and error.retry_after > policy.longest_asked:
                self._limits.note_refused_wait(error.retry_after)
            return False
        with self._lock:
            if stop.requested or self._halted(transfer):
                return False
            transfer.stop = None
            transfer.waited += wait if error.retry_after is None else 0.0
            starts = self._scheduler.tick(now) + self._scheduler.again(transfer.job, now + wait)
            wakeup = self.wakeup()
        self._limits.note_retry(wait)
        self.launch(starts, wakeup)
        return True

    def _halted(self, transfer: Transfer[Any]) -> bool:
        return transfer.abandoned or self._stop.requested

    def _ended(self, job: Job[T], value: T | None, error: BaseException | None) -> tuple[list[int], list[Call]]:
        with self._lock:
            return self._scheduler.finished(job.job), self._forget(job, value, error)

    # Under the lock:

    def submit(
        self, job: Job[Any], needs: Sequence[str], *, after: Iterable[int] = (), not_before: float = 0.0
    ) -> list[int]:
        """-> jobs to start. After a stop it ends at once instead. Raises Impossible: it could never start."""
        if self._stop.requested:
            job.end(error=self.called_off())  # nobody has had the time to ask for a call
            return []
        starts = self._meet(needs) + self._scheduler.submit(job.job, needs, after=after, not_before=not_before)
        self._jobs[job.job] = job
        return starts

    def wakeup(self) -> float | None:
        """When to look at the clock; for `launch`."""
        return self._scheduler.next_wakeup

    def called_off(self) -> Cancelled:
        return Cancelled(self._stop.reason or "cancelled")

    def stand_in(self) -> int:
        """A job for what is none: a task that jobs come after."""
        number = self.number()
        self._scheduler.submit(number)
        return number

    def stand_in_ended(self, number: int) -> list[int]:
        return self._scheduler.finished(number)

    def _drop(self, job: Job[Any], error: Cancelled, calls: list[Call]) -> list[int]:
        """Take it out of the queue, if it is there. -> jobs to start."""
        if not self._scheduler.waits(job.job):
            return []
        calls += self._forget(job, None, error)
        return self._scheduler.cancel(job.job)

    def _forget(self, job: Job[T], value: T | None, error: BaseException | None) -> list[Call]:
        del self._jobs[job.job]
        if isinstance(job, Transfer):
            job.stop = None
            job.forget(job)
        return job.end(value, error)

    def _meet(self, needs: Sequence[str]) -> list[int]:
        """Get to know permits. -> jobs to start."""
        starts: list[int] = []
        for permit in needs:
            if permit not in self._known:
                self._capacity(permit)
                if permit.startswith(HOST):
                    starts += self._listen(permit)
                self._known.add(permit)
        return starts

    def _listen(self, permit: str) -> list[int]:
        """Hear of the pauses and the rate of its host."""
        host = self._limits.host(permit.removeprefix(HOST))
        host.on_hold = lambda until: self.decide(lambda: self._scheduler.hold(permit, until))
        return self._scheduler.hold(permit, host.ready_at())

    def _capacity(self, permit: str) -> int:
        if permit.startswith(HOST):
            return self._limits.host(permit.removeprefix(HOST)).parallel
        found = self._fixed.get(permit)
        if found is None:
            raise Impossible(f"there is no permit {permit!r}")
        return found


def _called_off(reason: str, error: MirrorError) -> Cancelled:
    cancelled = Cancelled(reason or ABANDONED)
    cancelled.__cause__ = error
    return cancelled
