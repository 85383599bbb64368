"""Manifests and indexes from servers: which documents are accepted, and which are errors with which code."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.errors import MirrorError, Refused, RemoteError
from mirror.oci import strictjson
from mirror.oci.descriptor import Descriptor, parse_descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import (
    ACCEPTED,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MAX_BYTES,
    MAX_ENTRIES,
    OCI_ARTIFACT,
    OCI_INDEX,
    OCI_MANIFEST,
    SCHEMA1,
    SCHEMA1_SIGNED,
    Kind,
    Manifest,
    parse_manifest,
    plain_type,
)
from mirror.oci.platform import Platform

D = [f"sha256:{digit * 64}" for digit in "0123456789abcdef"]
EMPTY = str(Digest.of(b""))
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": D[0], "size": 10}


def layer(number: int = 1, size: object = 20, **more: object) -> dict[str, Any]:
    return {"mediaType": OCI_LAYER, "digest": D[number], "size": size, **more}


def image(**changes: object) -> dict[str, Any]:
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": CONFIG,
        "layers": [layer()],
        **changes,
    }
    return {key: value for key, value in document.items() if value is not ...}


def index(*children: object, **changes: object) -> dict[str, Any]:
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(children), **changes}
    return {key: value for key, value in document.items() if value is not ...}


def child(number: int = 1, media_type: str = OCI_MANIFEST, size: int = 30, **more: object) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": D[number], "size": size, **more}


def body(document: object) -> bytes:
    return json.dumps(document).encode()


def parse(document: object, content_type: str = "", **options: Any) -> Manifest:
    return parse_manifest(document if isinstance(document, bytes) else body(document), content_type, **options)


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(MirrorError) as caught:
        call()
    assert not set("\n\0\x1b\u202e") & set(str(caught.value))
    return caught.value.code


def nested(depth: int) -> bytes:
    return b'{"a":' * (depth - 1) + b"[]" + b"}" * (depth - 1)


REFUSED: dict[str, tuple[bytes | dict[str, Any], str]] = {
    # what is no JSON object, or not one for every reader
    "empty body": (b"", "manifest_invalid"),
    "null": (b"null", "manifest_invalid"),
    "list": (b"[]", "manifest_invalid"),
    "text": (b'"x"', "manifest_invalid"),
    "number": (b"1", "manifest_invalid"),
    "nothing in it": (b"{}", "manifest_invalid"),
    "html": (b"<!DOCTYPE html><title>Log in</title>", "bad_response"),
    "truncated": (body(image())[:-5], "manifest_invalid"),
    "two objects": (body(image()) * 2, "manifest_invalid"),
    "trailing garbage": (body(image()) + b"x", "manifest_invalid"),
    "byte order mark": (b"\xef\xbb\xbf" + body(image()), "manifest_invalid"),
    "utf-16": (json.dumps(image()).encode("utf-16"), "manifest_invalid"),
    "utf-16 without mark": (json.dumps(image()).encode("utf-16-le"), "manifest_invalid"),
    "nul": (body(image()).replace(b"2", b"\0", 1), "manifest_invalid"),
    "latin-1": (b'{"a": "\xe9"}', "manifest_invalid"),
    "lone surrogate": (b'{"a": "\\ud800"}', "manifest_invalid"),
    "lone surrogate in a key": (b'{"\\udfff": 1}', "manifest_invalid"),
    "too deep": (nested(65), "manifest_invalid"),
    "far too deep": (nested(100_000), "manifest_invalid"),
    "long number": (b'{"schemaVersion": 2' + b"0" * 5000 + b"}", "manifest_invalid"),
    "not a number": (b'{"schemaVersion": NaN}', "manifest_invalid"),
    "infinity": (b'{"schemaVersion": -Infinity}', "manifest_invalid"),
    "too big": (b" " * (MAX_BYTES + 1), "manifest_too_big"),
    # keys that two readers could see differently
    "layers twice": (b'{"layers": [], "layers": []}', "manifest_invalid"),
    "layers twice by escape": (b'{"layers": [], "layer\\u0073": []}', "manifest_invalid"),
    "digest twice": (body(image()).replace(b'"size": 10', b'"digest": "x"'), "manifest_invalid"),
    "case variant beside": (image(Layers=[]), "manifest_invalid"),
    "case variant alone": (image(Subject=CONFIG), "manifest_ambiguous"),
    "case variant of a type": (image(mediaType=..., MediaType=OCI_INDEX), "manifest_ambiguous"),
    "long s": (image(mediaType=OCI_MANIFEST, **{"manife\u017ft\u017f": []}), "manifest_ambiguous"),
    "case variant in a descriptor": (image(layers=[{**layer(), "Size": 1, "size": 20}]), "manifest_invalid"),
    "only a case variant in a descriptor": (image(layers=[layer(URLs=["x"])]), "manifest_ambiguous"),
    # versions and types
    "version missing": (image(schemaVersion=...), "manifest_invalid"),
    "version as text": (image(schemaVersion="2"), "manifest_invalid"),
    "version 1": (image(schemaVersion=1), "manifest_invalid"),
    "version 3": (image(schemaVersion=3), "manifest_invalid"),
    "version true": (image(schemaVersion=True), "manifest_invalid"),
    "version 2.0": (image(schemaVersion=2.0), "manifest_invalid"),
    "type is a list": (image(mediaType=[OCI_MANIFEST]), "manifest_invalid"),
    "unknown type": (image(mediaType="application/vnd.acme+json"), "manifest_invalid"),
    "config and manifests": (image(mediaType=..., manifests=[]), "manifest_ambiguous"),
    "manifests in an image": (image(manifests=[]), "manifest_ambiguous"),
    "layers in an index": (index(layers=[]), "manifest_ambiguous"),
    "config in an index": (index(config=CONFIG), "manifest_ambiguous"),
    "fsLayers in an image": (image(fsLayers=[]), "manifest_ambiguous"),
    "history in an image": (image(history=[]), "manifest_ambiguous"),
    # config and layers
    "config missing": (image(config=...), "manifest_invalid"),
    "config null": (image(config=None), "manifest_invalid"),
    "config list": (image(config=[CONFIG]), "manifest_invalid"),
    "layers null": (image(layers=None), "manifest_invalid"),
    "layers object": (image(layers={}), "manifest_invalid"),
    "layers missing": (image(layers=...), "manifest_invalid"),
    "layer is a text": (image(layers=[D[1]]), "manifest_invalid"),
    "too many layers": (image(layers=[layer()] * (MAX_ENTRIES + 1)), "too_many"),
    "two sizes": (image(layers=[layer(1, 20), layer(1, 21)]), "manifest_invalid"),
    "config and layer of two sizes": (image(layers=[layer(0, 11)]), "manifest_invalid"),
    "type of a layer is a number": (image(layers=[{**layer(), "mediaType": 1}]), "manifest_invalid"),
    "subject list": (image(subject=[CONFIG]), "manifest_invalid"),
    "subject text": (image(subject=D[1]), "manifest_invalid"),
    "subject without size": (image(subject={"digest": D[1]}), "manifest_invalid"),
    # indexes
    "manifests null": (index(manifests=None), "manifest_invalid"),
    "manifests object": (index(manifests={}), "manifest_invalid"),
    "manifests missing": (index(manifests=...), "manifest_invalid"),
    "too many children": (index(*[child()] * (MAX_ENTRIES + 1)), "too_many"),
    "child of two sizes": (index(child(), child(size=31)), "manifest_invalid"),
    "child is null": (index(None), "manifest_invalid"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_invalid_document_is_an_error_with_its_code(name: str) -> None:
    document, code = REFUSED[name]
    started = time.thread_time()
    assert code == code_of(lambda: parse(document))
    assert time.thread_time() - started < 5


BAD_SIZES: tuple[Any, ...] = (None, "12", 12.0, True, -1, 1 << 63, [], {}, 1e3, ...)


@pytest.mark.parametrize("size", BAD_SIZES, ids=repr)
def test_a_size_that_is_not_a_number_of_bytes_is_an_error(size: object) -> None:
    descriptor = {key: value for key, value in layer(1, size).items() if value is not ...}
    assert "manifest_invalid" == code_of(lambda: parse(image(layers=[descriptor])))


def test_a_huge_size_is_accepted() -> None:
    (_, blob) = parse(image(layers=[layer(1, 1 << 62)])).blobs
    assert 1 << 62 == blob.size


@pytest.mark.parametrize(
    "digest",
    [
        None,
        12,
        [],
        "",
        D[1][:-1],
        f"{D[1]}0",
        D[1].upper(),
        f"sha256-{'1' * 64}",
        "sha256:../../../etc/passwd",
        "md5:aa",
        f"{D[1]}\n",
    ],
    ids=ascii,
)
@pytest.mark.parametrize("where", ["config", "layers", "subject", "manifests"])
def test_an_invalid_digest_is_an_error_in_every_position(digest: object, where: str) -> None:
    bad = {"mediaType": OCI_MANIFEST, "digest": digest, "size": 1}
    document = index(bad) if where == "manifests" else image(**{where: [bad] if where == "layers" else bad})
    assert "manifest_invalid" == code_of(lambda: parse(document))


def test_a_descriptor_of_size_zero_must_have_the_empty_digest() -> None:
    (_, blob) = parse(image(layers=[{**layer(size=0), "digest": EMPTY}])).blobs
    assert (0, EMPTY) == (blob.size, blob.digest)
    assert "manifest_invalid" == code_of(lambda: parse(image(layers=[layer(size=0)])))


# ---- accepted documents ----


def test_blobs_of_an_image_are_the_config_first_and_each_layer_once() -> None:
    document = image(layers=[layer(1), layer(2), *[layer(1)] * 200], subject=child(3))
    manifest = parse(document)
    assert (OCI_MANIFEST, Kind.IMAGE) == (manifest.media_type, manifest.kind)
    assert [D[0], D[1], D[2]] == [blob.digest for blob in manifest.blobs]
    assert () == manifest.children
    assert Descriptor(Digest(D[3]), 30, OCI_MANIFEST) == manifest.subject
    assert (body(document), Digest.of(body(document))) == (manifest.body, manifest.digest)
    assert len(body(document)) == manifest.size


def test_one_digest_may_have_two_media_types() -> None:
    manifest = parse(image(layers=[layer(1), {**layer(1), "mediaType": "application/x"}]))
    assert [OCI_LAYER] == [blob.media_type for blob in manifest.blobs[1:]]


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_the_media_type_may_be_in_the_content_type_only(media_type: str) -> None:
    assert media_type == parse(image(mediaType=...), f"{media_type}; charset=utf-8").media_type
    assert media_type == parse(image(mediaType=media_type), "application/octet-stream").media_type


@pytest.mark.parametrize("content_type", ["", "application/json", "text/plain; charset=utf-8"])
def test_without_a_media_type_the_keys_determine_it(content_type: str) -> None:
    assert OCI_MANIFEST == parse(image(mediaType=...), content_type).media_type
    assert OCI_INDEX == parse(index(mediaType=...), content_type).media_type


def test_a_content_type_that_contradicts_the_document_is_an_error() -> None:
    assert "type_mismatch" == code_of(lambda: parse(image(), OCI_INDEX))
    assert "type_mismatch" == code_of(lambda: parse(image(), "application/vnd.acme+json"))
    assert "manifest_ambiguous" == code_of(lambda: parse(image(mediaType=...), OCI_INDEX))


def test_an_html_page_is_a_bad_response() -> None:
    for page, content_type in ((b"\n <html></html>", OCI_MANIFEST), (b"Sign in", "text/html; charset=utf-8")):
        with pytest.raises(RemoteError, match="HTML") as caught:
            parse(page, content_type, expected=Digest.of(page))
        assert ("bad_response", 1) == (caught.value.code, caught.value.exit_code)


def test_an_image_may_have_no_layers_or_many() -> None:
    assert 1 == len(parse(image(layers=[])).blobs)
    many = [{**layer(), "digest": Digest.of(str(number).encode())} for number in range(1000)]
    assert 1001 == len(parse(image(layers=many)).blobs)


def test_artifacts_need_no_image_config() -> None:
    empty = {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": str(Digest.of(b"{}")),
        "size": 2,
        "data": "e30=",
    }
    document = image(config=empty, artifactType="text/x\x1b", layers=[empty], annotations={"a": "\u202e"})
    assert [Digest.of(b"{}")] == [blob.digest for blob in parse(document).blobs]


def test_an_artifact_manifest_has_blobs() -> None:
    document = {"mediaType": OCI_ARTIFACT, "artifactType": "x", "blobs": [layer()], "subject": child(2)}
    manifest = parse(document)
    assert (Kind.ARTIFACT, [D[1]]) == (manifest.kind, [blob.digest for blob in manifest.blobs])
    assert () == parse({"mediaType": OCI_ARTIFACT, "artifactType": "x"}).blobs


def test_the_accept_header_has_every_supported_type() -> None:
    assert {OCI_MANIFEST, OCI_INDEX, OCI_ARTIFACT, DOCKER_MANIFEST, DOCKER_LIST, SCHEMA1, SCHEMA1_SIGNED} == set(
        ACCEPTED
    )
    assert "application/json" == plain_type(" Application/JSON ; charset=utf-8")


# ---- descriptors ----


def test_urls_are_kept_and_bounded() -> None:
    foreign = {**layer(), "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}
    with_urls = parse_descriptor({**foreign, "urls": ["https://x.example.com/y", "file:///etc/passwd", 1]}, "x")
    assert (True, ("https://x.example.com/y", "file:///etc/passwd")) == (with_urls.foreign, with_urls.urls)
    assert not parse_descriptor(foreign, "x").foreign  # nowhere else to be had
    assert not parse_descriptor({**layer(), "urls": ["https://x.example.com"]}, "x").foreign  # an ordinary layer
    bad: tuple[Any, ...] = ("https://x", {}, ["x"] * 101)
    for urls in bad:
        assert "manifest_invalid" == code_of(partial(parse_descriptor, {**foreign, "urls": urls}, "x"))


@pytest.mark.parametrize("data", ["%%%", 12, "", base64.b64encode(b"other").decode(), "aGk=\n", "\u00e9"], ids=ascii)
def test_embedded_content_that_does_not_match_the_digest_is_an_error(data: Any) -> None:
    good: dict[str, Any] = {"digest": str(Digest.of(b"hello")), "size": 5, "data": base64.b64encode(b"hello").decode()}
    assert 5 == parse_descriptor(good, "x").size
    assert "manifest_invalid" == code_of(lambda: parse_descriptor({**good, "data": data}, "x"))


def test_long_embedded_content_is_not_checked() -> None:
    assert 20 == parse_descriptor(layer(data="x" * (1 << 20)), "x").size


def test_valid_parts_of_a_childs_platform_are_kept() -> None:
    platforms = [
        ({"os": "linux", "architecture": "arm", "variant": "v7"}, "linux/arm/v7"),
        ({"os": "linux", "architecture": 12}, "linux"),
        ({}, "unknown"),
        ({"os": "unknown", "architecture": "unknown"}, "unknown/unknown"),
        ({"os": "a\x1b"}, "a\\x1b"),
        ({"os": "linux", "variant": "v" * 1024}, "linux/" + "v" * 63 + "…"),
    ]
    children = [child(number + 1, platform=platform) for number, (platform, _) in enumerate(platforms)]
    assert [text for _, text in platforms] == [str(found.platform) for found in parse(index(*children)).children]
    assert None is parse(index(child(platform="linux/amd64"))).children[0].platform
    assert (
        Platform("linux", "amd64")
        == parse(index(child(platform={"os": "linux", "architecture": "amd64"}))).children[0].platform
    )


# ---- indexes ----


def test_an_index_has_each_child_once_and_several_children_of_one_platform() -> None:
    amd64 = {"os": "linux", "architecture": "amd64"}
    manifest = parse(index(child(1, platform=amd64), child(2, platform=amd64), *[child(3, OCI_INDEX)] * 500))
    assert [D[1], D[2], D[3]] == [found.digest for found in manifest.children]
    assert (Kind.INDEX, ()) == (manifest.kind, manifest.blobs)
    assert () == parse(index()).children


def test_entries_of_an_index_that_are_not_manifests_are_blobs() -> None:
    manifest = parse(index(child(1), child(2, "application/vnd.buildkit.cacheconfig.v0"), {"digest": D[3], "size": 1}))
    assert ([D[1], D[3]], [D[2]]) == (
        [found.digest for found in manifest.children],
        [found.digest for found in manifest.blobs],
    )


# ---- digests ----


def test_bytes_with_a_wrong_digest_are_not_parsed() -> None:
    wanted = Digest.of(b"other")
    assert "digest_mismatch" == code_of(lambda: parse(image(), OCI_MANIFEST, expected=wanted))
    assert "digest_mismatch" == code_of(lambda: parse(b"[[[", expected=wanted))


def test_a_manifest_has_the_digest_algorithm_of_the_request() -> None:
    document = body(image())
    for algorithm in ("sha256", "sha512"):
        digest = Digest.of(document, algorithm)
        assert digest == parse(document, expected=digest).digest


# ---- schema 1 ----


def schema1(**changes: object) -> dict[str, Any]:
    document: dict[str, Any] = {
        "schemaVersion": 1,
        "name": "library/x",
        "tag": "v1",
        "architecture": "amd64",
        "fsLayers": [{"blobSum": D[1]}, {"blobSum": D[2]}, {"blobSum": D[1]}],
        "history": [{"v1Compatibility": "{}"}] * 3,
        **changes,
    }
    return document


def signed(document: dict[str, Any], *, times: int = 1, extra: str = "", **protected: object) -> tuple[bytes, Digest]:
    """Return a signed manifest in docker's format, and the digest of its payload.

    The signature itself is not checked."""
    payload = json.dumps(document, indent=3)
    head = payload.rstrip()[:-1].rstrip()
    claim = {
        "formatLength": len(head),
        "formatTail": base64.urlsafe_b64encode(b"\n}").decode().rstrip("="),
        **protected,
    }
    signature = {
        "protected": base64.urlsafe_b64encode(json.dumps(claim).encode()).decode().rstrip("="),
        "signature": "x",
    }
    text = f'{head},{extra}\n   "signatures": {json.dumps([signature] * times)}\n}}'
    return text.encode(), Digest.of(payload.encode())


def test_the_digest_of_a_signed_schema1_is_that_of_its_payload() -> None:
    text, digest = signed(schema1(), times=2)
    for content_type in (SCHEMA1_SIGNED, "application/json; charset=utf-8", ""):
        manifest = parse(text, content_type, expected=digest)
        assert (Kind.SCHEMA1, digest, text) == (manifest.kind, manifest.digest, manifest.body)
        assert [(D[1], None), (D[2], None)] == [(blob.digest, blob.size) for blob in manifest.blobs]


def test_an_unsigned_schema1_has_the_digest_of_its_bytes() -> None:
    text = body(schema1())
    manifest = parse(text, SCHEMA1, expected=Digest.of(text))
    assert (SCHEMA1, Digest.of(text)) == (manifest.media_type, manifest.digest)
    assert SCHEMA1 == parse(text).media_type


def test_a_schema1_manifest_with_a_wrong_digest_is_an_error() -> None:
    text, _ = signed(schema1())
    for content_type in (SCHEMA1_SIGNED, "application/json", ""):
        assert "digest_mismatch" == code_of(partial(parse, text, content_type, expected=Digest.of(b"other")))


def test_the_text_fslayers_does_not_bypass_the_digest_check() -> None:
    document = image(annotations={"x": "fsLayers"})
    text = body(document)
    assert b'"fsLayers"' in text
    assert "digest_mismatch" == code_of(lambda: parse(text, "", expected=Digest.of(b"other")))
    assert Digest.of(text) == parse(text, "", expected=Digest.of(text)).digest


@pytest.mark.parametrize(
    "text",
    [
        body(schema1(history=[])),
        body(schema1(fsLayers=[], history=[])),
        body(schema1(fsLayers=[{"blobSum": "x"}] * 3)),
        body(schema1(fsLayers=["x"] * 3)),
        body(schema1(signatures=[])),
        body(schema1(signatures={})),
        body(schema1(signatures=["x"])),
        body(schema1(signatures=[{"protected": "%%%"}])),
        body(schema1(signatures=[{"protected": "é"}])),
        body(schema1(signatures=[{"protected": "W10"}])),
        signed(schema1(), formatLength=-1)[0],
        signed(schema1(), formatLength=True)[0],
        signed(schema1(), formatLength=10**9)[0],
        signed(schema1(), formatLength=10)[0],
        signed(schema1(), formatTail=None)[0],
        signed(schema1(), extra='"more": 1,')[0],
        signed(schema1())[0].replace(b'"schemaVersion": 1', b'"schemaVersion": 2'),
    ],
    ids=range(17),
)
def test_an_inconsistent_schema1_manifest_is_an_error(text: bytes) -> None:
    assert "manifest_invalid" == code_of(lambda: parse(text, SCHEMA1_SIGNED))


def test_signatures_over_different_payloads_are_an_error() -> None:
    text, _ = signed(schema1())
    other = json.loads(signed(schema1(), formatTail="fQ")[0])["signatures"][0]
    both = text.replace(b"}]\n}", f"}}, {json.dumps(other)}]\n}}".encode())
    assert 2 == len(json.loads(both)["signatures"])
    with pytest.raises(Refused, match="different payloads"):
        parse(both, SCHEMA1_SIGNED)


# ---- strict JSON ----


def test_documents_may_have_sixty_four_levels() -> None:
    assert strictjson.parse(nested(64), what="x")
    assert "manifest_invalid" == code_of(lambda: strictjson.parse(nested(65), what="x"))
    assert strictjson.parse(b"[" * 64 + b"1" + b"]" * 64, what="x")


def test_the_number_of_values_and_keys_is_limited_and_checked_quickly() -> None:
    started = time.thread_time()
    keys = b"{" + b",".join(b'"%d": 1' % number for number in range(200_000)) + b"}"
    assert strictjson.parse(keys, what="x")
    assert strictjson.parse(b'{"' + b"k" * (1 << 20) + b'": 1}', what="x")
    many = b"[" + b",".join([b"1"] * strictjson.MAX_NODES) + b"]"
    assert "too_bad" == code_of(lambda: strictjson.parse(many, what="x", code="too_bad"))
    assert time.thread_time() - started < 8


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 62), 1 << 62) | st.text(max_size=8),
    lambda below: (
        st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=5).map(str.casefold), below, max_size=4)
    ),
    max_leaves=20,
)


@given(json_values)
def test_unambiguous_json_is_parsed(value: Any) -> None:
    try:
        assert value == strictjson.parse(json.dumps(value, ensure_ascii=False).encode(), what="x")
    except Refused as error:  # casefold is no fixed point for a few letters
        assert "duplicate key" in str(error)


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=150)
def test_arbitrary_bytes_are_a_manifest_or_an_error(data: bytes) -> None:
    for content_type in ("", OCI_MANIFEST, OCI_INDEX, SCHEMA1_SIGNED):
        with pytest.raises(MirrorError):
            parse_manifest(data, content_type)


descriptors = st.fixed_dictionaries(
    {"digest": st.sampled_from(D) | st.text(max_size=5), "size": st.integers(-1, 30) | st.none()},
    optional={
        "mediaType": st.sampled_from([OCI_MANIFEST, OCI_LAYER]) | st.integers(),
        "urls": json_values,
        "platform": json_values,
    },
)


@given(
    st.fixed_dictionaries(
        {"schemaVersion": st.sampled_from([1, 2, "2"])},
        optional={
            "mediaType": st.sampled_from([*ACCEPTED, "x"]),
            "config": descriptors | json_values,
            "layers": st.lists(descriptors, max_size=4) | json_values,
            "manifests": st.lists(descriptors, max_size=4) | json_values,
            "subject": descriptors | json_values,
            "signatures": json_values,
            "fsLayers": json_values,
        },
    )
)
@settings(max_examples=200)
def test_accepted_documents_are_complete(document: dict[str, Any]) -> None:
    text = body(document)
    try:
        manifest = parse_manifest(text)
    except MirrorError:
        return
    assert text == manifest.body
    for descriptor in (*manifest.children, *manifest.blobs):
        assert descriptor.digest == Digest.parse(descriptor.digest)
        assert descriptor.size is None or descriptor.size >= 0
    assert len({blob.digest for blob in manifest.blobs}) == len(manifest.blobs)
