"""The status of `mirror sync --every`: whether its cycles succeed, and whether the current cycle makes progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from mirror.commands.run_pages import RunPages, text_page
from mirror.errors import OK
from mirror.serve.messages import ServerRequest, ServerResponse

MAX_FAILED_CYCLES = 3  # consecutive failed cycles after which the service is unhealthy
STUCK_AFTER = 2 * 3600.0  # seconds without progress; a cycle with a `rate` of one request per hour is not stuck

_ALLOWED = ("GET", "HEAD")


class ServiceStatus:
    """The status of `mirror sync --every`. Each of its runs is a cycle. Thread-safe.

    now: a function that returns the time in seconds on any scale."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._began: datetime | None = None  # the start of the current cycle
        self._last_progress = 0.0
        self._failures = 0  # consecutive cycles that failed
        self._last = "no cycle has ended yet"

    def begin_cycle(self) -> None:
        """Record that a cycle begins."""
        with self._lock:
            self._began, self._last_progress = datetime.now(UTC), self._now()

    def record_progress(self) -> None:
        """Record that the current cycle has sent a request or copied bytes."""
        self._last_progress = self._now()

    def end_cycle(self, code: int) -> None:
        """Record that the cycle has ended. code: its exit code, or that of LockBusy if the cycle was skipped."""
        with self._lock:
            self._began = None
            self._failures = 0 if code == OK else self._failures + 1
            self._last = f"the last cycle ended with exit code {code} at {_format_time(datetime.now(UTC))}"

    def liveness(self) -> tuple[bool, str]:
        """Return whether the service makes progress, and a sentence about its state."""
        with self._lock:
            idle = self._now() - self._last_progress
            if self._began is not None and idle > STUCK_AFTER:
                began = _format_time(self._began)
                return False, f"stuck: the cycle that began at {began} has made no progress for {idle / 3600:.1f} h"
            return True, f"ok: {self._last}"

    def health(self) -> tuple[bool, str]:
        """Return whether the service makes progress and its cycles succeed, and a sentence about its state."""
        alive, text = self.liveness()
        with self._lock:
            if alive and self._failures >= MAX_FAILED_CYCLES:
                return False, f"failing: {self._failures} consecutive cycles have failed; {self._last}"
        return alive, text


class StatusHandler:
    """Responds to HTTP requests for the status of `mirror sync --every`, and for the pages about its last run."""

    def __init__(self, status: ServiceStatus, pages: RunPages) -> None:
        self._pages: dict[str, Callable[[], ServerResponse]] = {
            "/healthz": lambda: _status_page(*status.health()),
            "/livez": lambda: _status_page(*status.liveness()),
            "/metrics": pages.metrics_page,
            "/": pages.report_page,
        }

    def handle(self, request: ServerRequest) -> ServerResponse:
        """Return the response to a request. For HEAD, the connection omits the body."""
        page = self._pages.get(request.path)
        if page is None:
            return text_page(404, f"not found; the pages are {', '.join(self._pages)}")
        if request.method not in _ALLOWED:
            return text_page(405, "only GET and HEAD are supported", (("Allow", "GET, HEAD"),))
        return page()


def _status_page(healthy: bool, text: str) -> ServerResponse:
    """Return a response with the text of a status. The HTTP status is 200 if the service is healthy, otherwise 503."""
    return text_page(200 if healthy else 503, text)


def _format_time(moment: datetime) -> str:
    """Format a time as ISO 8601 in UTC, in seconds."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
