"""A source repository that has answered by v2 is not read by v1 when v2 fails later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.registries.faults import FOREVER
from tests.registries.scripted import ScriptedRegistry
from tests.registries.v1 import V1, gz, no_v2, tar
from tests.support.images import Graph
from tests.support.tool import MirrorTool


def speaks_both(scripted: ScriptedFactory) -> tuple[ScriptedRegistry, str]:
    """Make `app:both` one image by v2 and another, older one by v1; return the registry and the digest by v2."""
    registry, graph = scripted("source"), Graph("both")
    digest = graph.image("both").digest
    registry.load("app", graph)
    registry.v1 = V1()
    registry.v1.tag("app", both=registry.v1.image(gz(tar(file=b"old"))))
    return registry, digest


def configure(tool: MirrorTool, source: ScriptedRegistry, target: ScriptedRegistry, **keys: Any) -> None:
    tool.config([{"source": f"{source.host}/app", "targets": [f"{target.host}/app"], **keys}], source, target)


def unknown(registry: ScriptedRegistry) -> None:
    for kind in ("GET tags", "* manifest"):
        registry.fault(kind, status=404, times=FOREVER)


def refused(registry: ScriptedRegistry) -> None:
    for kind in ("GET tags", "* manifest"):
        registry.fault(kind, status=403, times=FOREVER)


def by_v1(registry: ScriptedRegistry) -> list[str]:
    return [seen.path for seen in registry.requests() if seen.path.startswith("/v1/")]


def v1_alone(registry: ScriptedRegistry) -> None:
    registry.hook = no_v2


@pytest.mark.parametrize("tags", [{}, {"tags": ["both"]}], ids=["listed", "named"])
@pytest.mark.parametrize("fail", [unknown, refused, v1_alone])
def test_a_failure_of_v2_does_not_lead_to_v1_if_v2_answered_in_an_earlier_run(
    fail: Callable[[ScriptedRegistry], None], tags: dict[str, Any], scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    (source, digest), target = speaks_both(scripted), scripted("target")
    configure(mirror_run, source, target, **tags)
    mirror_run.sync()
    fail(source)
    ran = mirror_run.sync(expect=1)
    assert 1 == mirror_run("plan", mirror_run.config_file).code
    assert 1 == mirror_run("verify", mirror_run.config_file).code
    assert {"both": digest} == target.storage.repositories["app"].tags
    assert [] == by_v1(source)
    assert "earlier run" in ran.err + ran.out


def test_the_configuration_can_switch_a_repository_to_v1(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    (source, digest), target = speaks_both(scripted), scripted("target")
    configure(mirror_run, source, target)
    mirror_run.sync()
    unknown(source)
    for v1 in ("only", "per-tag"):
        target.storage.repositories["app"].tags["both"] = digest
        configure(mirror_run, source, target, v1=v1)
        mirror_run.sync("--deep")
        assert digest != target.storage.repositories["app"].tags["both"]


def test_a_repository_that_only_v1_has_answered_for_is_read_by_v1_in_every_run(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    (source, _), target = speaks_both(scripted), scripted("target")
    unknown(source)
    configure(mirror_run, source, target)
    for _ in range(2):
        mirror_run.sync()
        assert {"v1"} == {image["protocol"] for image in mirror_run.report()["images"]}
