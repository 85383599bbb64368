"""oras as a client: it reads what `mirror` writes and serves. `make bench-tools` installs it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.registries.certificates import Authority
from tests.registries.real import RealRegistry
from tests.support.images import Graph
from tests.support.layouts import Served, lay, pack
from tests.support.oracle import assert_equal, assert_whole
from tests.support.seeding import push
from tests.support.tool import MirrorTool
from tests_real.installed import BENCH, find_tool

TEXTS = [b"first text\n", b"another\n" * 20_000]


@pytest.fixture(scope="session")
def program() -> str:
    return find_tool("oras", BENCH, "bench-tools")


class Oras:
    """Runs oras in a folder and with a home of its own."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program, self.folder = program, folder
        (folder / "home").mkdir(parents=True)

    def __call__(self, *arguments: str, expect: int = 0) -> str:
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder / "home")}
        run = subprocess.run(
            [self._program, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.folder,
            env=environment,
            check=False,
        )
        assert expect == run.returncode, f"oras {' '.join(arguments)}: {run.stdout[-2000:]}{run.stderr[-2000:]}"
        return run.stdout + run.stderr


@pytest.fixture
def oras(program: str, tmp_path: Path) -> Oras:
    return Oras(program, tmp_path / "oras")


@pytest.fixture
def graph() -> Graph:
    """An index, a docker image, an artifact of two files, and a referrer."""
    made = Graph("oras")
    made.platforms("v1", size=20_000)
    made.image("v2", oci=False)
    notes = made.artifact("notes", texts=TEXTS)
    made.referrer(notes, "sbom")
    return made


@pytest.fixture(params=["layout", "bundle"])
def path(request: pytest.FixtureRequest, graph: Graph, tmp_path: Path) -> Path:
    if request.param == "layout":
        return lay(tmp_path / "out", app=graph, team__web=graph)
    return pack(tmp_path / "out.tar", app=graph, team__web=graph)


@pytest.mark.parametrize("tag", ["v1", "v2", "notes"])
def test_oras_copies_from_a_layout_and_a_bundle(
    oras: Oras, path: Path, graph: Graph, target: RealRegistry, tag: str
) -> None:
    for name in ("app", "team/web"):
        to = f"{target.host}/{name}:{tag}"
        oras("copy", "--from-oci-layout-path", str(path), f"{name}:{tag}", "--to-plain-http", to)
    assert {("app", tag): graph.tags[tag], ("team/web", tag): graph.tags[tag]} == assert_whole(target).tags


@pytest.mark.parametrize("tag", ["v1", "v2", "notes"])
def test_oras_copies_from_mirror_serve(oras: Oras, path: Path, target: RealRegistry, tag: str) -> None:
    with Served(path) as served:
        source, to = f"{served.host}/team/web:{tag}", f"{target.host}/team/web:{tag}"
        oras("copy", "--recursive", "--from-plain-http", "--to-plain-http", source, to)
        assert_equal(served, "team/web", target, tags=[tag])


def test_oras_pulls_the_files_of_an_artifact_over_https(
    oras: Oras, graph: Graph, authority: Authority, tmp_path: Path
) -> None:
    bundle = pack(tmp_path / "out.tar", app=graph)
    with Served(bundle, tls=authority) as served:
        oras("copy", "--from-ca-file", str(authority.ca), "--to-oci-layout", f"{served.host}/app:notes", "copy:notes")
        oras("pull", "--ca-file", str(authority.ca), "--output", "pulled", f"{served.host}/app:notes")
        oras("pull", "--output", "pulled", f"{served.host}/app:notes", expect=1)  # oras does not trust the certificate
    copied = {path.read_bytes() for path in (oras.folder / "copy" / "blobs" / "sha256").iterdir()}
    assert set(TEXTS) <= copied


def test_oras_lists_tags_and_referrers(oras: Oras, path: Path, graph: Graph) -> None:
    with Served(path) as served:
        listed = oras("repo", "tags", "--plain-http", f"{served.host}/app").split()
        assert sorted(graph.tags) == listed
        assert ["app", "team/web"] == oras("repo", "ls", "--plain-http", served.host).split()
        found = oras("discover", "--plain-http", "--format", "json", f"{served.host}/app:notes")
        assert 1 == len(json.loads(found)["referrers"])


def test_oras_pushes_to_mirror_serve(oras: Oras, tmp_path: Path) -> None:
    (oras.folder / "notes.txt").write_text("by oras")
    with Served(tmp_path / "layout", writable=True) as served:
        reference = f"{served.host}/notes:v1"
        oras("push", "--plain-http", reference, "notes.txt:text/plain")
        oras("attach", "--plain-http", "--artifact-type", "application/vnd.example", reference, "notes.txt:text/plain")
        assert [("notes", "v1")] == list(assert_whole(served).tags)
        oras("pull", "--plain-http", "--output", "pulled", reference)
    assert "by oras" == (oras.folder / "pulled" / "notes.txt").read_text()


@pytest.mark.parametrize("to", ["docker-registry", "mirror serve"])
def test_oras_finds_on_the_target_what_it_attached_at_the_source(
    oras: Oras, source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool, tmp_path: Path, to: str
) -> None:
    graph = Graph("attached")
    graph.platforms("v1")
    push(source, "app", graph)
    (oras.folder / "sbom.json").write_text("{}")
    subject = f"{source.host}/app:v1"
    for kind in ("application/spdx+json", "application/vnd.example.signature"):
        oras("attach", "--plain-http", "--artifact-type", kind, subject, "sbom.json:application/json")
    with Served(tmp_path / "served", writable=True) as served:
        other = served if to == "mirror serve" else target
        mirror = {"source": f"{source.host}/app", "targets": [f"{other.host}/app"], "tags": ["v1"]}
        mirror_run.config([mirror], source, other)
        mirror_run.sync()
        found = [
            json.loads(oras("discover", "--plain-http", "--format", "json", f"{registry.host}/app:v1"))["referrers"]
            for registry in (source, other)
        ]
    before, after = (
        {(one["digest"], one["artifactType"], json.dumps(one.get("annotations"), sort_keys=True)) for one in listed}
        for listed in found
    )
    assert 2 == len(before)
    assert before == after
