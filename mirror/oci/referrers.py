"""Artifacts that belong to an image: the tags that lead to them, their types, and the index that lists referrers.

Sources: distribution-spec v1.1.1, "Referrers Tag Schema" and "Pushing Manifests with Subject"; cosign's specification
of signatures, "Discovery". cosign stores the signature, the attestations and the SBOM of a manifest under a tag that
consists of the digest of the manifest and a suffix.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable

from mirror.errors import Refused, printable
from mirror.oci import strictjson
from mirror.oci.digest import Digest
from mirror.oci.manifest import MAX_BYTES, MAX_ENTRIES, OCI_INDEX, Kind, Manifest
from mirror.oci.reference import is_tag
from mirror.oci.strictjson import Object, Value

SIGNATURE, SBOM, ATTESTATION = "signature", "sbom", "attestation"
KINDS = (SIGNATURE, SBOM, ATTESTATION)
"""The kinds of artifacts: short names for groups of artifact types."""

_SUFFIXES = {".sig": SIGNATURE, ".att": ATTESTATION, ".sbom": SBOM}  # of cosign's tags
_TAG_PARTS = (32, 64)  # maximum numbers of characters of the algorithm and of the encoded part
_ATTACHMENT_TAG = re.compile(r"sha256-[0-9a-f]{64}(\.sig|\.att|\.sbom)?|sha512-[0-9a-f]{64}")
# Words of an artifact type that show its kind. A type is split into words at every character that is neither a letter
# nor a digit. For example, `application/vnd.cncf.notary.signature` contains the word `signature`.
_WORDS = {
    SIGNATURE: {"signature", "sig", "simplesigning", "sigstore"},
    SBOM: {"sbom", "spdx", "cyclonedx", "syft"},
    # A Sigstore bundle is a signed statement: the signature of an image, or an attestation.
    ATTESTATION: {"attestation", "att", "provenance", "toto", "slsa", "vex", "openvex", "dsse", "sigstore"},
}


def referrers_tag(digest: Digest) -> str:
    """Return the tag of the index that lists a manifest's referrers on a registry without the referrers API."""
    algorithm, encoded = digest.algorithm[: _TAG_PARTS[0]], digest.hex[: _TAG_PARTS[1]]
    return f"{algorithm}-{encoded}"


def signature_tags(digest: Digest) -> dict[str, str]:
    """Return cosign's tags for a manifest, each with the kind of the artifact that it refers to.

    There are none for sha512: cosign does not shorten digests, so these tags would be too long."""
    tags = {f"{digest.algorithm}-{digest.hex}{suffix}": kind for suffix, kind in _SUFFIXES.items()}
    return {tag: kind for tag, kind in tags.items() if is_tag(tag)}


def is_attachment_tag(tag: str) -> bool:
    """Return whether a tag has the form of the tags that `referrers_tag` and `signature_tags` return."""
    return _ATTACHMENT_TAG.fullmatch(tag) is not None


def kind_of_tag(tag: str) -> str:
    """Return the kind of the artifacts under one of cosign's tags, or an empty string for another tag."""
    return next((kind for suffix, kind in _SUFFIXES.items() if tag.endswith(suffix)), "")


def kinds_of_type(artifact_type: str) -> frozenset[str]:
    """Return the kinds (KINDS) to which an artifact type belongs, or an empty set if its kind is not known."""
    words = set(re.split("[^a-z0-9]+", artifact_type.lower()))
    return frozenset(kind for kind, known in _WORDS.items() if words & known)


def referrer_entry(manifest: Manifest) -> Object:
    """Return the descriptor of a referrer for a list of referrers, with its artifact type and its annotations."""
    document = json.loads(manifest.body)
    entry: Object = {"mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size}
    if manifest.artifact_type:
        entry["artifactType"] = manifest.artifact_type
    if isinstance(document.get("annotations"), dict):
        entry["annotations"] = document["annotations"]
    return entry


def merge_referrers(old: Manifest | None, referrers: Iterable[Manifest], what: str) -> bytes | None:
    """Return the body of the index that lists `referrers` in addition to the entries of `old`.

    The entries and the other members of `old` are kept, and new entries are appended, sorted by digest. Return None if
    `old` already lists all `referrers`. what: the name of the index in error messages. Raises Refused (too_many) if the
    index would be too large to be read again."""
    document: Object = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    if old is not None:
        parsed = strictjson.parse(old.body, what=what)
        document = parsed if isinstance(parsed, dict) else document
    entries = document["manifests"] if isinstance(document["manifests"], list) else []
    listed = {_digest_of(entry) for entry in entries}
    new = {one.digest: one for one in referrers if one.digest not in listed}
    if old is not None and not new:
        return None
    merged = [*entries, *(referrer_entry(new[digest]) for digest in sorted(new))]
    body = json.dumps({**document, "manifests": merged}, separators=(",", ":"), ensure_ascii=False).encode()
    if len(merged) > MAX_ENTRIES or len(body) > MAX_BYTES:
        raise Refused(
            f"{what} would have {len(merged)} entries and {len(body)} bytes; at most {MAX_ENTRIES} entries and "
            f"{MAX_BYTES} bytes are allowed",
            code="too_many",
        )
    return body


def contains_entries(one: Manifest, other: Manifest) -> bool:
    """Return whether the manifest `one` contains all content of the manifest `other`.

    `one` is the manifest under a tag of attachments. For a list of referrers, the digests of the entries are compared.
    For another artifact, the layers and their annotations are compared: cosign stores a signature in an annotation, so
    the layers of two signatures may be equal. The subject, the type and the annotations of `other` must also be in
    `one`."""
    if one.kind is not other.kind or one.kind is Kind.SCHEMA1:
        return False
    if one.kind is Kind.INDEX:
        return {child.digest for child in other.children} <= {child.digest for child in one.children}
    ours, theirs = (strictjson.parse(each.body, what=f"manifest {each.digest}") for each in (one, other))
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return False
    key = "layers" if one.kind is Kind.IMAGE else "blobs"
    layers = _canonical_items(theirs.get(key))
    # An artifact without layers may have its content in the config.
    is_covered = layers <= _canonical_items(ours.get(key)) if layers else ours.get("config") == theirs.get("config")
    return (
        is_covered
        and _canonical_items(theirs.get("annotations")) <= _canonical_items(ours.get("annotations"))
        and all(theirs.get(name) in (None, ours.get(name)) for name in ("subject", "artifactType"))
    )


def _canonical_items(value: Value) -> Counter[str]:
    """Count the items of a list or object, each converted to canonical JSON."""
    items = [[key, item] for key, item in value.items()] if isinstance(value, dict) else value
    return Counter(json.dumps(item, sort_keys=True) for item in items) if isinstance(items, list) else Counter()


def _digest_of(entry: Value) -> str:
    """Return the digest in an entry of an index in printable form, or an empty string if there is none."""
    return printable(entry.get("digest", ""), 200) if isinstance(entry, dict) else ""
