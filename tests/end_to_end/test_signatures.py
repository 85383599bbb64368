"""`verify-signatures`: only images that are signed with one of the keys are copied."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.end_to_end.test_v1 import mixed
from tests.registries.exchange import Reply, Request
from tests.registries.faults import FOREVER
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import OCI_MANIFEST, Graph, Made, oddly, tag_of
from tests.support.oracle import snapshot
from tests.support.signing import (
    SigningKey,
    add_bundle,
    add_signature,
    bundle,
    sign,
    signing_key,
    simple_payload,
    statement,
)
from tests.support.tool import MirrorTool

Sign = Callable[[Graph, Made], object]
COSIGN = Path(__file__).resolve().parent.parent / "signatures" / "cosign.json"  # see tests_real/test_cosign.py
FOREIGN = signing_key("foreign")


def _image_tags(tags: Iterable[str]) -> list[str]:
    """Return the sorted tags of images, without those of signatures, which are copied with the images."""
    return sorted(tag for tag in tags if not tag.startswith("sha256-"))


def _configure(
    tool: MirrorTool, source: ScriptedRegistry, target: ScriptedRegistry, *keys: SigningKey, **mirror: Any
) -> None:
    """Configure a mirror of `app` with a policy. keys: by default ours."""
    names = []
    for number, key in enumerate(keys or (signing_key(),)):
        names.append(f"key-{number}.pub")
        (tool.folder / names[-1]).write_bytes(key.pem)
    mirror |= {"verify-signatures": {"keys": names}}
    tool.config([{"source": f"{source.host}/app", "targets": [f"{target.host}/app"], **mirror}], source, target)


def _load(registry: ScriptedRegistry, cases: Mapping[str, Sign]) -> None:
    """Load an image for each case, under its name as the tag, and sign it."""
    for name, signed in cases.items():
        graph = Graph(name)
        signed(graph, graph.platforms(name))
        registry.load("app", graph)


def _several(graph: Graph, image: Made) -> None:
    payload = simple_payload(image.digest)
    bad = (payload, FOREIGN.sign_text(payload))
    add_signature(graph, image, bad, (payload, signing_key().sign_text(payload)), bad)


def _bundle(graph: Graph, image: Made) -> None:
    add_bundle(graph, image, bundle(statement(image.digest)))


def _bundle_and_bad_tag(graph: Graph, image: Made) -> None:
    graph.index(f"{tag_of(image)}.sig", children=[graph.image("x")])
    _bundle(graph, image)


def _simple_as_referrer(graph: Graph, image: Made) -> None:
    """Sign an image as cosign 2 does with `--registry-referrers-mode=oci-1-1`."""
    signature = sign(graph, image)
    document = json.loads(graph.manifests.pop(signature.digest).data)
    del graph.tags[f"{tag_of(image)}.sig"]
    kind = "application/vnd.dev.cosign.artifact.sig.v1+json"
    document |= {"subject": image.bare(), "config": {**document["config"], "mediaType": kind}}
    graph.index(tag_of(image), children=[graph.raw(oddly(document), OCI_MANIFEST, artifactType=kind)])


ACCEPTED: dict[str, Sign] = {
    "tag": sign,
    "several": _several,
    "bundle": _bundle,
    "bundle-and-bad-tag": _bundle_and_bad_tag,
    "referrer": _simple_as_referrer,
}


@pytest.mark.parametrize("api", [False, True], ids=["tags", "api"])
def test_a_signature_that_was_checked_is_copied_without_reading_it_again(
    api: bool, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    """The tag of the signature moves after the check. What was checked is what the target gets."""
    source, target = scripted("source", referrers=api), scripted("target")
    graph = Graph("app")
    made = sign(graph, graph.image("v1"))
    (tag,) = (tag for tag in graph.tags if tag.endswith(".sig"))
    source.load("app", graph)
    moved = Graph("moved")
    moved.image(tag, label="another signature")

    def move_tag(request: Request, reply: Reply) -> Reply:
        source.load("app", moved)
        return reply

    source.fault("GET manifest", reference=tag, after=True, change=move_tag)
    _configure(mirror_run, source, target, tags=["v1"])
    mirror_run.sync()
    assert made.digest == snapshot(target).tags["app", tag]
    references = [seen.reference for seen in source.requests() if seen.kind == "GET manifest"]
    assert sorted(references) == sorted({graph.tags["v1"], tag}), "each manifest is read once"
    assert 1 == source.counts()["HEAD manifest"]


def test_a_list_of_referrers_with_a_signature_is_requested_once(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source", referrers=True), scripted("target", referrers=True)
    _load(source, {"v1": _bundle})
    _configure(mirror_run, source, target, tags=["v1"])
    mirror_run.sync()
    assert {f"{target.host}/app:v1": "copied"} == mirror_run.results()
    lists = [seen.reference for seen in source.requests() if seen.kind == "GET referrers"]
    assert len(lists) == len(set(lists)) == 4, "for the index, its two children and the signature"
    read = [seen.reference for seen in source.requests() if seen.kind == "GET manifest" and seen.status == 200]
    assert len(read) == len(set(read)) == 4


@pytest.mark.parametrize("api", [False, True], ids=["tags", "api"])
def test_an_image_with_a_signature_by_one_of_the_keys_is_copied(
    api: bool, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    source.features.referrers = api
    _load(source, ACCEPTED)
    _configure(mirror_run, source, target, signing_key("second"), signing_key(), tags=list(ACCEPTED))
    mirror_run.sync()
    assert {f"{target.host}/app:{name}": "copied" for name in ACCEPTED} == mirror_run.results()
    events = [line["text"] for line in mirror_run.log() if line["event"] == "signature_verified"]
    assert len(ACCEPTED) == len([text for text in events if text.endswith("/key-1.pub")])
    snapshot_of_target = snapshot(target)
    assert ([], set(ACCEPTED)) == (
        snapshot_of_target.problems,
        set(_image_tags(tag for _, tag in snapshot_of_target.tags)),
    )
    source.mark()
    mirror_run.sync()  # nothing to copy: no signature is read
    assert {"HEAD manifest": len(ACCEPTED)} == dict(source.counts())


def test_signatures_that_cosign_made_are_accepted_with_their_key_only(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    """For keys of five kinds, in each of the formats: under a tag, as a bundle, and as a referrer."""
    source, target = scripted("source"), scripted("target")
    made = json.loads(COSIGN.read_text())
    graph = Graph()
    for content in made["blobs"]:
        graph.blob(base64.b64decode(content))
    for manifest in made["manifests"].values():
        graph.raw(manifest["body"].encode(), manifest["type"])
    graph.tags = made["tags"]
    source.load("app", graph)
    kinds = list(made["keys"])
    for kind, pem in made["keys"].items():
        (mirror_run.folder / f"{kind}.pub").write_text(pem)
    mirror_run.config(
        [
            {
                "source": f"{source.host}/app",
                "targets": [f"{target.host}/signed-by-{signer}/checked-with-{kind}"],
                "tags": [tag for tag in graph.tags if tag.startswith(f"{signer}-")],
                "verify-signatures": {"keys": [f"{kind}.pub"]},
            }
            for number, signer in enumerate(kinds)
            for kind in (signer, kinds[number - 1])
        ],
        source,
        target,
    )
    mirror_run.sync(expect=3)
    copied = {(repository, tag) for repository, tag in snapshot(target).tags if _image_tags([tag])}
    assert 15 == len(copied)
    assert copied == {
        (f"signed-by-{kind}/checked-with-{kind}", f"{kind}-{form}")
        for kind in kinds
        for form in ("tag", "bundle", "referrer")
    }


def _unsigned(graph: Graph, image: Made) -> None:
    """Sign nothing."""


def _other_key(graph: Graph, image: Made) -> None:
    sign(graph, image, FOREIGN)
    add_bundle(graph, image, bundle(statement(image.digest), FOREIGN))


def _other_image(graph: Graph, image: Made) -> None:
    payload = simple_payload(graph.image("other").digest)
    add_signature(graph, image, (payload, signing_key().sign_text(payload)))


def _huge(graph: Graph, image: Made) -> None:
    payload = simple_payload(image.digest, pad=1 << 20)
    add_signature(graph, image, (payload, signing_key().sign_text(payload)))


def _attestation(graph: Graph, image: Made) -> None:
    add_bundle(graph, image, bundle(statement(image.digest, predicate="https://slsa.dev/provenance/v1")))


def _missing_payload(graph: Graph, image: Made) -> None:
    sign(graph, image)
    graph.blobs = {digest: data for digest, data in graph.blobs.items() if b'"critical"' not in data}


def _changed_payload(graph: Graph, image: Made) -> None:
    sign(graph, image)
    graph.blobs = {digest: data.replace(b'"critical"', b'"Critical"') for digest, data in graph.blobs.items()}


def _index(graph: Graph, image: Made) -> None:
    graph.index(f"{tag_of(image)}.sig", children=[graph.image("x")])


def _child_only(graph: Graph, image: Made) -> None:
    children = json.loads(graph.manifests[image.digest].data)["manifests"]
    sign(graph, Made(children[0]["mediaType"], children[0]["digest"], children[0]["size"]))


REFUSED: dict[str, tuple[Sign, str]] = {
    "unsigned": (_unsigned, "no signature was found"),
    "other-key": (
        _other_key,
        "2 signatures were found, but none is accepted: the signature was made with a key that is not listed",
    ),
    "other-image": (_other_image, "the signed payload is for another image"),
    "huge": (_huge, "bytes; the limit is 1048576"),
    "attestation": (_attestation, "the signed statement is an attestation"),
    "missing-payload": (_missing_payload, "is missing"),
    "changed-payload": (_changed_payload, "but their digest is"),
    "index": (_index, "no signature was found"),
    "child-only": (_child_only, "no signature was found"),
}


def test_any_other_image_is_refused_before_anything_of_it_is_written(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    _load(source, {name: signed for name, (signed, _) in REFUSED.items()})
    _configure(mirror_run, source, target, tags=list(REFUSED))
    ran, problems = mirror_run.verify()
    assert (3, len(REFUSED)) == (ran.code, sum("is not signed with a key in" in message for _, message in problems))
    ran = mirror_run("plan", mirror_run.config_file, "--json")
    failures = json.loads(ran.out)["failures"]
    assert (3, ["not_signed"] * len(REFUSED)) == (ran.code, [failure["error"]["code"] for failure in failures])
    mirror_run.sync(expect=3)
    images = mirror_run.report()["images"]
    assert {("failed", "not_signed", False)} == {
        (image["result"], image["error"]["code"], image["error"]["retryable"]) for image in images
    }
    messages = {image["target"].partition("/app:")[2]: image["error"]["message"] for image in images}
    assert {} == {name: messages[name] for name, (_, says) in REFUSED.items() if says not in messages[name]}
    assert [] == target.writes()
    assert set() == {seen.reference for seen in source.requests() if seen.kind == "GET blob"} & _layers(source)


def _layers(registry: ScriptedRegistry) -> set[str]:
    """Return the digests of the layers of images, which are compressed with gzip."""
    return {digest for digest, data in registry.storage.bytes.items() if data.startswith(b"\x1f\x8b")}


def test_an_image_whose_signatures_cannot_be_read_fails_and_is_not_copied(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph()
    sign(graph, graph.image("v1"))
    source.load("app", graph)
    _configure(mirror_run, source, target, tags=["v1"])
    tag = f"{graph.tags['v1'].replace(':', '-')}.sig"
    source.fault("GET manifest", reference=tag, status=403, times=FOREVER)
    mirror_run.sync(expect=1)
    (image,) = mirror_run.report()["images"]
    assert ("failed", "auth_denied") == (image["result"], image["error"]["code"])
    assert [] == target.writes()


def test_no_state_of_earlier_runs_replaces_a_signature(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph()
    sign(graph, image := graph.image("v1", "v2"))
    source.load("app", graph)
    _configure(mirror_run, source, target, tags=["v1"])
    mirror_run.sync()
    del source.storage.repositories["app"].tags[f"{tag_of(image)}.sig"]
    _configure(mirror_run, source, target, tags=["v1", "v2"])
    mirror_run.sync(expect=3)
    assert {f"{target.host}/app:v1": "up-to-date", f"{target.host}/app:v2": "failed"} == mirror_run.results()
    assert (3, True) == ((ran := mirror_run("verify", mirror_run.config_file)).code, "app:v1" not in ran.out)


def test_images_that_were_copied_before_are_checked_with_deep(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph()
    graph.image("v1")
    for registry in (source, target):
        registry.load("app", graph)
    _configure(mirror_run, source, target, tags=["v1"])
    for command in ("sync", "plan", "verify"):
        assert 0 == mirror_run(command, mirror_run.config_file).code
    for arguments in (("sync", "--deep"), ("sync", "--deep", "--dry-run"), ("verify", "--deep")):
        ran = mirror_run(*arguments, mirror_run.config_file)
        assert (3, True) == (ran.code, "no signature was found" in ran.text), ran
    assert [] == target.writes()
    assert ["v1"] == target.tags("app")


def test_tags_of_one_image_are_checked_once(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    signed, unsigned = Graph("signed"), Graph("unsigned")
    good, bad = [f"v{number}" for number in range(5)], [f"u{number}" for number in range(5)]
    sign(signed, signed.image(*good))
    unsigned.image(*bad)
    source.load("app", signed)
    source.load("app", unsigned)
    _configure(mirror_run, source, target, tags=good + bad)
    mirror_run.sync(expect=3)
    assert good == _image_tags(target.tags("app"))
    read = [seen.reference for seen in source.requests() if seen.reference.endswith(".sig")]
    assert (2, 2) == (len(set(read)), len(read)), "once for each image; the signature is not read again to copy it"


def test_signatures_and_sboms_need_no_signature_but_images_under_their_tags_do(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph()
    image = graph.image("v1")
    sign(graph, image)
    graph.referrer(image)
    hidden = f"{Graph('hidden').image().digest.replace(':', '-')}.sig"
    graph.image(hidden)
    source.load("app", graph)
    _configure(mirror_run, source, target)
    mirror_run.sync(expect=3)
    assert sorted({*graph.tags} - {hidden}) == sorted(target.tags("app"))
    assert [f"{target.host}/app:{hidden}"] == [
        one["target"] for one in mirror_run.report()["images"] if one["result"] == "failed"
    ]


def test_the_digest_at_the_source_is_the_one_that_is_signed_if_the_image_is_converted(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph()
    sign(graph, graph.schema1("v1"))
    graph.schema1("v2", name="other")
    source.load("app", graph)
    _configure(mirror_run, source, target, tags=["v1", "v2"], schema1="convert")
    mirror_run.sync(expect=3)
    assert {f"{target.host}/app:v1": "copied", f"{target.host}/app:v2": "failed"} == mirror_run.results()
    assert (3, True) == ((ran := mirror_run("verify", mirror_run.config_file)).code, "app:v1" not in ran.out)


def test_an_image_of_the_v1_protocol_is_refused(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    (source, _), target = mixed(scripted), scripted("target")
    _configure(mirror_run, source, target, tags=["old"], v1="per-tag")
    mirror_run.sync(expect=3)
    (image,) = mirror_run.report()["images"]
    assert ("not_signed", "v1") == (image["error"]["code"], image["protocol"])
    assert [] == target.writes()


def test_images_of_a_layout_are_checked_too(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph()
    image = graph.image("v1")
    _bundle(graph, image)
    graph.image("v2")
    source.load("app", graph)
    layout = {"source": f"{source.host}/app", "targets": [f"oci:{mirror_run.folder / 'layout'}"]}
    mirror_run.config([layout], source)
    mirror_run.sync()
    (mirror_run.folder / "cosign.pub").write_bytes(signing_key().pem)
    policy = {"verify-signatures": {"keys": ["cosign.pub"]}, "tags": ["v1", "v2"]}
    entry = {"source": f"oci:{mirror_run.folder / 'layout'}:app", "targets": [f"{target.host}/app"]}
    mirror_run.config([entry], target, defaults=policy)
    mirror_run.sync(expect=3)
    assert {f"{target.host}/app:v1": "copied", f"{target.host}/app:v2": "failed"} == mirror_run.results()


def test_a_bundle_lists_the_images_that_were_rejected_as_missing(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source = scripted("source")
    _load(source, {"signed": sign, "unsigned": _unsigned})
    (mirror_run.folder / "cosign.pub").write_bytes(signing_key().pem)
    mirror = {
        "source": f"{source.host}/app",
        "targets": [str(mirror_run.folder / "export.tar")],
        "tags": ["signed", "unsigned"],
        "verify-signatures": {"keys": ["cosign.pub"]},
    }
    mirror_run.config([mirror], source)
    mirror_run.sync(expect=3)
    ran = mirror_run("bundle", "verify", mirror_run.folder / "export.tar")
    assert (3, True, False) == (ran.code, "app:unsigned is missing" in ran.out, "app:signed" in ran.out)


def test_an_image_that_is_not_signed_cannot_be_locked(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    _load(source, {"good": sign, "bad": _unsigned})
    _configure(mirror_run, source, target, referrers=False, tags=["good", "bad"])
    ran = mirror_run("lock", mirror_run.config_file)
    assert (3, "") == (ran.code, ran.out)
    assert "is not signed with a key in `verify-signatures`" in ran.err
    assert not mirror_run.config_file.with_suffix(".lock").exists()
    _configure(mirror_run, source, target, referrers=False, tags=["good"])
    assert 0 == mirror_run("lock", mirror_run.config_file).code
