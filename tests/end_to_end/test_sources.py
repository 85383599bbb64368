"""Sources with wrong bytes, hostile names and false responses: the image is refused and reported, the rest is
copied."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import assert_synced, loaded, pair
from tests.registries.blobhost import BlobHost
from tests.registries.client import sha256
from tests.registries.exchange import Reply, Request, json_reply
from tests.registries.faults import FOREVER, Change, lengthened, shortened, wrong_bytes
from tests.registries.listener import Listener
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import OCI_LAYER, OCI_MANIFEST, Body, Graph
from tests.support.oracle import assert_equal
from tests.support.tool import MirrorTool

HOSTILE = ["../../etc/passwd", "a\x1b[2Jb", "v1?x=y", "", ".hidden", "x" * 129, "a/b", "a:b", "%2e%2e"]


def errors(tool: MirrorTool) -> dict[str, dict[str, Any]]:
    """Return source reference -> error of the report."""
    return {image["source"]: image["error"] for image in tool.report()["images"] if "error" in image}


def test_hostile_tag_names_are_refused_and_the_rest_is_copied(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source, "v1", "v2")
    source.fault("GET tags", hook=lambda _: json_reply(200, {"name": "app", "tags": ["v1", *HOSTILE, "v2"]}), times=9)
    pair(mirror_run, source, target)
    ran = mirror_run.sync(expect=3)
    assert_equal(source, "app", target)
    assert ["v1", "v2"] == target.tags("app")
    assert "\x1b" not in ran.text
    failed = [image for image in mirror_run.report()["images"] if image["result"] == "failed"]
    assert ["ref_invalid"] * len(HOSTILE) == [image["error"]["code"] for image in failed]
    asked = {seen.reference for seen in source.requests() if seen.kind.endswith("manifest")}
    assert not asked & set(HOSTILE)


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        (wrong_bytes, {"digest_mismatch"}),
        (shortened(100), {"size_mismatch"}),
        (lengthened(b"more"), {"size_mismatch"}),
    ],
    ids=["wrong", "short", "long"],
)
def test_a_blob_with_a_wrong_digest_is_never_copied(
    scripted: ScriptedFactory, mirror_run: MirrorTool, change: Change, codes: set[str]
) -> None:
    source, target = scripted("source"), scripted("target")
    bad = Graph("bad")
    bad.image("bad", layers=[bad.layer("bad")])
    source.load("app", bad)
    loaded(source, "v1", "v2")
    layer = max(bad.blobs, key=lambda digest: len(bad.blobs[digest]))
    source.fault("GET blob", reference=layer, after=True, change=change, times=FOREVER)
    pair(mirror_run, source, target)
    mirror_run.sync(expect=3)
    assert codes == {error["code"] for error in errors(mirror_run).values()}
    assert [f"{source.host}/app:bad"] == mirror_run.failed()
    assert_equal(source, "app", target, tags=["v1", "v2"])
    assert ["v1", "v2"] == target.tags("app")
    assert not target.has_blob("app", layer)
    # The last part of an upload is held back until the digest is verified, so no upload of wrong bytes was complete.
    whole = [entry for entry in target.log if entry.kind == "PUT upload" and entry.reference == layer and entry.status]
    assert [] == whole


@pytest.mark.parametrize("which", ["tag", "child"])
def test_a_manifest_with_a_wrong_digest_is_never_copied(
    scripted: ScriptedFactory, mirror_run: MirrorTool, which: str
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = loaded(source, "v1", "v2")
    index = json.loads(graph.manifests[graph.tags["v1"]].data)
    reference = "v1" if which == "tag" else index["manifests"][0]["digest"]
    wrong = source.fault("GET manifest", reference=reference, after=True, change=wrong_bytes, times=FOREVER)
    pair(mirror_run, source, target)
    mirror_run.sync(expect=3)
    assert wrong.hits
    assert_equal(source, "app", target, tags=["v2"])
    assert ["v2"] == target.tags("app")


def test_a_manifest_with_wrong_bytes_is_requested_again(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    source.fault("GET manifest", nth=2, after=True, change=wrong_bytes)
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert_synced(source, target)


@pytest.mark.parametrize("kind", ["GET blob", "GET manifest", "GET tags"])
@pytest.mark.parametrize("how", [{"cut_after": 20}, {"cut_head_after": 30}, {"reset": True}, {"status": 502}])
def test_a_truncated_response_is_requested_again(
    scripted: ScriptedFactory, mirror_run: MirrorTool, kind: str, how: dict[str, Any]
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    fault = source.fault(kind, times=2, **how)
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert 2 == fault.hits
    assert_synced(source, target)


def test_an_interrupted_download_of_a_large_blob_resumes(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("large")
    graph.image("v1", layers=[graph.layer("large", 6 << 20)])
    source.load("app", graph)
    layer = max(graph.blobs, key=lambda digest: len(graph.blobs[digest]))
    source.fault("GET blob", reference=layer, cut_after=3 << 20)
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert_synced(source, target)
    ranges = [entry.header("Range") for entry in source.log if entry.reference == layer]
    assert [None, f"bytes={3 << 20}-{len(graph.blobs[layer]) - 1}"] == ranges
    assert mirror_run.report()["totals"]["bytes"]["read"] == sum(map(len, graph.blobs.values()))


def test_a_blob_missing_at_the_source_fails_only_its_image(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    lost = Graph("lost")
    lost.image("lost", layers=[lost.layer("lost")])
    home = source.load("app", lost)
    loaded(source, "v1")
    home.blobs.discard(max(lost.blobs, key=lambda digest: len(lost.blobs[digest])))
    pair(mirror_run, source, target)
    mirror_run.sync(expect=1)
    assert_equal(source, "app", target, tags=["v1"])
    assert {f"{source.host}/app:lost": "not_found"} == {
        name: error["code"] for name, error in errors(mirror_run).items()
    }


def test_blobs_redirected_to_another_host_are_read_without_credentials(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    """The other host answers 400 to any request with an Authorization header."""
    source, target = scripted("source", users={"acme": "secret-of-acme"}), scripted("target")
    loaded(source, "v1")
    with BlobHost(source.storage) as elsewhere:
        source.features.blob_redirect = elsewhere.url_of
        login = {source.host: {"username": "acme", "password": {"env": "SECRET"}}}
        pair(mirror_run, source, target, registries=login)
        mirror_run.sync(environment={"SECRET": "secret-of-acme"})
        assert_synced(source, target)
        assert elsewhere.seen
        assert {None} == {request.header("Authorization") for request in elsewhere.seen}
    mirror_run.sweep("secret-of-acme", "signed-for-get")


def test_a_realm_on_another_host_gets_no_credentials(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    thief = Listener(lambda connection, number: None, name="thief", address="127.0.0.3")
    thief.start()
    try:
        source, target = scripted("source", bearer=True, users={"acme": "secret-of-acme"}), scripted("target")
        assert source.tokens
        source.tokens.realm = f"http://{thief.host}/token"
        loaded(source)
        login = {source.host: {"username": "acme", "password": {"env": "SECRET"}}}
        pair(mirror_run, source, target, registries=login)
        ran = mirror_run.sync(expect=3, environment={"SECRET": "secret-of-acme"})
        assert "token-realms" in ran.text
        assert 0 == thief.accepted
    finally:
        thief.stop()


@pytest.mark.parametrize(
    ("code", "body"),
    [
        pytest.param(3, b'{"schemaVersion": 2, "layers": [], "layers": []}', id="duplicate-key"),
        pytest.param(3, b'{"schemaVersion": 2, "config": {"digest": "sha256:../x", "size": 1}}', id="digest"),
        pytest.param(3, b"[]", id="list"),
        pytest.param(3, b'{"schemaVersion": 2, "layers": ' + b"[" * 500 + b"]" * 500 + b"}", id="deep"),
        pytest.param(1, b"<html>login</html>", id="login-page"),
    ],
)
def test_an_invalid_manifest_is_refused_and_the_rest_is_copied(
    scripted: ScriptedFactory, mirror_run: MirrorTool, code: int, body: bytes
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source, "v1")
    home = source.storage.repositories["app"]
    home.manifests[sha256(body)] = Body(OCI_MANIFEST, body)
    home.tags["bad"] = sha256(body)
    pair(mirror_run, source, target)
    mirror_run.sync(expect=code)
    assert_equal(source, "app", target, tags=["v1"])
    assert ["v1"] == target.tags("app")
    assert [f"{source.host}/app:bad"] == mirror_run.failed()


def test_a_circular_listing_is_refused(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source", page=2), scripted("target")
    loaded(source, "v1", "v2", "v3", "v4", "v5")
    source.features.link_form = lambda path: "/v2/app/tags/list?n=2&last=v2"
    pair(mirror_run, source, target)
    mirror_run.sync(expect=3)
    assert source.counts()["GET tags"] < 10
    assert {"too_many"} == {error["code"] for error in errors(mirror_run).values()}


def test_a_target_tag_that_answers_with_an_error_is_pushed_again(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = loaded(source, "v1", "v2")
    target.load("app", graph)
    ill = target.fault("HEAD manifest", reference="v1", status=500, times=FOREVER)
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert ill.hits
    assert 1 == target.counts(status=201)["PUT manifest"] - _children(target, graph)
    assert "copied" in mirror_run.results()[f"{target.host}/app:v1"]
    assert "up-to-date" in mirror_run.results()[f"{target.host}/app:v2"]


def _children(target: ScriptedRegistry, graph: Graph) -> int:
    """Return the digests of manifests that were put by digest."""
    return sum(1 for seen in target.requests() if seen.kind == "PUT manifest" and seen.reference in graph.manifests)


def test_a_manifest_refused_for_a_missing_blob_is_put_again_after_a_check(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source, "v1", "v2")
    lacks = b'{"errors": [{"code": "MANIFEST_BLOB_UNKNOWN", "message": "blob unknown to registry"}]}'
    headers = [("Content-Type", "application/json")]
    refused = target.fault("PUT manifest", status=404, body=lacks, headers=headers)
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert 1 == refused.hits
    assert_synced(source, target)


def test_an_unsupported_head_is_replaced_by_a_get(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    graph = loaded(source, "v1")
    target.load("app", graph)

    def no_heads(request: Request) -> Reply | None:
        return Reply(405) if request.method == "HEAD" else None

    source.hook = target.hook = no_heads
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert {"up-to-date"} == set(mirror_run.results().values())
    assert [] == target.writes()


def test_a_redirect_of_a_write_is_not_followed(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target, other = scripted("source"), scripted("target"), scripted("other")
    loaded(source)

    def elsewhere(request: Request, reply: Reply) -> Reply:
        return replace(reply, status=307, headers=[("Location", f"{other.url}{request.target}")])

    target.fault("PUT manifest", after=True, change=elsewhere, times=FOREVER)
    pair(mirror_run, source, target)
    mirror_run.sync(expect=(1, 3))
    assert [] == other.requests()


def test_a_wildcard_that_matches_nothing_fails(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    mirror_run.config(
        [{"source": f"{source.host}/nothing/*", "targets": [f"{target.host}/{{repository}}"]}], source, target
    )
    ran = mirror_run.sync(expect=1)
    assert "nothing/* matches no repository" in ran.text
    [entry] = mirror_run.report()["images"]
    assert f"{source.host}/nothing/*" == entry["source"]


@pytest.mark.parametrize("status", [416, 400, 501])
def test_a_source_that_refuses_a_range_is_read_from_the_beginning(
    scripted: ScriptedFactory, mirror_run: MirrorTool, status: int
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("broken")
    layer = graph.blob(bytes(range(256)) * 10_000, OCI_LAYER)
    graph.image("v1", layers=[layer])
    source.load("app", graph)
    source.fault("GET blob", reference=layer.digest, cut_after=1_500_000)
    source.hook = lambda request: Reply(status) if request.header("Range") else None
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert_synced(source, target)
    assert 3 == sum(one.reference == layer.digest for one in source.requests() if one.kind == "GET blob")
    assert 1 == target.counts()["PUT upload"] - 1, "the upload went on meanwhile"
