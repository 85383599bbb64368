"""What a store holds, as a small file: the first member of a bundle, the base of a differential export.

The document is described by inventory.schema.json. Equal content gives equal bytes, so that the sha256 of an
inventory stands for everything that it lists.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mirror.errors import ConfigError, MirrorError, Refused, RemoteError, printable
from mirror.oci import strictjson
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import is_path, is_tag
from mirror.oci.strictjson import Value
from mirror.store import Coming
from mirror.util.structs import Struct, field

FORMAT = 1
MAX_BYTES = 256 << 20
MAX_NODES = 10_000_000

REF_NAME = "org.opencontainers.image.ref.name"


class Described(Struct, frozen=True):
    """What is known of a manifest. size: bytes, None if not known, as of what a report names."""

    media_type: str
    size: int | None


class Holdings(Struct):
    """What one repository has. roots: manifests without a tag that no other manifest there refers to."""

    tags: dict[str, Digest] = field(default_factory=dict)
    roots: set[Digest] = field(default_factory=set)
    manifests: set[Digest] = field(default_factory=set)
    blobs: set[Digest] = field(default_factory=set)


class LeftOut(Struct, frozen=True):
    """A blob that is not in a bundle since its base has it, in `repositories`. size: bytes."""

    size: int
    repositories: tuple[str, ...]


class Inventory(Struct):
    """Built once, then only read. blobs: digest -> bytes, of all that is there; base: what is left out.

    missing: what could not be fetched: `REPOSITORY:TAG`, `REPOSITORY@DIGEST`, or where the tags are not known a
    repository or `PREFIX/*`. None: it is complete."""

    repositories: dict[str, Holdings] = field(default_factory=dict)
    manifests: dict[Digest, Described] = field(default_factory=dict)
    blobs: dict[Digest, int] = field(default_factory=dict)
    base: dict[Digest, LeftOut] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def add(self, coming: Coming, base: Base) -> None:
        """Add an image, without the blobs that `base` has.

        Raises RemoteError where the size of a blob is not known (schema 1); then nothing was added."""
        unsized = next((blob for blob in coming.blobs if blob.size is None), None)
        if unsized is not None:
            raise RemoteError(
                f"{coming.repository}:{coming.reference} is a schema 1 image, which does not say how large "
                "its layers are, as a bundle has to know",
                hint="set `schema1: convert` for this mirror",
                code="manifest_invalid",
            )
        holdings = self.repositories.setdefault(coming.repository, Holdings())
        self._add_manifests(holdings, coming)
        there = base.blobs_of(coming.manifests)
        for blob in coming.blobs:
            size = blob.size or 0
            holdings.blobs.add(blob.digest)
            found = base.repositories_with(blob.digest) or there.get(blob.digest)
            if found:
                self.base[blob.digest] = LeftOut(size, found)
            else:
                self.blobs[blob.digest] = size

    def _add_manifests(self, holdings: Holdings, coming: Coming) -> None:
        root = coming.manifests[-1]
        children = {child.digest for one in coming.manifests for child in one.children}
        for one in coming.manifests:
            self.manifests[one.digest] = Described(one.media_type, one.size)
            holdings.manifests.add(one.digest)
            if one.digest not in children and (one is not root or ":" in coming.reference):
                holdings.roots.add(one.digest)
        if ":" not in coming.reference:
            holdings.tags[coming.reference] = root.digest

    def settle(self) -> None:
        """After the last `add`: what one image brings is there for all; what has a tag is no nameless root."""
        for digest in self.base.keys() & self.blobs.keys():
            del self.blobs[digest]
        for holdings in self.repositories.values():
            holdings.roots.difference_update(holdings.tags.values())

    def references(self) -> Iterable[tuple[str, str, Digest]]:
        """(repository, tag, root) in order."""
        for name, holdings in sorted(self.repositories.items()):
            for tag, digest in sorted(holdings.tags.items()):
                yield name, tag, digest

    @property
    def total(self) -> int:
        """Bytes of all blobs that are there."""
        return sum(self.blobs.values())

    # ---- as a document

    def render(self) -> bytes:
        document: dict[str, Any] = {
            "inventory": FORMAT,
            "repositories": {name: _holdings(one) for name, one in sorted(self.repositories.items())},
            "manifests": {digest: _described(one) for digest, one in sorted(self.manifests.items())},
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


def _holdings(one: Holdings) -> dict[str, Any]:
    return {
        "tags": dict(sorted(one.tags.items())),
        **({"roots": sorted(one.roots)} if one.roots else {}),
        "manifests": sorted(one.manifests),
        "blobs": sorted(one.blobs),
    }


def _described(one: Described) -> dict[str, Any]:
    return {} if one.size is None else {"mediaType": one.media_type, "size": one.size}


class Base:
    """What is there on the other side: an inventory, asked by digest. The empty one has nothing."""

    def __init__(self, inventory: Inventory | None = None) -> None:
        self._inventory = inventory or Inventory()
        self._homes: dict[Digest, tuple[str, ...]] = {}
        known = self._inventory.blobs.keys() | self._inventory.base.keys()
        for name, holdings in sorted(self._inventory.repositories.items()):
            for digest in holdings.blobs & known:
                self._homes[digest] = (*self._homes.get(digest, ()), name)

    def repositories_with(self, blob: Digest) -> tuple[str, ...]:
        """Those that have the blob; none: it is not there."""
        return self._homes.get(blob, ())

    def blobs_of(self, manifests: Iterable[Manifest]) -> dict[Digest, tuple[str, ...]]:
        """Blobs that are there because a manifest is: an inventory of a report knows no more than its roots.

        manifests: children before parents."""
        found: dict[Digest, tuple[str, ...]] = {}
        whole: dict[Digest, tuple[str, ...]] = {}
        for one in reversed(list(manifests)):
            homes = whole.get(one.digest) or self._with_manifest(one.digest)
            if homes:
                whole.update({child.digest: homes for child in one.children})
                found.update({blob.digest: homes for blob in one.blobs})
        return found

    def _with_manifest(self, digest: Digest) -> tuple[str, ...]:
        if digest not in self._inventory.manifests:
            return ()
        holders = self._inventory.repositories.items()
        return tuple(sorted(name for name, one in holders if digest in one.manifests))


def unlisted(manifest: Manifest, inventory: Inventory) -> Iterator[tuple[Digest, str]]:
    """Each manifest and blob that `manifest` refers to and the inventory does not list, with a line for people."""
    blobs = (one.digest for one in manifest.blobs if not one.foreign)
    lost = [one.digest for one in manifest.children if one.digest not in inventory.manifests]
    lost += [digest for digest in blobs if digest not in inventory.blobs and digest not in inventory.base]
    for digest in lost:
        yield digest, f"{digest} is not listed, though {manifest.digest} refers to it"


# ---- reading


def parse_inventory(data: bytes, what: str) -> Inventory:
    """Raises Refused (bundle_invalid)."""
    document = strictjson.parse(data, what=what, code="bundle_invalid", fold=False, nodes=MAX_NODES)
    return _parsed(document, what)


def read_inventory(path: Path) -> Inventory:
    """The inventory in a file of its own. Raises ConfigError: the configuration names it."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        hint = "make one with `mirror inventory`"
        raise ConfigError(f"cannot read the inventory {path}: {error.strerror}", hint=hint) from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} has more than {MAX_BYTES} bytes: not an inventory")
    try:
        return parse_inventory(data, str(path))
    except Refused as error:
        raise ConfigError(f"{error.what}", hint="make one with `mirror inventory`") from error


