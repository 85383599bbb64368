"""Tags, types and lists of the artifacts that belong to an image."""

from __future__ import annotations

import json

import pytest

from mirror.errors import Refused
from mirror.oci import manifest as manifests
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST, Manifest, parse_manifest
from mirror.oci.referrers import (
    contains_entries,
    is_attachment_tag,
    kind_of_tag,
    kinds_of_type,
    merge_referrers,
    referrer_entry,
    referrers_tag,
    signature_tags,
)
from tests.support.images import Graph, Made

SHA256 = Digest(f"sha256:{'ab' * 32}")
SHA512 = Digest(f"sha512:{'cd' * 64}")


def parsed(graph: Graph, made: Made) -> Manifest:
    body = graph.manifests[made.digest]
    return parse_manifest(body.data, body.media_type)


def test_the_tag_of_the_referrers_has_at_most_64_digits() -> None:
    assert f"sha256-{'ab' * 32}" == referrers_tag(SHA256)
    assert f"sha512-{'cd' * 32}" == referrers_tag(SHA512)


def test_cosign_has_three_tags_for_a_sha256_manifest_and_none_for_sha512() -> None:
    name = f"sha256-{'ab' * 32}"
    assert {f"{name}.sig": "signature", f"{name}.att": "attestation", f"{name}.sbom": "sbom"} == signature_tags(SHA256)
    assert {} == signature_tags(SHA512)


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        (f"sha256-{'ab' * 32}", True),
        (f"sha512-{'ab' * 32}", True),
        (f"sha256-{'ab' * 32}.sig", True),
        (f"sha512-{'ab' * 32}.sig", False),
        (f"sha256-{'ab' * 32}.att", True),
        (f"sha256-{'ab' * 32}.sbom", True),
        (f"sha256-{'AB' * 32}.sig", False),
        (f"sha256-{'ab' * 31}.sig", False),
        (f"sha256-{'ab' * 32}.txt", False),
        (f"v1-sha256-{'ab' * 32}", False),
        ("3.20", False),
    ],
)
def test_only_tags_of_the_two_schemes_count_as_tags_of_attachments(tag: str, expected: bool) -> None:
    assert expected == is_attachment_tag(tag)


@pytest.mark.parametrize(
    ("artifact_type", "kinds"),
    [
        ("application/vnd.cncf.notary.signature", {"signature"}),
        ("application/vnd.dev.cosign.artifact.sig.v1+json", {"signature"}),
        ("application/vnd.dev.cosign.simplesigning.v1+json", {"signature"}),
        ("application/vnd.dev.sigstore.bundle.v0.3+json", {"signature", "attestation"}),
        ("application/vnd.dev.cosign.artifact.sbom.v1+json", {"sbom"}),
        ("application/spdx+json", {"sbom"}),
        ("text/spdx", {"sbom"}),
        ("application/vnd.cyclonedx+json", {"sbom"}),
        ("application/vnd.cyclonedx+xml;version=1.5", {"sbom"}),
        ("application/vnd.syft+json", {"sbom"}),
        ("application/vnd.in-toto+json", {"attestation"}),
        ("application/vnd.docker.attestation.manifest.v1+json", {"attestation"}),
        ("application/vnd.openvex.vex+json", {"attestation"}),
        ("application/vnd.dsse.envelope.v1+json", {"attestation"}),
        ("application/vnd.oci.image.config.v1+json", set()),
        ("application/vnd.example.designation", set()),
        ("", set()),
    ],
)
def test_the_words_of_an_artifact_type_show_its_kind(artifact_type: str, kinds: set[str]) -> None:
    assert kinds == kinds_of_type(artifact_type)


def test_an_entry_has_the_artifact_type_and_the_annotations_of_the_manifest() -> None:
    graph = Graph()
    subject = graph.image("v1")
    artifact = graph.artifact(kind="application/spdx+json", subject=subject, annotations={"a": "1"})
    signature = graph.image(subject=subject)
    entry = referrer_entry(parsed(graph, artifact))
    assert {**artifact.bare(), "artifactType": "application/spdx+json", "annotations": {"a": "1"}} == entry
    config = "application/vnd.oci.image.config.v1+json"
    assert {**signature.bare(), "artifactType": config} == referrer_entry(parsed(graph, signature))


