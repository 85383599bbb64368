"""A tag of attachments on a target is overwritten only if nothing that another tool or mirror wrote gets lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Graph, Made, tag_of
from tests.support.oracle import assert_whole, walk_tag
from tests.support.signed import listed_on
from tests.support.tool import MirrorTool

_SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"


class Signer:
    """An image, and cosign's signatures of it. All signatures have the same payload, as those of one image have."""

    def __init__(self) -> None:
        self.graph = Graph("signer")
        self.image = self.graph.image("v1")
        self.tag = f"{tag_of(self.image)}.sig"

    def sign(self, registry: ScriptedRegistry, repository: str, *keys: str, to: Made | None = None) -> str:
        """Put a manifest with signatures into a repository. Return its digest."""
        graph = Graph("signatures")
        payload = graph.blob(b"payload", _SIMPLE_SIGNING)
        layers = [payload.json(annotations={"dev.cosignproject.cosign/signature": f"by {key}"}) for key in keys]
        config = graph.blob(json.dumps({"rootfs": len(layers)}).encode(), OCI_CONFIG)
        document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.json(), "layers": layers}
        made = graph.raw(json.dumps(document).encode(), OCI_MANIFEST, self.tag)
        registry.load(repository, graph)
        return made.digest

    def load(self, registry: ScriptedRegistry, repository: str, *keys: str) -> str:
        """Put the image and its signatures into a repository. Return the digest of the signatures."""
        registry.load(repository, self.graph)
        return self.sign(registry, repository, *keys)


@pytest.fixture
def signer() -> Signer:
    return Signer()


@pytest.fixture
def source(scripted: ScriptedFactory) -> ScriptedRegistry:
    return scripted("source", referrers=True)


@pytest.fixture
def target(scripted: ScriptedFactory) -> ScriptedRegistry:
    return scripted("target", referrers=True)


def configure(
    tool: MirrorTool, source: ScriptedRegistry, target: ScriptedRegistry, *repositories: str, **keys: Any
) -> None:
    """Mirror the image of each repository to the same target repository, under a tag of its own."""
    mirrors: list[dict[str, Any]] = [
        {"source": f"{source.host}/{name}:v1", "targets": [f"{target.host}/copy:{{tag}}-{name}"], **keys}
        for name in repositories
    ]
    tool.config(mirrors, source, target, defaults={"recheck": "0 s"}, parallel={"images": 1})


def delete_state(tool: MirrorTool) -> None:
    for path in tool.state.glob("state.sqlite3*"):
        path.unlink()


def signatures(target: ScriptedRegistry, signer: Signer) -> str:
    """Return the digest of the signatures that the target has."""
    return str(walk_tag(target, "copy", signer.tag).digest)


def codes(tool: MirrorTool, *arguments: Sequence[str]) -> list[int]:
    return [tool("sync", tool.config_file, *one).code for one in arguments]


def test_different_signatures_of_two_sources_are_a_conflict_that_names_both(
    source: ScriptedRegistry, target: ScriptedRegistry, mirror_run: MirrorTool, signer: Signer
) -> None:
    made = {name: signer.load(source, name, name) for name in ("app", "fork")}
    configure(mirror_run, source, target, "app", "fork")
    ran = mirror_run.sync(expect=3)
    kept = signatures(target, signer)
    (loser,) = (name for name in made if made[name] != kept)
    (winner,) = made.keys() - {loser}
    assert f"has {kept}, which was copied from {source.host}/{winner}. " in ran.text
    assert f" {source.host}/{loser} has {made[loser]}, which lacks some of its content" in ran.text
    assert "set `referrers: {exclude: [signature]}` for one of them" in ran.text
    results = mirror_run.results()
    name = f"{target.host}/copy:v1"
    assert {f"{name}-{winner}": "copied", f"{name}-{loser}": "conflict"} == results
    assert [3, 3] == codes(mirror_run, (), ("--deep",))
    delete_state(mirror_run)
    assert [3, 3] == codes(mirror_run, (), ())
    assert kept == signatures(target, signer)
    # A source that is not configured any more does not keep its signature.
    configure(mirror_run, source, target, loser)
    mirror_run.sync()
    assert made[loser] == signatures(target, signer)
    assert_whole(target)


def test_signatures_of_two_sources_of_which_one_contains_the_other_are_no_conflict(
    source: ScriptedRegistry, target: ScriptedRegistry, mirror_run: MirrorTool, signer: Signer
) -> None:
    signer.load(source, "app", "one")
    both = signer.load(source, "fork", "one", "two")
    configure(mirror_run, source, target, "app", "fork")
    for arguments in ((), (), ("--deep",)):
        mirror_run.sync(*arguments)
        assert both == signatures(target, signer)
    assert 0 == mirror_run("verify", mirror_run.config_file).code
    target.mark()
    assert "nothing to copy" in mirror_run("plan", mirror_run.config_file).out
    delete_state(mirror_run)
    mirror_run.sync()
    assert [] == target.writes()
    assert both == signatures(target, signer)


