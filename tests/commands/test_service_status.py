"""What /healthz and /livez report about the cycles of `sync --every`."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from mirror.commands.run_pages import RunPages
from mirror.commands.service_status import STUCK_AFTER, ServiceStatus, StatusHandler
from mirror.serve.messages import ServerRequest, ServerResponse


@dataclass
class Clock:
    seconds: float = 5000.0

    def now(self) -> float:
        return self.seconds


class NoBody:
    length: int | None = 0

    def readinto(self, buffer: memoryview) -> int:
        return 0


def respond(status: ServiceStatus, path: str, method: str = "GET") -> ServerResponse:
    return StatusHandler(status, RunPages()).handle(ServerRequest.parse(method, path, lambda name: None, NoBody()))


def text_of(response: ServerResponse) -> str:
    """Return the text of a response, with T for each time."""
    assert isinstance(response.body, bytes)
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "T", response.body.decode())


@pytest.mark.parametrize(
    ("codes", "live", "healthy", "text"),
    [
        ([], 200, 200, "ok: no cycle has ended yet\n"),
        ([0], 200, 200, "ok: the last cycle ended with exit code 0 at T\n"),
        ([1, 1], 200, 200, "ok: the last cycle ended with exit code 1 at T\n"),
        (
            [1, 3, 75],
            200,
            503,
            "failing: 3 consecutive cycles have failed; the last cycle ended with exit code 75 at T\n",
        ),
        ([1, 1, 0, 1, 1], 200, 200, "ok: the last cycle ended with exit code 1 at T\n"),
        ([4, 4, 4, 4, 0], 200, 200, "ok: the last cycle ended with exit code 0 at T\n"),
    ],
)
def test_the_service_is_unhealthy_after_three_consecutive_cycles_that_failed(
    codes: list[int], live: int, healthy: int, text: str
) -> None:
    status = ServiceStatus()
    for code in codes:
        status.begin_cycle()
        status.end_cycle(code)
    response = respond(status, "/healthz")
    assert (healthy, text) == (response.status, text_of(response))
    assert live == respond(status, "/livez").status


def test_a_cycle_is_stuck_if_it_makes_no_progress_for_a_long_time() -> None:
    clock = Clock()
    status = ServiceStatus(clock.now)
    clock.seconds += 2 * STUCK_AFTER
    assert 200 == respond(status, "/livez").status  # no cycle is in progress
    status.begin_cycle()
    for _ in range(3):
        clock.seconds += STUCK_AFTER
        assert 200 == respond(status, "/livez").status
        status.record_progress()
    clock.seconds += STUCK_AFTER + 1
    for path in ("/livez", "/healthz"):
        response = respond(status, path)
        assert (503, "stuck: the cycle that began at T has made no progress for 2.0 h\n") == (
            response.status,
            text_of(response),
        )
    status.end_cycle(0)
    assert 200 == respond(status, "/livez").status


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("HEAD", "/healthz", 200),
        ("GET", "/livez?verbose", 200),
        ("POST", "/healthz", 405),
        ("GET", "/metrics", 200),
        ("GET", "/", 404),  # there is no report yet
        ("GET", "/healthz/../etc/passwd", 404),
        ("DELETE", "/x", 404),
    ],
)
def test_only_the_known_pages_can_be_read(method: str, path: str, code: int) -> None:
    assert code == respond(ServiceStatus(), path, method).status
