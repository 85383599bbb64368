"""Selects the entries of an index by platform, and creates a smaller index that contains only these entries.

BuildKit adds attestation manifests to an index. They have the platform `unknown/unknown`, and an annotation with the
digest of the manifest that they describe. Source: github.com/moby/buildkit, docs/attestations/attestation-storage.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mirror.errors import MirrorError, Refused, RemoteError
from mirror.oci import strictjson
from mirror.oci.descriptor import Descriptor, parse_descriptor, parse_platform_object
from mirror.oci.digest import Digest
from mirror.oci.manifest import DOCKER_LIST, OCI_INDEX, Kind, Manifest, parse_manifest
from mirror.oci.platform import Platform
from mirror.oci.strictjson import Object, Value
from mirror.util.structs import Struct, replace

MAX_PLATFORMS = 100  # the maximum number of platforms in a filter
FORMAT = 1  # the version of the indexes that `filter_index` creates; part of the key of their digests in the state
CONFIG_TYPES = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
_REFERENCE_TYPE = "vnd.docker.reference.type"
_REFERENCE_DIGEST = "vnd.docker.reference.digest"
_ATTESTATION = "attestation-manifest"


class PlatformFilter(Struct, frozen=True):
    """The platforms that a mirror copies, and how it treats an index that has other platforms.

    platforms: sorted, without duplicates. sparse: if set, the index is kept unchanged, and only the manifests of other
    platforms are left out; otherwise the index is replaced with a smaller index."""

    platforms: tuple[Platform, ...]
    sparse: bool = False

    @classmethod
    def of(cls, platforms: Iterable[Platform], *, sparse: bool = False) -> PlatformFilter:
        """Return the filter for platforms that are given in any order. Equal sets of platforms give equal filters."""
        return cls(tuple(sorted(set(platforms), key=str)), sparse)

    def __str__(self) -> str:
        return ", ".join(map(str, self.platforms))

    def selects(self, platform: Platform) -> bool:
        """Return whether the platform of an image is one of the platforms of this filter."""
        return any(one.covers(platform) for one in self.platforms)

    def keeps_digest(self, media_type: str) -> bool:
        """Return whether the filter never changes the digest of a manifest with this media type."""
        return self.sparse and is_index_type(media_type)

    @property
    def key(self) -> str:
        """A string that identifies the filter, for use in keys of the state."""
        way = "sparse" if self.sparse else "rewrite"
        return f"platforms {FORMAT} {way} {','.join(map(str, self.platforms))}"

    def result_key(self, source: str) -> str:
        """Return the key under which the state stores the result of filtering an image.

        source: the digest of the image, or the identity of the transform that creates it."""
        return f"{self.key} {source}"


class IndexEntry(Struct, frozen=True):
    """One entry in the list `manifests` of an index.

    raw: the entry as in the document. described: for an attestation manifest, the digest of the manifest that it
    describes."""

    raw: Object
    descriptor: Descriptor
    described: Digest | None = None

    @property
    def platform(self) -> Platform | None:
        """The platform of the entry. None for an artifact, an attestation, or a nested index without a platform."""
        platform = self.descriptor.platform
        return platform if self.described is None and platform is not None and platform.is_known else None

    @property
    def may_be_index(self) -> bool:
        """Whether the entry may be a nested index whose own entries state the platforms."""
        media_type = self.descriptor.media_type
        return self.platform is None and self.described is None and (not media_type or is_index_type(media_type))


class FilteredIndex(Struct, frozen=True):
    """An index whose entries were selected by platform.

    root: the smaller index, or the original index if it is sparse or has no other platforms.
    nested: the smaller nested indexes that were created; the source does not have them.
    indexes: the digests of the original index, and of all nested indexes whose entries were selected.
    left_out: the digests of manifests and blobs that these indexes list and that are left out.
    platforms: all platforms that the original index lists, also in nested indexes."""

    root: Manifest
    nested: tuple[Manifest, ...] = ()
    indexes: frozenset[Digest] = frozenset()
    left_out: frozenset[Digest] = frozenset()
    platforms: tuple[Platform, ...] = ()


def is_index_type(media_type: str) -> bool:
    """Return whether `media_type` is the media type of an index."""
    return media_type in (OCI_INDEX, DOCKER_LIST)


def nested_indexes(index: Manifest) -> Iterator[Descriptor]:
    """Yield the children that may be nested indexes without a platform. `filter_index` needs their manifests."""
    yield from (entry.descriptor for entry in _read_entries(index)[1] if entry.may_be_index)


def filter_index(
    index: Manifest, nested: Mapping[Digest, Manifest], wanted: PlatformFilter, what: str
) -> FilteredIndex:
    """Select the entries of an index, and of the nested indexes without a platform, by platform.

    An entry without a platform is kept, with two exceptions: an attestation of a manifest that is left out and, unless
    the image is sparse, a nested index without remaining entries.

    wanted: the platforms to select. nested: the manifests of the children that `nested_indexes` yields, at all levels.
    what: the name of the image in messages. Raises RemoteError (not_found) if the index lists platforms, but none of
    the wanted platforms."""
    run = _IndexFilter(nested, wanted)
    root = run.filter(index)
    platforms = tuple(sorted(run.platforms, key=str))
    if platforms and not any(wanted.selects(platform) for platform in platforms):
        raise RemoteError(
            f"{what} has none of the platforms {wanted}; it has {', '.join(dict.fromkeys(map(str, platforms)))}",
            hint="correct `platforms`, or exclude the tag",
            code="not_found",
        )
    left_out = frozenset(run.removed - run.kept)
    return FilteredIndex(root or index, tuple(run.made), run.indexes, left_out, platforms)


class _IndexFilter:
    """A filter for the indexes of one image. Each nested index is filtered once, even if several indexes list it."""

    def __init__(self, nested: Mapping[Digest, Manifest], wanted: PlatformFilter) -> None:
        self._nested = nested
        self._wanted = wanted
        self._results: dict[Digest, Manifest | None] = {}
        self.kept: set[Digest] = set()
        self.removed: set[Digest] = set()
        self.platforms: set[Platform] = set()
        self.made: list[Manifest] = []  # without the root

    @property
    def indexes(self) -> frozenset[Digest]:
        """The digests of the indexes that were filtered."""
        return frozenset(self._results)

    def filter(self, index: Manifest, *, is_root: bool = True) -> Manifest | None:
        """Return an index with the selected entries: `index` itself if all are selected, or None if there are none."""
        if index.digest in self._results:
            return self._results[index.digest]
        self._results[index.digest] = index  # ends a cycle; only manifests with false digests can form one
        document, entries = _read_entries(index)
        selected = self._select(entries)
        rest: list[Value] = [entry.raw for entry in selected if entry is not None]
        result: Manifest | None = index
        if self._wanted.sparse:
            pass  # even if no entry is selected: later checks must be able to see that this was intended
        elif not rest and entries:
            result = None
        elif selected != entries:
            result = _render(index, {**document, "manifests": rest})
            if not is_root:
                self.made.append(result)
        self._results[index.digest] = result
        return result

    def _select(self, entries: Sequence[IndexEntry]) -> list[IndexEntry | None]:
        """Return for each entry the same entry, an entry for a smaller nested index, or None if it is left out."""
        selected = [entry if entry.described is not None else self._select_entry(entry) for entry in entries]
        listed = {entry.descriptor.digest for entry in entries}
        kept = {
            entry.descriptor.digest
            for entry, result in zip(entries, selected, strict=True)
            if result is not None and entry.described is None
        }
        for number, entry in enumerate(entries):
            if entry.described is not None and entry.described in listed - kept:
                selected[number] = None
        for entry, result in zip(entries, selected, strict=True):
            (self.kept if result is not None else self.removed).add(entry.descriptor.digest)
        return selected

    def _select_entry(self, entry: IndexEntry) -> IndexEntry | None:
        """Return the result of `_select` for one entry that is not an attestation."""
        platform = entry.platform
        if platform is not None:
            self.platforms.add(platform)
            return entry if self._wanted.selects(platform) else None
        nested = self._nested.get(entry.descriptor.digest) if entry.may_be_index else None
        if nested is None or nested.kind is not Kind.INDEX:
            return entry
        result = self.filter(nested, is_root=False)
        if result is None or result is nested:
            return entry if result is not None else None
        raw: Object = {**entry.raw, "digest": result.digest, "size": result.size}
        raw.pop("data", None)  # the embedded bytes of the original
        return replace(entry, raw=raw)


def _read_entries(index: Manifest) -> tuple[Object, list[IndexEntry]]:
    """Return the document of an index, and its entries. Raises Refused (manifest_invalid)."""
    what = f"index {index.digest}"
    document = strictjson.parse(index.body, what=what)
    found = document.get("manifests") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(found, list):
        raise Refused(f"{what}: manifests is not a list", code="manifest_invalid")
    entries = []
    for number, raw in enumerate(found):
        descriptor = parse_descriptor(raw, f"{what}: manifests[{number}]")
        if isinstance(raw, dict):
            entries.append(IndexEntry(raw, descriptor, _described_digest(raw)))
    return document, entries


def _described_digest(raw: Object) -> Digest | None:
    """Return the digest of the manifest that an entry describes, or None if it is not an attestation manifest."""
    annotations = raw.get("annotations")
    if not isinstance(annotations, dict) or annotations.get(_REFERENCE_TYPE) != _ATTESTATION:
        return None
    try:
        return Digest.parse(annotations.get(_REFERENCE_DIGEST))
    except MirrorError:
        return None


def _render(index: Manifest, document: Object) -> Manifest:
    """Return an index of the same type as `index` that contains `document`. Equal documents give equal bytes."""
    what = f"the index created from {index.digest}"
    try:
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except ValueError as error:  # a number such as 1e999, which JSON allows
        raise Refused(f"{what} cannot be written: {error}", code="manifest_invalid") from error
    body = text.encode()
    return parse_manifest(body, index.media_type, expected=Digest.of(body, index.digest.algorithm), what=what)


# ---- images without an index


def config_of(manifest: Manifest) -> Descriptor | None:
    """Return the descriptor of the config that states an image's platform, or None if there is no such config.

    The configs of artifacts have other media types, or do not exist."""
    config = manifest.blobs[0] if manifest.kind is Kind.IMAGE and manifest.blobs else None
    return config if config is not None and config.media_type in CONFIG_TYPES else None


def parse_config_platform(config: bytes) -> Platform | None:
    """Return the platform that an image config states, or None if it states none."""
    try:
        document = strictjson.parse(config, what="config", fold=False)
    except Refused:
        return None
    platform = parse_platform_object(document) if isinstance(document, dict) else Platform()
    return platform if platform.is_known else None
