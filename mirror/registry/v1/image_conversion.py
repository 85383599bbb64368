"""The conversion of one image of a v1 registry, as a transform: its ancestry is its parts, each made once in a run."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Hashable, Sequence
from functools import partial

from mirror.oci.manifest import Manifest
from mirror.oci.strictjson import Object
from mirror.registry.convert.converted_source import assembled
from mirror.registry.convert.image_builder import CONVERTER, Step, converted, history_of
from mirror.registry.convert.layer_cache import Kept, Scratch
from mirror.registry.convert.layers import Layer
from mirror.registry.v1 import parsing
from mirror.registry.v1.client import V1Client
from mirror.registry.v1.parsing import ImageJson
from mirror.store import Transformed, TransformPart
from mirror.util.cancellation import Work
from mirror.util.config_key import registry_key
from mirror.util.structs import Struct

BUFFER = 256 << 10  # bytes
BIG = 64 << 10  # bytes of JSON

_log = logging.getLogger("mirror.convert")


class Ancestor(Struct, frozen=True):
    """What is kept of an image's JSON beside its layer. raw: all of it; None: it is big, and asked for again."""

    parent: str | None
    raw: bytes | None


class V1Transform:
    """Makes the image `image_id` into one of schema 2. Thread-safe.

    The id is random, not of the content; but on one host it names one image, so the result is remembered by host and
    id. exact: a checksum that does not fit is a refusal, else a warning."""

    def __init__(
        self, client: V1Client, scratch: Scratch[Ancestor], repository: str, image_id: str, *, exact: bool
    ) -> None:
        self.identity = f"v1 {client.host} {image_id} {CONVERTER}"
        self._client = client
        self._scratch = scratch
        self._repository = repository
        self._id = image_id
        self._exact = exact
        self._chain: tuple[str, ...] = ()

    def parts(self, work: Work) -> Sequence[TransformPart]:
        return [TransformPart(self._key(image_id)) for image_id in self._ancestry(work)]

    def make(self, part: TransformPart, work: Work) -> None:
        self._make(part.key, work)

    def finish(self, work: Work) -> Transformed:
        chain = self._ancestry(work)
        keys = [self._key(image_id) for image_id in reversed(chain)]

        def build(found: Sequence[Kept[Ancestor]]) -> tuple[bytes, Manifest]:
            what = f"{self._client.host}/v1/images/{self._id}"
            _check_parents(chain, [kept.note for kept in found], what)
            steps = []
            document: Object = {}
            for image_id, kept in zip(reversed(chain), found, strict=True):
                document = self._document(image_id, kept.note, work)
                steps.append(Step(history_of(document), kept.layer))
            return converted(document, steps, what)

        make = partial(self._make, work=work)
        return assembled(self._client.host, self._repository, self._scratch, keys, make, build)

    def _key(self, image_id: str) -> Hashable:
        # Ids are of one host: another's image of the same id may be another one.
        return "v1", self._client.host, image_id

    def _ancestry(self, work: Work) -> tuple[str, ...]:
        if not self._chain:
            self._chain = self._client.ancestry(self._repository, self._id, work)
        return self._chain

    def _make(self, key: Hashable, work: Work) -> None:
        """Fetch and convert one image's layer, unless that was done before."""
        if self._scratch.find(key) is not None:
            return
        image_id = next(one for one in self._ancestry(work) if self._key(one) == key)
        image = self._client.image(self._repository, image_id, work)
        what = f"{self._client.host}/v1/images/{image_id}/layer"
        with self._scratch.writing(key, what=what, code="v1_invalid") as making:
            checksum = hashlib.sha256(image.raw + b"\n")
            buffer = memoryview(bytearray(BUFFER))
            with self._client.layer(self._repository, image, work, exact=self._exact) as reader:
                while count := reader.readinto(buffer):
                    data = bytes(buffer[:count])
                    if image.checksums:
                        checksum.update(data)
                    making.feed(data)
                    work.progress(count)
            actual = checksum.hexdigest()
            layer = making.finish(sure=reader.sure or actual in image.checksums)
            self._verify(image, actual, what)
            making.keep(layer, Ancestor(image.parent, image.raw if len(image.raw) <= BIG else None))
        self._note(image, layer)

    def _document(self, image_id: str, ancestor: Ancestor, work: Work) -> Object:
        if ancestor.raw is None:
            return self._client.image(self._repository, image_id, work).document
        return parsing.image_document(ancestor.raw, image_id)

    def _verify(self, image: ImageJson, actual: str, what: str) -> None:
        if not image.checksums or actual in image.checksums:
            return
        problem = f"its checksum is sha256:{actual}, the registry says sha256:{image.checksums[0]}"
        if self._exact:
            hint = f"if that is known to be harmless, set {registry_key(self._client.host, 'v1-checksums')} to warn"
            raise parsing.invalid(what, problem, hint)
        _log.warning("v1_checksum", extra={"source": what, "text": f"{what}: {problem}"})

    def _note(self, image: ImageJson, layer: Layer) -> None:
        fields = {"source": self._client.host, "image": image.id, "digest": layer.digest, "size": layer.size}
        _log.debug("converted", extra=fields | {"diff_id": layer.diff_id, "text": f"{image.id}: {layer.digest}"})


def _check_parents(chain: tuple[str, ...], ancestors: Sequence[Ancestor], what: str) -> None:
    """Each image names the next of the ancestry as its parent, the base none. ancestors: the base first."""
    for image_id, ancestor, parent in zip(chain, reversed(ancestors), (*chain[1:], None), strict=True):
        if ancestor.parent != parent:
            said, listed = ancestor.parent or "no parent", parent or "none"
            raise parsing.invalid(what, f"the JSON of {image_id} names {said}, the ancestry {listed}")