def test_a_merged_list_keeps_everything_and_appends_new_entries_in_order() -> None:
    graph = Graph()
    subject = graph.image("v1")
    made = [graph.artifact(subject=subject, texts=[text]) for text in (b"1", b"2", b"3")]
    known, *new = (parsed(graph, one) for one in made)
    theirs = {"mediaType": known.media_type, "digest": known.digest, "size": known.size, "x": 1}
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [theirs], "annotations": {"b": "2"}}
    old = parse_manifest(json.dumps(document).encode())
    merged = merge_referrers(old, [*new, known], "the list")
    assert merged is not None
    expected = {
        **document,
        "manifests": [theirs, *(referrer_entry(one) for one in sorted(new, key=lambda x: x.digest))],
    }
    assert expected == json.loads(merged)
    assert merged == merge_referrers(old, [*reversed(new)], "the list")
    assert merge_referrers(parse_manifest(merged), [known, *new], "the list") is None


def test_the_first_list_is_an_empty_index_with_the_new_entries() -> None:
    graph = Graph()
    one = parsed(graph, graph.artifact(subject=graph.image("v1")))
    merged = merge_referrers(None, [one], "the list")
    assert merged is not None
    assert {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [referrer_entry(one)]} == json.loads(merged)
    assert one.digest == parse_manifest(merged).children[0].digest


def test_a_list_that_could_not_be_read_again_is_refused() -> None:
    graph = Graph()
    one = parsed(graph, graph.artifact(subject=graph.image("v1"), annotations={"a": "x" * 3000}))
    entries = [{**one_entry(number)} for number in range(manifests.MAX_ENTRIES)]
    old = parse_manifest(json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode())
    with pytest.raises(Refused, match="the list would have 10001 entries") as caught:
        merge_referrers(old, [one], "the list")
    assert "too_many" == caught.value.code


def one_entry(number: int) -> dict[str, object]:
    digest = f"sha256:{number:064x}"
    return {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 10}


# ---- what a manifest under a tag of attachments contains

SIG = "dev.cosignproject.cosign/signature"


def signatures(*keys: str, **members: object) -> Manifest:
    """Return a manifest with a signature by each key, all of the same payload, as cosign writes it."""
    graph = Graph("signatures")
    config = graph.blob(" ".join(keys).encode())
    layers = [graph.blob(b"payload").json(annotations={SIG: key, "other": "x"}) for key in keys]
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.json(), "layers": layers, **members}
    return parse_manifest(json.dumps(document).encode())


def listing(*names: str, **members: object) -> Manifest:
    graph = Graph("listing")
    entries = [graph.artifact(kind=f"application/{name}").json() for name in names]
    return parse_manifest(
        json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries, **members}).encode()
    )


@pytest.mark.parametrize(
    ("one", "other", "contained"),
    [
        (signatures("a"), signatures("a"), True),
        (signatures("b", "a"), signatures("a"), True),
        (signatures("a"), signatures("a", "b"), False),
        (signatures("b"), signatures("a"), False),  # the layers have the same digest
        (signatures("a"), signatures("a", "a"), False),
        (signatures(), signatures("a"), False),
        (signatures("a"), signatures(), False),  # its content may be in the config
        (signatures(), signatures(), True),
        (signatures("a"), signatures("a", annotations={"x": "y"}), False),
        (signatures("a", annotations={"x": "y", "z": "1"}), signatures("a", annotations={"x": "y"}), True),
        (signatures("a"), signatures("a", artifactType="application/x"), False),
        (signatures("a", artifactType="application/x"), signatures("a"), True),
        (signatures("a", subject=Graph("s").blob(b"s").json()), signatures("a"), True),
        (signatures("a"), signatures("a", subject=Graph("s").blob(b"s").json()), False),
        (listing("a", "b"), listing("b"), True),
        (listing("a"), listing(), True),
        (listing("a"), listing("b"), False),
        (listing("a"), signatures("a"), False),
        (signatures("a"), listing(), False),
    ],
)
def test_a_manifest_contains_another_one_if_nothing_of_it_is_missing(
    one: Manifest, other: Manifest, contained: bool
) -> None:
    assert contained == contains_entries(one, other)


def test_a_schema_1_manifest_contains_nothing() -> None:
    graph = Graph("old")
    old = parsed(graph, graph.schema1("v1"))
    assert not contains_entries(old, old)


@pytest.mark.parametrize(
    ("tag", "kind"),
    [
        (f"sha256-{'ab' * 32}.sig", "signature"),
        (f"sha256-{'ab' * 32}.att", "attestation"),
        (f"sha256-{'ab' * 32}.sbom", "sbom"),
        (f"sha256-{'ab' * 32}", ""),
    ],
)
def test_the_suffix_of_a_tag_shows_the_kind_of_its_artifacts(tag: str, kind: str) -> None:
    assert kind == kind_of_tag(tag)
