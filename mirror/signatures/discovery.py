"""Finds the tag, the referrers and the layers that may contain signatures of an image.

Sources: cosign's specifications of signatures ("Tag-based Discovery") and of bundles ("Storage").
"""

from __future__ import annotations

from collections.abc import Iterable

from mirror.oci import strictjson
from mirror.oci.descriptor import Descriptor, parse_descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Kind, Manifest
from mirror.oci.referrers import SIGNATURE, signature_tags
from mirror.oci.strictjson import Value
from mirror.util.structs import Struct

_SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
_BUNDLE = "application/vnd.dev.sigstore.bundle"  # the beginning of the media types of all versions
_ANNOTATION = "dev.cosignproject.cosign/signature"
_SIGNATURE_ARTIFACT = "application/vnd.dev.cosign.artifact.sig.v1+json"
# Types of referrers that do not indicate their content. If a manifest has no artifact type, the list of referrers
# contains the media type of its config.
_UNSPECIFIC_TYPES = ("", "application/vnd.oci.empty.v1+json", "application/vnd.oci.image.config.v1+json")
_IMAGE_LAYERS = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")


class SignatureLayer(Struct, frozen=True):
    """A layer of a manifest that contains a signature.

    blob: the signed payload, or a bundle. signature: the base64 signature of a payload; empty if it is missing.
    is_bundle: whether the blob is a bundle, which contains its own signature."""

    blob: Descriptor
    signature: str
    is_bundle: bool


def signature_tag(image: Digest) -> str | None:
    """Return the tag under which cosign stores the signatures of an image. image: the digest of the image.

    Return None if the tag would be too long, which is the case for a sha512 digest."""
    return next((tag for tag, kind in signature_tags(image).items() if kind == SIGNATURE), None)


def has_image_layers(manifests: Iterable[Manifest]) -> bool:
    """Return whether any of the manifests is a runnable image, not a signature or another document."""
    return any(
        manifest.kind is Kind.SCHEMA1 or any(blob.media_type.startswith(_IMAGE_LAYERS) for blob in manifest.blobs)
        for manifest in manifests
    )


def may_be_signature(referrer: Descriptor) -> bool:
    """Return whether a referrer may contain a signature, according to its type in the list of referrers."""
    kind = referrer.artifact_type
    return kind.startswith(_BUNDLE) or kind == _SIGNATURE_ARTIFACT or kind in _UNSPECIFIC_TYPES


def signature_layers(manifest: Manifest) -> list[SignatureLayer]:
    """Return the layers of an image manifest that contain signatures, the newest first, because cosign appends them.

    For another kind of manifest, return an empty list."""
    document = strictjson.parse(manifest.body, what=f"manifest {manifest.digest}")
    layers = document.get("layers") if isinstance(document, dict) and manifest.kind is Kind.IMAGE else None
    found = []
    for number, layer in enumerate(layers if isinstance(layers, list) else ()):
        blob = parse_descriptor(layer, f"layers[{number}]")
        is_bundle = blob.media_type.startswith(_BUNDLE)
        if is_bundle or blob.media_type == _SIMPLE_SIGNING:
            found.append(SignatureLayer(blob, _annotation(layer), is_bundle))
    return found[::-1]


def _annotation(layer: Value) -> str:
    """Return the annotation that contains the signature of a layer's payload, or an empty string if there is none."""
    annotations = layer.get("annotations") if isinstance(layer, dict) else None
    text = annotations.get(_ANNOTATION) if isinstance(annotations, dict) else None
    return text if isinstance(text, str) else ""
