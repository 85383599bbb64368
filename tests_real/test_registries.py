"""Registries of other makers as sources and targets: `make test-registries`. `make registries` installs them.

Targets are verified by the walker of the other tests and by skopeo. A proxy counts the requests.
"""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.registries.exchange import Reply, Request
from tests.registries.real import RealRegistry
from tests.support.images import OCI_INDEX, OCI_MANIFEST, Graph, oddly
from tests.support.oracle import assert_equal, assert_whole, skopeo_copy_to_dir, skopeo_digest
from tests.support.seeding import push, seed
from tests.support.tool import MirrorTool, Ran
from tests_real.conftest import Starter
from tests_real.installed import Crane, Distribution, InstalledRegistry, OciRegistry

Side = RealRegistry | InstalledRegistry
NAMES = ("team/app", "team/web")


def content(name: str) -> Graph:
    """Return indexes of both kinds, one nested, one with children of the other kind; images, artifacts, unusual
    forms."""
    graph = Graph(name)
    index = graph.platforms("v1", "latest", label="shared")
    graph.index("nested", children=[index])
    docker = graph.image("docker", oci=False, twice=True)
    graph.platforms("list", oci=False)
    graph.index("mixed", children=[docker, graph.image(label="oci", platform="linux/arm/v7")])
    graph.artifact("notes", texts=[b"", b"notes"])
    graph.image("hollow", layers=[graph.empty_blob()])
    layer, config = graph.layer("typeless"), graph.blob(b"{}")
    graph.raw(oddly({"schemaVersion": 2, "config": config.json(), "layers": [layer.json()]}), OCI_MANIFEST, "typeless")
    graph.raw(oddly({"schemaVersion": 2, "manifests": [index.json()]}), OCI_INDEX, "untyped")
    graph.signature(index)
    graph.referrer(index, "one")
    graph.referrer(index, "two")
    return graph


def configure(tool: MirrorTool, source: Side, target: Side, *names: str, **keys: Any) -> None:
    mirrors = [{"source": f"{source.host}/{name}", "targets": [f"{target.host}/{name}"]} for name in names or NAMES]
    tool.config(mirrors, source, target, **keys)


def plan(tool: MirrorTool) -> Ran:
    return tool("plan", tool.config_file, "--exit-code")


@pytest.fixture(params=["to", "from", "between"])
def pair(
    request: pytest.FixtureRequest, maker: type[InstalledRegistry], start: Starter, source: RealRegistry
) -> tuple[Side, Side]:
    """A source with `content` in two repositories, and an empty target; one or both are of this maker."""
    giver = source if request.param == "to" else start(maker, "giver")
    target_registry = request.getfixturevalue("target") if request.param == "from" else start(maker, "taker")
    for name in NAMES:
        push(giver, name, content("common"))
    return giver, target_registry


def test_all_content_is_copied_byte_for_byte(pair: tuple[Side, Side], mirror_run: MirrorTool, tmp_path: Path) -> None:
    source, target = pair
    configure(mirror_run, source, target)
    ran = plan(mirror_run)
    assert 10 == ran.code, ran
    if isinstance(target, InstalledRegistry):
        assert [] == target.journal.writes()
    mirror_run.sync()
    for name in NAMES:
        assert_equal(source, name, target, name)
        found = assert_whole(target, [name]).tags
        assert {(name, tag): digest for tag, digest in content("common").tags.items()} == found
    for tag in ("v1", "docker", "list", "hollow"):
        assert content("common").tags[tag] == skopeo_digest(target, NAMES[1], tag)
        skopeo_copy_to_dir(target, NAMES[1], tag, tmp_path / tag)


def test_an_unchanged_run_writes_nothing(pair: tuple[Side, Side], mirror_run: MirrorTool) -> None:
    source, target = pair
    configure(mirror_run, source, target)
    mirror_run.sync()
    for side in pair:
        if isinstance(side, InstalledRegistry):
            side.journal.mark()
    mirror_run.sync()
    assert {"up-to-date"} == set(mirror_run.results().values())
    for side in pair:
        if isinstance(side, InstalledRegistry):
            tags = len(NAMES) * len(content("common").tags)
            assert {"GET tags": len(NAMES), "HEAD manifest": tags} == side.journal.counts()
    assert 0 == plan(mirror_run).code
    ran = mirror_run("verify", mirror_run.config_file, "--deep")
    assert (0, True) == (ran.code, "all complete" in ran.out), ran


def test_a_blob_of_another_repository_is_mounted_if_the_registry_supports_it(
    target_registry: InstalledRegistry, source: RealRegistry, mirror_run: MirrorTool
) -> None:
    for name in NAMES:
        push(source, name, content("common"))
    configure(mirror_run, source, target_registry)
    mirror_run.sync()
    blobs = len(content("common").blobs)
    asked = target_registry.journal.counts()
    if target_registry.mounts:
        assert blobs == target_registry.journal.counts(status=201)["POST mount"]
        assert blobs == asked["PUT upload"]
    else:
        assert 0 == target_registry.journal.counts(status=201)["POST mount"]
        assert 2 * blobs == asked["PUT upload"] == asked["POST mount"] + asked["POST upload"], "sessions are used"
        assert asked["POST mount"] < blobs, "what never mounts is not asked for ever"


