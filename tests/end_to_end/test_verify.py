"""The findings of `verify`, and its hints."""

from __future__ import annotations

import pytest

from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import loaded, pair
from tests.registries.faults import FOREVER, unsized
from tests.registries.real import RealRegistry
from tests.support.images import Graph
from tests.support.seeding import push
from tests.support.tool import MirrorTool


def broken(problems: list[tuple[str, str]]) -> list[str]:
    """Return the target tags of problems that `verify` found, without the host."""
    return [target.partition("/")[2] for target, _ in problems]


def test_a_manifest_is_verified_in_the_repository_that_needs_it(
    source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    graph = Graph("shared")
    index = graph.platforms("v1")
    child = next(digest for digest in graph.manifests if digest != index.digest)
    names = [f"app-{number}" for number in range(8)]
    for registry in (source, target):
        for name in names:
            push(registry, name, graph)
    for name in names[::2]:
        target.drop_manifest(name, child)
    pair(mirror_run, source, target, *names)
    ran, problems = mirror_run.verify()
    assert (1, [f"{name}:v1" for name in names[::2]]) == (ran.code, broken(problems))
    assert 4 == sum(f"`mirror sync --deep {mirror_run.config_file}`" in message for _, message in problems)
    mirror_run.sync("--deep")
    assert 0 == mirror_run("verify", mirror_run.config_file).code


@pytest.mark.parametrize("damage", ["missing", "short", "changed"])
def test_every_image_that_shares_a_broken_blob_is_named(
    damage: str, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("shared")
    layer = graph.layer("base")
    for number in range(5):
        graph.image(f"v{number}", layers=[layer], label=f"{number}")
    graph.image("other")
    for registry in (source, target):
        registry.load("app", graph)
    data = graph.blobs[layer.digest]
    if damage == "missing":
        target.storage.repositories["app"].blobs.discard(layer.digest)
    else:
        target.storage.bytes[layer.digest] = data[:-1] if damage == "short" else data[:-1] + b"?"
    pair(mirror_run, source, target)
    ran, problems = mirror_run.verify("--deep")
    assert [f"app:v{number}" for number in range(5)] == broken(problems)
    command = f"`mirror sync --{'deep' if damage == 'missing' else 'repair'} {{}}`"
    assert 5 == sum(command.format(mirror_run.config_file) in message for _, message in problems)
    assert 1 == ran.out.count(command.format(mirror_run.config_file))


def test_a_blob_whose_head_has_no_size_exists(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    for registry in (source, target):
        loaded(registry, "v1")
    target.fault("HEAD blob", after=True, times=FOREVER, change=unsized)
    pair(mirror_run, source, target)
    assert 0 == mirror_run("verify", mirror_run.config_file).code
    mirror_run.sync("--deep")
    assert [] == target.writes()
    digest = next(iter(target.storage.repositories["app"].blobs))
    target.storage.bytes[digest] += b"?"
    ran, problems = mirror_run.verify()
    assert (3, ["app:v1"]) == (ran.code, broken(problems))


def test_a_tag_missing_from_the_listing_of_the_target_is_read_and_compared(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source, "same", "moved", "new")
    loaded(target, "moved")
    pair(mirror_run, source, target)
    mirror_run.sync("--only", f"{source.host}/app:same")
    target.fault("GET tags", status=404, times=FOREVER)
    for deep in ((), ("--deep",)):
        ran, problems = mirror_run.verify(*deep)
        assert (1, ["app:moved", "app:new"]) == (ran.code, broken(problems))
        assert problems[0][1].startswith("the digests differ")
        assert problems[1][1].startswith("the image is not on the target")


def test_verify_deep_prints_the_size_of_all_blobs_that_it_has_hashed(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("sizes")
    graph.image("v1", layers=[graph.layer(f"layer-{number}") for number in range(8)])
    source.load("app", graph)
    target.load("copy", graph)
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/copy"]}
    mirror_run.config([mirror], source, target)
    ran = mirror_run("verify", mirror_run.config_file, "--deep")
    size = sum(map(len, graph.blobs.values())) / 1024
    assert f"verified: 1 image, 9 blobs, {size:.1f} KiB hashed; all complete\n" == ran.out
