"""Two mirrors that may write the same tag of one target repository, as only the catalog of a wildcard shows."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import loaded
from tests.registries.faults import FOREVER
from tests.registries.scripted import ScriptedRegistry
from tests.support.tool import MirrorTool

CONFLICT = ("conflict", "target_conflict")


@pytest.fixture
def both(scripted: ScriptedFactory, mirror_run: MirrorTool) -> tuple[ScriptedRegistry, ScriptedRegistry]:
    """Make team/* and other/app both able to write m/app; nothing else conflicts."""
    source, target = scripted("source"), scripted("target")
    for name in ("team/app", "team/web", "other/app", "alone"):
        loaded(source, "v1", repository=name)
    configure(mirror_run, source, target)
    return source, target


def configure(tool: MirrorTool, source: ScriptedRegistry, target: ScriptedRegistry, tags: Any = ()) -> None:
    """Write the configuration. tags: rules of the first mirrors."""
    targets = {"team/*": "m/{repository}", "other/app": "m/app", "alone": "n/alone"}
    mirrors: list[dict[str, Any]] = [
        {"source": f"{source.host}/{name}", "targets": [f"{target.host}/{path}"]} for name, path in targets.items()
    ]
    for mirror, rules in zip(mirrors, tags, strict=False):
        mirror["tags"] = rules
    tool.config(mirrors, source, target)


def outcomes(tool: MirrorTool, source: ScriptedRegistry) -> dict[str, tuple[str, str]]:
    """Return source -> result and error code of the last run."""
    images = tool.report()["images"]
    return {
        image["source"].removeprefix(f"{source.host}/"): (image["result"], image.get("error", {}).get("code", ""))
        for image in images
    }


def written(target: ScriptedRegistry) -> set[str]:
    return {name for name, repository in target.storage.repositories.items() if repository.tags}


def test_a_tag_that_two_mirrors_would_write_is_written_by_neither(
    both: tuple[ScriptedRegistry, ScriptedRegistry], mirror_run: MirrorTool
) -> None:
    source, target = both
    ran = mirror_run.sync(expect=3)
    assert f"would write the same tags in {target.host}/m/app" in ran.text
    assert {
        "team/app": CONFLICT,
        "other/app": CONFLICT,
        "team/web:v1": ("copied", ""),
        "alone:v1": ("copied", ""),
    } == outcomes(mirror_run, source)
    assert {"m/web", "n/alone"} == written(target)
    assert 1 == source.counts()["GET catalog"], "what shows the conflict is read in any case"
    assert [] == mirror_run.failed()
    assert [3, 3] == [mirror_run(word, mirror_run.config_file).code for word in ("plan", "verify")]
    loaded(source, "v2", repository="other/app")
    configure(mirror_run, source, target, tags=[{"exclude": ["v2"]}, ["v2"]])  # different tags may share a repository
    mirror_run.sync()
    assert ["v1", "v2"] == target.tags("m/app")


def test_a_partial_run_detects_a_conflict_with_an_image_outside_of_it(
    both: tuple[ScriptedRegistry, ScriptedRegistry], mirror_run: MirrorTool
) -> None:
    source, target = both
    for name in ("team/app", "other/app"):
        mirror_run.sync("--only", f"{source.host}/{name}", expect=3)
        assert {name: CONFLICT} == outcomes(mirror_run, source)
    codes = [mirror_run("sync", mirror_run.config_file, "--shard", f"{number}/3").code for number in range(3)]
    assert 3 in codes
    assert {"m/web", "n/alone"} == written(target)


def test_a_conflict_of_two_catalogs_does_not_depend_on_the_order_of_responses(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    one, two, target = scripted("one"), scripted("two"), scripted("target")
    loaded(one, "v1", repository="a/y/app")
    loaded(two, "v1", repository="b/app")
    targets = {f"{one.host}/a/*": "x/{repository}", f"{two.host}/b/*": "x/y/{repository}"}
    mirrors = [{"source": source, "targets": [f"{target.host}/{path}"]} for source, path in targets.items()]
    mirror_run.config(mirrors, one, two, target)
    for slow in (one, two):
        slow.fault("GET catalog", delay=0.3)
        mirror_run.sync(expect=3)
        assert [CONFLICT] * 2 == [(image["result"], image["error"]["code"]) for image in mirror_run.report()["images"]]
    assert [] == target.writes()


def test_a_wildcard_may_conflict_with_itself_and_keeps_its_other_targets(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    for name in ("a", "x/a"):
        loaded(source, "v1", repository=f"team/{name}")
    targets = [f"{target.host}/{path}/{{repository}}" for path in ("m", "m/x")]
    mirror_run.config([{"source": f"{source.host}/team/*", "targets": targets}], source, target)
    mirror_run.sync(expect=3)
    assert {"m/a", "m/x/x/a"} == written(target)


def test_an_unreadable_catalog_fails_only_its_own_mirror(
    both: tuple[ScriptedRegistry, ScriptedRegistry], mirror_run: MirrorTool
) -> None:
    source, target = both
    source.fault("GET catalog", status=403, times=FOREVER)
    mirror_run.sync(expect=1)
    assert {"m/app", "n/alone"} == written(target)
