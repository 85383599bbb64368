"""The search for signatures: its limits, its order, and what is remembered."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mirror.errors import MirrorError, Refused, RemoteError
from mirror.limits import Limits
from mirror.oci.manifest import parse_manifest
from mirror.selection.tag_rules import TagRules
from mirror.signatures.keys import parse_public_key
from mirror.signatures.policy import SignaturePolicy
from mirror.store import Version
from mirror.sync.manifest_graph import ManifestCache
from mirror.sync.plan_model import MirrorEntry, SourceReference
from mirror.sync.signature_checker import MAX_DOCUMENTS, MAX_REFERRERS, MAX_SIGNATURES, SignatureChecker
from mirror.transfer.calls import Calls, new_loop
from mirror.util.cancellation import Stop
from tests.registries.client import sha256
from tests.support.images import OCI_MANIFEST, Graph, Made, tag_of
from tests.support.signing import SigningKey, add_signature, sign, signing_key, simple_payload
from tests.support.stores import MemoryStore

FOREIGN = signing_key("foreign")


def load(store: MemoryStore, graph: Graph, repository: str = "app") -> None:
    for data in graph.blobs.values():
        store.add(repository, data)
    for digest, body in graph.manifests.items():
        names = [digest, *(tag for tag, one in graph.tags.items() if one == digest)]
        store.manifests[repository].update(dict.fromkeys(names, parse_manifest(body.data, body.media_type)))


def check(store: MemoryStore, image: Made, *wanted: tuple[str, SigningKey]) -> list[str]:
    """Check an image for pairs of a repository and a key, with one checker. Return the messages, empty if it passes."""
    loop = new_loop()
    calls = Calls(loop, Limits(), Stop())
    checker = SignatureChecker(calls, ManifestCache(calls))
    said = []
    try:
        for repository, key in wanted:
            policy = SignaturePolicy([parse_public_key(key.pem, "key.pub")])
            entry = MirrorEntry(store, repository, TagRules(), (), signature_policy=policy)
            reference = SourceReference(entry, "v1", "v1")
            version = Version(parse_manifest(store.manifests[repository][image.digest].body).digest)
            try:
                loop.run_until_complete(checker.check(reference, version))
            except Refused as error:
                if error.code != "not_signed":
                    raise
                said.append(str(error))
            else:
                said.append("")
        return said
    finally:
        calls.close()


OURS = ("app", signing_key())


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore("source")


def entries(image: Made, *keys: SigningKey, pads: Sequence[int] = (0,)) -> list[tuple[bytes, str]]:
    """Return a payload and its signature for each key and each size of an annotation."""
    payloads = [simple_payload(image.digest, pad=pad) for pad in pads]
    return [(payload, key.sign_text(payload)) for payload in payloads for key in keys]


@pytest.mark.parametrize(("newer", "accepted"), [(0, True), (MAX_SIGNATURES - 1, True), (MAX_SIGNATURES, False)])
def test_the_newest_signatures_are_checked_up_to_a_limit(newer: int, accepted: bool, store: MemoryStore) -> None:
    graph = Graph()
    image = graph.image("v1")
    (ours,), (foreign,) = entries(image, signing_key()), entries(image, FOREIGN)
    add_signature(graph, image, *[foreign] * (2 * MAX_SIGNATURES), ours, *[foreign] * newer)
    load(store, graph)
    (said,) = check(store, image, OURS)
    assert accepted == (said == "")
    assert accepted or f"only {MAX_SIGNATURES} signatures were checked" in said
    assert 1 == len(store.verbs("open"))  # all of them have the same payload


@pytest.mark.parametrize(("newer", "accepted"), [(MAX_DOCUMENTS - 1, True), (MAX_DOCUMENTS, False)])
def test_payloads_are_read_up_to_a_limit(newer: int, accepted: bool, store: MemoryStore) -> None:
    graph = Graph()
    image = graph.image("v1")
    add_signature(graph, image, *entries(image, signing_key()), *entries(image, FOREIGN, pads=range(1, newer + 1)))
    load(store, graph)
    (said,) = check(store, image, OURS)
    assert accepted == (said == "")
    assert accepted or f"only {MAX_DOCUMENTS} payloads and bundles were read" in said
    assert MAX_DOCUMENTS == len(store.verbs("open"))


def test_referrers_are_read_up_to_a_limit_and_others_than_signatures_are_not_read(store: MemoryStore) -> None:
    graph = Graph()
    image = graph.image("v1")
    sbom = graph.referrer(image)
    unknown = [Made(OCI_MANIFEST, sha256(b"%d" % number), 500) for number in range(MAX_REFERRERS + 1)]
    graph.index(tag_of(image), children=[sbom, *unknown])
    load(store, graph)
    store.lists_referrers = False
    (said,) = check(store, image, OURS)
    assert f"only {MAX_REFERRERS} of {MAX_REFERRERS + 1} referrers were read" in said
    read = [reference for _, reference in store.verbs("manifest")]
    assert (MAX_REFERRERS, False) == (len([one for one in read if one.startswith("sha256:")]), sbom.digest in read)


def test_a_digest_that_was_signed_in_one_repository_is_accepted_in_others_for_the_same_keys(
    store: MemoryStore,
) -> None:
    graph, unsigned = Graph("same"), Graph("same")
    image = graph.image("v1")
    assert image == unsigned.image("v1")
    sign(graph, image)
    load(store, graph)
    load(store, unsigned, "other")
    said = check(store, image, OURS, ("other", signing_key()), ("other", FOREIGN), OURS, ("app", FOREIGN))
    assert ["", "", "", "signed", "signed"] == sorted("signed" if text else "" for text in said)
    assert "" == said[3]
    assert "no signature was found" in said[2]
    assert "made with a key that is not listed" in said[4]


def test_a_refusal_is_valid_only_for_its_repository_and_is_not_looked_up_again(store: MemoryStore) -> None:
    graph, signed = Graph("same"), Graph("same")
    image = graph.image("v1")
    sign(signed, signed.image("v1"))
    load(store, graph)
    load(store, signed, "other")
    said = check(store, image, OURS, OURS, ("other", signing_key()), OURS)
    assert [True, True, False, False] == [text != "" for text in said]
    # The tag of cosign in each repository, and no index of referrers, because the source lists them itself.
    assert [f"{tag_of(image)}.sig"] * 2 == [tag for _, tag in store.verbs("manifest")]


@pytest.mark.parametrize("verb", ["manifest", "open"])
@pytest.mark.parametrize(
    "error",
    [Refused("a redirect", code="unsafe_redirect"), RemoteError("a status", status=500)],
    ids=lambda one: one.code,
)
def test_an_error_that_says_nothing_about_the_signatures_is_raised(
    error: MirrorError, verb: str, store: MemoryStore
) -> None:
    graph = Graph()
    image = graph.image("v1")
    sign(graph, image)
    load(store, graph)
    store.fault = lambda seen, repository, reference: error if seen == verb else None
    with pytest.raises(type(error)) as caught:
        check(store, image, OURS)
    assert error.code == caught.value.code
