"""Converts v1 images to schema 2 images. Converted layers are cached, so that images can share them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Hashable, Sequence
from functools import partial

from mirror.oci.manifest import Manifest
from mirror.oci.strictjson import Object
from mirror.registry.convert.converted_source import assemble_image
from mirror.registry.convert.image_builder import CONVERTER_VERSION, HistoryStep, build_image, history_entry
from mirror.registry.convert.layer_cache import CachedLayer, LayerCache
from mirror.registry.convert.layers import Layer
from mirror.registry.v1 import parsing
from mirror.registry.v1.client import V1Client
from mirror.registry.v1.parsing import ImageJson
from mirror.store import TransformPart, TransformResult
from mirror.util.cancellation import Work
from mirror.util.config_key import registry_key
from mirror.util.structs import Struct

BUFFER = 256 << 10  # bytes
MAX_KEPT_JSON = 64 << 10  # bytes

_log = logging.getLogger("mirror.convert")


class Ancestor(Struct, frozen=True):
    """The data of a v1 image that the layer cache stores together with the image's layer.

    parent: the id of the parent image. raw: the JSON of the image; None if it is larger than MAX_KEPT_JSON and must be
    requested again."""

    parent: str | None
    raw: bytes | None


class V1Transform:
    """The conversion of the v1 image `image_id` to a schema 2 image. Thread-safe.

    The id is random and does not depend on the content. However, it is unique on its host, so the result is stored
    under the host and the id. exact: whether a checksum mismatch is an error; otherwise it is only logged."""

    def __init__(
        self, client: V1Client, cache: LayerCache[Ancestor], repository: str, image_id: str, *, exact: bool
    ) -> None:
        self.identity = f"v1 {client.host} {image_id} {CONVERTER_VERSION}"
        self._client = client
        self._cache = cache
        self._repository = repository
        self._id = image_id
        self._exact = exact
        self._chain: tuple[str, ...] = ()

    def parts(self, work: Work) -> Sequence[TransformPart]:
        """Return the layers to convert: one part for the layer of each image in the ancestry."""
        return [TransformPart(self._cache_key(image_id)) for image_id in self._ancestry(work)]

    def create_part(self, part: TransformPart, work: Work) -> None:
        """Fetch and convert the layer of one image in the ancestry."""
        self._convert_layer(part.key, work)

    def build_image(self, work: Work) -> TransformResult:
        """Build the config and the manifest from the converted layers."""
        chain = self._ancestry(work)
        keys = [self._cache_key(image_id) for image_id in reversed(chain)]

        def build(layers: Sequence[CachedLayer[Ancestor]]) -> tuple[bytes, Manifest]:
            """Return the config and the manifest. `layers` are the converted layers, starting with the base layer."""
            what = f"{self._client.host}/v1/images/{self._id}"
            _check_parents(chain, [kept.note for kept in layers], what)
            steps = []
            document: Object = {}
            for image_id, kept in zip(reversed(chain), layers, strict=True):
                document = self._image_json(image_id, kept.note, work)
                steps.append(HistoryStep(history_entry(document), kept.layer))
            return build_image(document, steps, what)

        make = partial(self._convert_layer, work=work)
        return assemble_image(self._client.host, self._repository, self._cache, keys, make, build)

    def created(self, work: Work) -> str:
        """Return the date in the JSON of the image, or "" if there is none."""
        date = self._client.image(self._repository, self._id, work).document.get("created")
        return date if isinstance(date, str) else ""

    def _cache_key(self, image_id: str) -> Hashable:
        """Return the key of an image in the layer cache."""
        # An id is unique on one host only.
        return "v1", self._client.host, image_id

    def _ancestry(self, work: Work) -> tuple[str, ...]:
        """Return the ids of the image and its ancestors, with the base image last. They are requested only once."""
        if not self._chain:
            self._chain = self._client.ancestry(self._repository, self._id, work)
        return self._chain

    def _convert_layer(self, key: Hashable, work: Work) -> None:
        """Fetch and convert the layer of one image, unless it is in the cache."""
        if self._cache.find(key) is not None:
            return
        image_id = next(one for one in self._ancestry(work) if self._cache_key(one) == key)
        image = self._client.image(self._repository, image_id, work)
        what = f"{self._client.host}/v1/images/{image_id}/layer"
        with self._cache.write_layer(key, what=what, code="v1_invalid") as pending:
            checksum = hashlib.sha256(image.raw + b"\n")
            buffer = memoryview(bytearray(BUFFER))
            with self._client.open_layer(self._repository, image, work, exact=self._exact) as reader:
                while count := reader.readinto(buffer):
                    data = bytes(buffer[:count])
                    if image.checksums:
                        checksum.update(data)
                    pending.feed(data)
                    work.progress(count)
            actual = checksum.hexdigest()
            layer = pending.finish(end_known=reader.end_known or actual in image.checksums)
            self._verify_checksum(image, actual, what)
            pending.keep(layer, Ancestor(image.parent, image.raw if len(image.raw) <= MAX_KEPT_JSON else None))
        self._log_conversion(image, layer)

    def _image_json(self, image_id: str, ancestor: Ancestor, work: Work) -> Object:
        """Return the JSON of one image. Request it again if it was too large to keep in the cache."""
        if ancestor.raw is None:
            return self._client.image(self._repository, image_id, work).document
        return parsing.parse_image_json(ancestor.raw, image_id)

    def _verify_checksum(self, image: ImageJson, actual: str, what: str) -> None:
        """Check that `actual`, the computed checksum, is one of the checksums that the registry declared for the image.

        Otherwise raise Refused (v1_invalid) or, if an exact match is not required, log a warning."""
        if not image.checksums or actual in image.checksums:
            return
        problem = f"the checksum is sha256:{actual}, but the registry declares sha256:{image.checksums[0]}"
        if self._exact:
            hint = f"if this is known to be harmless, set {registry_key(self._client.host, 'v1-checksums')} to `warn`"
            raise parsing.invalid_error(what, problem, hint)
        _log.warning("v1_checksum", extra={"source": what, "text": f"{what}: {problem}"})

    def _log_conversion(self, image: ImageJson, layer: Layer) -> None:
        """Log the digests of a converted layer."""
        fields = {"source": self._client.host, "image": image.id, "digest": layer.digest, "size": layer.size}
        text = f"the layer of the v1 image {image.id} was converted to {layer.digest}"
        _log.debug("converted", extra=fields | {"diff_id": layer.diff_id, "text": text})


def _check_parents(chain: tuple[str, ...], ancestors: Sequence[Ancestor], what: str) -> None:
    """Raise Refused unless each image names the next image of the ancestry as its parent.

    The base image must not name a parent. `chain` contains the ids of the images, with the base image last. `ancestors`
    contains the data of the same images, with the base image first."""
    for image_id, ancestor, parent in zip(chain, reversed(ancestors), (*chain[1:], None), strict=True):
        if ancestor.parent != parent:
            named = f"{ancestor.parent} as its parent" if ancestor.parent else "no parent"
            text = f"the JSON of {image_id} names {named}, but the ancestry lists {parent or 'no parent'}"
            raise parsing.invalid_error(what, text)
