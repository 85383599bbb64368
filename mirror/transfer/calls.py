"""Runs blocking calls on threads for coroutines, with permits and retries.

After a stop, every coroutine that waits for a permit, a delay or a call raises Cancelled at once, even if the thread of
its call is still running. `close` waits for such threads.

A task is cancelled when no caller needs its result any more. Its call is then stopped, and the task waits until the
thread has finished.
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
from mirror.transfer.permits import (
    DOWNLOADS,
    HOST,
    LARGE,
    LOCAL,
    UPLOADS,
    Permits,
    TooFewPermits,
    fail_future,
    host_permit,
)
from mirror.transfer.tasks import Tasks, call_and_catch
from mirror.util.cancellation import Stop, Work
from mirror.util.retry_policy import ONCE, Policy

T = TypeVar("T")

RESULT_NOT_NEEDED = "the result is no longer needed"
CLOSE_TIMEOUT = 60.0  # seconds that `close` waits for threads
MAX_THREADS = 256
LOCAL_CALLS = 4  # maximum number of calls without another permit that run at the same time
LARGE_MANIFESTS = 2  # maximum number of large manifests in memory at the same time, not counting cached manifests
DEFAULT_POLICY = Policy()


def new_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop, with a selector that needs no file descriptor."""
    return asyncio.SelectorEventLoop(selectors.PollSelector())


