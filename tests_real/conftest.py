"""The fixtures of the other tests, and fixtures for the registries of `make registries`. No time limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests_real.installed import MAKERS, InstalledRegistry

pytest_plugins = ("tests.conftest",)

R = TypeVar("R", bound=InstalledRegistry)


def pytest_report_header() -> list[str]:
    return [f"{maker.maker}: {maker.version()}" for maker in MAKERS]


class Starter:
    """Starts installed registries, which are stopped at the end of the test."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack

    def __call__(self, maker: type[R], name: str, **options: Any) -> R:
        made = maker(self._folder, name, **options)
        self._stack.enter_context(made)
        return made


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    with ExitStack() as stack:
        yield Starter(tmp_path / "installed", stack)


@pytest.fixture(params=MAKERS, ids=lambda maker: maker.__name__.lower())
def maker(request: pytest.FixtureRequest) -> type[InstalledRegistry]:
    found: type[InstalledRegistry] = request.param
    return found


@pytest.fixture
def target_registry(maker: type[InstalledRegistry], start: Starter) -> InstalledRegistry:
    """A target, in turn from each maker."""
    return start(maker, "taker")
