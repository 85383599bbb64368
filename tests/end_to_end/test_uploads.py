"""Targets with different ways of uploading: all of them get the same blobs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import RegistryFactory, ScriptedFactory
from tests.end_to_end.worlds import assert_synced, loaded, pair
from tests.registries.certificates import Authority
from tests.registries.exchange import Reply, Request, error_reply
from tests.registries.faults import FOREVER
from tests.registries.tokens import TokenService
from tests.registries.wires import Front, Pipe
from tests.support.images import OCI_LAYER, Graph
from tests.support.seeding import seed
from tests.support.tool import MirrorTool

MIB = 1 << 20


@pytest.mark.parametrize("status", [404, 405, 411, 415, 501])
def test_a_host_that_refuses_a_single_put_gets_patch_and_put(
    scripted: ScriptedFactory, mirror_run: MirrorTool, status: int
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = loaded(source, "v1", "v2", "v3")

    def refuse(request: Request) -> Reply | None:
        return error_reply(status, "UNSUPPORTED") if request.kind == "PUT upload" and request.body else None

    target.hook = refuse
    pair(mirror_run, source, target)
    mirror_run.sync(timeout=60)
    assert_synced(source, target)
    refused = target.counts(status=status)["PUT upload"]
    assert 1 <= refused <= 8, "what a host refuses is remembered"
    assert len(graph.blobs) <= target.counts()["PATCH upload"] <= len(graph.blobs) + refused
    assert target.wait_until_no_uploads()


@pytest.mark.parametrize(("limit", "size", "chunk"), [(32, 70, 32), (16, 20, 16), (4, 6, 4)])
def test_a_proxy_with_a_body_limit_gets_chunks(
    scripted: ScriptedFactory, mirror_run: MirrorTool, limit: int, size: int, chunk: int
) -> None:
    """Sizes in MiB. Several blobs exceed the limit at once and learn the chunk size together."""
    source, target = scripted("source"), scripted("target", max_body=limit * MIB)
    graph = Graph("large")
    layers = [graph.blob(bytes([number]) * size * MIB, OCI_LAYER) for number in range(3)]
    graph.image("v1", layers=layers)
    source.load("app", graph)
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert [True] * 3 == [target.has_blob("app", layer.digest) for layer in layers]
    lengths = {entry.body_length for entry in target.log if entry.kind == "PATCH upload"}
    assert {chunk * MIB} == lengths
    assert target.wait_until_no_uploads()
    assert target.counts(status=413)["PUT upload"] <= 3


def test_the_hint_names_a_proxy_with_a_very_low_body_limit(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target", max_body=5000)
    loaded(source, size=20_000)
    pair(mirror_run, source, target)
    ran = mirror_run.sync(expect=1)
    assert "client_max_body_size" in ran.text
    assert {413} == {image["error"]["status"] for image in mirror_run.report()["images"]}


@pytest.mark.parametrize("form", ["path", "url", "prefix"])
def test_a_location_may_be_a_path_or_a_url_anywhere_on_the_host(
    scripted: ScriptedFactory, mirror_run: MirrorTool, form: str
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    if form == "url":
        target.features.locations = lambda path: target.url + path
    elif form == "prefix":
        target.features.upload_prefix = "/artifacts-uploads/"
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert_synced(source, target)


def test_an_http_location_behind_a_tls_proxy_is_requested_over_https(
    scripted: ScriptedFactory, mirror_run: MirrorTool, authority: Authority
) -> None:
    """A registry behind a TLS proxy may return http locations; the request keeps the scheme https."""
    source, behind = scripted("source"), scripted("behind")
    loaded(source)
    with Front(int(behind.host.rpartition(":")[2]), tls=authority, name="proxy") as front:
        behind.features.locations = lambda path: f"http://{front.host}{path}"
        mirrors = [{"source": f"{source.host}/app", "targets": [f"{front.host}/app"]}]
        mirror_run.config(mirrors, source, registries={front.host: {"tls": {"ca": str(authority.ca)}}})
        mirror_run.sync()
    assert_synced(source, behind)


def test_tokens_that_expire_during_slow_uploads_are_renewed(
    registry_factory: RegistryFactory, scripted: ScriptedFactory, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    source = scripted("source")
    loaded(source, "v1", "v2", size=300_000)
    with TokenService(tmp_path / "tokens", users={"acme": "secret-of-acme"}, life=5) as tokens:
        target = registry_factory("target", tokens=tokens)
        with Pipe(target.port, rate=400_000.0) as pipe:
            mirrors = [{"source": f"{source.host}/app", "targets": [f"{pipe.host}/app"]}]
            realm = urlsplit(tokens.realm).netloc
            login = {"plain-http": True, "username": "acme", "password": {"env": "SECRET"}, "token-realms": [realm]}
            mirror_run.config(mirrors, source, registries={pipe.host: login})
            ran = mirror_run.sync(environment={"SECRET": "secret-of-acme"})
        assert ran.seconds > 5
        assert_synced(source, target)
        assert len(tokens.issued) > 1
        mirror_run.sweep("secret-of-acme", *tokens.issued)


@pytest.mark.parametrize("how", ["last_scope_only", "one_scope"])
def test_a_token_service_that_grants_one_scope_only_prevents_mounts(
    registry_factory: RegistryFactory, scripted: ScriptedFactory, mirror_run: MirrorTool, how: str
) -> None:
    source = registry_factory("source")
    target = scripted("target", bearer=True, users={"acme": "secret-of-acme"})
    assert target.tokens
    setattr(target.tokens, how, True)
    seeded = seed(source, "app", repositories=3, images=1, index=True)
    login = {target.host: {"username": "acme", "password": {"env": "SECRET"}}}
    pair(mirror_run, source, target, *seeded.repositories, registries=login)
    mirror_run.sync(environment={"SECRET": "secret-of-acme"})
    assert_synced(source, target, *seeded.repositories)


def test_a_commit_whose_response_was_lost_is_not_repeated(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    graph = loaded(source)
    lost = target.fault("PUT upload", after=True, reset=True, times=3)
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert 3 == lost.hits
    assert_synced(source, target)
    assert len(graph.blobs) == target.counts()["PUT upload"]


@pytest.mark.parametrize("status", [500, 502, 503])
def test_an_error_in_any_step_of_an_upload_is_retried(
    scripted: ScriptedFactory, mirror_run: MirrorTool, status: int
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    faults = [target.fault(kind, status=status) for kind in ("GET tags", "POST upload", "PUT upload", "PUT manifest")]
    faults.append(target.fault("PUT upload", nth=3, cut_request_after=1000))
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert_synced(source, target)
    assert [1] * len(faults) == [fault.hits for fault in faults]


def test_retry_after_of_a_busy_target_pauses_all_requests(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source, *(f"v{number}" for number in range(6)))
    busy = target.fault("PUT upload", nth=5, status=429, headers=[("Retry-After", "5")])
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert 1 == busy.hits
    assert_synced(source, target)
    refusal = next(entry for entry in target.log if entry.status == 429)
    # Requests that were sent before the response was read are ignored: a busy machine may need seconds for it.
    in_pause = [entry for entry in target.log if refusal.ended + 3.0 < entry.time < refusal.ended + 4.9]
    assert [] == [entry.kind for entry in in_pause]
    assert any(entry.time > refusal.ended + 4.9 for entry in target.log)


def test_a_retry_after_over_the_limit_ends_the_run_and_is_reported(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source, "v1", "v2")
    target.fault("PUT upload", status=429, headers=[("Retry-After", "3600")], times=FOREVER)
    pair(mirror_run, source, target)
    mirror_run.sync(expect=1)
    report = mirror_run.report()
    assert {"rate_limited"} == {image["error"]["code"] for image in report["images"]}
    assert 3600 == report["retry_after"]
    assert target.counts(status=429).total() <= 8


def test_headers_missing_from_a_target_are_not_needed(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source = scripted("source", content_digest=False, api_version=False)
    target = scripted("target", content_digest=False, api_version=False, fresh_locations=False)
    loaded(source)
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert_synced(source, target)
    target.mark()
    mirror_run.sync()
    assert [] == target.writes()


def test_a_target_that_stores_other_bytes_is_detected(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)

    def lie(request: Request, reply: Reply) -> Reply:
        other = ("Docker-Content-Digest", "sha256:" + "0" * 64)
        kept = [header for header in reply.headers if header[0] != other[0]]
        return replace(reply, headers=[*kept, other])

    target.fault("PUT manifest", after=True, change=lie, times=FOREVER)
    pair(mirror_run, source, target)
    mirror_run.sync(expect=3)
    assert {"target_lied"} == {image["error"]["code"] for image in mirror_run.report()["images"]}


def test_an_index_refused_by_a_race_in_the_registry_is_put_again(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    """docker-registry may read a child manifest while it is written, and answers 400 because the bytes differ."""
    source, target = scripted("source"), scripted("target")
    loaded(source)
    misread = error_reply(400, "DIGEST_INVALID")
    target.fault("PUT manifest", reference="v1", status=400, body=misread.body, headers=misread.headers, times=2)
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert_synced(source, target)
    assert 3 == sum(seen.reference == "v1" for seen in target.requests() if seen.kind == "PUT manifest")


def test_an_interrupted_upload_succeeds_without_chunks_if_the_target_refuses_them(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target", chunks=False)
    graph = Graph("large")
    layers = [graph.blob(bytes([size]) * size * MIB, OCI_LAYER) for size in (66, 34)]
    graph.image("v1", layers=layers)
    source.load("app", graph)
    broken = target.fault("PUT upload", reference=layers[0].digest, cut_request_after=65 * MIB)
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert 1 == broken.hits
    assert [True] * 2 == [target.has_blob("app", layer.digest) for layer in layers]
    assert 1 == target.counts()["PATCH upload"] == target.counts(status=405)["PATCH upload"]
    assert target.wait_until_no_uploads()
