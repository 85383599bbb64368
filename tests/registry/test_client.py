"""A v2 registry as a store: its requests, and the validation of responses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mirror.errors import AuthError, MirrorError, NetworkError, NotFound, Refused, RemoteError, SparseRefused
from mirror.limits import Limits
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import ACCEPTED, SCHEMA1_SIGNED, parse_manifest
from mirror.oci.reference import ListedTag
from mirror.registry.client import RegistryV2
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.listings import MAX_PAGE_BYTES, PAGE_SIZE, next_link
from mirror.registry.session import Session
from mirror.store import LeftOut, Mount, Version
from mirror.util.cancellation import Stop, Work
from mirror.util.retry_policy import Policy
from tests.conftest import ScriptedFactory
from tests.registries.exchange import error_reply
from tests.registries.faults import (
    Change,
    chunked,
    close_delimited,
    lengthened,
    shortened,
    unsized,
    without,
    wrong_bytes,
)
from tests.registries.scripted import ScriptedRegistry
from tests.registry.stores import store
from tests.support.images import OCI_MANIFEST, Body, Graph

WORK = Work(Stop())
QUICK = Policy(attempts=3, base=0.001, cap=0.002)


@pytest.fixture
def registry(scripted: ScriptedFactory) -> ScriptedRegistry:
    registry = scripted()
    graph = Graph("v2")
    graph.platforms("v1", "latest")
    graph.image("single")
    registry.load("app", graph)
    return registry


def add_blob(registry: ScriptedRegistry, data: bytes, repository: str = "app") -> Descriptor:
    digest = Digest.of(data)
    registry.storage.add_blob(repository, digest, data)
    return Descriptor(digest, len(data))


def read(client: RegistryV2, blob: Descriptor, offset: int = 0) -> bytes:
    out, buffer = bytearray(), memoryview(bytearray(1000))
    with client.open_blob("app", blob, WORK, offset=offset) as body:
        while count := body.readinto(buffer):
            out += buffer[:count]
    return bytes(out)


# ---- listings


@pytest.mark.parametrize(
    "features", [{}, {"page": 10}, {"page": 10, "opaque_link": True}, {"page": PAGE_SIZE, "link": False}], ids=str
)
def test_every_page_of_tags_is_read(scripted: ScriptedFactory, features: dict[str, Any]) -> None:
    registry = scripted(**features)
    graph = Graph()
    names = [f"t{number:04}" for number in range(2500 if features.get("page") == PAGE_SIZE else 45)]
    graph.image(*names)
    registry.load("app", graph)
    with store(registry) as client:
        assert names == sorted(str(name) for name in client.tags("app", WORK))


def test_a_full_page_is_the_end_if_the_registry_ignores_last(scripted: ScriptedFactory) -> None:
    registry = scripted()
    body = json.dumps({"name": "app", "tags": [f"t{number}" for number in range(PAGE_SIZE)]}).encode()
    registry.fault("GET tags", times=9, status=200, body=body)
    with store(registry) as client:
        assert PAGE_SIZE == len(list(client.tags("app", WORK)))
    assert 2 == registry.counts()["GET tags"]


@pytest.mark.parametrize(
    ("link", "code"),
    [
        ('<http://127.0.0.2:1/v2/app/tags/list?last=a>; rel="next"', "unsafe_link"),
        ('<//evil.example/v2/app/tags/list>; rel="next"', "unsafe_link"),
        ('</v2/other/tags/list?last=a>; rel="next"', "unsafe_link"),
        ('</v2/app/tags/list?n=1000>; rel="next"', "too_many"),
    ],
)
def test_a_link_to_another_origin_or_in_a_loop_is_rejected(scripted: ScriptedFactory, link: str, code: str) -> None:
    registry = scripted()
    registry.fault("GET tags", times=9, status=200, headers=[("Link", link)], body=b'{"name":"app","tags":["a","b"]}')
    with store(registry) as client, pytest.raises(Refused) as caught:
        list(client.tags("app", WORK))
    assert (code, 3) == (caught.value.code, caught.value.exit_code)
    assert 2 >= registry.counts()["GET tags"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (['</v2/a/tags/list?last=x&n=100>; rel="next"'], "/v2/a/tags/list?last=x&n=100"),
        (["</a>; rel=next"], "/a"),
        (['</a,b>; rel="prev", </c;d>; title="x, rel=next"; rel="prev next"'], "/c;d"),
        (['</p>; rel="prev"', "</n>; REL=NEXT"], "/n"),
        (["</a>"], None),
        (['</a>; rel="nextish"'], None),
        (["rel=next"], None),
        (["<>; rel=next"], ""),
        ([], None),
        (["<" + "a" * 70000], None),
    ],
)
def test_links_are_parsed_by_rfc_8288(values: list[str], expected: str | None) -> None:
    assert expected == next_link(values)


@pytest.mark.parametrize("body", [b'{"name":"app","tags":null}', b'{"name":"app"}', b'{"name":"app","tags":[]}'])
def test_a_list_without_tags_is_empty(scripted: ScriptedFactory, body: bytes) -> None:
    registry = scripted()
    registry.fault("GET tags", status=200, body=body)
    with store(registry) as client:
        assert [] == list(client.tags("app", WORK))


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"tags":"v1"}', b'{"tags":[],"tags":["a"]}', b"\xff"])
def test_a_response_that_is_not_a_list_is_an_error(scripted: ScriptedFactory, body: bytes) -> None:
    registry = scripted()
    registry.fault("GET tags", times=9, status=200, body=body)
    with store(registry) as client, pytest.raises(MirrorError):
        list(client.tags("app", WORK))


def test_an_invalid_name_is_replaced_by_an_error_and_the_others_are_listed(scripted: ScriptedFactory) -> None:
    registry = scripted()
    hostile = ["../../etc", "a b", "x\n{}", "", "a" * 129, "\x1b[2J"]
    body = json.dumps({"name": "app", "tags": ["good", *hostile, 7, "good"]}).encode()
    registry.fault("GET tags", status=200, body=body)
    with store(registry) as client:
        names = list(client.tags("app", WORK))
    assert ["good"] == [name for name in names if isinstance(name, str) and name != "7"]
    rejection = [name for name in names if isinstance(name, Refused)]
    assert len(hostile) == len(rejection)
    assert all("\x1b" not in str(error) and "\n" not in str(error) for error in rejection)


def test_a_missing_repository_is_not_found(registry: ScriptedRegistry) -> None:
    with store(registry) as client, pytest.raises(NotFound) as caught:
        list(client.tags("missing", WORK))
    assert "NAME_UNKNOWN" == caught.value.registry_code


# ---- resolving and manifests


def test_references_are_resolved_by_one_head_each(registry: ScriptedRegistry) -> None:
    with store(registry) as client:
        first, missing, last = client.resolve("app", ["v1", "nope", "latest"], WORK)
    assert isinstance(first, Version)
    assert first == last
    assert first.manifest is None
    assert isinstance(missing, NotFound)
    assert {"HEAD manifest": 3} == registry.counts()
    sent = registry.log[0]
    assert list(ACCEPTED) == [value for name, value in sent.headers if name.lower() == "accept"], "a line for each type"


@pytest.mark.parametrize(
    "rule",
    [{"status": 405}, {"status": 501}, {"after": True, "change": without("Docker-Content-Digest")}],
    ids=["405", "501", "no digest"],
)
def test_if_head_has_no_digest_it_is_computed_from_the_body(registry: ScriptedRegistry, rule: dict[str, Any]) -> None:
    registry.fault("HEAD manifest", **rule)
    with store(registry) as client:
        [version] = client.resolve("app", ["v1"], WORK)
    assert isinstance(version, Version)
    assert version.manifest is not None
    assert version.digest == Digest.of(version.manifest.body)
    assert {"HEAD manifest": 1, "GET manifest": 1} == registry.counts()


@pytest.mark.parametrize("status", [403, 500, 502, 404])
def test_an_error_of_one_reference_does_not_affect_the_others(registry: ScriptedRegistry, status: int) -> None:
    registry.fault("HEAD manifest", reference="v1", times=9, status=status)
    with store(registry) as client:
        bad, good = client.resolve("app", ["v1", "latest"], WORK)
    assert isinstance(bad, MirrorError)
    assert status == bad.status
    assert isinstance(good, Version)


def test_rejected_credentials_fail_all_references(registry: ScriptedRegistry) -> None:
    registry.fault("HEAD manifest", times=9, status=401)
    with store(registry) as client, pytest.raises(AuthError):
        list(client.resolve("app", ["v1", "latest"], WORK))


def test_a_manifest_is_kept_byte_for_byte(registry: ScriptedRegistry) -> None:
    with store(registry) as client:
        index = client.manifest("app", "v1", WORK)
        child = client.manifest("app", index.children[0].digest, WORK)
    assert registry.manifest("app", "v1").body == index.body
    assert child.digest == Digest.of(child.body)


@pytest.mark.parametrize("change", [lengthened(b" "), wrong_bytes], ids=["longer", "flipped"])
def test_a_manifest_with_wrong_bytes_is_read_once_more_and_then_rejected(
    registry: ScriptedRegistry, change: Any
) -> None:
    with store(registry) as client:
        digest = client.manifest("app", "single", WORK).digest
        registry.mark()
        fault = registry.fault("GET manifest", times=1, after=True, change=change)
        assert digest == client.manifest("app", digest, WORK).digest, "a broken cache is passed over"
        fault.times = 9
        with pytest.raises(Refused) as caught:
            client.manifest("app", digest, WORK)
    assert "digest_mismatch" == caught.value.code
    assert 4 == registry.counts()["GET manifest"]


def test_a_digest_header_that_contradicts_the_body_is_rejected(registry: ScriptedRegistry) -> None:
    lie = [("Docker-Content-Digest", str(Digest.of(b"lie"))), ("Content-Type", "application/json")]
    registry.fault("GET manifest", times=9, status=200, headers=lie, body=registry.manifest("app", "single").body)
    with store(registry) as client, pytest.raises(Refused):
        client.manifest("app", "single", WORK)


@pytest.mark.parametrize("change", [None, chunked, close_delimited], ids=["counted", "chunked", "until-closed"])
def test_a_manifest_that_is_too_large_is_rejected(registry: ScriptedRegistry, change: Change | None) -> None:
    registry.storage.repositories["app"].manifests["sha256:0"] = Body(OCI_MANIFEST, b" " * ((8 << 20) + 1))
    registry.storage.repositories["app"].tags["v1"] = "sha256:0"
    registry.fault("GET manifest", times=9, change=change)
    with store(registry) as client, pytest.raises(Refused) as caught:
        client.manifest("app", "v1", WORK)
    assert ("manifest_too_big", False, 3) == (caught.value.code, caught.value.retryable, caught.value.exit_code)
    assert 1 == registry.counts()["GET manifest"]


def test_schema1_is_read_with_its_own_digest(scripted: ScriptedFactory) -> None:
    registry = scripted(media_types=(SCHEMA1_SIGNED,))
    graph = Graph()
    made = graph.schema1("old")
    registry.load("app", graph)
    with store(registry) as client:
        manifest = client.manifest("app", "old", WORK)
        assert manifest == client.manifest("app", made.digest, WORK)
    assert (made.digest, SCHEMA1_SIGNED) == (manifest.digest, manifest.media_type)
    assert made.digest != Digest.of(manifest.body)


# ---- blobs


DATA = bytes(range(256)) * 40


def test_a_blob_is_read_without_an_earlier_head(registry: ScriptedRegistry) -> None:
    blob = add_blob(registry, DATA)
    with store(registry) as client:
        assert DATA == read(client, blob)
    assert {"GET blob": 1} == registry.counts()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_blob_is_read_from_an_offset_even_if_ranges_are_ignored(registry: ScriptedRegistry, ranges: bool) -> None:
    registry.features.ranges = ranges
    blob = add_blob(registry, DATA)
    with store(registry) as client:
        assert DATA[5000:] == read(client, blob, 5000)


@pytest.mark.parametrize("said", ["bytes 0-9/10240", "bytes 5001-10239/10240", "bytes 5000-6000/10240", "junk", ""])
def test_another_range_than_the_requested_one_is_not_used(registry: ScriptedRegistry, said: str) -> None:
    blob = add_blob(registry, DATA)
    registry.fault("GET blob", status=206, headers=[("Content-Range", said)], body=b"other bytes")
    with store(registry) as client:
        assert DATA[5000:] == read(client, blob, 5000), "read from the beginning"
    assert 2 == registry.counts()["GET blob"]


@pytest.mark.parametrize("change", [shortened(100), lengthened(b"!")], ids=["shorter", "longer"])
def test_a_blob_of_another_length_than_its_descriptor_is_rejected_before_it_is_read(
    registry: ScriptedRegistry, change: Any
) -> None:
    blob = add_blob(registry, DATA)
    registry.fault("GET blob", after=True, change=change)
    with store(registry) as client, pytest.raises(Refused) as caught:
        read(client, blob)
    assert "size_mismatch" == caught.value.code


@pytest.mark.parametrize(
    "rule", [{"cut_after": 500}, {"cut_after": 500, "reset": True}, {"cut_head_after": 30}], ids=str
)
def test_a_truncated_blob_is_an_error(registry: ScriptedRegistry, rule: dict[str, Any]) -> None:
    blob = add_blob(registry, DATA)
    registry.fault("GET blob", times=9, **rule)
    with store(registry) as client, pytest.raises(NetworkError):
        read(client, blob)


def test_a_missing_blob_is_not_found(registry: ScriptedRegistry) -> None:
    with store(registry) as client, pytest.raises(NotFound):
        read(client, Descriptor(Digest.of(b"?"), 1))


def test_a_blob_exists_only_with_the_right_size(registry: ScriptedRegistry) -> None:
    blob = add_blob(registry, DATA)
    with store(registry) as client:
        assert client.has_blob("app", blob, WORK)
        assert not client.has_blob("app", Descriptor(Digest.of(b"?"), 1), WORK)
        with pytest.raises(Refused) as caught:
            client.has_blob("app", Descriptor(blob.digest, blob.size and blob.size + 1), WORK)
    assert "size_mismatch" == caught.value.code
    assert "`mirror sync --repair CONFIG`" in caught.value.hint


def test_an_empty_blob_exists_but_a_file_of_zero_bytes_is_not_another_blob(
    registry: ScriptedRegistry,
) -> None:
    empty = add_blob(registry, b"")
    with store(registry) as client:
        assert client.has_blob("app", empty, WORK)
        registry.storage.add_blob("app", Digest.of(DATA), b"")
        with pytest.raises(Refused):
            client.has_blob("app", Descriptor(Digest.of(DATA), len(DATA)), WORK)


@pytest.mark.parametrize("status", [405, 501])
def test_if_head_is_not_supported_the_first_byte_is_requested(registry: ScriptedRegistry, status: int) -> None:
    blob = add_blob(registry, DATA)
    registry.fault("HEAD blob", times=9, status=status)
    with store(registry) as client:
        assert client.has_blob("app", blob, WORK)
        assert not client.has_blob("app", Descriptor(Digest.of(b"?"), 1), WORK)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("data", [DATA, b""], ids=["blob", "empty"])
def test_if_head_has_no_size_a_get_is_sent(scripted: ScriptedFactory, data: bytes, ranges: bool) -> None:
    registry = scripted(ranges=ranges)
    blob = add_blob(registry, data)
    registry.fault("HEAD blob", times=9, after=True, change=unsized)
    if not ranges:
        registry.fault("GET blob", times=9, after=True, change=chunked)
    with store(registry) as client:
        assert client.has_blob("app", blob, WORK)
        with pytest.raises(Refused):
            client.has_blob("app", Descriptor(blob.digest, len(data) + 1), WORK)
        del registry.storage.bytes[blob.digest]
        assert not client.has_blob("app", blob, WORK)


@pytest.mark.parametrize("response", ["bytes 0-0/*", "nonsense"])
def test_if_no_response_has_the_size_the_blob_is_read(registry: ScriptedRegistry, response: str) -> None:
    blob = add_blob(registry, DATA)
    registry.fault("HEAD blob", times=9, after=True, change=unsized)
    registry.fault("GET blob", status=206, headers=[("Content-Range", response)], body=DATA[:1])
    with store(registry) as client:
        assert client.has_blob("app", blob, WORK)
    assert {"HEAD blob": 1, "GET blob": 2} == registry.counts()


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_only_404_means_that_a_blob_is_missing(registry: ScriptedRegistry, status: int) -> None:
    blob = add_blob(registry, DATA)
    registry.fault("HEAD blob", times=99, status=status)
    with store(registry) as client, pytest.raises(RemoteError):
        client.has_blob("app", blob, WORK.without_retries())


# ---- mounts


def test_a_mount_is_one_request(registry: ScriptedRegistry) -> None:
    blob = add_blob(registry, DATA)
    with store(registry) as client:
        assert Mount.MOUNTED is client.mount_blob("copy", blob, "app", WORK)
    assert {"POST mount": 1} == registry.counts()
    assert registry.has_blob("copy", blob.digest)


@pytest.mark.parametrize(
    ("status", "code", "outcome"),
    [
        (400, "NAME_INVALID", Mount.REFUSED),
        (401, "UNAUTHORIZED", Mount.REFUSED),
        (403, "DENIED", Mount.REFUSED),
        (404, "NAME_UNKNOWN", Mount.REFUSED),
        (405, "UNSUPPORTED", Mount.REFUSED),
        (501, "UNSUPPORTED", Mount.REFUSED),
        (404, "BLOB_UNKNOWN", Mount.ABSENT),
        (400, "DIGEST_INVALID", Mount.ABSENT),
        (409, "CONFLICT", Mount.ABSENT),
    ],
)
def test_a_rejected_mount_concerns_both_repositories_or_only_the_blob(
    registry: ScriptedRegistry, status: int, code: str, outcome: Mount
) -> None:
    blob = add_blob(registry, DATA)
    refusal = error_reply(status, code)
    registry.fault("POST mount", times=9, status=status, body=refusal.body, headers=refusal.headers)
    with store(registry) as client:
        assert outcome is client.mount_blob("copy", blob, "app", WORK)


@pytest.mark.parametrize("status", [429, 503])
def test_a_mount_at_a_busy_registry_is_a_retryable_error(registry: ScriptedRegistry, status: int) -> None:
    blob = add_blob(registry, DATA)
    registry.fault("POST mount", status=status, headers=[("Retry-After", "0")])
    with store(registry) as client:
        with pytest.raises(RemoteError) as caught:
            client.mount_blob("copy", blob, "app", WORK)
        assert caught.value.retryable
        assert Mount.MOUNTED is client.mount_blob("copy", blob, "app", WORK)


@pytest.mark.parametrize(
    "rule",
    [{"reset": True}, {"cut_head_after": 20}, {"status": 500}, {"status": 502}],
    ids=["reset", "cut", "500", "502"],
)
def test_a_mount_without_a_usable_response_may_be_retried(registry: ScriptedRegistry, rule: dict[str, Any]) -> None:
    blob = add_blob(registry, DATA)
    registry.fault("POST mount", **rule)
    with store(registry) as client:
        with pytest.raises(RemoteError) as caught:
            client.mount_blob("copy", blob, "app", WORK)
        assert caught.value.retryable
        assert Mount.MOUNTED is client.mount_blob("copy", blob, "app", WORK)


def test_a_mount_without_the_right_digest_is_checked_by_a_head(registry: ScriptedRegistry) -> None:
    blob = add_blob(registry, DATA)
    registry.fault("POST mount", times=2, status=201, headers=[("Location", "/v2/copy/blobs/x")])
    with store(registry) as client:
        assert Mount.ABSENT is client.mount_blob("copy", blob, "app", WORK), "a lie"
        registry.storage.add_blob("copy", blob.digest, DATA)
        assert Mount.MOUNTED is client.mount_blob("copy", blob, "app", WORK)
    assert 2 == registry.counts()["HEAD blob"]


def test_a_mount_that_opens_an_upload_session_returns_it(registry: ScriptedRegistry) -> None:
    registry.features.mounts = False
    blob = add_blob(registry, DATA)
    with store(registry) as client:
        session = client.mount_blob("copy", blob, "app", WORK)
        assert not isinstance(session, Mount)
        assert 1 == len(registry.uploads)
        with session:
            pass
    assert registry.wait_until_no_uploads()
    assert {"POST mount": 1, "DELETE upload": 1} == registry.counts()


# ---- putting manifests


@pytest.fixture
def manifest(registry: ScriptedRegistry) -> Any:
    return parse_manifest(registry.manifest("app", "single").body)


def test_a_manifest_is_put_with_its_bytes_and_media_type(registry: ScriptedRegistry, manifest: Any) -> None:
    with store(registry) as client:
        client.put_manifest("app", "again", manifest, WORK)
    assert manifest.body == registry.manifest("app", "again").body
    assert manifest.media_type == registry.log[-1].header("content-type")
    assert {"PUT manifest": 1} == registry.counts()


def test_a_manifest_whose_blobs_are_missing_has_its_own_error_code(registry: ScriptedRegistry, manifest: Any) -> None:
    with store(registry) as client, pytest.raises(RemoteError) as caught:
        client.put_manifest("empty", "v1", manifest, WORK)
    assert "blob_missing" == caught.value.code


def test_a_sparse_index_that_the_registry_does_not_accept_has_its_own_error(
    registry: ScriptedRegistry, scripted: ScriptedFactory
) -> None:
    graph = Graph("sparse")
    index = parse_manifest(graph.manifests[graph.platforms("v1").digest].data)
    children = frozenset(child.digest for child in index.children)
    left_out = LeftOut(("linux/amd64",), frozenset({index.digest}), children)
    with store(registry) as client, pytest.raises(SparseRefused) as caught:
        client.put_manifest("app", "sparse", index, WORK, left_out=left_out)
    assert "set `index: rewrite`" in caught.value.hint
    registry.fault("PUT manifest", status=400, body=error_reply(400, "MANIFEST_INVALID").body)
    with store(registry) as client, pytest.raises(RemoteError) as other:
        client.put_manifest("app", "sparse", index, WORK, left_out=left_out)
    assert not isinstance(other.value, SparseRefused)
    assert "may require all manifests that an index lists: set `index: rewrite`" in other.value.hint
    with store(scripted(sparse_indexes=True)) as client:
        client.put_manifest("app", "sparse", index, WORK, left_out=left_out)
        assert index.digest == client.manifest("app", "sparse", WORK).digest


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ({"status": 413}, "manifest_too_big"),
        ({"status": 400, "body": b'{"errors":[{"code":"TAG_INVALID","message":"tag is immutable"}]}'}, "tag_immutable"),
        ({"status": 403, "body": b'{"errors":[{"code":"DENIED","message":"cannot overwrite tag"}]}'}, "tag_immutable"),
        ({"status": 403}, "auth_denied"),
        (
            {
                "status": 400,
                "body": b'{"errors":[{"code":"X","detail":"http: request body too large"}]}',
            },
            "manifest_too_big",
        ),
        ({"status": 201, "headers": [("Docker-Content-Digest", str(Digest.of(b"lie")))]}, "target_lied"),
        ({"status": 200}, "bad_response"),
        ({"status": 202}, "bad_response"),
        ({"status": 307, "headers": [("Location", "/elsewhere")]}, "bad_response"),
    ],
    ids=str,
)
def test_a_rejected_manifest_has_a_specific_error(
    registry: ScriptedRegistry, manifest: Any, rule: dict[str, Any], code: str
) -> None:
    registry.fault("PUT manifest", times=9, **rule)
    with store(registry) as client, pytest.raises(MirrorError) as caught:
        client.put_manifest("app", "v2", manifest, WORK)
    assert code == caught.value.code
    assert not caught.value.retryable


@pytest.mark.parametrize("status", [200, 202])
def test_a_put_with_another_success_status_counts_if_a_head_finds_the_manifest(
    registry: ScriptedRegistry, manifest: Any, status: int
) -> None:
    registry.fault("PUT manifest", after=True, status=status)
    with store(registry) as client:
        client.put_manifest("app", "v2", manifest, WORK)
    assert {"PUT manifest": 1, "HEAD manifest": 1} == registry.counts()


@pytest.mark.parametrize("status", [200, 202])
def test_a_put_with_another_success_status_fails_if_the_tag_names_another_manifest(
    registry: ScriptedRegistry, manifest: Any, status: int
) -> None:
    other = Graph("other")
    other.image("v2")
    registry.load("app", other)
    registry.fault("PUT manifest", status=status)
    with store(registry) as client, pytest.raises(RemoteError) as caught:
        client.put_manifest("app", "v2", manifest, WORK)
    assert ("bad_response", status) == (caught.value.code, caught.value.status)


def test_a_put_that_is_rejected_after_a_lost_response_succeeds_if_the_tag_names_the_manifest(
    registry: ScriptedRegistry, manifest: Any
) -> None:
    registry.features.immutable_tags = True
    registry.fault("PUT manifest", after=True, reset=True)
    with store(registry) as client:
        client.put_manifest("app", "v2", manifest, WORK)
    assert {"PUT manifest": 2, "HEAD manifest": 1} == registry.counts()


def test_a_put_that_is_rejected_stays_rejected_if_the_tag_names_another_manifest(
    registry: ScriptedRegistry, manifest: Any
) -> None:
    registry.features.immutable_tags = True
    other = Graph("other")
    other.image("v2")
    registry.load("app", other)
    with store(registry) as client, pytest.raises(Refused) as caught:
        client.put_manifest("app", "v2", manifest, WORK)
    assert "tag_immutable" == caught.value.code


@pytest.mark.parametrize("status", [429, 503])
def test_a_rejection_after_a_lost_response_is_not_a_conflict_if_the_tag_cannot_be_resolved(
    registry: ScriptedRegistry, manifest: Any, status: int
) -> None:
    registry.features.immutable_tags = True
    registry.fault("PUT manifest", after=True, reset=True)
    registry.fault("HEAD manifest", status=status, times=9, headers=(("Retry-After", "0"),))
    with store(registry) as client, pytest.raises(RemoteError) as caught:
        client.put_manifest("app", "v2", manifest, WORK)
    assert (status, True, 1) == (caught.value.status, caught.value.retryable, caught.value.exit_code)


@pytest.mark.parametrize(("status", "heads"), [(401, 0), (403, 1), (404, 1), (409, 1), (412, 1), (413, 0), (500, 0)])
def test_a_rejection_is_followed_by_a_head_only_if_the_manifest_may_be_stored(
    registry: ScriptedRegistry, manifest: Any, status: int, heads: int
) -> None:
    registry.fault("PUT manifest", status=status, times=9)
    with store(registry) as client, pytest.raises(RemoteError):
        client.put_manifest("app", "v2", manifest, WORK)
    assert heads == registry.counts()["HEAD manifest"]


def test_a_repository_may_have_the_name_immutable(registry: ScriptedRegistry, manifest: Any) -> None:
    registry.fault("PUT manifest", status=403)
    with store(registry) as client, pytest.raises(AuthError) as caught:
        client.put_manifest("team/immutable", "v2", manifest, WORK)
    assert "auth_denied" == caught.value.code


@pytest.mark.parametrize("status", [400, 500])
def test_a_rejected_manifest_of_an_unusual_kind_has_a_hint_about_the_setting(
    scripted: ScriptedFactory, status: int
) -> None:
    target, graph = scripted("target"), Graph("unusual")
    graph.schema1("old")
    graph.image("windows", layers=[graph.foreign_layer("https://layers.invalid/base"), graph.layer()])
    graph.image("usual")
    bodies = {tag: graph.manifests[digest] for tag, digest in graph.tags.items()}
    target.fault("PUT manifest", times=99, status=status)
    hints = {}
    with store(target) as client:
        for tag, body in bodies.items():
            with pytest.raises(RemoteError) as caught:
                client.put_manifest("app", tag, parse_manifest(body.data, body.media_type), WORK)
            hints[tag] = caught.value.hint
    assert "`schema1: convert`" in hints["old"]
    assert "`validation.manifests.urls.allow`" in hints["windows"]
    assert "" == hints["usual"]


def test_a_different_schema1_digest_has_a_hint_that_the_registry_does_not_support_schema1(
    scripted: ScriptedFactory,
) -> None:
    """crane registry serve and ociregistry compute the digest over the bytes with the signatures."""
    registry, graph = scripted(), Graph("signed")
    graph.schema1("v1")
    registry.load("app", graph)
    body = graph.manifests[graph.tags["v1"]]
    said = [("Docker-Content-Digest", str(Digest.of(body.data)))]
    registry.fault("PUT manifest", status=201, headers=said)
    registry.fault(
        "GET manifest", times=2, status=200, body=body.data, headers=[*said, ("Content-Type", SCHEMA1_SIGNED)]
    )
    with store(registry) as client:
        with pytest.raises(Refused) as put:
            client.put_manifest("app", "v2", parse_manifest(body.data, body.media_type), WORK)
        with pytest.raises(Refused) as got:
            client.manifest("app", "v1", WORK)
    assert "target_lied" == put.value.code
    assert "`schema1: convert`" in put.value.hint
    assert "digest_mismatch" == got.value.code
    assert "schema 2" in got.value.hint


def test_a_manifest_rejected_for_its_digest_may_be_retried(registry: ScriptedRegistry, manifest: Any) -> None:
    body = b'{"errors":[{"code":"DIGEST_INVALID","message":"provided digest did not match uploaded content"}]}'
    registry.fault("PUT manifest", times=1, status=400, body=body)
    with store(registry) as client, pytest.raises(RemoteError) as caught:
        client.put_manifest("app", "v2", manifest, WORK)
    assert ("bad_response", 400, True) == (caught.value.code, caught.value.status, caught.value.retryable)


def test_a_manifest_is_sent_again_to_a_busy_target(registry: ScriptedRegistry, manifest: Any) -> None:
    registry.fault("PUT manifest", times=2, status=503)
    with store(registry) as client:
        client.put_manifest("app", "v2", manifest, WORK)
    assert 3 == registry.counts()["PUT manifest"]


# ---- the rest of the seam


@pytest.mark.parametrize("api", [False, True])
def test_a_target_without_v2_has_a_hint(scripted: ScriptedFactory, api: bool) -> None:
    registry = scripted()
    headers = [("Docker-Distribution-Api-Version", "registry/2.0")] if api else []
    registry.fault("POST upload", status=404, headers=headers)
    with store(registry) as client, pytest.raises(NotFound) as caught:
        client.begin_upload("app", Descriptor(Digest.of(b"x"), 1), WORK)
    assert api == ("v2" not in caught.value.hint)


def test_a_host_without_a_catalog_has_a_hint(scripted: ScriptedFactory) -> None:
    registry = scripted()
    registry.fault("GET catalog", status=404)
    with store(registry) as client, pytest.raises(NotFound) as caught:
        list(client.repositories("", WORK))
    assert "one mirror for each" in caught.value.hint


def test_the_whole_catalog_is_read_and_filtered(scripted: ScriptedFactory) -> None:
    registry = scripted(page=2)
    for name in ("team/a", "team/b", "other/c", "team/d"):
        registry.load(name, _one())
    with store(registry) as client:
        assert ["team/a", "team/b", "team/d"] == sorted(str(name) for name in client.repositories("team/", WORK))


def _one() -> Graph:
    graph = Graph()
    graph.image("v1")
    return graph


def test_deleting_a_missing_tag_is_not_an_error(scripted: ScriptedFactory) -> None:
    registry = scripted(tag_delete=True)
    registry.load("app", _one())
    with store(registry) as client:
        for _ in range(2):
            client.delete("app", "v1", WORK)
    assert [] == registry.tags("app")


def test_valid_digests_in_a_tag_list_are_used(scripted: ScriptedFactory) -> None:
    registry = scripted()
    digest = Digest.of(b"x")
    manifests = {str(digest): {"tag": ["v1", "latest"]}, "junk": {"tag": ["v2"]}, str(Digest.of(b"y")): {"tag": []}}
    body = json.dumps({"name": "app", "tags": ["v1", "v2", "latest"], "manifest": manifests}).encode()
    registry.fault("GET tags", status=200, body=body)
    with store(registry) as client:
        tags = [tag for tag in client.tags("app", WORK) if isinstance(tag, str)]
    assert ["v1", "v2", "latest"] == tags
    assert {"v1": digest, "latest": digest} == {str(tag): tag.digest for tag in tags if isinstance(tag, ListedTag)}


def test_a_page_may_have_50_000_tags_with_their_manifests(scripted: ScriptedFactory) -> None:
    """GCR and Artifact Registry do so for every `n`."""
    registry = scripted()
    about = {
        "imageSizeBytes": "123456789",
        "layerId": "",
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "timeCreatedMs": "1600000000000",
        "timeUploadedMs": "1600000000000",
    }
    names = [f"tag-{number}" for number in range(50_000)]
    manifests = {str(Digest.of(name.encode())): {**about, "tag": [name]} for name in names}
    body = json.dumps({"child": [], "name": "app", "tags": names, "manifest": manifests}).encode()
    registry.fault("GET tags", status=200, body=body)
    with store(registry) as client:
        tags = list(client.tags("app", WORK))
    assert names == tags
    assert {Digest.of(b"tag-49999")} == {tag.digest for tag in tags[-1:] if isinstance(tag, ListedTag)}


@pytest.mark.parametrize("kind, hint", [("GET tags", "`tags`"), ("GET catalog", "`*`")])
def test_a_page_that_is_too_large_has_a_hint_that_avoids_the_list(
    scripted: ScriptedFactory, kind: str, hint: str
) -> None:
    registry = scripted()
    registry.fault(kind, status=200, body=b" " * (MAX_PAGE_BYTES + 1))
    with store(registry) as client, pytest.raises(Refused) as caught:
        list(client.tags("app", WORK) if kind == "GET tags" else client.repositories("", WORK))
    assert "too_many" == caught.value.code
    assert hint in caught.value.hint


def test_a_registry_that_rejects_large_pages_is_read_with_its_own_page_size(scripted: ScriptedFactory) -> None:
    registry = scripted(max_n=100, page=50)
    graph = Graph()
    names = [f"t{number:03}" for number in range(120)]
    graph.image(*names)
    registry.load("app", graph)
    with store(registry) as client:
        assert names == sorted(str(name) for name in client.tags("app", WORK))


def test_after_a_full_page_the_next_one_is_requested(scripted: ScriptedFactory) -> None:
    registry = scripted(page=50, link=False)
    graph = Graph()
    names = [f"t{number:03}" for number in range(120)]
    graph.image(*names)
    registry.load("app", graph)
    with store(registry) as client:
        assert names == sorted(str(name) for name in client.tags("app", WORK))


def test_credentials_in_an_error_response_are_not_reported(registry: ScriptedRegistry) -> None:
    class Known:
        def header(self, scopes: Any, work: Work) -> str:
            return "Bearer " + "opaque-token-" * 4

        def handle_challenge(self, scopes: Any, challenges: Any, sent: str | None, work: Work) -> None: ...
        def record_accepted(self, scopes: Any, *, is_forbidden: bool = False) -> None: ...

        def account(self, scopes: Any) -> str:
            return ""

        def record_no_response(self, scopes: Any) -> None: ...
        def allow_one_more_request(self, scopes: Any, *, only_if_accepted: bool) -> None: ...

    body = b'{"errors":[{"code":"DENIED","message":"bad header Bearer ' + b"opaque-token-" * 4 + b' given"}]}'
    registry.fault("HEAD manifest", times=9, status=405)
    registry.fault("GET manifest", times=9, status=400, body=body)
    settings = HostSettings(registry.host, plain_http=True)
    with Session(settings, Limits(), policy=QUICK, authorizer=Known()) as session, pytest.raises(RemoteError) as caught:
        RegistryV2(session).manifest("app", "v1", WORK)
    assert "opaque-token" not in str(caught.value)
    assert "[hidden]" in str(caught.value)
