"""Fixtures for the tests of coroutines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.transfer.harness import Desk


@pytest.fixture
def desk() -> Iterator[Desk]:
    with Desk().opened() as desk:
        yield desk
