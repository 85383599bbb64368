"""Exports in which something cannot be fetched: an old bundle is kept, and a first one lists what it lacks."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import loaded
from tests.registries.faults import FOREVER
from tests.registries.process import eventually
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph
from tests.support.oracle import assert_whole
from tests.support.tool import MirrorTool, Ran
from tests.support.walks import bundle_view


class Export:
    """An export of `app` and all repositories below `team/` from a scripted registry to one bundle."""

    def __init__(self, tool: MirrorTool, source: ScriptedRegistry, folder: Path) -> None:
        self.tool, self.source, self.folder = tool, source, folder
        self.bundle = folder / "images.tar"
        self.graphs = {name: Graph(name) for name in ("app", "team/web")}
        for name, graph in self.graphs.items():
            graph.image("v1", layers=[graph.layer(f"{name} one")])
            graph.image("v2", layers=[graph.layer(f"{name} two")])
            source.load(name, graph)
        tool.config(
            [
                {"source": f"{source.host}/app", "targets": [str(self.bundle)]},
                {"source": f"{source.host}/team/*", "targets": [f"{self.bundle}:team/*"]},
            ],
            source,
        )

    def add(self, tag: str) -> None:
        """Add an image to `app`, so that an existing bundle must be replaced."""
        graph = self.graphs["app"]
        graph.image(tag, layers=[graph.layer(f"new {tag}")])
        self.source.load("app", graph)

    @property
    def everything(self) -> set[str]:
        return {f"{name}:{tag}" for name, graph in self.graphs.items() for tag in graph.tags}

    def held(self) -> set[str]:
        """The references in the inventory of the bundle."""
        return {f"{name}:{tag}" for name, one in self.inventory()["repositories"].items() for tag in one["tags"]}

    def inventory(self) -> dict[str, dict[str, dict[str, dict[str, str]]]]:
        with tarfile.open(self.bundle) as tar:
            file = tar.extractfile("mirror-inventory.json")
            assert file is not None
            return json.load(file)  # type: ignore[no-any-return]

    def missing(self) -> list[str]:
        return self.inventory().get("missing", [])  # type: ignore[return-value]

    def imported(self, target: ScriptedRegistry, command: str = "sync") -> Ran:
        mirrors = [{"source": f"{self.bundle}:*", "targets": [f"{target.host}/{{repository}}"]}]
        file, state = self.folder / "import.yaml", str(self.folder / "far-state")
        return self.tool(command, self.tool.config(mirrors, target, file=file, state=state))


@pytest.fixture
def export(mirror_run: MirrorTool, scripted: ScriptedFactory, tmp_path: Path) -> Export:
    return Export(mirror_run, scripted("source"), tmp_path)


def _blob(export: Export) -> None:
    layer = export.graphs["app"].layer("app two").digest
    export.source.fault("GET blob", reference=layer, status=404, times=FOREVER)


# what cannot be fetched -> what the bundle then lacks: without an earlier bundle, and with one
FAULTS: dict[str, tuple[Callable[[Export], object], list[str]]] = {
    "a-tag": (
        lambda export: [
            export.source.fault(f"{verb} manifest", repository="app", reference="v2", status=403, times=FOREVER)
            for verb in ("HEAD", "GET")
        ],
        ["app:v2"],
    ),
    "a-listing": (
        lambda export: export.source.fault("GET tags", repository="team/web", status=403, times=FOREVER),
        ["team/web"],
    ),
    "a-catalog": (lambda export: export.source.fault("GET catalog", status=403, times=FOREVER), ["team/*"]),
    "a-manifest": (
        lambda export: [
            export.source.fault("GET manifest", repository="app", reference=one, status=404, times=FOREVER)
            for one in ("v2", export.graphs["app"].tags["v2"])
        ],
        ["app:v2"],
    ),
    "a-blob": (_blob, ["app:v2"]),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_bundle_is_replaced_only_by_a_complete_one(export: Export, case: str) -> None:
    export.tool.sync()
    old = export.bundle.read_bytes()
    if case in ("a-manifest", "a-blob"):  # the old bundle's content is not read again, so something new has to fail
        graph = export.graphs["app"]
        graph.image("v2", layers=[graph.layer("app two", 5000), graph.layer("again")])
    export.add("v3")
    FAULTS[case][0](export)
    if case == "a-blob":
        export.source.fault("GET blob", reference=export.graphs["app"].layer("again").digest, status=404, times=FOREVER)
    ran = export.tool.sync(expect=1)
    assert old == export.bundle.read_bytes()
    assert f"{export.bundle} stays as it is" in ran.text
    assert "--only-from" not in ran.text
    results = export.tool.results()
    assert "failed" == results[f"{export.bundle}:app:v3"], results
    assert "up-to-date" == results[f"{export.bundle}:app:v1"], results
    export.source.faults.clear()
    export.tool.sync()
    assert export.everything == export.held()
    assert 0 == export.tool("bundle", "verify", export.bundle).code


@pytest.mark.parametrize("case", FAULTS)
def test_a_first_bundle_has_the_complete_images_and_lists_the_missing_ones(export: Export, case: str) -> None:
    spoil, missing = FAULTS[case]
    spoil(export)
    ran = export.tool.sync(expect=1)
    lost = {one for one in export.everything if any(one.startswith(name.removesuffix("*")) for name in missing)}
    assert (missing, export.everything - lost) == (export.missing(), export.held()), str(ran)
    assert f"{export.bundle} is incomplete" in ran.text
    assert {"failed", "copied"} == set(export.tool.results().values())
    verified = export.tool("bundle", "verify", export.bundle)
    assert (3, True) == (verified.code, missing[0] in verified.out)
    export.source.faults.clear()
    export.tool.sync()
    assert ([], export.everything) == (export.missing(), export.held())


def test_every_command_reads_an_incomplete_bundle_and_reports_what_is_missing(
    export: Export, scripted: ScriptedFactory
) -> None:
    target = scripted("target")
    FAULTS["a-listing"][0](export)
    export.tool.sync(expect=1)
    ran = export.tool("bundle", "list", export.bundle)
    assert (3, True) == (ran.code, "is incomplete: it lacks team/web" in ran.err), str(ran)
    assert export.held() == {line.split("  ")[0] for line in ran.out.splitlines()}
    for word in ("plan", "sync", "verify"):
        ran = export.imported(target, word)
        assert (3, True) == (ran.code, "is incomplete: it lacks team/web" in ran.text), str(ran)
        rest = {"plan": "other images can be imported; ", "sync": "other images were imported; ", "verify": ""}[word]
        assert f"{rest}export again" in ran.text, str(ran)
    assert {"app:v1", "app:v2"} == {f"{name}:{tag}" for name, tag in assert_whole(target).tags}

    before = export.bundle.stat()
    export.tool.sync(expect=1)
    assert before.st_mtime_ns == export.bundle.stat().st_mtime_ns
    export.source.faults.clear()
    export.tool.sync()
    for ran in (export.tool("bundle", "verify", export.bundle), export.imported(target)):
        assert 0 == ran.code, str(ran)


@pytest.mark.parametrize("options", [(), ("--deep",)])
def test_a_run_that_keeps_an_incomplete_bundle_reports_it_once_with_a_hint_that_works(
    export: Export, options: tuple[str, ...]
) -> None:
    FAULTS["a-blob"][0](export)
    ran = export.tool.sync(expect=1)
    assert f"{export.bundle} is incomplete: it lacks app:v2, as its inventory states" in ran.err
    ran = export.tool.sync(*options, expect=1)
    (line,) = [line for line in ran.err.splitlines() if "is still incomplete" in line]
    assert (True, True) == ("app:v2" in line, "to the source" in line), line
    assert "push the image to the source again, or leave its tag out of the configuration" in ran.out
    assert "run again" not in ran.text
    assert "stays as it is" not in ran.text


def test_a_bundle_that_lacks_only_unselected_images_is_replaced(export: Export) -> None:
    FAULTS["a-tag"][0](export)
    export.tool.sync(expect=1)
    assert ["app:v2"] == export.missing()
    planned = export.tool("plan", "--exit-code", export.tool.config_file)
    assert (1, False) == (planned.code, "rebuild" in planned.out), str(planned)
    export.source.load("app", export.graphs["app"]).tags.pop("v2")
    export.source.faults.clear()
    planned = export.tool("plan", "--exit-code", export.tool.config_file)
    assert (10, True) == (planned.code, f"rebuild {export.bundle}: it is incomplete" in planned.out), str(planned)
    export.tool.sync()
    planned = export.tool("plan", "--exit-code", export.tool.config_file)
    assert (0, 1) == (planned.code, len(planned.out.splitlines())), str(planned)
    assert ([], {"app:v1", "team/web:v1", "team/web:v2"}) == (export.missing(), export.held())


def test_an_incomplete_bundle_is_served_with_a_warning(export: Export) -> None:
    FAULTS["a-tag"][0](export)
    export.tool.sync(expect=1)
    process = export.tool.start("serve", export.bundle, "--listen", "127.0.0.1:0")
    assert process.stdout is not None
    assert re.search(r"http://127\S+ serves", process.stdout.readline())
    process.terminate()
    ran = export.tool.finish(process)
    assert (143, True) == (ran.code, "is incomplete: it lacks app:v2" in ran.err), str(ran)


def test_a_stop_creates_no_incomplete_bundle(export: Export) -> None:
    FAULTS["a-blob"][0](export)
    layer = export.graphs["app"].layer("app one").digest
    held = export.source.fault("GET blob", reference=layer, stall_after=10)
    process = export.tool.start("sync", export.tool.config_file)
    assert held.fired.wait(30)
    journal = export.folder / ".images.tar.journal"
    assert eventually(journal.exists, within=30)
    process.terminate()
    assert 143 == export.tool.finish(process).code
    assert not export.bundle.exists()
    export.source.faults.clear()
    export.tool.sync()
    assert export.everything == export.held()


@pytest.mark.parametrize("case", ["a-tag", "a-blob"])
def test_fail_fast_creates_no_incomplete_bundle(export: Export, case: str) -> None:
    FAULTS[case][0](export)
    export.tool.sync("--fail-fast", expect=1)
    assert not export.bundle.exists()
    export.source.faults.clear()
    export.tool.sync()
    assert export.everything == export.held()


# ---- parts of a bundle


@pytest.mark.parametrize(
    ("arguments", "dry"),
    [
        (("--only", "{host}/app"), True),
        (("--only", "{host}/te*"), False),
        (("--only-from", "{file}"), False),
        (("--shard", "0/2"), False),
    ],
)
def test_exporting_a_part_of_a_bundle_is_a_usage_error(export: Export, arguments: tuple[str, str], dry: bool) -> None:
    file = export.folder / "failed.txt"
    file.write_text(f"{export.source.host}/team/web:v1\n")
    filled = [one.format(host=export.source.host, file=file) for one in arguments]
    ran = export.tool.sync(*filled, *["--dry-run"] * dry, expect=2)
    assert f"{arguments[0]} cannot be used: the target {export.bundle}" in ran.err
    assert [] == export.source.requests()
    assert not export.bundle.exists()


def test_a_partial_run_without_the_bundle_is_allowed(
    export: Export, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    target, source = scripted("target"), export.source.host
    mirrors = [
        {"source": f"{source}/app", "targets": [str(export.bundle)]},
        {"source": f"{source}/team/web", "targets": [f"{target.host}/web"]},
    ]
    mirror_run.config(mirrors, export.source, target)
    mirror_run.sync("--only", f"{source}/team/web:v1")
    assert (["v1"], False) == (target.tags("web"), export.bundle.exists())


def test_partial_runs_into_a_layout_add_up_despite_failures(export: Export, mirror_run: MirrorTool) -> None:
    layout, source = export.folder / "layout", export.source.host
    mirrors = [{"source": f"{source}/{name}", "targets": [f"oci:{layout}"]} for name in export.graphs]

    def held() -> set[str]:
        entries = json.loads((layout / "index.json").read_text())["manifests"]
        return {entry["annotations"]["org.opencontainers.image.ref.name"] for entry in entries}

    mirror_run.config(mirrors, export.source)
    for shard in ("0/2", "1/2"):
        mirror_run.sync("--shard", shard)
    assert export.everything == held()
    export.add("v3")
    FAULTS["a-listing"][0](export)
    FAULTS["a-tag"][0](export)
    ran = mirror_run.sync(expect=1)
    assert export.everything == held()
    assert "--only-from" in ran.out
    export.source.faults.clear()
    export.add("v4")
    mirror_run.sync("--only", f"{source}/app:v4")
    assert export.everything == held()
    assert 0 == mirror_run("bundle", "verify", layout).code


def test_complete_images_are_streamed_and_the_importer_reports_what_is_missing(
    export: Export, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    target = scripted("target")
    FAULTS["a-blob"][0](export)
    mirrors = [{"source": f"{export.source.host}/app", "targets": ["-"]}]
    config = mirror_run.config(mirrors, export.source)
    with export.bundle.open("wb") as out:
        command = mirror_run.command("sync", config)
        ran = subprocess.run(
            command, stdout=out, stderr=subprocess.PIPE, env=mirror_run.environment, cwd=mirror_run.folder, check=False
        )
    assert 1 == ran.returncode, ran.stderr.decode()
    assert (["app:v2"], {"app:v1"}) == (export.missing(), export.held())
    assert 3 == export.imported(target).code
    assert {("app", "v1")} == set(assert_whole(target).tags)


@pytest.mark.parametrize("how", ["empty list", "catalog without it"])
def test_a_bundle_is_kept_if_a_repository_in_it_has_no_selected_tags_any_more(
    how: str, scripted: ScriptedFactory, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    source, bundle = scripted("source"), tmp_path / "images.tar"
    for name in ("team/a", "team/b"):
        loaded(source, "v1", repository=name)
    named = ["team/a", "team/b"] if how == "empty list" else ["team/*"]
    mirrors = [{"source": f"{source.host}/{name}", "targets": [str(bundle)]} for name in named]
    mirror_run.config(mirrors, source)
    mirror_run.sync()
    before = bundle_view(bundle).tags()
    loaded(source, "v2", repository="team/b")
    if how == "empty list":
        body, kind, repository = b'{"tags": []}', "GET tags", "team/a"
    else:
        body, kind, repository = b'{"repositories": ["team/b"]}', "GET catalog", None
    length = [("Content-Length", str(len(body)))]
    source.fault(kind, repository=repository, after=True, times=FOREVER, body=body, headers=length)
    assert f"delete {bundle}" in mirror_run.sync(expect=1).text
    assert before == bundle_view(bundle).tags()
    bundle.unlink()
    mirror_run.sync()
    assert {("team/b", "v1"), ("team/b", "v2")} == set(bundle_view(bundle).tags())
