"""Exports and imports in a layout, and registries served from one, by the tool as users run it."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mirror.layout.inventory import REF_NAME
from tests.conftest import RegistryFactory
from tests.end_to_end.conftest import NAMES
from tests.end_to_end.test_kill import IMAGES, KILLS, Killer, killed_after
from tests.registries.client import sha256
from tests.registries.real import RealRegistry
from tests.registries.wires import Front
from tests.support.images import Graph
from tests.support.layouts import Served, lay
from tests.support.oracle import assert_equal, assert_whole, skopeo
from tests.support.seeding import Seeded, push, seed
from tests.support.tool import MirrorTool, Ran


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return tmp_path / "media" / "layout"


class Sides:
    """The two sides of a transfer. Each has its own configuration and state."""

    def __init__(self, tool: MirrorTool, layout: Path) -> None:
        self.tool, self.layout = tool, layout

    def export(self, source: Any, *names: str, expect: int = 0, to: str = "", **keys: Any) -> Ran:
        to = to or f"oci:{self.layout}"
        mirrors = [{"source": f"{source.host}/{name}", "targets": [to], **keys} for name in names or NAMES]
        self.tool.config(mirrors, source)
        return self.tool.sync(expect=expect)

    def arrive(self, target: Any, *, expect: int = 0, source: str = "", **keys: Any) -> Ran:
        """Import the layout. A connection to any host but the target is recorded and fails."""
        mirrors = [{"source": source or f"oci:{self.layout}:*", "targets": [f"{target.host}/{{repository}}"], **keys}]
        folder = self.tool.folder.parent
        config = self.tool.config(mirrors, target, file=folder / "import.yaml", state=str(folder / "far-state"))
        ran = self.tool("sync", config, environment={"MIRROR_TESTS_ONLY": target.host})
        assert expect == ran.code, str(ran)
        return ran


@pytest.fixture
def sides(mirror_run: MirrorTool, layout: Path) -> Sides:
    return Sides(mirror_run, layout)


def named(layout: Path) -> dict[str, str]:
    entries = json.loads((layout / "index.json").read_text())["manifests"]
    return {entry["annotations"][REF_NAME]: entry["digest"] for entry in entries}


def blobs_of(layout: Path) -> set[str]:
    return {f"sha256:{path.name}" for path in (layout / "blobs" / "sha256").glob("*")}


def assert_sound(layout: Path) -> None:
    """Check that each file has the digest in its name, and that nothing the index refers to is missing. Uses no code of
    the tool."""
    assert {"blobs", "index.json", "oci-layout"} == {path.name for path in layout.iterdir()}
    for path in (layout / "blobs" / "sha256").iterdir():
        assert path.name == sha256(path.read_bytes())[7:]
    todo = [entry["digest"] for entry in json.loads((layout / "index.json").read_text())["manifests"]]
    while todo:
        document = json.loads((layout / "blobs" / todo.pop().replace(":", "/")).read_bytes())
        todo += [child["digest"] for child in document.get("manifests", [])]
        for blob in (*document.get("layers", []), *([document["config"]] if "config" in document else [])):
            assert blob["size"] == (layout / "blobs" / blob["digest"].replace(":", "/")).stat().st_size


# ---- the whole way


def test_everything_is_imported_without_the_source(
    sides: Sides, stocked: RealRegistry, target: RealRegistry, graphs: dict[str, Graph], layout: Path
) -> None:
    sides.export(stocked)
    assert {f"{name}:{tag}": graphs[name].tags[tag] for name in NAMES for tag in graphs[name].tags} == named(layout)
    assert_sound(layout)
    every = {digest for graph in graphs.values() for digest in graph.blobs}
    assert len(every) == stocked.counts()["GET blob"], "each blob is read once, whoever has it"
    assert 0 == sides.tool("bundle", "verify", layout).code
    stocked.stop()
    sides.arrive(target)
    stocked.start()
    for name in NAMES:
        assert_equal(stocked, name, target)
        raw = skopeo("inspect", "--raw", f"oci:{layout}:{name}:v1")
        assert graphs[name].tags["v1"] == sha256(raw.encode())
    stocked.mark()
    target.mark()
    assert 1 == len(sides.arrive(target).out.splitlines())
    assert [] == stocked.requests()
    assert [] == [seen for seen in target.requests() if seen.method not in ("GET", "HEAD")]


def test_an_unchanged_export_writes_nothing(sides: Sides, stocked: RealRegistry, layout: Path) -> None:
    sides.export(stocked)
    before = {path: path.stat().st_mtime_ns for path in (layout, *layout.rglob("*"))}
    stocked.mark()
    assert 1 == len(sides.export(stocked).out.splitlines())
    assert before == {path: path.stat().st_mtime_ns for path in (layout, *layout.rglob("*"))}
    assert {"GET tags", "HEAD manifest"} >= set(stocked.counts())


def test_a_changed_export_adds_only_new_content(
    sides: Sides, stocked: RealRegistry, graphs: dict[str, Graph], layout: Path
) -> None:
    sides.export(stocked)
    old = blobs_of(layout)
    more = Graph("more")
    more.image("v1", "v9")
    push(stocked, "app", more)
    stocked.mark()
    sides.export(stocked)
    assert more.tags["v1"] == named(layout)["app:v1"] == named(layout)["app:v9"]
    assert len(more.blobs) == stocked.counts()["GET blob"]
    assert blobs_of(layout) - old == {*more.blobs, *more.manifests}
    assert_sound(layout)


def test_a_new_state_reads_no_blob_again(sides: Sides, stocked: RealRegistry, layout: Path) -> None:
    sides.export(stocked)
    shutil.rmtree(sides.tool.state)
    (layout / "index.json").write_text('{"schemaVersion":2,"manifests":[]}')
    stocked.mark()
    sides.export(stocked)
    assert 0 == stocked.counts()["GET blob"]
    assert_sound(layout)


def test_repositories_are_renamed_during_export_and_import(
    sides: Sides, stocked: RealRegistry, target: RealRegistry, graphs: dict[str, Graph], layout: Path
) -> None:
    mirrors = [
        {"source": f"{stocked.host}/team/*", "targets": [f"oci:{layout}:export/{{repository}}"]},
        {"source": f"{stocked.host}/app:v2", "targets": [f"oci:{layout}:one"]},
    ]
    sides.tool.config(mirrors, stocked)
    sides.tool.sync()
    assert {"export/web", "export/tools", "one"} == {name.rpartition(":")[0] for name in named(layout)}
    sides.arrive(target, source=f"oci:{layout}:export/*")
    assert {"web", "tools"} == {name for name, _ in assert_whole(target).tags}


def test_shared_blobs_are_read_once_for_a_wildcard_too(
    sides: Sides, stocked: RealRegistry, graphs: dict[str, Graph], layout: Path
) -> None:
    sides.tool.config([{"source": f"{stocked.host}/team/*", "targets": [f"oci:{layout}:{{repository}}"]}], stocked)
    sides.tool.sync()
    every = {digest for name in ("team/web", "team/tools") for digest in graphs[name].blobs}
    assert len(every) == stocked.counts()["GET blob"]
    stocked.mark()
    sides.tool.config([{"source": f"{stocked.host}/*", "targets": [f"oci:{layout}:all/{{repository}}"]}], stocked)
    sides.tool.sync()
    assert graphs["app"].blobs.keys() - every == {
        seen.reference for seen in stocked.requests() if seen.kind == "GET blob"
    }, "what the layout has of another repository, since an earlier run, is not read again"
    assert_sound(layout)


def test_a_layout_written_by_another_tool_is_imported(
    sides: Sides, stocked: RealRegistry, target: RealRegistry, graphs: dict[str, Graph], layout: Path
) -> None:
    layout.parent.mkdir()
    skopeo("copy", "--all", "--src-tls-verify=false", f"docker://{stocked.host}/app:v1", f"oci:{layout}:v1")
    sides.tool.config([{"source": f"oci:{layout}", "targets": [f"{target.host}/in/app"]}], target)
    sides.tool.sync()
    assert {("in/app", "v1"): graphs["app"].tags["v1"]} == assert_whole(target).tags
    assert [f"oci:{layout}:v1"] == [image["source"] for image in sides.tool.report()["images"]]


@pytest.mark.parametrize("packed", [False, True], ids=["layout", "bundle"])
@pytest.mark.parametrize("name", ["v1", "../../app:v1", "host:5000/app:v1", None])
def test_a_layout_without_repository_names_fails_a_wildcard(
    mirror_run: MirrorTool, graphs: dict[str, Graph], tmp_path: Path, name: str | None, packed: bool
) -> None:
    layout = lay(tmp_path / "foreign", app=graphs["app"])
    index = json.loads((layout / "index.json").read_text())
    index["manifests"] = index["manifests"][:1]
    index["manifests"][0]["annotations"] = {REF_NAME: name} if name is not None else {}
    (layout / "index.json").write_text(json.dumps(index))
    source = f"oci:{layout}"
    if packed:
        source = f"{layout}.tar"
        subprocess.run(["tar", "-cf", source, "-C", layout, "oci-layout", "index.json", "blobs"], check=True)
    mirror_run.config([{"source": f"{source}:*", "targets": [f"oci:{tmp_path}/out:{{repository}}"]}])
    ran = mirror_run.sync(expect=3)
    said = "invalid name" if name and name.startswith("..") else "names no repository"
    assert said in ran.out


def test_verify_checks_a_layout(sides: Sides, stocked: RealRegistry, graphs: dict[str, Graph], layout: Path) -> None:
    sides.export(stocked)
    assert 0 == sides.tool("verify", sides.tool.config_file, "--deep").code
    for named in (layout, f"oci:{layout}"):  # as a path, or as configurations write it
        assert 0 == sides.tool("bundle", "verify", named).code
    digest = next(digest for digest, data in graphs["app"].blobs.items() if len(data) > 10_000)
    file = layout / "blobs" / digest.replace(":", "/")
    file.write_bytes(b"?" * file.stat().st_size)
    assert 3 == sides.tool("verify", sides.tool.config_file, "--deep").code


# ---- what is wrong with a layout


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Graph], None]:
    def spoil(layout: Path, graph: Graph) -> None:
        document = json.loads((layout / "index.json").read_text())
        change(document)
        (layout / "index.json").write_text(json.dumps(document))

    return spoil


def _file(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def _largest(graph: Graph) -> str:
    return max(graph.blobs, key=lambda digest: len(graph.blobs[digest]))


def _linked(layout: Path, graph: Graph) -> None:
    kept = _file(layout, _largest(graph)).rename(layout.parent / "outside")
    _file(layout, _largest(graph)).symlink_to(kept)


def _fifo(layout: Path, graph: Graph) -> None:
    _file(layout, _largest(graph)).unlink()
    os.mkfifo(_file(layout, _largest(graph)))


def _twice(document: dict[str, Any]) -> None:
    entries = document["manifests"]
    entries.append({**entries[1], "annotations": entries[0]["annotations"]})


def _emptied(layout: Path, graph: Graph) -> None:
    shutil.rmtree(layout)
    layout.mkdir()


HOSTILE: dict[str, tuple[Callable[[Path, Graph], object], str]] = {
    "no-version": (lambda layout, graph: (layout / "oci-layout").unlink(), "bundle_invalid"),
    "no-index": (lambda layout, graph: (layout / "index.json").unlink(), "bundle_invalid"),
    "empty": (_emptied, "bundle_invalid"),
    "name-twice": (_edit(_twice), "bundle_invalid"),
    "name-hostile": (
        _edit(lambda document: document["manifests"][0]["annotations"].update({REF_NAME: "../../x"})),
        "ref_invalid",
    ),
    "blob-missing": (lambda layout, graph: _file(layout, _largest(graph)).unlink(), "bundle_incomplete"),
    "blob-other": (
        lambda layout, graph: _file(layout, _largest(graph)).write_bytes(bytes(len(graph.blobs[_largest(graph)]))),
        "digest_mismatch",
    ),
    "blob-short": (lambda layout, graph: os.truncate(_file(layout, _largest(graph)), 5), "size_mismatch"),
    "blob-link": (_linked, "unsafe_path"),
    "manifest-missing": (lambda layout, graph: _file(layout, graph.tags["bad"]).unlink(), "bundle_incomplete"),
    "manifest-other": (
        lambda layout, graph: _file(layout, graph.tags["bad"]).write_bytes(
            graph.manifests[graph.tags["bad"]].data.replace(b"size", b"sizE")
        ),
        "digest_mismatch",
    ),
    "index-is-a-link": (
        lambda layout, graph: (layout / "index.json").symlink_to((layout / "index.json").rename(layout / "kept")),
        "unsafe_path",
    ),
    "fifo": (_fifo, "unsafe_path"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_damaged_layout_is_refused_and_no_tag_is_written(
    sides: Sides, scripted: Any, layout: Path, case: str
) -> None:
    spoil, code = HOSTILE[case]
    target = scripted()
    graph = Graph("bad")
    graph.image("bad", layers=[graph.layer("large", 50_000)])
    other = Graph("good")
    other.image("good")
    lay(layout, app=graph)
    lay(layout, app=other)
    spoil(layout, graph)
    ran = sides.arrive(target, source=f"oci:{layout}:*", expect=3)
    assert "bad" not in target.tags("app"), str(ran)
    report = json.loads(next((sides.tool.folder.parent / "far-state").rglob("report.json")).read_text())
    codes = {image["error"]["code"] for image in report["images"] if image["result"] == "failed"}
    assert {code} == codes, str(ran)
    if case not in ("no-version", "no-index", "empty", "index-is-a-link"):
        assert ["good"] == [tag for tag in target.tags("app") if tag == "good"], "the rest is done"


def test_a_blob_missing_in_the_layout_may_exist_on_the_target(
    sides: Sides, target: RealRegistry, graphs: dict[str, Graph], layout: Path
) -> None:
    graph = graphs["app"]
    push(target, "app", graph)
    lay(layout, app=graph)
    with target.client() as client:
        other = Graph("other")
        client.put_manifest("app", "v1", *_plain(other, client))
    digest = graph.blobs.keys() - other.blobs.keys()
    _file(layout, next(iter(digest))).unlink()
    sides.arrive(target, source=f"oci:{layout}:*")
    assert graph.tags["v1"] == assert_whole(target).tags["app", "v1"]


def _plain(graph: Graph, client: Any) -> tuple[bytes, str]:
    made = graph.image("v1")
    for data in graph.blobs.values():
        client.put_blob("app", data)
    return graph.manifests[made.digest].data, made.media_type


# ---- what is in the way of an export


def test_a_target_directory_with_other_files_is_not_changed(sides: Sides, stocked: RealRegistry, layout: Path) -> None:
    layout.mkdir(parents=True)
    (layout / "thesis.txt").write_text("years of work")
    ran = sides.export(stocked, expect=4)
    assert "not a layout" in ran.text
    assert ["thesis.txt"] == [path.name for path in layout.iterdir()]
    assert 0 == stocked.counts()["GET blob"]


def test_a_second_export_into_a_layout_gets_lock_busy(sides: Sides, stocked: RealRegistry, layout: Path) -> None:
    sides.export(stocked, "app")
    descriptor = os.open(layout, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        ran = sides.export(stocked, expect=75)
    finally:
        os.close(descriptor)
    assert "another run is writing" in ran.text
    sides.export(stocked)


@pytest.mark.parametrize("spelling", ["layout", "./layout", "x/../layout", "link"])
def test_two_spellings_of_a_directory_are_one_store(mirror_run: MirrorTool, spelling: str) -> None:
    folder = mirror_run.folder
    (folder / "layout").mkdir()
    (folder / "x").mkdir()
    (folder / "link").symlink_to("layout")
    mirror_run.config([{"source": "oci:layout:app", "targets": [f"oci:{spelling}:app"]}])
    assert "would mirror onto itself" in mirror_run.sync(expect=2).err
    two = [
        {"source": f"localhost/{name}", "targets": [to]}
        for name, to in (("a", "oci:layout:x"), ("b", f"oci:{spelling}:x"))
    ]
    mirror_run.config(two)
    assert "may both write" in mirror_run.sync(expect=2).err


def test_a_layout_is_copied_to_another_and_within_itself(
    sides: Sides, graphs: dict[str, Graph], layout: Path, tmp_path: Path
) -> None:
    lay(layout, app=graphs["app"])
    mirrors = [{"source": f"oci:{layout}:app", "targets": [f"oci:{layout}:copy", f"oci:{tmp_path / 'second'}:app"]}]
    sides.tool.config(mirrors)
    sides.tool.sync()
    assert {f"{name}:{tag}" for name in ("app", "copy") for tag in graphs["app"].tags} == set(named(layout))
    for made in (layout, tmp_path / "second"):
        assert_sound(made)


# ---- killed at any moment


@dataclass(frozen=True, slots=True)
class Setting:
    source: RealRegistry
    seeded: Seeded
    seconds: float


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    root = tmp_path_factory.mktemp("layouts")
    with ExitStack() as stack:
        source = stack.enter_context(RealRegistry(root, "source"))
        tool = stack.enter_context(MirrorTool(root / "mirror"))
        seeded = seed(source, "team/app", repositories=3, images=IMAGES, layer_size=60_000, index=True)
        mirrors = [{"source": f"{source.host}/team/*", "targets": [f"oci:{root / 'layout'}:team/{{repository}}"]}]
        tool.config(mirrors, source)
        yield Setting(source, seeded, tool.sync().seconds)


def moments() -> list[tuple[str, float]]:
    chance = random.Random("layout")
    drawn = [(chance.choice(("request", "time")), chance.random()) for _ in range(23)]
    return [("request", 0.5), ("time", 0.7), *drawn][:KILLS]


@pytest.mark.parametrize(("by", "place"), moments(), ids=lambda value: str(value)[:5])
def test_a_killed_export_leaves_a_consistent_layout_and_resumes(
    by: str, place: float, setting: Setting, mirror_run: MirrorTool, layout: Path
) -> None:
    setting.source.mark()
    with Front(setting.source.port) as front:
        mirrors = [{"source": f"{front.host}/team/*", "targets": [f"oci:{layout}:team/{{repository}}"]}]
        config = mirror_run.config(mirrors, registries={front.host: {"plain-http": True}})
        if by == "time":
            process = mirror_run.start("sync", config)
            killed_after(setting.seconds * place, process)
        else:
            killer = Killer(front, "GET blob", 1 + int(place * (len(setting.seeded.blobs) - 1)), after=False)
            process = mirror_run.start("sync", config)
            killer.aim(process)
        killed = mirror_run.finish(process)
        if by == "request":
            assert -signal.SIGKILL == killed.code
        front.hook = front.alter = None
        assert front.journal.wait_idle()
        if (layout / "index.json").exists():
            for path in layout.glob(".*.tmp"):
                path.unlink()  # requests of the next run
            assert_sound(layout)
        kept = blobs_of(layout)
        setting.source.mark()
        mirror_run.sync()
    fetched = {seen.reference for seen in setting.source.requests() if seen.kind == "GET blob"}
    assert set() == kept & fetched
    assert {f"{name}:{tag}": digest for (name, tag), digest in setting.seeded.tags.items()} == named(layout)
    assert_sound(layout)


# ---- mirror serve


@pytest.mark.parametrize("form", ["layout", "bundle"])
def test_sync_reads_from_mirror_serve(
    mirror_run: MirrorTool,
    target: RealRegistry,
    graphs: dict[str, Graph],
    stocked: RealRegistry,
    tmp_path: Path,
    form: str,
) -> None:
    path = tmp_path / ("out" if form == "layout" else "out.tar")
    to = f"oci:{path}" if form == "layout" else str(path)
    mirror_run.config([{"source": f"{stocked.host}/{name}", "targets": [to]} for name in NAMES], stocked)
    mirror_run.sync()
    with Served(path) as served:
        mirrors = [{"source": f"{served.host}/*", "targets": [f"{target.host}/{{repository}}"]}]
        config = mirror_run.config(
            mirrors, served, target, file=tmp_path / "second.yaml", state=str(tmp_path / "second")
        )
        ran = mirror_run("sync", config)
        assert 0 == ran.code, str(ran)
    for name in NAMES:
        assert_equal(stocked, name, target)


def test_sync_writes_to_mirror_serve(
    mirror_run: MirrorTool, stocked: RealRegistry, graphs: dict[str, Graph], layout: Path
) -> None:
    with Served(layout, writable=True) as served:
        mirrors = [{"source": f"{stocked.host}/{name}", "targets": [f"{served.host}/{name}"]} for name in NAMES]
        mirror_run.config(mirrors, stocked, served)
        mirror_run.sync()
        for name in NAMES:
            assert_equal(stocked, name, served)
        assert mirror_run.report()["totals"]["blobs"]["mounted"] >= 1
        assert 1 == len(mirror_run.sync().out.splitlines())
    assert_sound(layout)


def test_a_read_only_server_refuses_pushes_with_a_message(
    mirror_run: MirrorTool, stocked: RealRegistry, graphs: dict[str, Graph], layout: Path
) -> None:
    lay(layout, app=graphs["app"])
    before = sorted(path for path in layout.rglob("*"))
    with Served(layout) as served:
        to = f"docker://{served.host}/new:v1"
        with pytest.raises(AssertionError, match="unsupported: this registry is read-only"):
            skopeo("copy", "--src-tls-verify=false", "--dest-tls-verify=false", f"docker://{stocked.host}/app:v1", to)
        mirror_run.config([{"source": f"{stocked.host}/team/web", "targets": [f"{served.host}/new"]}], stocked, served)
        ran = mirror_run.sync(expect=1)
        assert "read-only" in ran.text
        assert {"failed"} == set(mirror_run.results().values())
        errors = [image["error"] for image in mirror_run.report()["images"]]
        assert {(405, False)} == {(error["status"], error["retryable"]) for error in errors}
    assert before == sorted(path for path in layout.rglob("*"))


def test_a_layout_of_a_configuration_may_have_any_path(
    mirror_run: MirrorTool, registry_factory: RegistryFactory, tmp_path: Path
) -> None:
    source = registry_factory()
    graph = Graph("path")
    graph.image("v1")
    push(source, "app", graph)
    folder = tmp_path / "mit Leerzeichen\nund ümläut"
    folder.mkdir()
    config = mirror_run.config(
        [{"source": f"{source.host}/app", "targets": ["oci:exports/layout"]}], source, file=folder / "mirror.yaml"
    )
    ran = mirror_run("sync", config)
    assert 0 == ran.code, str(ran)
    assert_sound(folder / "exports" / "layout")
