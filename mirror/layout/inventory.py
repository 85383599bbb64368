"""The inventory: a small file that lists the contents of a store. It is the first member of a bundle, and the base of a
differential export.

inventory.schema.json describes the format. Inventories with equal content are equal byte for byte, so the sha256 of an
inventory identifies everything that it lists.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from mirror.errors import ConfigError, MirrorError, Refused, RemoteError, printable
from mirror.layout.sparse import parse_platforms
from mirror.oci import strictjson
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import is_path, is_tag
from mirror.oci.strictjson import Value
from mirror.store import ExpectedImage
from mirror.util.structs import Struct, field

FORMAT = 1
MAX_BYTES = 256 << 20
MAX_NODES = 10_000_000

REF_NAME = "org.opencontainers.image.ref.name"


class ManifestInfo(Struct, frozen=True):
    """The media type and size of a manifest.

    size: bytes, or None if it is not known, as in an inventory made from a report."""

    media_type: str
    size: int | None


class RepositoryContents(Struct):
    """The contents of one repository in an inventory.

    roots: the untagged manifests that no other manifest in the repository refers to. platforms: the platforms that each
    sparse image contains, by the digest of the image's root manifest."""

    tags: dict[str, Digest] = field(default_factory=dict)
    roots: set[Digest] = field(default_factory=set)
    manifests: set[Digest] = field(default_factory=set)
    blobs: set[Digest] = field(default_factory=set)
    platforms: dict[Digest, tuple[str, ...]] = field(default_factory=dict)


class BaseBlob(Struct, frozen=True):
    """A blob that a differential bundle leaves out because its base has it.

    size: bytes. repositories: the repositories of the base that contain the blob."""

    size: int
    repositories: tuple[str, ...]


class BaseBlobs(Protocol):
    """The blobs of a base: the store into which a differential bundle will be imported (see `base_inventory.py`)."""

    def repositories_with(self, blob: Digest) -> tuple[str, ...]:
        """Return the repositories of the base that have the blob, or an empty tuple if none has it."""
        ...

    def find_blobs(self, manifests: Iterable[Manifest]) -> dict[Digest, tuple[str, ...]]:
        """Return the blobs that the base must have, because the base has a manifest that refers to them."""
        ...


class Inventory(Struct):
    """The repositories, manifests and blobs of a store. Treat it as immutable once it is complete.

    blobs: the size in bytes of each blob. base: the blobs that a differential bundle leaves out. missing: the names of
    images that could not be fetched (`REPOSITORY:TAG` or `REPOSITORY@DIGEST`), and of repositories whose tags could not
    be listed (`REPOSITORY` or `PREFIX/*`); empty if the store is complete."""

    repositories: dict[str, RepositoryContents] = field(default_factory=dict)
    manifests: dict[Digest, ManifestInfo] = field(default_factory=dict)
    blobs: dict[Digest, int] = field(default_factory=dict)
    base: dict[Digest, BaseBlob] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def add(self, image: ExpectedImage, base: BaseBlobs) -> None:
        """Add an image. Blobs that `base` contains are added to `self.base` instead of `self.blobs`.

        Raises RemoteError, and leaves the inventory unchanged, if the size of a blob is not known (schema 1)."""
        unsized = next((blob for blob in image.blobs if blob.size is None), None)
        if unsized is not None:
            raise RemoteError(
                f"{image.repository}:{image.reference} is a schema 1 image, which does not state the sizes "
                "of its layers; a bundle needs these sizes",
                hint="set `schema1: convert` for this mirror",
                code="manifest_invalid",
            )
        contents = self.repositories.setdefault(image.repository, RepositoryContents())
        self._add_manifests(contents, image)
        implied = base.find_blobs(image.manifests)
        for blob in image.blobs:
            size = blob.size or 0
            contents.blobs.add(blob.digest)
            found = base.repositories_with(blob.digest) or implied.get(blob.digest)
            if found:
                self.base[blob.digest] = BaseBlob(size, found)
            else:
                self.blobs[blob.digest] = size

    def _add_manifests(self, contents: RepositoryContents, image: ExpectedImage) -> None:
        """Add the manifests, the tag and the untagged roots of an image."""
        root = image.manifests[-1]
        self._add_platforms(contents, root.digest, image)
        children = {child.digest for one in image.manifests for child in one.children}
        for one in image.manifests:
            self.manifests[one.digest] = ManifestInfo(one.media_type, one.size)
            contents.manifests.add(one.digest)
            if one.digest not in children and (one is not root or ":" in image.reference):
                contents.roots.add(one.digest)
        if ":" not in image.reference:
            contents.tags[image.reference] = root.digest

    def _add_platforms(self, contents: RepositoryContents, root: Digest, image: ExpectedImage) -> None:
        """Record the platforms of a sparse image, unless the repository also contains the complete image."""
        known = contents.platforms.pop(root, ())
        is_complete = root in contents.manifests and not known
        if image.left_out is not None and not is_complete:
            contents.platforms[root] = tuple(sorted({*known, *image.left_out.platforms}))

    def normalize(self) -> None:
        """Remove blobs that the base has from `blobs`, and tagged manifests from `roots`. Call this last."""
        for digest in self.base.keys() & self.blobs.keys():
            del self.blobs[digest]
        for contents in self.repositories.values():
            contents.roots.difference_update(contents.tags.values())

    def references(self) -> Iterable[tuple[str, str, Digest]]:
        """Iterate over all tags, sorted, as (repository, tag, digest of the root manifest)."""
        for name, contents in sorted(self.repositories.items()):
            for tag, digest in sorted(contents.tags.items()):
                yield name, tag, digest

    @property
    def total(self) -> int:
        """The total size in bytes of all blobs, except those that are left out because the base has them."""
        return sum(self.blobs.values())

    # ---- rendering

    def render(self) -> bytes:
        """Return the content of the inventory file, as JSON."""
        document: dict[str, Any] = {
            "inventory": FORMAT,
            "repositories": {name: _repository_document(one) for name, one in sorted(self.repositories.items())},
            "manifests": {digest: _manifest_document(one) for digest, one in sorted(self.manifests.items())},
            "blobs": dict(sorted(self.blobs.items())),
        }
        if self.base:
            document["base"] = {
                digest: {"size": one.size, "repositories": sorted(one.repositories)}
                for digest, one in sorted(self.base.items())
            }
        if self.missing:
            document["missing"] = sorted(self.missing)
        return json.dumps(document, indent=1).encode() + b"\n"


