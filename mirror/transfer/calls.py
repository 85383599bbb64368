"""Blocking calls on threads, for coroutines: with permits, retries, and an end that no thread can put off.

A stop is an error of ours (Cancelled), raised where a coroutine waits for a permit, for time, or for a call. It ends
each of these waits at once; `close` waits for threads that have not ended by then. The cancellation of a task only
means that nobody needs its result any more: its call is stopped, and the task waits for its thread.
"""

from __future__ import annotations

import asyncio
import random
import selectors
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from functools import partial
from typing import Generic, TypeVar, cast

from mirror.errors import Cancelled, LocalError, MirrorError
from mirror.limits import Limits
from mirror.transfer.permits import DOWNLOADS, HOST, LARGE, LOCAL, UPLOADS, Permits, TooFewPermits, fail_future
from mirror.transfer.tasks import Tasks, call_and_catch
from mirror.util.cancellation import Stop, Work
from mirror.util.retry_policy import Policy

T = TypeVar("T")

RESULT_NOT_NEEDED = "nobody waits for it any more"
CLOSE_TIMEOUT = 60.0  # seconds that `close` waits for threads
MAX_THREADS = 256
LOCAL_CALLS = 4  # at a time, of those that need no host
LARGE_MANIFESTS = 2  # in memory at once, beside those that are kept
DEFAULT_POLICY = Policy()


def new_loop() -> asyncio.AbstractEventLoop:
    """An event loop. Its selector needs no file descriptor."""
    return asyncio.SelectorEventLoop(selectors.PollSelector())


