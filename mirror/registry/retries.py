"""Retries of small requests, and what a failure says about its whole host: pauses, rate limits, silence."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from mirror.errors import MirrorError, NetworkError, RateLimited, Unreachable
from mirror.limits import Limits
from mirror.registry.http.client import Request
from mirror.util.cancellation import Work
from mirror.util.retry_policy import Policy

log = logging.getLogger("mirror.http")

PAUSE = 1.0  # seconds for which a host is left alone at least after a 429

T = TypeVar("T")


class Retries:
    """The retries of one session. Thread-safe."""

    def __init__(self, limits: Limits, policy: Policy, host: str) -> None:
        """host: of errors that name none."""
        self._limits = limits
        self._policy = policy
        self._host = host

    def run(self, once: Callable[[], T], request: Request, work: Work) -> T:
        """Call `once` until it succeeds, within the policy's count and time budget.

        The budget counts the time that attempts take and the waits between them; not the waits that the server asks
        for, nor the time in which the host is paused or its rate is used up."""
        limits, clock = self._limits, self._limits.clock
        attempt, waited = 1, 0.0
        while True:
            begun, queued = clock.now(), limits.queued()
            try:
                return once()
            except MirrorError as error:
                host = limits.host(error.host or self._host)
                if not work.retries or error.spent or host.down:
                    raise
                waited += max(0.0, clock.now() - begun - (limits.queued() - queued))
                wait = self._policy.wait_before_next(attempt, error, waited)
                if wait is None:
                    if error.retryable:
                        self.gave_up(error)
                    raise
                if error.retry_after is None:
                    waited += wait
                self._note(request, host.name, attempt, wait, error)
            work.stop.sleep(wait)
            attempt += 1

    def _note(self, request: Request, host: str, attempt: int, wait: float, error: MirrorError) -> None:
        self._limits.note_retry(wait)
        extra = {"event": "retry", "host": host, "kind": request.kind, "attempt": attempt, "code": error.code}
        log.info("again in %.1f s: %s", wait, error, extra=extra)

    def gave_up(self, error: MirrorError) -> None:
        """`error` outlived all retries: if its host did not answer at all, or still answers 429, nothing more is asked
        of it."""
        host = self._limits.host(error.host or self._host)
        silent = isinstance(error, Unreachable) or (isinstance(error, NetworkError) and error.code == "timeout")
        limited = isinstance(error, RateLimited) and error.retryable
        if (silent or limited) and not host.down and host.mark_down(error):
            event = "host_limited" if limited else "host_down"
            log.warning("%s", host.reason(error), extra={"event": event, "host": host.name})

    def heed(self, error: MirrorError, request: Request, host: str) -> None:
        """Do what a refusal by `host` asks of everybody: pause, or ask nothing more of it."""
        limits, asked = self._limits.host(host), error.retry_after
        if asked is not None and asked > self._policy.longest_asked:
            self._limits.note_refused_wait(asked)
            limits.mark_down(error)
        elif isinstance(error, RateLimited) and not error.retryable:
            limits.mark_quota_used_up(f"{request.method} {request.kind}", error)
        elif error.retryable and (asked is not None or error.status == 429):
            wait = max(asked or 0.0, PAUSE if error.status == 429 else 0.0)
            if wait and limits.pause(wait):
                extra = {"event": "pause", "host": host, "status": error.status}
                log.warning("%s is left alone for %.0f s: %s", host, wait, error, extra=extra)
