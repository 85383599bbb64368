"""Conversion of Docker's schema 1 manifests to schema 2 images, for mirrors with `schema1: convert`.

Source: Docker's image manifest v2 schema 1. Such a manifest contains neither sizes nor the digests of unpacked layers,
so every layer is read. A manifest that is referenced by digest is never converted, since the digest would change.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import partial

from mirror.errors import MirrorError, NotFound, Refused, printable
from mirror.oci import strictjson
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import SCHEMA1, SCHEMA1_SIGNED, Kind, Manifest, is_manifest_type
from mirror.oci.strictjson import Object, Value
from mirror.registry.convert.converted_source import assemble_image
from mirror.registry.convert.image_builder import CONVERTER_VERSION, HistoryStep, build_image, history_entry
from mirror.registry.convert.layer_cache import CachedLayer, LayerCache
from mirror.registry.convert.layers import Layer
from mirror.store import BlobReader, Source, TransformPart, TransformResult, Version
from mirror.util.cancellation import Work
from mirror.util.structs import Struct

BUFFER = 256 << 10  # bytes


class Schema1Source:
    """A Source that wraps another Source, and adds transforms that convert schema 1 manifests to schema 2 images."""

    def __init__(self, source: Source, cache: LayerCache[None]) -> None:
        self.host = source.host
        self.partial = source.partial
        self._source = source
        self._cache = cache

    def repositories(self, prefix: str, work: Work) -> Iterable[str | MirrorError]:
        """Return the repositories in the wrapped source."""
        return self._source.repositories(prefix, work)

    def tags(self, repository: str, work: Work) -> Iterator[str | MirrorError]:
        """Yield the tags in the wrapped source, without the digests that some registries add to the list.

        The conversion of a schema 1 manifest changes its digest, and the list does not show which manifests are
        schema 1."""
        for tag in self._source.tags(repository, work):
            yield str(tag) if isinstance(tag, str) else tag

    def resolve(self, repository: str, references: Sequence[str], work: Work) -> Iterator[Version | MirrorError]:
        """Resolve references. If a tag refers to a schema 1 manifest, add a transform that converts it to schema 2."""
        results = self._source.resolve(repository, references, work)
        for reference, result in zip(references, results, strict=True):
            if not isinstance(result, Version) or ":" in reference:
                yield result
            elif result.manifest is None and not is_manifest_type(result.media_type):
                # The media type is missing or too general, so the body must be read.
                try:
                    yield self._add_conversion(repository, self._source.read(repository, reference, work), keep=False)
                except (NotFound, Refused) as error:
                    yield error
            else:
                yield self._add_conversion(repository, result, keep=False)

    def read(self, repository: str, reference: str, work: Work) -> Version:
        """Read the version of a reference. If a tag refers to a schema 1 manifest, add a transform to schema 2."""
        version = self._source.read(repository, reference, work)
        return version if ":" in reference else self._add_conversion(repository, version)

    def manifest(self, repository: str, reference: str, work: Work) -> Manifest:
        """Return a manifest from the wrapped source, without a conversion."""
        return self._source.manifest(repository, reference, work)

    def open_blob(self, repository: str, blob: Descriptor, work: Work, *, offset: int = 0) -> BlobReader:
        """Open a blob from the wrapped source."""
        return self._source.open_blob(repository, blob, work, offset=offset)

    def omits_blob(self, blob: Descriptor) -> bool:
        """Return whether the wrapped source is a partial source that leaves out `blob`."""
        return self._source.omits_blob(blob)

    def referrers(self, repository: str, digest: Digest, work: Work) -> Iterable[Descriptor] | None:
        """Return the referrers of a manifest from the wrapped source, or None if the source cannot list referrers."""
        return self._source.referrers(repository, digest, work)

    def _add_conversion(self, repository: str, version: Version, *, keep: bool = True) -> Version:
        """Return `version` or, if its manifest is schema 1, a version with a transform that converts it to schema 2.

        keep: whether the manifest stays in memory; otherwise the conversion reads it again. `resolve` does not keep
        manifests, because few of the resolved versions are converted."""
        is_schema1 = (
            version.manifest.kind is Kind.SCHEMA1
            if version.manifest is not None
            else version.media_type in (SCHEMA1, SCHEMA1_SIGNED)
        )
        if version.digest is None or version.transform is not None or not is_schema1:
            return version
        manifest = version.manifest if keep else None
        transform = Schema1Transform(self._source, self._cache, repository, version.digest, manifest)
        return Version(None, source_id=version.digest, transform=transform, media_type=version.media_type)


class _HistoryEntry(Struct, frozen=True):
    """One entry in the history of a schema 1 manifest.

    document: the JSON of the v1 image. layer: None if the image changes no files."""

    document: Object
    layer: Digest | None


class Schema1Transform:
    """The conversion of one schema 1 manifest to a schema 2 image. Thread-safe."""

    def __init__(
        self, source: Source, cache: LayerCache[None], repository: str, digest: Digest, manifest: Manifest | None
    ) -> None:
        self.identity = f"schema1 {digest} {CONVERTER_VERSION}"
        self._source = source
        self._cache = cache
        self._repository = repository
        self._digest = digest
        self._manifest = manifest
        self._what = f"{source.host}/{repository}@{digest}"

    def parts(self, work: Work) -> Sequence[TransformPart]:
        """Return one part of the transform for each distinct layer of the manifest."""
        layers = [entry.layer for entry in self._read_entries(work) if entry.layer is not None]
        return [TransformPart(self._cache_key(digest)) for digest in dict.fromkeys(layers)]

    def create_part(self, part: TransformPart, work: Work) -> None:
        """Fetch and convert one layer of the manifest."""
        self._convert_layer(part.key, work)

    def build_image(self, work: Work) -> TransformResult:
        """Build the config and the manifest from the converted layers."""
        entries = self._read_entries(work)
        keys = [self._cache_key(entry.layer) for entry in entries if entry.layer is not None]

        def build(layers: Sequence[CachedLayer[None]]) -> tuple[bytes, Manifest]:
            """Return the config and the manifest. `layers` are the converted layers, starting with the base layer."""
            remaining = iter(layers)
            steps = [
                HistoryStep(history_entry(entry.document), next(remaining).layer if entry.layer else None)
                for entry in entries
            ]
            return build_image(entries[-1].document, steps, self._what)

        make = partial(self._convert_layer, work=work)
        transformed = assemble_image(self._source.host, self._repository, self._cache, keys, make, build)
        self._manifest = None
        return transformed

    def _cache_key(self, digest: Digest) -> Hashable:
        """Return the key of a layer in the layer cache."""
        return "schema1", digest

    def _read_entries(self, work: Work) -> list[_HistoryEntry]:
        """Return the history of the manifest. Read the manifest first if it is not in memory."""
        manifest = self._manifest or self._source.manifest(self._repository, self._digest, work)
        self._manifest = manifest
        return read_history(manifest, self._what)

    def _convert_layer(self, key: Hashable, work: Work) -> None:
        """Fetch and convert the layer with the cache key `key`, unless it is in the cache."""
        if self._cache.find(key) is not None:
            return
        digest = next(
            entry.layer for entry in self._read_entries(work) if entry.layer and self._cache_key(entry.layer) == key
        )
        what = f"{self._source.host}/{self._repository}@{digest}"
        with self._cache.write_layer(key, what=what, code="manifest_invalid") as pending:
            buffer = memoryview(bytearray(BUFFER))
            with self._source.open_blob(self._repository, Descriptor(digest, None), work) as reader:
                while count := reader.readinto(buffer):
                    pending.feed(bytes(buffer[:count]))
                    work.progress(count)
            layer = pending.finish()
            _check_digest(layer, digest, what)
            pending.keep(layer, None)


def _check_digest(layer: Layer, digest: Digest, what: str) -> None:
    """Raise Refused (digest_mismatch) unless `digest` is the digest of the layer's bytes before the conversion."""
    if layer.stored != digest:
        raise Refused(f"{what}: the digest of the received bytes is {layer.stored}", code="digest_mismatch")