class Calls:
    """Runs blocking calls on a bounded pool of threads. Its coroutines belong to one loop.

    The clock is the loop's; that of the limits has to be the same."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        stop: Stop,
        *,
        downloads: int = 6,
        uploads: int = 8,
        policy: Policy = DEFAULT_POLICY,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """stop: after it nothing starts, what waits ends, and calls are stopped. draw: see Policy."""
        self._loop = loop
        self._limits = limits
        self._policy = policy
        self._draw = draw
        self._fixed = {DOWNLOADS: downloads, UPLOADS: uploads, LARGE: LARGE_MANIFESTS, LOCAL: LOCAL_CALLS}
        self.tasks = Tasks(loop)
        self.permits = Permits(loop, self._capacity, self._ready_at)
        self._waits: set[asyncio.Future[None]] = set()  # for calls and for time
        self._threads: set[Future[None]] = set()  # of calls that have not ended
        self._hung = False  # threads were left behind
        self._pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="mirror")
        self._stop = Stop(stop)
        self._exit = ExitStack()
        self._exit.callback(self._stop.close)
        self._exit.enter_context(self._stop.callback_on_stop(partial(self.post, self._end_waits)))

    def post(self, callback: Callable[[], object]) -> None:
        """Make the loop call `callback`, unless it is closed by then. Any thread."""
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def now(self) -> float:
        """The time of the loop's clock, in seconds."""
        return self._loop.time()

    async def call(self, run: Callable[[Work], T], *, needs: Sequence[str] = (), policy: Policy | None = None) -> T:
        """What `run` returns on a thread, with all of `needs`; the first names the lane (see permits).

        If it raises a retryable error, it is called again by `policy`; meanwhile it has no permit and no thread. Raises
        what it raises, Cancelled after a stop, and Impossible: `needs` can never be had."""
        needs, policy = needs or (LOCAL,), policy or self._policy
        attempts, waited = 0, 0.0
        while True:
            attempts += 1
            self._stop.raise_if_requested()
            await self.permits.acquire(needs)
            try:
                attempt = _CallAttempt(run, self._stop, self._limits, once=policy.attempts == 1)
                await self._run(attempt)
            finally:
                self.permits.release(needs)
            error = attempt.error
            if error is None:
                return cast(T, attempt.value)
            # An attempt that moved bytes is not waiting, however long it took: after it the time budget begins anew.
            waited = 0.0 if attempt.moved else waited + attempt.seconds
            wait = self._wait_before_next(policy, attempts, error, waited) if isinstance(error, MirrorError) else None
            if wait is None or not isinstance(error, MirrorError):
                raise error
            self._limits.note_retry(wait)
            waited += wait if error.retry_after is None else 0.0
            await self.sleep(wait)

    async def sleep(self, seconds: float) -> None:
        """Wait. Raises Cancelled as soon as stopped."""
        self._stop.raise_if_requested()
        waiter = self._new_wait()
        timer = self._loop.call_later(seconds, _end, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waits.discard(waiter)

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Stop all that is left, and end the threads. Not on the loop, which must not run. May be called again.

        Raises LocalError if threads have not ended in `timeout` seconds (later calls do not wait for them), and errors
        that were raised where nobody awaits them."""
        deadline = time.monotonic() + timeout
        self._stop.request("closed")
        if not self._loop.is_closed():
            self._loop.run_until_complete(self.tasks.wait_closed(timeout))
        _, late = wait(self._threads, max(0.0, deadline - time.monotonic()))
        self._threads.clear()
        self._hung = self._hung or bool(late)
        self._pool.shutdown(wait=not self._hung, cancel_futures=True)
        self._exit.close()
        if not self._loop.is_closed():
            self._loop.run_until_complete(asyncio.sleep(0))  # what the threads have posted
            self._loop.close()
        if late:
            raise LocalError(f"{len(late)} threads did not end within {timeout:g} s", hint="the process hangs")
        bugs, self.tasks.bugs = self.tasks.bugs, []
        for other in bugs[1:]:
            bugs[0].add_note(f"and elsewhere: {other!r}")
        if bugs:
            raise bugs[0]

    async def _run(self, attempt: _CallAttempt[T]) -> None:
        """Run it on a thread and wait for its end. Raises Cancelled: at a stop; the thread may not have ended."""
        attempt.waiter = self._new_wait()
        thread = self._pool.submit(self._work, attempt)
        self._threads.add(thread)
        attempt.forget = partial(self._threads.discard, thread)
        try:
            await attempt.waiter
        except asyncio.CancelledError:
            attempt.stop.request(RESULT_NOT_NEEDED)
            await self._outlast(attempt)
            self._collect(attempt)
            raise
        finally:
            self._waits.discard(attempt.waiter)
        error = attempt.error
        if (
            isinstance(error, MirrorError) and error.retryable and self._stop.is_requested
        ):  # this is how it felt the stop
            raise Cancelled(self._stop.reason or "cancelled") from error

    async def _outlast(self, attempt: _CallAttempt[T]) -> None:
        """Wait for the end of a thread, or for a stop, however often the task is cancelled meanwhile."""
        while not attempt.ended and not self._stop.is_requested:
            self._waits.discard(attempt.waiter)
            attempt.waiter = self._new_wait()
            with suppress(asyncio.CancelledError, Cancelled):
                await attempt.waiter

    def _work(self, attempt: _CallAttempt[T]) -> None:
        """On a thread."""
        attempt.run()
        self.post(partial(self._ended, attempt))

    def _ended(self, attempt: _CallAttempt[T]) -> None:
        attempt.ended = True
        attempt.forget()
        if attempt.waiter.done():
            self._collect(attempt)
        else:
            attempt.waiter.set_result(None)

    def _collect(self, attempt: _CallAttempt[T]) -> None:
        """Keep a bug of a call that nobody awaits any more."""
        error, attempt.error = attempt.error, None
        if error is not None and not isinstance(error, MirrorError):
            self.tasks.bugs.append(error)

    def _wait_before_next(self, policy: Policy, attempts: int, error: MirrorError, waited: float) -> float | None:
        """Seconds to wait before the next attempt; None: there is none."""
        wait = policy.wait_before_next(attempts, error, waited, self._draw)
        if error.host and self._limits.host(error.host).down:
            return None  # the work of a host that is down fails at once
        if wait is None and error.retryable and (error.retry_after or 0.0) > policy.max_retry_after:
            self._limits.note_refused_wait(error.retry_after or 0.0)
        return wait

    def _new_wait(self) -> asyncio.Future[None]:
        waiter = self._loop.create_future()
        self._waits.add(waiter)
        return waiter

    def _end_waits(self) -> None:
        """Fail every wait, after a stop."""
        error = Cancelled(self._stop.reason or "cancelled")
        self.permits.close(error)
        for waiter in self._waits:
            if not waiter.done():
                fail_future(waiter, error.with_text(error.what))

    def _capacity(self, permit: str) -> int:
        if permit.startswith(HOST):
            return self._limits.host(permit.removeprefix(HOST)).parallel
        found = self._fixed.get(permit)
        if found is None:
            raise TooFewPermits(f"there is no permit {permit!r}")
        return found

    def _ready_at(self, permit: str) -> float:
        """Until when a permit is on hold; from now on it follows the pauses and the rate of its host."""
        if not permit.startswith(HOST):
            return 0.0
        host = self._limits.host(permit.removeprefix(HOST))
        host.on_hold = lambda until: self.post(partial(self.permits.hold, permit, until))
        return host.ready_at()


class _CallAttempt(Generic[T]):
    """One run of a call. Written by its thread before it ends: value, error, moved (bytes), seconds (without the time
    in which it waited until a host was ready)."""

    waiter: asyncio.Future[None]
    forget: Callable[[], None]

    def __init__(self, run: Callable[[Work], T], stop: Stop, limits: Limits, *, once: bool) -> None:
        self._call = run
        self._limits = limits
        self._once = once
        self.stop = Stop(stop)
        self.ended = False
        self.value: T | None = None
        self.error: BaseException | None = None
        self.moved = 0
        self.seconds = 0.0

    def run(self) -> None:
        clock, limits = self._limits.clock, self._limits
        began = clock.now() - limits.queued_seconds()
        self.value, self.error = call_and_catch(self._begin)
        self.stop.close()
        self.seconds = max(0.0, clock.now() - limits.queued_seconds() - began)

    def _begin(self) -> T:
        self.stop.raise_if_requested()
        return self._call(Work(self.stop, self._progress, self._once))

    def _progress(self, count: int) -> None:
        self.moved += count


def _end(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
