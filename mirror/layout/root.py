"""The entries (roots) of index.json: the descriptors of manifests, with their names and platforms as annotations."""

from __future__ import annotations

import json

from mirror.errors import ConfigError, Refused, printable
from mirror.layout.inventory import REF_NAME
from mirror.layout.sparse import OF_PLATFORMS, parse_platforms
from mirror.oci.descriptor import Descriptor
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Reference, is_path, is_tag
from mirror.oci.strictjson import Object, Value
from mirror.util.structs import Struct

OF_REPOSITORY = "mirror.repository"  # annotation that holds the repository of a root without a name


class Root(Struct, frozen=True):
    """A root manifest of a layout: an entry of index.json.

    repository: None if the entry does not name its repository. text: the entry as JSON. platforms: the platforms that a
    sparse image has; empty for a complete one."""

    descriptor: Descriptor
    repository: str | None
    text: str
    platforms: tuple[str, ...] = ()


def to_json(value: Value) -> str:
    """Return a value as compact JSON, without spaces between tokens."""
    return json.dumps(value, separators=(",", ":"))


def make_root(manifest: Manifest, repository: str, name: str | None, platforms: tuple[str, ...]) -> Root:
    """Create the root for `manifest`. name: the value of its ref.name annotation, or None if it has no name."""
    descriptor = Descriptor(manifest.digest, manifest.size, manifest.media_type)
    annotations = {REF_NAME: name} if name is not None else {OF_REPOSITORY: repository} if repository else {}
    if platforms:
        annotations[OF_PLATFORMS] = ",".join(platforms)
    entry: Object = {
        "mediaType": manifest.media_type,
        "digest": manifest.digest,
        "size": manifest.size,
        "annotations": dict(annotations),
    }
    owner = repository if name is not None else repository or None
    return Root(descriptor, owner, to_json(entry), platforms)


def parse_annotations(entry: Value, where: str) -> tuple[str | None, str | None, tuple[str, ...]]:
    """Return the name, the repository and the platforms from the annotations of an entry.

    The name and the repository are None if they are missing. The repository is used only for an entry without a name,
    so an invalid repository is treated as missing. Raises Refused (bundle_invalid)."""
    annotations = entry.get("annotations") if isinstance(entry, dict) else None
    if annotations is None:
        return None, None, ()
    if not isinstance(annotations, dict):
        raise Refused(f"{where}: `annotations` is not an object", code="bundle_invalid")
    name, repository = annotations.get(REF_NAME), annotations.get(OF_REPOSITORY)
    if name is not None and not isinstance(name, str):
        raise Refused(f"{where} has a name that is not a string", code="bundle_invalid")
    platforms = annotations.get(OF_PLATFORMS)
    return (
        name,
        repository if is_path(repository) and isinstance(repository, str) else None,
        parse_platforms(platforms, f"{where}: {OF_PLATFORMS}") if platforms is not None else (),
    )


def split_name(name: str, where: str) -> tuple[str, str] | None:
    """Split a name into repository and tag. Return None for a valid reference in another form (`host:5000/app:v1`).

    Raises Refused (ref_invalid) if the name is not valid in any form."""
    repository, colon, tag = name.rpartition(":")
    if is_tag(tag) and (is_path(repository) if colon else True):
        return repository, tag
    try:
        Reference.parse(name)
    except ConfigError:
        raise Refused(f"{where} has an invalid name: {printable(name, 80)!r}", code="ref_invalid") from None
    return None
