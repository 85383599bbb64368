"""Fixtures for the tests of coroutines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.transfer.harness import CallEnvironment


@pytest.fixture
def env() -> Iterator[CallEnvironment]:
    """Calls with a fake clock, which are closed after the test."""
    with CallEnvironment().opened() as env:
        yield env
