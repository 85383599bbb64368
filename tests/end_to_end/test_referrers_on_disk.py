"""Signatures, SBOMs and attestations in layouts and bundles, in `mirror serve`, and at a real docker-registry, which
has no referrers API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.registries.real import RealRegistry
from tests.support.images import OCI_INDEX, Graph, tag_of
from tests.support.layouts import Served
from tests.support.oracle import assert_whole, skopeo_digest
from tests.support.seeding import push
from tests.support.signed import SIGNATURE, Signed, listed_on
from tests.support.tool import MirrorTool


@pytest.fixture
def signed() -> Signed:
    return Signed(index_tags=True)


@pytest.fixture
def stocked(source: RealRegistry, signed: Signed) -> RealRegistry:
    push(source, "app", signed.graph)
    return source


def places(path: Path) -> list[str]:
    return [f"oci:{path / 'layout'}:app", f"{path / 'bundle.tar'}:app"]


def config(tool: MirrorTool, source: Any, targets: list[str], *registries: Any, **keys: Any) -> Path:
    mirror = {"source": f"{source.host}/app", "targets": targets, "tags": ["3.20"], **keys}
    return tool.config([mirror], source, *registries)


def test_everything_arrives_on_docker_registry_in_layouts_in_bundles_and_in_mirror_serve(
    stocked: RealRegistry, target: RealRegistry, mirror_run: MirrorTool, signed: Signed, tmp_path: Path
) -> None:
    with Served(tmp_path / "served", writable=True) as served:
        targets = [f"{target.host}/app", f"{served.host}/app", *places(tmp_path)]
        config(mirror_run, stocked, targets, target, served)
        mirror_run.sync()
        counts = {"copied": 4, "exists": 0}
        assert [counts] * 4 == [image["referrers"] for image in mirror_run.report()["images"]]
        assert 7 + 3 == stocked.counts()["GET manifest"]  # and the lists of three subjects, once for all targets
        assert 1 == stocked.counts()["GET referrers"]
        assert 0 == mirror_run("verify", mirror_run.config_file).code
        for subject, digests in signed.listed.items():
            assert digests == listed_on(target, "app", subject, api=False)
            assert digests == listed_on(served, "app", subject, api=True)
        for registry in (target, served):
            assert signed.graph.tags[signed.tag] == skopeo_digest(registry, "app", signed.tag)
        assert_whole(target)
        stocked.mark()
        assert 1 == len(mirror_run.sync().out.splitlines())
        assert {"HEAD manifest": 1} == stocked.counts()
        mirror_run.sync("--deep")
        assert [{"copied": 0, "exists": 4}] * 3 == [
            image["referrers"] for image in mirror_run.report()["images"] if not image["target"].startswith("/")
        ]
        inventory = json.loads(mirror_run("inventory", mirror_run.config_file).out)
        assert signed.manifests() <= inventory["manifests"].keys()
    for path in (tmp_path / "layout", tmp_path / "bundle.tar"):
        verified = mirror_run("bundle", "verify", path)
        assert 0 == verified.code, verified
        with Served(path) as reading:
            for subject, digests in signed.listed.items():
                assert digests == listed_on(reading, "app", subject, api=True)
        inventory = json.loads(mirror_run("inventory", path).out)
        assert signed.manifests() <= inventory["manifests"].keys()


@pytest.mark.parametrize("form", ["layout", "bundle"])
def test_an_import_brings_the_attachments_and_a_later_export_has_only_new_ones(
    stocked: RealRegistry,
    scripted: ScriptedFactory,
    mirror_run: MirrorTool,
    signed: Signed,
    tmp_path: Path,
    form: str,
) -> None:
    place = places(tmp_path)[form == "bundle"]
    exporting = config(mirror_run, stocked, [place], recheck="0 s")
    mirror_run.sync()
    for api in (True, False):
        far = scripted(f"far-{api}", referrers=api)
        importing = mirror_run.config(
            [{"source": place.removesuffix(":app") + ":*", "targets": [f"{far.host}/{{repository}}"]}],
            far,
            file=tmp_path / "import.yaml",
            state=str(tmp_path / f"state-{api}"),
        )
        imported = mirror_run("sync", importing, environment={"MIRROR_TESTS_ONLY": far.host})
        assert 0 == imported.code, imported
        for subject, digests in signed.listed.items():
            assert digests == listed_on(far, "app", subject, api=api)
        assert 0 == mirror_run("verify", importing).code
    graph = Graph("late")
    late = graph.artifact(kind=SIGNATURE, texts=[b"late"], subject=signed.image)
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [signed.sbom.json(), late.json()]}
    graph.raw(json.dumps(document).encode(), OCI_INDEX, tag_of(signed.image))
    push(stocked, "app", graph)
    stocked.mark()
    planned = mirror_run("plan", exporting, "--exit-code")
    assert (10, True) == (planned.code, "1 attachment\n" in planned.out), planned
    exported = mirror_run("sync", exporting)
    assert 0 == exported.code, exported
    fetched = {seen.reference for seen in stocked.requests() if seen.kind == "GET blob"}
    assert {json.loads(graph.manifests[late.digest].data)["layers"][0]["digest"]} == fetched
    stocked.mark()
    exported = mirror_run("sync", exporting)  # complete again: nothing is written
    assert 1 == len(exported.out.splitlines()), exported
    assert 0 == stocked.counts()["GET blob"]
    imported = mirror_run("sync", importing, "--deep", environment={"MIRROR_TESTS_ONLY": far.host})
    assert 0 == imported.code, imported
    assert {signed.sbom.digest, late.digest} == listed_on(far, "app", signed.image.digest, api=False)


def test_a_differential_export_leaves_out_the_blobs_of_known_attachments(
    stocked: RealRegistry, scripted: ScriptedFactory, mirror_run: MirrorTool, signed: Signed, tmp_path: Path
) -> None:
    far = scripted("far", referrers=True)
    direct = config(mirror_run, stocked, [f"{far.host}/app"], far)
    mirror_run.sync()
    base = tmp_path / "base.json"
    base.write_text(mirror_run("inventory", direct).out)
    bundle = tmp_path / "bundle.tar"
    mirror = {"source": f"{stocked.host}/app", "targets": [f"{bundle}:app"], "tags": ["3.20"], "base": str(base)}
    export = mirror_run.config([mirror], stocked, file=tmp_path / "export.yaml", state=str(tmp_path / "export"))
    stocked.mark()
    assert 0 == mirror_run("sync", export).code
    assert 0 == stocked.counts()["GET blob"]
    importing = mirror_run.config(
        [{"source": str(bundle), "targets": [f"{far.host}/app"]}],
        far,
        file=tmp_path / "i.yaml",
        state=str(tmp_path / "i"),
    )
    home = far.storage.repositories["app"]
    for digest in signed.manifests():
        del home.manifests[digest]
    imported = mirror_run("sync", importing, "--deep")
    assert 0 == imported.code, imported
    for subject, digests in signed.listed.items():
        assert digests == listed_on(far, "app", subject, api=True)
