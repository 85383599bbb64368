"""The fixtures of the other tests, and those of registries that `make registries` installs; no time limits."""

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
    """Starts installed registries, which end with the test."""

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
def taker(maker: type[InstalledRegistry], start: Starter) -> InstalledRegistry:
    """One of each maker in turn, as a target."""
    return start(maker, "taker")
