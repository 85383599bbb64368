"""Retries small requests, and reacts to errors: pauses a host, marks it as down, or stops some of its requests."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from mirror.errors import MirrorError, NetworkError, RateLimited, Unreachable
from mirror.limits import Limits
from mirror.registry.http.request import Request
from mirror.util.cancellation import Work
from mirror.util.retry_policy import Policy

log = logging.getLogger("mirror.http")

MIN_PAUSE = 1.0  # seconds; the shortest pause for a host after a 429

T = TypeVar("T")


class Retries:
    """The retry logic for one session. Thread-safe."""

    def __init__(self, limits: Limits, policy: Policy, host: str) -> None:
        """Create the retry logic. Errors that do not name a host are attributed to `host`."""
        self._limits = limits
        self._policy = policy
        self._host = host

    def run(self, attempt: Callable[[], T], request: Request, work: Work) -> T:
        """Call `attempt` until it succeeds or the policy allows no further attempt. Return its result.

        `request` is used in log lines only. The policy's time budget covers the attempts and the waits between them. It
        does not cover waits that the server requested, or waits for a paused host or a rate limit."""
        limits, clock = self._limits, self._limits.clock
        number, waited = 1, 0.0
        while True:
            started, queued = clock.now(), limits.limit_wait_seconds()
            try:
                return attempt()
            except MirrorError as error:
                host = limits.host(error.host or self._host)
                if not work.retries or error.retries_exhausted or host.down:
                    raise
                waited += max(0.0, clock.now() - started - (limits.limit_wait_seconds() - queued))
                wait = self._policy.wait_before_next(number, error, waited)
                if wait is None:
                    if error.retryable:
                        self.mark_down_if_unreachable(error)
                    raise
                if error.retry_after is None:
                    waited += wait
                self._log_retry(request, host.name, number, wait, error)
            work.stop.sleep(wait)
            number += 1

    def _log_retry(self, request: Request, host: str, number: int, wait: float, error: MirrorError) -> None:
        """Log a retry and count it."""
        self._limits.count_retry(wait)
        extra = {"event": "retry", "host": host, "kind": request.kind, "attempt": number, "code": error.code}
        log.info("retrying in %.1f s: %s", wait, error, extra=extra)

    def mark_down_if_unreachable(self, error: MirrorError) -> None:
        """Mark a host as down if `error`, which persisted after all retries, shows that the host is unavailable.

        A host is unavailable if it did not respond, or still responds with 429."""
        host = self._limits.host(error.host or self._host)
        silent = isinstance(error, Unreachable) or (isinstance(error, NetworkError) and error.code == "timeout")
        limited = isinstance(error, RateLimited) and error.retryable
        if (silent or limited) and not host.down and host.mark_down(error):
            event = "host_limited" if limited else "host_down"
            log.warning("%s", host.describe_outage(error), extra={"event": event, "host": host.name})

    def react_to_error(self, error: MirrorError, request: Request, host: str) -> None:
        """React to an error response from `host`: pause the host, mark it as down, or stop requests like `request`.

        `error` is the error for that response. Requests with the same method and kind are stopped if the response shows
        that a quota is used up."""
        limits, requested_wait = self._limits.host(host), error.retry_after
        if requested_wait is not None and requested_wait > self._policy.max_retry_after:
            self._limits.record_refused_wait(requested_wait)
            limits.mark_down(error)
        elif isinstance(error, RateLimited) and not error.retryable:
            limits.mark_quota_used_up(f"{request.method} {request.kind}", error)
        elif error.retryable and (requested_wait is not None or error.status == 429):
            wait = max(requested_wait or 0.0, MIN_PAUSE if error.status == 429 else 0.0)
            if wait and limits.pause(wait, "rate limited" if error.status == 429 else f"status {error.status}"):
                extra = {"event": "pause", "host": host, "status": error.status}
                log.warning("requests to %s are paused for %.0f s: %s", host, wait, error, extra=extra)


class _ExhaustedMarker:
    """A context manager that marks MirrorErrors raised in its block, to prevent further retries."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, MirrorError):
            error.retries_exhausted = True


mark_exhausted = _ExhaustedMarker()