def test_a_signature_that_another_tool_wrote_on_the_target_is_kept(
    source: ScriptedRegistry, target: ScriptedRegistry, mirror_run: MirrorTool, signer: Signer
) -> None:
    made = signer.load(source, "app", "source")
    configure(mirror_run, source, target, "app")
    mirror_run.sync()
    theirs = signer.sign(target, "copy", "theirs")
    target.mark()
    assert [3, 3] == codes(mirror_run, (), ("--deep",))
    for command in ("plan", "verify"):
        ran = mirror_run(command, mirror_run.config_file)
        assert 3 == ran.code, ran
        assert f"copy:{signer.tag} has {theirs}, and there is no record that mirror copied it" in ran.text
    delete_state(mirror_run)
    assert [3] == codes(mirror_run, ())
    assert ([], theirs) == (target.writes(), signatures(target, signer))
    del target.storage.repositories["copy"].tags[signer.tag]  # the remedy
    mirror_run.sync()
    assert made == signatures(target, signer)


def test_a_signature_that_another_tool_added_on_the_target_is_kept_without_a_conflict(
    source: ScriptedRegistry, target: ScriptedRegistry, mirror_run: MirrorTool, signer: Signer
) -> None:
    signer.load(source, "app", "source")
    configure(mirror_run, source, target, "app")
    mirror_run.sync()
    larger = signer.sign(target, "copy", "source", "theirs")
    target.mark()
    assert [0, 0] == codes(mirror_run, (), ("--deep",))
    assert 0 == mirror_run("verify", mirror_run.config_file).code
    assert ([], larger) == (target.writes(), signatures(target, signer))
    # The source gets another signature, so that neither of the two contains the other.
    signer.sign(source, "app", "source", "later")
    assert [3] == codes(mirror_run, ())
    assert larger == signatures(target, signer)


def test_a_signature_that_was_replaced_or_removed_at_the_source_is_replaced_if_it_was_copied_from_there(
    source: ScriptedRegistry, target: ScriptedRegistry, mirror_run: MirrorTool, signer: Signer
) -> None:
    signer.load(source, "app", "one", "two")
    configure(mirror_run, source, target, "app")
    mirror_run.sync()
    for keys, arguments in ((["one"], ()), (["one", "two"], ()), (["two"], ("--deep",))):
        made = signer.sign(source, "app", *keys)
        mirror_run.sync(*arguments)
        assert made == signatures(target, signer)
    # Without the state, the tag is in conflict until a run finds it equal to the source.
    delete_state(mirror_run)
    signer.sign(source, "app", "three")
    mirror_run.sync(expect=3)
    assert made == signatures(target, signer)
    signer.sign(source, "app", "two")
    mirror_run.sync()
    replaced = signer.sign(source, "app", "three")
    mirror_run.sync()
    assert replaced == signatures(target, signer)


def test_a_first_copy_looks_for_the_tag_only_in_a_repository_that_has_tags(
    source: ScriptedRegistry, target: ScriptedRegistry, mirror_run: MirrorTool, signer: Signer
) -> None:
    signer.load(source, "app", "source")
    configure(mirror_run, source, target, "app")
    mirror_run.sync()
    assert [] == [seen.reference for seen in target.requests() if seen.kind == "HEAD manifest"][1:]
    other = Signer()
    other.graph = Graph("other")
    other.image = other.graph.image("v1")
    other.tag = f"{tag_of(other.image)}.sig"
    other.load(source, "app", "source")
    theirs = other.sign(target, "copy", "theirs")
    mirror_run.sync(expect=3)
    assert theirs == signatures(target, other)
    assert signer.image.digest == walk_tag(target, "copy", "v1-app").digest


def test_a_signature_tag_that_is_mirrored_like_any_other_tag_is_not_overwritten_either(
    source: ScriptedRegistry, target: ScriptedRegistry, mirror_run: MirrorTool, signer: Signer
) -> None:
    signer.load(source, "app", "source")
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/copy"]}
    mirror_run.config([mirror], source, target)
    mirror_run.sync()
    mirror_run.sync()
    made = signer.sign(source, "app", "another")
    mirror_run.sync()
    assert made == signatures(target, signer)
    theirs = signer.sign(target, "copy", "theirs")
    planned = mirror_run("plan", mirror_run.config_file)
    assert (3, True) == (planned.code, f"exclude the tag `{signer.tag}` from this mirror" in planned.text)
    ran = mirror_run.sync(expect=3)
    assert f"exclude the tag `{signer.tag}` from this mirror" in ran.text
    assert {f"{target.host}/copy:{signer.tag}": "conflict"}.items() <= mirror_run.results().items()
    assert theirs == signatures(target, signer)
    # The remedy makes it an attachment, for which it is enough that the target has the signature of the source.
    mirror_run.config([{**mirror, "tags": {"exclude": [signer.tag]}}], source, target)
    larger = signer.sign(target, "copy", "theirs", "another")
    assert [0, 0] == codes(mirror_run, (), ("--deep",))
    assert larger == signatures(target, signer)