def _repository_document(one: RepositoryContents) -> dict[str, Any]:
    """Return the JSON object that describes the contents of a repository."""
    return {
        "tags": dict(sorted(one.tags.items())),
        **({"roots": sorted(one.roots)} if one.roots else {}),
        "manifests": sorted(one.manifests),
        "blobs": sorted(one.blobs),
        **({"platforms": {key: list(value) for key, value in sorted(one.platforms.items())}} if one.platforms else {}),
    }


def _manifest_document(one: ManifestInfo) -> dict[str, Any]:
    """Return the JSON object that describes a manifest. It is empty if the size of the manifest is not known."""
    return {} if one.size is None else {"mediaType": one.media_type, "size": one.size}


# ---- reading


def parse_inventory(data: bytes, what: str) -> Inventory:
    """Parse an inventory. what: the name of the file, for messages. Raises Refused (bundle_invalid)."""
    document = strictjson.parse(data, what=what, code="bundle_invalid", fold=False, nodes=MAX_NODES)
    return _parse_document(document, what)


def read_inventory(path: Path) -> Inventory:
    """Read an inventory file that is named in the configuration. Raises ConfigError if it is unreadable or invalid."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        hint = "create one with `mirror inventory`"
        raise ConfigError(f"cannot read the inventory {path}: {error.strerror}", hint=hint) from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes, the maximum size of an inventory")
    try:
        return parse_inventory(data, str(path))
    except Refused as error:
        raise ConfigError(f"{error.what}", hint="create one with `mirror inventory`") from error


def _parse_document(document: Value, what: str) -> Inventory:
    """Build the inventory from its JSON document. Raises Refused (bundle_invalid)."""
    top = _require_object(document, what)
    version = top.get("inventory")
    if type(version) is int and version > FORMAT:
        raise Refused(
            f"{what} has format {version}, but this version of mirror reads format {FORMAT}",
            hint="use a newer version of mirror",
            code="bundle_invalid",
        )
    if type(version) is not int or version != FORMAT:
        raise _invalid_error(what, "not an inventory that mirror wrote")
    inventory = Inventory(
        manifests={
            _parse_digest(key, what): _parse_manifest_info(value, what)
            for key, value in _object_items(top, "manifests", what)
        },
        blobs={_parse_digest(key, what): _parse_size(value, what) for key, value in _object_items(top, "blobs", what)},
        base={
            _parse_digest(key, what): _parse_base_blob(value, what) for key, value in _object_items(top, "base", what)
        },
        missing=_parse_missing(top.get("missing", []), what),
    )
    for name, value in _object_items(top, "repositories", what):
        if not is_path(name):
            raise _invalid_error(what, f"invalid repository name {printable(name, 80)!r}")
        inventory.repositories[name] = _parse_repository(value, inventory, what)
    return inventory


def _parse_repository(value: Value, inventory: Inventory, what: str) -> RepositoryContents:
    """Parse the contents of a repository. Raises Refused if they refer to a digest that the inventory does not list."""
    one = _require_object(value, what)
    contents = RepositoryContents(
        {tag: _parse_digest(digest, what) for tag, digest in _object_items(one, "tags", what)},
        _parse_digests(one, "roots", what),
        _parse_digests(one, "manifests", what),
        _parse_digests(one, "blobs", what),
        {
            _parse_digest(digest, what): parse_platforms(platforms, f"{what}: platforms")
            for digest, platforms in _object_items(one, "platforms", what)
        },
    )
    for tag in contents.tags:
        if not is_tag(tag):
            raise _invalid_error(what, f"invalid tag {printable(tag, 80)!r}")
    unlisted = ({*contents.tags.values(), *contents.roots} - contents.manifests) | (
        contents.manifests - inventory.manifests.keys()
    )
    unlisted |= contents.blobs - inventory.blobs.keys() - inventory.base.keys()
    unlisted |= contents.platforms.keys() - {*contents.tags.values(), *contents.roots}
    if unlisted:
        raise _invalid_error(what, f"a repository refers to {sorted(unlisted)[0]}, which the inventory does not list")
    return contents


def _parse_manifest_info(value: Value, what: str) -> ManifestInfo:
    """Parse the media type and size of a manifest."""
    one = _require_object(value, what)
    media_type = one.get("mediaType", "")
    if not isinstance(media_type, str):
        raise _invalid_error(what, "a `mediaType` is not a string")
    return ManifestInfo(media_type, _parse_size(one["size"], what) if "size" in one else None)


def _parse_base_blob(value: Value, what: str) -> BaseBlob:
    """Parse one value of the object `base`: the size of a blob, and the repositories that have it."""
    one = _require_object(value, what)
    names = one.get("repositories")
    if not isinstance(names, list) or not names:
        raise _invalid_error(what, "expected a list of repositories for each blob in `base`")
    for name in names:
        if not is_path(name):
            raise _invalid_error(what, f"invalid repository name {printable(name, 80)!r}")
    return BaseBlob(_parse_size(one.get("size"), what), tuple(str(name) for name in names))


def _parse_missing(value: Value, what: str) -> tuple[str, ...]:
    """Parse the value of the key `missing`, which is a list of names."""
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise _invalid_error(what, "expected a list of names under `missing`")
    return tuple(str(name) for name in value)


def _require_object(value: Value, what: str) -> Mapping[str, Value]:
    """Return `value` if it is a JSON object. Otherwise raise Refused (bundle_invalid)."""
    if not isinstance(value, dict):
        raise _invalid_error(what, "expected a JSON object")
    return value


def _object_items(value: Mapping[str, Value], key: str, what: str) -> Iterable[tuple[str, Value]]:
    """Return the members of the JSON object under `key`. If the key is missing, return no members."""
    return _require_object(value.get(key, {}), f"{what}: {key}").items()


def _parse_digests(value: Mapping[str, Value], key: str, what: str) -> set[Digest]:
    """Return the digests in the JSON list under `key`, or an empty set if the key is missing."""
    found = value.get(key, [])
    if not isinstance(found, list):
        raise _invalid_error(what, f"{key}: expected a list")
    return {_parse_digest(one, what) for one in found}


def _parse_digest(value: Value, what: str) -> Digest:
    """Parse a digest. Raises Refused (bundle_invalid)."""
    try:
        return Digest.parse(value)
    except MirrorError as error:
        raise _invalid_error(what, error.what) from None


def _parse_size(value: Value, what: str) -> int:
    """Return `value` as a size in bytes. Raises Refused (bundle_invalid) if it is not a valid size."""
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise _invalid_error(what, f"expected a size in bytes, got {printable(value, 40)}")
    return value


def _invalid_error(what: str, why: str) -> Refused:
    """Return the error for an invalid inventory. why: the reason, as a clause."""
    return Refused(f"{what}: {why}", code="bundle_invalid")