def read_history(manifest: Manifest, what: str) -> list[_HistoryEntry]:
    """Return the history of a schema 1 manifest, with the base image first. Skip repeated images.

    Raises Refused (manifest_invalid) if the history is not valid."""
    document = strictjson.parse(manifest.body, what=what)
    if not isinstance(document, dict):
        raise _invalid_error(what, "the manifest is not a JSON object")
    entries: list[_HistoryEntry] = []
    for layer, history in zip(_list_value(document, "fsLayers"), _list_value(document, "history"), strict=True):
        image = _parse_image(history, what)
        digest = Digest.parse(layer.get("blobSum") if isinstance(layer, dict) else None)
        # Some versions of Docker wrote the same image twice in a row.
        if not entries or image.get("id") != entries[-1].document.get("id"):
            entries.append(_HistoryEntry(image, None if image.get("throwaway") is True else digest))
    _check_parents(entries, what)
    return entries[::-1]


def _check_parents(entries: Sequence[_HistoryEntry], what: str) -> None:
    """Raise Refused unless each entry names the next entry as its parent, and the last entry names no parent.

    entries: the history, starting with the top image."""
    parents: list[Value] = [entry.document.get("id") for entry in entries[1:]]
    for entry, parent in zip(entries, [*parents, None], strict=True):
        parent_id = entry.document.get("parent") or None
        if parent_id != parent:
            image_id = printable(entry.document.get("id"), 80)
            raise _invalid_error(what, f"the parent of image {image_id} is not the next image in the history")


def _list_value(document: Object, key: str) -> list[Value]:
    """Return the list at `key` of a JSON object, or an empty list if there is none."""
    value = document.get(key)
    return value if isinstance(value, list) else []


def _parse_image(history: Value, what: str) -> Object:
    """Parse the JSON of the image in a history entry. Raises Refused (manifest_invalid) if it is invalid."""
    text = history.get("v1Compatibility") if isinstance(history, dict) else None
    if not isinstance(text, str):
        raise _invalid_error(what, "a history entry has no v1Compatibility string")
    image = strictjson.parse(text.encode(), what=f"a history entry of {what}", fold=False)
    if not isinstance(image, dict) or not isinstance(image.get("id"), str):
        raise _invalid_error(what, "a history entry has no image id")
    return image


def _invalid_error(what: str, why: str) -> Refused:
    """Return the error for an invalid schema 1 manifest."""
    return Refused(f"{what}: {why}", code="manifest_invalid")
