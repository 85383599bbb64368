"""Manifests over the size limit are refused, wherever they are; the rest is copied."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mirror.oci.manifest import MAX_BYTES
from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import loaded, pair
from tests.registries.client import sha256
from tests.registries.faults import FOREVER, chunked, without
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import OCI_INDEX, OCI_MANIFEST, Body
from tests.support.oracle import assert_equal
from tests.support.tool import MirrorTool

HUGE = b'{"schemaVersion": 2, "annotations": {"a": "' + b"x" * MAX_BYTES + b'"}}'


def put(registry: ScriptedRegistry, tag: str, body: bytes, media_type: str = OCI_MANIFEST) -> None:
    """Put a manifest into the registry's storage without a check."""
    home = registry.storage.repositories["app"]
    home.manifests[sha256(body)] = Body(media_type, body)
    home.tags[tag] = sha256(body)


def index_of(digest: str, size: int) -> bytes:
    child = {"mediaType": OCI_MANIFEST, "digest": digest, "size": size}
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child]}).encode()


def test_a_source_manifest_over_the_limit_is_refused_and_the_rest_is_copied(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source, "v1")
    put(source, "counted", HUGE)
    put(source, "in-chunks", HUGE + b" ")
    source.fault("GET manifest", reference="in-chunks", times=FOREVER, change=chunked)
    put(source, "said-by-its-index", index_of("sha256:" + "0" * 64, MAX_BYTES + 1), OCI_INDEX)
    put(source, "not-said-by-its-index", index_of(sha256(HUGE), 1000), OCI_INDEX)
    pair(mirror_run, source, target)
    mirror_run.sync(expect=3)
    assert_equal(source, "app", target, tags=["v1"])
    assert ["v1"] == target.tags("app")
    errors = {
        image["source"].rpartition(":")[2]: image["error"]
        for image in mirror_run.report()["images"]
        if image["result"] == "failed"
    }
    refused = {"counted", "in-chunks", "said-by-its-index", "not-said-by-its-index"}
    assert dict.fromkeys(refused, ("manifest_too_big", False)) == {
        tag: (error["code"], error["retryable"]) for tag, error in errors.items()
    }
    asked = [seen.reference for seen in source.requests() if seen.kind == "GET manifest"]
    assert len(asked) == len(set(asked)), "nothing is tried again"
    assert "sha256:" + "0" * 64 not in asked


def test_a_target_manifest_over_the_limit_is_refused_by_verify_and_replaced_by_sync(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    target.load("app", loaded(source, "v1", "v2"))
    put(target, "v1", HUGE)
    # HEAD does not return a digest, so the manifest is read.
    target.fault("HEAD manifest", times=FOREVER, change=without("Docker-Content-Digest"))
    pair(mirror_run, source, target)
    ran = mirror_run("verify", mirror_run.config_file)
    assert 3 == ran.code, str(ran)
    assert f"{MAX_BYTES} bytes" in ran.text
    assert [] == target.writes()
    mirror_run.sync()
    assert_equal(source, "app", target)


@pytest.mark.parametrize("said", [len(HUGE), None], ids=["said-by-the-index", "not-said"])
def test_a_layout_manifest_over_the_limit_is_refused(
    scripted: ScriptedFactory, mirror_run: MirrorTool, tmp_path: Path, said: int | None
) -> None:
    target, layout, digest = scripted("target"), tmp_path / "layout", sha256(HUGE)
    (layout / "blobs/sha256").mkdir(parents=True)
    (layout / "blobs/sha256" / digest.removeprefix("sha256:")).write_bytes(HUGE)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    root = {"mediaType": OCI_MANIFEST, "digest": digest, "size": said or 500}
    root["annotations"] = {"org.opencontainers.image.ref.name": "app:v1"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [root]}))
    mirror_run.config([{"source": f"oci:{layout}:app", "targets": [f"{target.host}/app"]}], target)
    mirror_run.sync(expect=3)
    code = "manifest_too_big" if said else "size_mismatch"
    assert [code] == [image["error"]["code"] for image in mirror_run.report()["images"]]
    assert [] == target.writes()