def test_a_moved_tag_is_updated_and_only_new_blobs_are_sent(pair: tuple[Side, Side], mirror_run: MirrorTool) -> None:
    source, target = pair
    configure(mirror_run, source, target)
    mirror_run.sync()
    old = content("common").tags["docker"]
    moved = Graph("moved")
    moved.image("docker", layers=[moved.layer("new", oci=False)], oci=False)
    push(source, NAMES[0], moved)
    if isinstance(target, InstalledRegistry):
        target.journal.mark()
    mirror_run.sync()
    assert_equal(source, NAMES[0], target, NAMES[0])
    assert moved.tags["docker"] == skopeo_digest(target, NAMES[0], "docker")
    assert 200 == target_manifest(target, NAMES[0], old)
    if isinstance(target, InstalledRegistry):
        written = [seen.kind for seen in target.journal.writes()]
        assert {"POST upload": 2, "PUT upload": 2, "PUT manifest": 1} == Counter(written)
        assert "PUT manifest" == written[-1]


def target_manifest(target: Side, repository: str, reference: str) -> int:
    """Return the status of a GET of a manifest."""
    with target.client() as client:
        return client.manifest(repository, reference).status


def test_lost_content_of_a_target_is_reported_and_restored(
    target_registry: InstalledRegistry, source: RealRegistry, mirror_run: MirrorTool
) -> None:
    graph = content("common")
    push(source, "app", graph)
    configure(mirror_run, source, target_registry, "app")
    mirror_run.sync()
    child = json.loads(graph.manifests[graph.tags["list"]].data)["manifests"][0]["digest"]
    layer = json.loads(graph.manifests[graph.tags["docker"]].data)["layers"][0]["digest"]
    with target_registry.client() as client:
        client.ask("DELETE", f"/v2/app/blobs/{layer}", want=(202,))
        client.ask("DELETE", f"/v2/app/manifests/{child}", want=(202,))
    ran = mirror_run("verify", mirror_run.config_file)
    assert 1 == ran.code, ran
    assert child in ran.text
    assert layer in ran.text
    mirror_run.sync("--deep")
    assert 0 == mirror_run("verify", mirror_run.config_file, "--deep").code
    assert_equal(source, "app", target_registry)


def test_a_reference_by_digest_is_copied_without_a_tag(pair: tuple[Side, Side], mirror_run: MirrorTool) -> None:
    source, target = pair
    graph = Graph("digests")
    index = graph.platforms()
    push(source, "digests", graph)
    mirrors = [{"source": f"{source.host}/digests@{index.digest}", "targets": [f"{target.host}/digests"]}]
    mirror_run.config(mirrors, source, target)
    mirror_run.sync()
    with target.client() as client:
        assert graph.manifests[index.digest].data == client.manifest("digests", index.digest).body
        assert [] == client.tags("digests")
    ran = mirror_run("verify", mirror_run.config_file, "--deep")
    assert 0 == ran.code, ran
    if isinstance(target, InstalledRegistry):
        target.journal.mark()
        mirror_run.sync()
        assert {"HEAD manifest": 1} == target.journal.counts()


@pytest.mark.parametrize(
    ("maker", "options", "tags", "pages"),
    [
        (Distribution, {}, 1203, {200: 2}),
        (Distribution, {"settings": {"tags": {"maxtags": 7}}}, 60, {200: 9}),
        (Crane, {}, 1203, {200: 3}),  # no Link: the last request proves that nothing follows
        (OciRegistry, {}, 1203, {200: 2}),
        (OciRegistry, {"flags": ("-links=false",)}, 1203, {200: 3}),
        (OciRegistry, {"flags": ("-pages", "100")}, 150, {400: 1, 200: 2}),
    ],
    ids=["distribution", "distribution-7", "crane", "ociregistry", "without-links", "no-large-pages"],
)
def test_long_tag_lists_are_read_completely(
    start: Starter,
    mirror_run: MirrorTool,
    maker: type[InstalledRegistry],
    options: dict[str, object],
    tags: int,
    pages: dict[int, int],
) -> None:
    source, target = (start(maker, name, **options) for name in ("giver", "taker"))
    seed(source, "app", images=2, tags=tags)
    configure(mirror_run, source, target, "app")
    mirror_run.sync()
    assert tags == len(mirror_run.results())
    assert_equal(source, "app", target)
    target.journal.mark()
    mirror_run.sync()
    assert [] == target.journal.writes()
    assert pages == {code: found for code in (200, 400) if (found := target.journal.counts(status=code)["GET tags"])}


