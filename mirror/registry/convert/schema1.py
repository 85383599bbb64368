"""Docker's schema 1 manifests made into schema 2 images, where a mirror asks for that (`schema1: convert`).

Source: docker's image manifest v2 schema 1. It has neither sizes nor the digests of unpacked layers, so every layer
is read. What is asked for by digest is never converted: the digest would be another.
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
from mirror.registry.convert.converted_source import assembled
from mirror.registry.convert.image_builder import CONVERTER, Step, converted, history_of
from mirror.registry.convert.layer_cache import Kept, Scratch
from mirror.registry.convert.layers import Layer
from mirror.store import BlobReader, Source, Transformed, TransformPart, Version
from mirror.util.cancellation import Work
from mirror.util.structs import Struct

BUFFER = 256 << 10  # bytes


class Schema1Source:
    """Implements Source over another one of the same host, with versions that convert what is of schema 1."""

    def __init__(self, inner: Source, scratch: Scratch[None]) -> None:
        self.host = inner.host
        self.partial = inner.partial
        self._inner = inner
        self._scratch = scratch

    def repositories(self, prefix: str, work: Work) -> Iterable[str | MirrorError]:
        return self._inner.repositories(prefix, work)

    def tags(self, repository: str, work: Work) -> Iterator[str | MirrorError]:
        """Without the digests that some registries list: those of manifests that are to be converted say nothing of
        what a target gets, and only asking tells which they are."""
        for tag in self._inner.tags(repository, work):
            yield str(tag) if isinstance(tag, str) else tag

    def resolve(self, repository: str, references: Sequence[str], work: Work) -> Iterator[Version | MirrorError]:
        answers = self._inner.resolve(repository, references, work)
        for reference, answer in zip(references, answers, strict=True):
            if not isinstance(answer, Version) or ":" in reference:
                yield answer
            elif answer.manifest is None and not is_manifest_type(answer.media_type):
                # It names no type that says anything: only the body tells.
                try:
                    yield self._judged(repository, self._inner.read(repository, reference, work), keep=False)
                except (NotFound, Refused) as error:
                    yield error
            else:
                yield self._judged(repository, answer, keep=False)

    def read(self, repository: str, reference: str, work: Work) -> Version:
        version = self._inner.read(repository, reference, work)
        return version if ":" in reference else self._judged(repository, version)

    def manifest(self, repository: str, reference: str, work: Work) -> Manifest:
        return self._inner.manifest(repository, reference, work)

    def open_blob(self, repository: str, blob: Descriptor, work: Work, *, offset: int = 0) -> BlobReader:
        return self._inner.open_blob(repository, blob, work, offset=offset)

    def lacks(self, blob: Descriptor) -> bool:
        return self._inner.lacks(blob)

    def referrers(self, repository: str, digest: Digest, work: Work) -> Iterable[Descriptor]:
        return self._inner.referrers(repository, digest, work)

    def _judged(self, repository: str, version: Version, *, keep: bool = True) -> Version:
        """The same, or a version that converts it.

        keep: its manifest, which is read again otherwise: many versions are resolved, and few converted."""
        of_schema1 = (
            version.manifest.kind is Kind.SCHEMA1
            if version.manifest is not None
            else version.media_type in (SCHEMA1, SCHEMA1_SIGNED)
        )
        if version.digest is None or version.transform is not None or not of_schema1:
            return version
        manifest = version.manifest if keep else None
        transform = Schema1Transform(self._inner, self._scratch, repository, version.digest, manifest)
        return Version(None, source_id=version.digest, transform=transform, media_type=version.media_type)


class _Entry(Struct, frozen=True):
    """One entry of the history: the JSON of an image; layer: None, if it changed no file."""

    document: Object
    layer: Digest | None


class Schema1Transform:
    """Makes one manifest of schema 1 into an image of schema 2. Thread-safe."""

    def __init__(
        self, source: Source, scratch: Scratch[None], repository: str, digest: Digest, manifest: Manifest | None
    ) -> None:
        self.identity = f"schema1 {digest} {CONVERTER}"
        self._source = source
        self._scratch = scratch
        self._repository = repository
        self._digest = digest
        self._manifest = manifest
        self._what = f"{source.host}/{repository}@{digest}"

    def parts(self, work: Work) -> Sequence[TransformPart]:
        layers = [entry.layer for entry in self._entries(work) if entry.layer is not None]
        return [TransformPart(self._key(digest)) for digest in dict.fromkeys(layers)]

    def make(self, part: TransformPart, work: Work) -> None:
        self._make(part.key, work)

    def finish(self, work: Work) -> Transformed:
        entries = self._entries(work)
        keys = [self._key(entry.layer) for entry in entries if entry.layer is not None]

        def build(found: Sequence[Kept[None]]) -> tuple[bytes, Manifest]:
            following = iter(found)
            steps = [Step(history_of(one.document), next(following).layer if one.layer else None) for one in entries]
            return converted(entries[-1].document, steps, self._what)

        make = partial(self._make, work=work)
        made = assembled(self._source.host, self._repository, self._scratch, keys, make, build)
        self._manifest = None
        return made

    def _key(self, digest: Digest) -> Hashable:
        return "schema1", digest

    def _entries(self, work: Work) -> list[_Entry]:
        manifest = self._manifest or self._source.manifest(self._repository, self._digest, work)
        self._manifest = manifest
        return entries_of(manifest, self._what)

    def _make(self, key: Hashable, work: Work) -> None:
        """Fetch one layer and unpack it for its digest, unless that was done before."""
        if self._scratch.find(key) is not None:
            return
        digest = next(one.layer for one in self._entries(work) if one.layer and self._key(one.layer) == key)
        what = f"{self._source.host}/{self._repository}@{digest}"
        with self._scratch.writing(key, what=what, code="manifest_invalid") as making:
            buffer = memoryview(bytearray(BUFFER))
            with self._source.open_blob(self._repository, Descriptor(digest, None), work) as reader:
                while count := reader.readinto(buffer):
                    making.feed(bytes(buffer[:count]))
                    work.progress(count)
            layer = making.finish()
            _same(layer, digest, what)
            making.keep(layer, None)


def _same(layer: Layer, digest: Digest, what: str) -> None:
    if layer.stored != digest:
        raise Refused(f"{what}: bytes came that hash to {layer.stored}", code="digest_mismatch")


def entries_of(manifest: Manifest, what: str) -> list[_Entry]:
    """The history of a manifest, the base first; each image once. Raises Refused (manifest_invalid)."""
    document = strictjson.parse(manifest.body, what=what)
    if not isinstance(document, dict):
        raise _invalid(what, "want an object")
    entries: list[_Entry] = []
    for layer, history in zip(_listed(document, "fsLayers"), _listed(document, "history"), strict=True):
        image = _image(history, what)
        digest = Digest.parse(layer.get("blobSum") if isinstance(layer, dict) else None)
        # Docker wrote some images twice in a row.
        if not entries or image.get("id") != entries[-1].document.get("id"):
            entries.append(_Entry(image, None if image.get("throwaway") is True else digest))
    _check_parents(entries, what)
    return entries[::-1]


def _check_parents(entries: Sequence[_Entry], what: str) -> None:
    """Each entry (the top first) names the next as its parent, the last none."""
    parents: list[Value] = [entry.document.get("id") for entry in entries[1:]]
    for entry, parent in zip(entries, [*parents, None], strict=True):
        said = entry.document.get("parent") or None
        if said != parent:
            raise _invalid(what, f"{printable(entry.document.get('id'), 80)} names another parent than comes next")


def _listed(document: Object, key: str) -> list[Value]:
    value = document.get(key)
    return value if isinstance(value, list) else []


def _image(history: Value, what: str) -> Object:
    text = history.get("v1Compatibility") if isinstance(history, dict) else None
    if not isinstance(text, str):
        raise _invalid(what, "a history entry without the JSON of an image")
    image = strictjson.parse(text.encode(), what=f"{what}: history", fold=False)
    if not isinstance(image, dict) or not isinstance(image.get("id"), str):
        raise _invalid(what, "a history entry without an image id")
    return image


def _invalid(what: str, why: str) -> Refused:
    return Refused(f"{what}: {why}", code="manifest_invalid")
