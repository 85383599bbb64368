"""Fixtures for every test: real and scripted registries, and the tool. tests/support/guards.py watches all tests."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Programs in Go, docker-registry and skopeo, need a third less CPU time: here they have little to do.
for _name, _value in (("GOMAXPROCS", "1"), ("GOGC", "400")):
    os.environ.setdefault(_name, _value)

pytest_plugins = ("tests.support.guards",)
pytest.register_assert_rewrite("tests.support.guards", "tests.support.oracle", "tests.support.tool")

from tests.registries.certificates import Authority  # noqa: E402  (after the rewrite of assertions is registered)
from tests.registries.real import RealRegistry  # noqa: E402
from tests.registries.scripted import ScriptedRegistry  # noqa: E402
from tests.support.tool import MirrorTool  # noqa: E402

RegistryFactory = Callable[..., RealRegistry]
ScriptedFactory = Callable[..., ScriptedRegistry]
_STARTED = pytest.StashKey[list[RealRegistry | ScriptedRegistry]]()

# No test depends on the speed of the machine.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture
def registry_factory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RegistryFactory]:
    """Start real registries; arguments are those of `RealRegistry` after its folder. They end with the test."""
    numbers = itertools.count(1)
    with ExitStack() as stack:

        def start(name: str = "", **options: Any) -> RealRegistry:
            registry = RealRegistry(tmp_path / "registries", name or f"registry-{next(numbers)}", **options)
            _started(request).append(registry)
            return stack.enter_context(registry)

        yield start


@pytest.fixture
def source(registry_factory: RegistryFactory) -> RealRegistry:
    """A plain docker-registry."""
    return registry_factory("source")


@pytest.fixture
def target(registry_factory: RegistryFactory) -> RealRegistry:
    """Another plain docker-registry."""
    return registry_factory("target")


@pytest.fixture
def scripted(request: pytest.FixtureRequest) -> Iterator[ScriptedFactory]:
    """Start scripted registries; arguments are those of `ScriptedRegistry`. They end with the test."""
    numbers = itertools.count(1)
    with ExitStack() as stack:

        def start(name: str = "", **options: Any) -> ScriptedRegistry:
            registry = stack.enter_context(ScriptedRegistry(name or f"scripted-{next(numbers)}", **options))
            _started(request).append(registry)
            return registry

        yield start


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A private certificate authority."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def mirror_run(tmp_path: Path) -> Iterator[MirrorTool]:
    """The tool, with a HOME and a state directory of its own."""
    with MirrorTool(tmp_path / "mirror") as tool:
        yield tool


def _started(request: pytest.FixtureRequest) -> list[RealRegistry | ScriptedRegistry]:
    """The registries that a test has started."""
    return request.node.stash.setdefault(_STARTED, [])  # type: ignore[no-any-return]  # a node is Any to pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows every run of the tool and what the registries were asked: it can be judged without a rerun."""
    report = yield
    if report.failed and report.when == "call":
        tools = [thing for thing in getattr(item, "funcargs", {}).values() if isinstance(thing, MirrorTool)]
        for tool in tools:
            report.sections += [(f"run {number}", str(ran)) for number, ran in enumerate(tool.runs[-6:], 1)]
        for registry in item.stash.get(_STARTED, []):
            seen = registry.read_log() if isinstance(registry, RealRegistry) else registry.requests()
            asked = [f"{request.status} {request.method} {request.path}" for request in seen]
            report.sections.append((f"{registry.name} ({registry.host}) was asked", "\n".join(asked[-60:])))
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first: otherwise one process runs them at the end, while the others have nothing to do."""
    items.sort(key=lambda item: "end_to_end" not in item.path.parts)