class Calls:
    """Runs blocking calls on a bounded pool of threads. Its coroutines run on one event loop.

    All times are in seconds on the event loop's clock. `limits` must use the same clock."""

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
        """Prepare to run calls for the coroutines of the event loop `loop`. limits: the limits of hosts.

        stop: after this stop is requested, all waits end, running calls are stopped, and no further call starts.
        downloads, uploads: the numbers of download and upload permits.
        policy: the retry policy for calls that do not set one.
        draw: see `Policy.wait_before_next`."""
        self._loop = loop
        self._limits = limits
        self._policy = policy
        self._draw = draw
        self._capacities = {DOWNLOADS: downloads, UPLOADS: uploads, LARGE: LARGE_MANIFESTS, LOCAL: LOCAL_CALLS}
        self.tasks = Tasks(loop)
        self.permits = Permits(loop, self._capacity, self._hold_until)
        self._waiters: set[asyncio.Future[None]] = set()  # for calls and sleeps in progress
        self._threads: set[Future[None]] = set()  # calls that have not ended
        self._has_hung_threads = False
        self._pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="mirror")
        self._stop = Stop(stop)
        self._exit = ExitStack()
        self._exit.callback(self._stop.close)
        self._exit.enter_context(self._stop.callback_on_stop(partial(self.post, self._fail_waiters)))

    def post(self, callback: Callable[[], object]) -> None:
        """Schedule `callback` on the event loop, unless the loop is closed. May be called on any thread."""
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def now(self) -> float:
        """Return the current time on the event loop's clock, in seconds."""
        return self._loop.time()

    async def call(self, run: Callable[[Work], T], *, needs: Sequence[str] = (), policy: Policy | None = None) -> T:
        """Acquire the permits `needs` (see `Permits.acquire`), call `run` on a thread, and return its result.

        After a retryable error, `run` is called again according to `policy`. No permit or thread is held between the
        attempts. Raises the same errors as `run`, Cancelled after a stop, and TooFewPermits if `needs` exceeds the
        capacity."""
        needs, policy = needs or (LOCAL,), policy or self._policy
        attempts, waited = 0, 0.0
        while True:
            attempts += 1
            self._stop.raise_if_requested()
            await self.permits.acquire(needs)
            try:
                attempt = _CallAttempt(run, self._stop, self._limits, once=policy.attempts == 1)
                await self._run_attempt(attempt)
            finally:
                self.permits.release(needs)
            error = attempt.error
            if error is None:
                return cast(T, attempt.value)
            # The time budget limits the time without progress: an attempt that moved bytes resets it.
            waited = 0.0 if attempt.bytes_moved else waited + attempt.seconds
            wait = self._wait_before_next(policy, attempts, error, waited) if isinstance(error, MirrorError) else None
            if wait is None or not isinstance(error, MirrorError):
                raise error
            self._limits.count_retry(wait)
            waited += wait if error.retry_after is None else 0.0
            await self.sleep(wait)

    async def call_host(self, host: str, run: Callable[[Work], T]) -> T:
        """Call `run` on a thread, with one permit for `host`, and return its result.

        `run` is called only once, because the store already retries the requests that `run` sends. Raises the same
        errors as `run`, and Cancelled after a stop."""
        return await self.call(run, needs=(host_permit(host),), policy=ONCE)

    async def sleep(self, seconds: float) -> None:
        """Sleep for `seconds`. Raises Cancelled as soon as a stop is requested."""
        self._stop.raise_if_requested()
        waiter = self._new_waiter()
        timer = self._loop.call_later(seconds, _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiters.discard(waiter)

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Stop the remaining calls, end the threads and close the event loop. May be called repeatedly.

        Must not be called on the event loop.

        Raises LocalError if threads have not ended after `timeout` seconds; later calls of `close` do not wait for
        these threads. Otherwise raises the first error in `tasks.bugs`, if there is one."""
        deadline = time.monotonic() + timeout
        self._stop.request("closed")
        if not self._loop.is_closed():
            self._loop.run_until_complete(self.tasks.wait_closed(timeout))
        _, late = wait(self._threads, max(0.0, deadline - time.monotonic()))
        self._threads.clear()
        self._has_hung_threads = self._has_hung_threads or bool(late)
        self._pool.shutdown(wait=not self._has_hung_threads, cancel_futures=True)
        self._exit.close()
        if not self._loop.is_closed():
            self._loop.run_until_complete(asyncio.sleep(0))  # run the callbacks that threads have posted
            self._loop.close()
        if late:
            raise LocalError(
                f"{len(late)} threads did not end within {timeout:g} s",
                hint="a request or a file operation does not return: check the network and the disks",
            )
        bugs, self.tasks.bugs = self.tasks.bugs, []
        for other in bugs[1:]:
            bugs[0].add_note(f"another task failed: {other!r}")
        if bugs:
            raise bugs[0]

    async def _run_attempt(self, attempt: _CallAttempt[T]) -> None:
        """Run an attempt on a thread, and wait until it ends or a stop is requested.

        Raises Cancelled after a stop, although the thread may still be running."""
        attempt.waiter = self._new_waiter()
        thread = self._pool.submit(self._run_on_thread, attempt)
        self._threads.add(thread)
        attempt.forget = partial(self._threads.discard, thread)
        try:
            await attempt.waiter
        except asyncio.CancelledError:
            attempt.stop.request(RESULT_NOT_NEEDED)
            await self._wait_until_ended(attempt)
            self._collect_error(attempt)
            raise
        finally:
            self._waiters.discard(attempt.waiter)
        error = attempt.error
        if isinstance(error, MirrorError) and error.retryable and self._stop.is_requested:
            # The stop caused the error, for example by shutting a socket.
            raise self._stop.error() from error

    async def _wait_until_ended(self, attempt: _CallAttempt[T]) -> None:
        """Wait until an attempt ends or a stop is requested, even if the task is cancelled meanwhile."""
        while not attempt.ended and not self._stop.is_requested:
            self._waiters.discard(attempt.waiter)
            attempt.waiter = self._new_waiter()
            with suppress(asyncio.CancelledError, Cancelled):
                await attempt.waiter

    def _run_on_thread(self, attempt: _CallAttempt[T]) -> None:
        """Run an attempt, then notify the event loop."""
        attempt.run()
        self.post(partial(self._handle_end, attempt))

    def _handle_end(self, attempt: _CallAttempt[T]) -> None:
        """Mark an attempt as ended. Wake the task that waits for the attempt, or collect its error if no task waits."""
        attempt.ended = True
        attempt.forget()
        if attempt.waiter.done():
            self._collect_error(attempt)
        else:
            attempt.waiter.set_result(None)

    def _collect_error(self, attempt: _CallAttempt[T]) -> None:
        """Move the error from an attempt that no task awaits to `tasks.bugs`. If it is a MirrorError, discard it."""
        error, attempt.error = attempt.error, None
        if error is not None and not isinstance(error, MirrorError):
            self.tasks.bugs.append(error)

    def _wait_before_next(self, policy: Policy, attempts: int, error: MirrorError, waited: float) -> float | None:
        """Return the number of seconds to wait before the next attempt, or None if there is no further attempt."""
        wait = policy.wait_before_next(attempts, error, waited, self._draw)
        if error.host and self._limits.host(error.host).down:
            return None
        if wait is None and error.retryable and (error.retry_after or 0.0) > policy.max_retry_after:
            self._limits.record_refused_wait(error.retry_after or 0.0)
        return wait

    def _new_waiter(self) -> asyncio.Future[None]:
        """Return a future that fails with Cancelled if a stop is requested."""
        waiter = self._loop.create_future()
        self._waiters.add(waiter)
        return waiter

    def _fail_waiters(self) -> None:
        """Raise Cancelled in every waiting coroutine. Called when the run is stopped."""
        error = self._stop.error()
        self.permits.close(error)
        for waiter in self._waiters:
            if not waiter.done():
                fail_future(waiter, error.with_text(error.what))

    def _capacity(self, permit: str) -> int:
        """Return the number of units of a permit. Raises TooFewPermits for an unknown name."""
        if permit.startswith(HOST):
            return self._limits.host(permit.removeprefix(HOST)).parallel
        capacity = self._capacities.get(permit)
        if capacity is None:
            raise TooFewPermits(f"there is no permit {permit!r}")
        return capacity

    def _hold_until(self, permit: str) -> float:
        """Return the time until which a permit is on hold. If the permit is for a host, also subscribe to its holds.

        From then on, the permit is put on hold whenever the host is paused or has used up its rate limit."""
        if not permit.startswith(HOST):
            return 0.0
        host = self._limits.host(permit.removeprefix(HOST))
        host.on_hold = lambda until: self.post(partial(self.permits.hold, permit, until))
        return host.ready_at()


class _CallAttempt(Generic[T]):
    """One attempt of a call. Its thread sets `value`, `error`, `bytes_moved` and `seconds` before the attempt ends.

    seconds: the duration without the waits for a paused or rate-limited host.
    once: whether this is the only attempt.
    waiter: the future on which the task waits.
    forget: removes the attempt's thread from the set of threads that `Calls.close` waits for."""

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
        self.bytes_moved = 0
        self.seconds = 0.0

    def run(self) -> None:
        """Make the call, and measure its duration. If it raises an error, store the error in `error`."""
        clock, limits = self._limits.clock, self._limits
        started = clock.now() - limits.limit_wait_seconds()
        self.value, self.error = call_and_catch(self._make_call)
        self.stop.close()
        self.seconds = max(0.0, clock.now() - limits.limit_wait_seconds() - started)

    def _make_call(self) -> T:
        """Make the call. If this is its only attempt, let it retry its requests. Raises Cancelled after a stop."""
        self.stop.raise_if_requested()
        return self._call(Work(self.stop, self._count_bytes, self._once))

    def _count_bytes(self, count: int) -> None:
        """Count bytes that the call has transferred."""
        self.bytes_moved += count


def _wake(waiter: asyncio.Future[None]) -> None:
    """Wake the task that awaits `waiter`."""
    if not waiter.done():
        waiter.set_result(None)
