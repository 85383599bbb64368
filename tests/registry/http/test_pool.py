"""Idle connections: how long and how many are kept, and which one is reused."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from mirror.registry.http.connection import Connection
from mirror.registry.http.pool import MAX_IDLE, ConnectionPool
from mirror.registry.http.url import Origin
from mirror.registry.http.url_policy import Destination
from mirror.util.cancellation import Stop

HERE = Destination(Origin("http", "here.example", 80), "/")
ELSEWHERE = Destination(Origin("http", "elsewhere.example", 80), "/")


class PoolWithFakes:
    """A pool whose connections have no peer, and the list of those that are open."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.all: list[Connection] = []
        self._peers: list[socket.socket] = []
        self.pool = ConnectionPool(self._open, lambda destination, address: None, keep=2, now=lambda: self.now)

    def _open(self, destination: Destination, stop: Stop) -> Connection:
        near, far = socket.socketpair()
        self._peers.append(far)
        self.all.append(Connection(near, destination))
        return self.all[-1]

    def acquire(self, destination: Destination = HERE) -> Connection:
        return self.pool.acquire(destination, Stop())

    def still_open(self) -> list[int]:
        return [number for number, connection in enumerate(self.all) if connection._sock.fileno() >= 0]

    def close(self) -> None:
        self.pool.close()
        for far in self._peers:
            far.close()


@pytest.fixture
def opened() -> Iterator[PoolWithFakes]:
    with contextlib.closing(PoolWithFakes()) as opened:
        yield opened


def test_a_connection_is_kept_for_its_destination(opened: PoolWithFakes) -> None:
    first = opened.acquire()
    opened.pool.release(HERE, first)
    other = opened.acquire(ELSEWHERE)
    assert first is opened.acquire()
    other.close()
    first.close()


def test_a_connection_that_was_idle_for_too_long_is_not_reused(opened: PoolWithFakes) -> None:
    """A middlebox may have dropped it without closing it."""
    opened.pool.release(HERE, opened.acquire())
    opened.now += MAX_IDLE - 1
    opened.pool.release(HERE, opened.acquire())
    assert 1 == len(opened.all)
    opened.now += MAX_IDLE + 1
    opened.pool.release(HERE, opened.acquire())
    assert [1] == opened.still_open()


def test_connections_that_are_too_old_are_closed_when_another_one_is_acquired(opened: PoolWithFakes) -> None:
    opened.pool.release(ELSEWHERE, opened.acquire(ELSEWHERE))
    opened.now += MAX_IDLE + 1
    here = opened.acquire()
    assert [1] == opened.still_open()
    here.close()


def test_the_number_of_idle_connections_is_limited(opened: PoolWithFakes) -> None:
    taken = [opened.acquire() for _ in range(3)]
    for connection in taken:
        opened.pool.release(HERE, connection)
    assert [1, 2] == opened.still_open()
