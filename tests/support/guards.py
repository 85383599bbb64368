"""A pytest plugin, installed by tests/conftest.py, that fails a test which does or leaves behind something forbidden.

* No thread, child process, socket or open file is left over. Things that a fixture of a module or session opens during
  its setup belong to it; later ones are registered with `keep`.
* No connection and no look-up leaves loopback, in this process and in the tool's.
* No lock of a `mirror` module is held across input, output, logging, sleeping or waiting.

Warnings are errors by setup.cfg, including unraisable exceptions and exceptions of threads.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support import leftovers, lock_watch, tripwire
from tests.support.leftovers import Resources


class _Watch:
    """The state of the guards in a test session."""

    def __init__(self) -> None:
        self.kept = Resources()
        self.before = Resources()
        self.outside: list[str] = []
        self.modules = 0


_watch = _Watch()


@contextmanager
def keep() -> Generator[None]:
    """Let things opened inside outlive the test; for fixtures of a wider scope that open something later."""
    before = leftovers.take()
    yield
    _watch.kept |= leftovers.take() - before


def kept() -> Resources:
    """Return everything that may outlive its test."""
    return _watch.kept


def pytest_configure(config: pytest.Config) -> None:
    tripwire.install(_watch.outside.append)
    lock_watch.install()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    if len(sys.modules) != _watch.modules:
        lock_watch.watch_package()
        _watch.modules = len(sys.modules)
    _watch.before = leftovers.take()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
    if fixturedef.scope == "function":
        return (yield)
    with keep():
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    yield
    problems = [
        *(f"left over: {what}" for what in leftovers.left_since(_watch.before | _watch.kept)),
        *(f"left loopback: {what}" for what in _watch.outside),
        *lock_watch.breaches(),
    ]
    _watch.outside.clear()
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)