def test_a_wildcard_selects_the_repositories_of_the_catalog(
    maker: type[InstalledRegistry], start: Starter, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    source = start(maker, "giver")
    seeded = seed(source, "team/app", repositories=3)
    seed(source, "other/app")
    mirrors = [{"source": f"{source.host}/team/*", "targets": [f"{target.host}/copy/{{repository}}"]}]
    mirror_run.config(mirrors, source, target)
    mirror_run.sync()
    found = assert_whole(target)
    assert {(name.replace("team/", "copy/"), tag): digest for (name, tag), digest in seeded.tags.items()} == found.tags


def test_signatures_and_referrers_are_copied_as_tags(
    target_registry: InstalledRegistry, source: RealRegistry, mirror_run: MirrorTool
) -> None:
    """If a target has the referrers API, it finds the referrers of an image itself."""
    graph = content("common")
    push(source, "app", graph)
    configure(mirror_run, source, target_registry, "app")
    mirror_run.sync()
    subject = graph.tags["v1"]
    tag = subject.replace(":", "-")
    named = json.loads(graph.manifests[graph.tags[tag]].data)["manifests"]
    with target_registry.client() as client:
        assert {tag, f"{tag}.sig"} <= set(client.tags("app"))
        response = client.ask("GET", f"/v2/app/referrers/{subject}")
    if target_registry.referrers_api:
        assert {child["digest"] for child in named} == {child["digest"] for child in response.json()["manifests"]}
    else:
        assert 404 == response.status


def test_the_signatures_and_referrers_of_a_selected_tag_follow_it(
    pair: tuple[Side, Side], mirror_run: MirrorTool
) -> None:
    source, target = pair
    graph = content("common")
    mirror = {"source": f"{source.host}/{NAMES[0]}", "targets": [f"{target.host}/{NAMES[0]}"], "tags": ["v1"]}
    mirror_run.config([mirror], source, target)
    mirror_run.sync()
    subject = graph.tags["v1"]
    tag = subject.replace(":", "-")
    expected = {child["digest"] for child in json.loads(graph.manifests[graph.tags[tag]].data)["manifests"]}
    has_api = isinstance(target, InstalledRegistry) and target.referrers_api
    with target.client() as client:
        assert {"v1", f"{tag}.sig", *([] if has_api else [tag])} == set(client.tags(NAMES[0]))
        path = f"/v2/{NAMES[0]}/referrers/{subject}"
        listed = client.ask("GET", path).json() if has_api else json.loads(client.manifest(NAMES[0], tag).body)
    assert expected == {child["digest"] for child in listed["manifests"]}
    assert graph.tags[f"{tag}.sig"] == skopeo_digest(target, NAMES[0], f"{tag}.sig")
    assert_whole(target, [NAMES[0]])
    verified = mirror_run("verify", mirror_run.config_file)
    assert (0, True) == (verified.code, "3 attachments" in verified.out), verified


def test_a_missing_repository_has_a_clear_error(
    maker: type[InstalledRegistry], start: Starter, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    source = start(maker, "giver")
    configure(mirror_run, source, target, "no/such")
    ran = mirror_run.sync(expect=1)
    assert f"{source.host}/no/such" in ran.text
    assert "404 Not Found: NAME_UNKNOWN" in ran.text
    assert [f"{source.host}/no/such"] == mirror_run.failed()
    assert [] == target.writes()


class SignalSender:
    """Sends a signal to a process when the n-th blob was accepted, before the response is sent."""

    def __init__(self, target: InstalledRegistry, count: int, number: signal.Signals) -> None:
        self._left, self._number = count, number
        self._lock, self._aimed = threading.Lock(), threading.Event()
        self._process: subprocess.Popen[str] | None = None
        target.front.alter = self._look

    def run(self, tool: MirrorTool) -> Ran:
        self._process = tool.start("sync", tool.config_file)
        self._aimed.set()
        return tool.finish(self._process)

    def _look(self, request: Request, reply: Reply) -> Reply:
        with self._lock:
            self._left -= request.kind == "PUT upload"
            now = request.kind == "PUT upload" and self._left == 0
        if now and self._aimed.wait(60) and self._process:
            self._process.send_signal(self._number)
        return reply


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_run_that_was_ended_by_a_signal_resumes(
    target_registry: InstalledRegistry, source: RealRegistry, mirror_run: MirrorTool, number: signal.Signals
) -> None:
    seeded = seed(source, "team/app", repositories=3, images=4, layer_size=100_000, index=True)
    configure(mirror_run, source, target_registry, *seeded.repositories)
    ran = SignalSender(target_registry, 12, number).run(mirror_run)
    assert {signal.SIGTERM: 143, signal.SIGKILL: -9}[number] == ran.code, ran
    assert_whole(target_registry, seeded.repositories)
    target_registry.front.alter = None
    brought = {
        (entry.repository, entry.reference)
        for entry in target_registry.journal.entries
        if entry.kind in ("PUT upload", "POST mount") and entry.status == 201
    }
    assert 12 <= len(brought) < len(seeded.blobs) * len(seeded.repositories)
    target_registry.journal.mark()
    mirror_run.sync()
    for name in seeded.repositories:
        assert_equal(source, name, target_registry)
    again = {
        (entry.repository, entry.reference) for entry in target_registry.journal.entries if entry.kind == "PUT upload"
    }
    assert set() == again & brought
