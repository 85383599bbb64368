"""`mirror prune` with registries of other makers: each deletes tags and manifests in its own way."""

from __future__ import annotations

import json

from tests.registries.real import RealRegistry
from tests.support.images import Graph, tag_of
from tests.support.oracle import snapshot
from tests.support.seeding import push
from tests.support.tool import MirrorTool
from tests_real.installed import InstalledRegistry


def test_only_unselected_tags_are_deleted_and_shared_manifests_stay(
    target_registry: InstalledRegistry, source: RealRegistry, mirror_run: MirrorTool
) -> None:
    graph = Graph("app")
    graph.platforms("stays", size=100)
    gone = graph.platforms("gone", size=100)
    graph.signature(gone)
    graph.referrer(gone, "sbom")
    graph.tag(graph.image("shared", size=100).digest, "twin")
    push(source, "app", graph)
    mirror = {"source": f"{source.host}/app", "targets": [f"{target_registry.host}/copy"]}
    mirror_run.config([{**mirror, "tags": ["stays", "gone", "shared", "twin"]}], source, target_registry)
    mirror_run.sync()
    mirror_run.config([{**mirror, "tags": ["stays", "twin"]}], source, target_registry)
    before, file = snapshot(target_registry, ["copy"]), mirror_run.folder / "plan.json"
    ran = mirror_run("prune", mirror_run.config_file, "--plan", file)
    assert 0 == ran.code, ran
    (repository,) = json.loads(file.read_text())["repositories"]
    assert ["gone", "shared"] == [entry["reference"] for entry in repository["tags"]]
    assert f"{tag_of(gone)}.sig" in {entry["reference"] for entry in repository["attachments"]}
    ran = mirror_run("prune", mirror_run.config_file, "--apply", file, "--max-delete", "50")
    after = snapshot(target_registry, ["copy"])
    lost = {tag for _, tag in before.tags.keys() - after.tags.keys()}
    # A registry that deletes a tag only with its manifest keeps `shared`, because `twin` uses the manifest.
    kept = {"shared"} - lost
    assert (1 if kept else 0) == ran.code, ran
    assert (bool(kept), []) == ("also used by the tag twin" in ran.out, after.problems)
    lists = {tag_of(gone)} & {tag for _, tag in before.tags}
    assert {"gone", "shared", f"{tag_of(gone)}.sig", *lists} - kept == lost
    assert {"stays", "twin"} <= {tag for _, tag in after.tags}
