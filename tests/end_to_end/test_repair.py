"""`sync --repair`: damaged content on a target is uploaded again, and nothing counts as intact unless it was read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import RegistryFactory, ScriptedFactory
from tests.end_to_end.worlds import loaded, pair
from tests.registries.faults import FOREVER
from tests.registries.real import RealRegistry
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph
from tests.support.oracle import assert_whole
from tests.support.seeding import push
from tests.support.tool import MirrorTool, Ran


def to_delete(ran: Ran) -> list[str]:
    """Return the files below the storage of a docker-registry that the messages of a run name."""
    return sorted(set(re.findall(r"docker/registry/v2/blobs/\w+/\w\w/\w+/data", ran.text)))


def damaged(registry: ScriptedRegistry, digest: str, *, size: int | None = None) -> None:
    """Return damaged bytes: with another last byte, or only the first bytes."""
    data = registry.storage.bytes[digest]
    registry.storage.bytes[digest] = data[:-1] + bytes([data[-1] ^ 1]) if size is None else data[:size]


def test_content_that_a_registry_does_not_replace_is_reported_with_the_file_to_delete(
    source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    graph = Graph("repair")
    roots = [graph.platforms(f"v{number}").digest for number in range(5)]
    for registry in (source, target):
        push(registry, "app", graph)
    blobs, children = list(graph.blobs), [digest for digest in graph.manifests if digest not in roots]
    target.flip_byte(blobs[0], 2000)
    target.truncate_blob(blobs[4])
    target.flip_byte(children[-1], 3)
    target.flip_byte(roots[3], 3)
    damage = [blobs[0], blobs[4], children[-1], roots[3]]
    pair(mirror_run, source, target)
    assert 3 == mirror_run("verify", mirror_run.config_file, "--deep").code
    ran = mirror_run.sync("--repair", "-v", expect=3)
    files = to_delete(ran)
    assert sorted(str(target.blob_file(digest).relative_to(target.storage)) for digest in damage) == files
    for file in files:
        (target.storage / file).unlink()
    mirror_run.sync("--repair")
    assert_whole(target)
    assert 0 == mirror_run("verify", mirror_run.config_file, "--deep").code
    target.mark()
    mirror_run.sync("--repair")
    assert [] == target.writes()


def test_a_damaged_blob_is_uploaded_again_and_not_mounted(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("shared")
    layer = graph.layer("base")
    image = graph.image("v1", layers=[layer])
    for name in ("one", "two", "three"):
        source.load(name, graph)
        target.load(name, graph)
    target.storage.repositories["three"].blobs.discard(layer.digest)
    damaged(target, layer.digest)
    pair(mirror_run, source, target, "one", "two", "three")
    assert 3 == mirror_run("verify", mirror_run.config_file, "--deep").code
    mirror_run.sync("--deep", expect=(0, 3))  # a sync without --repair does not read the target's blobs
    mirror_run.sync("--repair")
    assert graph.blobs[layer.digest] == target.storage.bytes[layer.digest]
    assert_whole(target, ["one", "two", "three"])
    assert image.digest == target.storage.repositories["three"].tags["v1"]
    target.mark()
    mirror_run.sync("--repair")
    assert [] == target.writes()


def test_sync_deep_reports_how_to_repair_a_blob_of_a_wrong_size(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    for registry in (source, target):
        graph = loaded(registry, "v1")
    damaged(target, next(iter(graph.blobs)), size=10)
    pair(mirror_run, source, target)
    for ran in (mirror_run("verify", mirror_run.config_file), mirror_run.sync("--deep", expect=3)):
        assert (3, True) == (ran.code, f"`mirror sync --repair {mirror_run.config_file}`" in ran.out)
    mirror_run.sync("--repair")
    assert_whole(target, ["app"])


@pytest.mark.parametrize("what", ["blob", "child", "root"])
def test_a_registry_that_confirms_a_write_without_doing_it_is_detected(
    what: str, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    for registry in (source, target):
        graph = loaded(registry, "v1")
    root = graph.tags["v1"]
    child = next(digest for digest in graph.manifests if digest != root)
    if what == "blob":
        damaged(target, next(iter(graph.blobs)))
        target.fault("PUT upload", status=201, times=9)
    else:
        digest = {"child": child, "root": root}[what]
        body = graph.manifests[digest]
        wrong = type(body)(body.media_type, body.data.replace(b"schemaVersion", b"schemaversion"))
        target.storage.repositories["app"].manifests[digest] = wrong
        target.fault("PUT manifest", status=201, times=9)
    pair(mirror_run, source, target)
    ran = mirror_run.sync("--repair", expect=3)
    assert "but still serves a damaged copy" in ran.out
    target.faults.clear()
    mirror_run.sync("--repair")
    assert_whole(target, ["app"])


@pytest.mark.parametrize(("what", "options"), [("root", ()), ("child", ("--deep",)), ("root", ("--deep",))])
def test_a_manifest_still_damaged_after_its_push_is_not_reported_as_copied(
    what: str, options: tuple[str, ...], source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    graph = Graph("broken")
    root = graph.platforms("v1").digest
    for registry in (source, target):
        push(registry, "app", graph)
    target.flip_byte(root if what == "root" else next(iter(graph.manifests)), 3)
    pair(mirror_run, source, target)
    for _ in range(2):
        ran = mirror_run.sync(*options, expect=3)
        assert f"`mirror sync --repair {mirror_run.config_file}`" in ran.out


@pytest.mark.parametrize("kind", ["layout", "bundle"])
def test_damaged_content_of_a_layout_or_bundle_is_written_again(
    kind: str, scripted: ScriptedFactory, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    source = scripted("source")
    graph = loaded(source, "v1", "v2")
    place = tmp_path / ("layout" if kind == "layout" else "images.tar")
    location = f"oci:{place}:app" if kind == "layout" else f"{place}:app"
    mirror_run.config([{"source": f"{source.host}/app", "targets": [location]}], source)
    mirror_run.sync()
    root = graph.tags["v1"]
    child = next(digest for digest in graph.manifests if digest not in graph.tags.values())
    for part in (next(iter(graph.blobs)), child, root):
        if kind == "layout":
            file = place / "blobs" / part.replace(":", "/")
            file.write_bytes(b"?" * file.stat().st_size)
        else:
            data = graph.blobs[part] if part in graph.blobs else graph.manifests[part].data
            place.write_bytes(place.read_bytes().replace(data, b"?" * len(data)))
    ran = mirror_run("verify", mirror_run.config_file, "--deep")
    assert (3, True) == (ran.code, f"`mirror sync --repair {mirror_run.config_file}`" in ran.out)
    mirror_run.sync("--repair")
    assert 0 == mirror_run("verify", mirror_run.config_file, "--deep").code
    assert 0 == mirror_run("bundle", "verify", place).code


def test_a_manifest_file_of_a_layout_that_has_grown_too_large_is_written_again(
    scripted: ScriptedFactory, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    source = scripted("source")
    graph = loaded(source, "v1")
    mirror_run.config([{"source": f"{source.host}/app", "targets": [f"oci:{tmp_path}/layout"]}], source)
    mirror_run.sync()
    for digest, manifest in graph.manifests.items():
        file = tmp_path / "layout/blobs" / digest.replace(":", "/")
        file.write_bytes(b" " * ((8 << 20) + 1))
        mirror_run.sync("--repair")
        assert manifest.data == file.read_bytes()


def test_a_changed_export_fetches_a_blob_again_that_is_damaged_in_the_old_bundle(
    scripted: ScriptedFactory, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    source = scripted("source")
    graph = loaded(source, "v1")
    bundle = tmp_path / "images.tar"
    mirror_run.config([{"source": f"{source.host}/app", "targets": [f"{bundle}:app"]}], source)
    mirror_run.sync()
    data = next(iter(graph.blobs.values()))
    bundle.write_bytes(bundle.read_bytes().replace(data, b"?" * len(data)))
    graph.platforms("v2")
    source.load("app", graph)
    mirror_run.sync()
    assert 0 == mirror_run("bundle", "verify", bundle).code


def test_a_blob_whose_response_is_always_truncated_is_damaged(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    for registry in (source, target):
        graph = loaded(registry, "v1")
    blob = next(iter(graph.blobs))
    target.fault("GET blob", reference=blob, cut_after=10, times=FOREVER)
    pair(mirror_run, source, target)
    ran = mirror_run("verify", mirror_run.config_file, "--deep")
    assert f"`mirror sync --repair {mirror_run.config_file}`" in ran.out
    ran = mirror_run.sync("--repair", expect=3)
    assert f"accepted the upload of {blob} but still serves a damaged copy (ends early, after 10 of " in ran.text
    assert to_delete(ran)
    size = len(graph.blobs[blob])
    (line,) = [line for line in mirror_run.log() if line["event"] == "blob" and line["outcome"] == "failed"]
    assert (size, size) == (line["bytes_read"], line["bytes_sent"]), "what was sent in vain is counted"
    assert {"read": size, "sent": size, "mounted": 0} == mirror_run.report()["totals"]["bytes"]
    target.faults.clear()
    mirror_run.sync("--repair")


def test_a_manifest_whose_response_is_always_truncated_is_damaged(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    for registry in (source, target):
        graph = loaded(registry, "v1")
    child = next(digest for digest in graph.manifests if digest != graph.tags["v1"])
    target.fault("GET manifest", reference=child, cut_after=10, times=FOREVER)
    pair(mirror_run, source, target)
    ran = mirror_run.sync("--repair", expect=3)
    assert [child.partition(":")[2]] == [file.split("/")[-2] for file in to_delete(ran)]
    assert 1 == len([request for request in target.writes() if request.path.endswith(child)])


def test_a_registry_that_caches_the_size_of_a_truncated_file_is_repaired_by_following_the_hint(
    registry_factory: RegistryFactory, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    target = registry_factory("caching", settings={"storage": {"cache": {"blobdescriptor": "inmemory"}}})
    source = scripted("source")
    graph = loaded(source, "v1")
    pair(mirror_run, source, target)
    mirror_run.sync()
    gone, cut = list(graph.blobs)[:2]
    target.blob_file(gone).unlink()
    target.truncate_blob(cut)
    ran = mirror_run.sync("--repair", expect=3)
    (file,) = to_delete(ran)
    assert target.blob_file(cut) == target.storage / file
    (target.storage / file).unlink()
    target.restart()
    mirror_run.sync("--repair")
    assert_whole(target)


def test_content_that_a_host_did_not_replace_is_not_uploaded_again(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    names = [f"app-{number}" for number in range(5)]
    graph = Graph("shared")
    layer = graph.layer("base")
    for number in range(3):
        graph.image(f"v{number}", layers=[layer], label=f"{number}")
    for registry in (source, target):
        for name in names:
            registry.load(name, graph)
    damaged(target, layer.digest)
    target.fault("PUT upload", status=201, times=FOREVER)
    pair(mirror_run, source, target, *names)
    ran = mirror_run.sync("--repair", expect=3)
    assert 15 == sum(one == "failed" for one in mirror_run.results().values()), ran
    assert 1 == len([request for request in target.writes() if request.method == "PUT"])
    size = len(graph.blobs[layer.digest])
    lines = [line for line in mirror_run.log() if line["event"] == "blob"]
    totals = mirror_run.report()["totals"]["bytes"]
    assert size == totals["sent"]
    sums = tuple(sum(line[key] for line in lines) for key in ("bytes_read", "bytes_sent"))
    assert (totals["read"], totals["sent"]) == sums


@pytest.mark.parametrize("kind", ["layout", "layout without state", "registry"])
def test_an_immutable_tag_with_a_damaged_manifest_gets_only_its_former_image_back(
    kind: str, scripted: ScriptedFactory, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    source, target = scripted("source"), scripted("target")
    root = loaded(source, "v1").tags["v1"]
    layout = tmp_path / "layout"
    copy = f"{target.host}/app" if kind == "registry" else f"oci:{layout}:app"
    mirror = {"source": f"{source.host}/app", "targets": [copy], "tags": {"immutable": ["v.*"]}}
    mirror_run.config([mirror], source, target)
    mirror_run.sync()
    file = layout / "blobs" / root.replace(":", "/")
    if kind == "registry":
        # Before a push: the registry cannot read the manifest that it has.
        target.fault("HEAD manifest", reference="v1", status=500, times=FOREVER)
    else:
        file.write_bytes(file.read_bytes()[:100])
    if kind == "layout without state":
        for path in mirror_run.state.rglob("state.sqlite3*"):
            path.unlink()
    moved = Graph("moved")
    moved.image("v1")
    source.load("app", moved)
    ran = mirror_run.sync("--repair", expect=1 if kind == "registry" else 3)
    assert f"then run `mirror sync {mirror_run.config_file}`" in ran.text
    source.storage.repositories["app"].tags["v1"] = root
    if kind == "layout":
        mirror_run.sync("--deep", expect=3)  # discard the hint that the tag was equal
    mirror_run.sync("--repair")
    assert {"copied"} == set(mirror_run.results().values())
    target.faults.clear()
    assert 0 == mirror_run("verify", mirror_run.config_file, "--deep").code