def _parsed(document: Value, what: str) -> Inventory:
    top = _mapping(document, what)
    version = top.get("inventory")
    if type(version) is int and version > FORMAT:
        raise Refused(
            f"{what} is of format {version}; this version of mirror reads format {FORMAT}",
            hint="use a newer mirror here",
            code="bundle_invalid",
        )
    if type(version) is not int or version != FORMAT:
        raise _invalid(what, "it is no inventory of mirror")
    inventory = Inventory(
        manifests={_digest(key, what): _description(value, what) for key, value in _items(top, "manifests", what)},
        blobs={_digest(key, what): _size(value, what) for key, value in _items(top, "blobs", what)},
        base={_digest(key, what): _left_out(value, what) for key, value in _items(top, "base", what)},
        missing=_names(top.get("missing", []), what),
    )
    for name, value in _items(top, "repositories", what):
        if not is_path(name):
            raise _invalid(what, f"not a repository: {printable(name, 80)!r}")
        inventory.repositories[name] = _held(value, inventory, what)
    return inventory


def _held(value: Value, inventory: Inventory, what: str) -> Holdings:
    one = _mapping(value, what)
    holdings = Holdings(
        {tag: _digest(digest, what) for tag, digest in _items(one, "tags", what)},
        _digests(one, "roots", what),
        _digests(one, "manifests", what),
        _digests(one, "blobs", what),
    )
    for tag in holdings.tags:
        if not is_tag(tag):
            raise _invalid(what, f"not a tag: {printable(tag, 80)!r}")
    lost = ({*holdings.tags.values(), *holdings.roots} - holdings.manifests) | (
        holdings.manifests - inventory.manifests.keys()
    )
    lost |= holdings.blobs - inventory.blobs.keys() - inventory.base.keys()
    if lost:
        raise _invalid(what, f"it refers to {sorted(lost)[0]}, which it does not list")
    return holdings


def _description(value: Value, what: str) -> Described:
    one = _mapping(value, what)
    media_type = one.get("mediaType", "")
    if not isinstance(media_type, str):
        raise _invalid(what, "a mediaType is no text")
    return Described(media_type, _size(one["size"], what) if "size" in one else None)


def _left_out(value: Value, what: str) -> LeftOut:
    one = _mapping(value, what)
    names = one.get("repositories")
    if not isinstance(names, list) or not names:
        raise _invalid(what, "base: want the repositories that have it")
    for name in names:
        if not is_path(name):
            raise _invalid(what, f"not a repository: {printable(name, 80)!r}")
    return LeftOut(_size(one.get("size"), what), tuple(str(name) for name in names))


def _names(value: Value, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise _invalid(what, "missing: want a list of names")
    return tuple(str(name) for name in value)


def _mapping(value: Value, what: str) -> Mapping[str, Value]:
    if not isinstance(value, dict):
        raise _invalid(what, "want an object")
    return value


def _items(value: Mapping[str, Value], key: str, what: str) -> Iterable[tuple[str, Value]]:
    return _mapping(value.get(key, {}), f"{what}: {key}").items()


def _digests(value: Mapping[str, Value], key: str, what: str) -> set[Digest]:
    found = value.get(key, [])
    if not isinstance(found, list):
        raise _invalid(what, f"{key}: want a list")
    return {_digest(one, what) for one in found}


def _digest(value: Value, what: str) -> Digest:
    try:
        return Digest.parse(value)
    except MirrorError as error:
        raise _invalid(what, error.what) from None


def _size(value: Value, what: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise _invalid(what, f"want a number of bytes, got {printable(value, 40)}")
    return value


def _invalid(what: str, why: str) -> Refused:
    return Refused(f"{what}: {why}", code="bundle_invalid")