def test_a_list_of_referrers_that_one_mirror_merges_is_not_overwritten_by_another(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    """One mirror copies the tag of the list like any other tag; the other adds to the list as a list."""
    source, target = scripted("source"), scripted("target")
    graphs = {}
    for name in ("app", "fork"):
        graphs[name] = graph = Graph("same")
        image = graph.image("v1")
        graph.referrer(image, f"SBOM of {name}")
        source.load(name, graph)
    mirrors: list[dict[str, Any]] = [
        {"source": f"{source.host}/fork:v1", "targets": [f"{target.host}/copy:v1-fork"]},
        {"source": f"{source.host}/app", "targets": [f"{target.host}/copy"], "tags": ["v1", tag_of(image)]},
    ]
    configured: dict[str, Any] = {"defaults": {"recheck": "0 s"}, "parallel": {"images": 1}}
    mirror_run.config(mirrors, source, target, **configured)
    first = mirror_run("sync", mirror_run.config_file).code  # the order of the two mirrors is not determined
    second = mirror_run.sync(expect=3)
    assert first in (0, 3)
    assert f"exclude the tag `{tag_of(image)}` from this mirror" in second.text
    mirrors[1]["tags"] = ["v1"]
    mirror_run.config(mirrors, source, target, **configured)
    mirror_run.sync()
    wanted = {
        entry["digest"]
        for graph in graphs.values()
        for entry in json.loads(graph.manifests[graph.tags[tag_of(image)]].data)["manifests"]
    }
    assert (2, wanted) == (len(wanted), listed_on(target, "copy", image.digest, api=False))


def test_a_bundle_does_not_get_the_signatures_of_one_of_two_sources_without_a_message(
    source: ScriptedRegistry, mirror_run: MirrorTool, signer: Signer, tmp_path: Path
) -> None:
    for name in ("app", "fork"):
        signer.load(source, name, name)
    bundle = tmp_path / "out.tar"
    mirrors: list[dict[str, Any]] = [
        {"source": f"{source.host}/{name}:v1", "targets": [f"{bundle}:copy:{{tag}}-{name}"]} for name in ("app", "fork")
    ]
    mirror_run.config(mirrors, source)
    ran = mirror_run.sync(expect=3)
    assert "set `referrers: {exclude: [signature]}` for one of them" in ran.text
    mirrors[1]["referrers"] = {"exclude": ["signature"]}
    mirror_run.config(mirrors, source)
    mirror_run.sync()
    assert 0 == mirror_run("bundle", "verify", bundle).code
    assert 0 == mirror_run("verify", mirror_run.config_file).code


def test_a_tag_with_another_kind_of_content_is_a_conflict(
    source: ScriptedRegistry, target: ScriptedRegistry, mirror_run: MirrorTool, signer: Signer
) -> None:
    signer.load(source, "app", "source")
    graph = Graph("index")
    made = graph.raw(json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode(), OCI_INDEX)
    graph.tag(made.digest, signer.tag)
    target.load("copy", graph)
    configure(mirror_run, source, target, "app")
    mirror_run.sync(expect=3)
    assert made.digest == target.storage.repositories["copy"].tags[signer.tag]


def test_only_with_one_image_copies_a_signature_whose_tag_is_mirrored_like_any_other_tag(
    source: ScriptedRegistry, target: ScriptedRegistry, mirror_run: MirrorTool, signer: Signer
) -> None:
    source.load("app", signer.graph)
    mirrors = [{"source": f"{source.host}/app", "targets": [f"{target.host}/copy"]}]
    mirror_run.config(mirrors, source, target, defaults={"recheck": "24 h"})
    mirror_run.sync()
    made = signer.sign(source, "app", "one")
    mirror_run.sync("--only", f"{source.host}/app:v1")
    assert made == signatures(target, signer)
    assert_whole(target)


def test_only_with_a_tag_of_attachments_that_does_not_exist_selects_nothing(
    source: ScriptedRegistry, target: ScriptedRegistry, mirror_run: MirrorTool, signer: Signer
) -> None:
    source.load("app", signer.graph)
    mirrors = [{"source": f"{source.host}/app", "targets": [f"{target.host}/copy"]}]
    mirror_run.config(mirrors, source, target, defaults={"recheck": "24 h"})
    mirror_run.sync()
    only = f"{source.host}/app:{signer.tag.removesuffix('.sig')}"
    ran = mirror_run.sync("--only", f"{source.host}/app:v1", "--only", only, expect=1)
    assert only[:60] in ran.text
    assert "selects nothing" in ran.text
