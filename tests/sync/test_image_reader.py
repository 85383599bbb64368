from __future__ import annotations

import json
from collections.abc import Sequence

from mirror.limits import Limits
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST, Manifest, parse_manifest
from mirror.oci.reference import Repository
from mirror.output.progress import Progress, Snapshot
from mirror.selection.tag_rules import TagRules
from mirror.store import TransformPart, TransformResult, Version
from mirror.sync.image_reader import ImageReader
from mirror.sync.manifest_graph import ManifestCache
from mirror.sync.plan_model import MirrorEntry, SourceReference, TargetEntry
from mirror.sync.signature_checker import SignatureChecker
from mirror.sync.tag_protection import TagProtection
from mirror.transfer.calls import Calls, new_loop
from mirror.util.cancellation import Stop, Work
from tests.support.stores import AttachmentTags, MemoryStore


class Notes:
    """Implements TransformHintWriter; it records nothing."""

    def record_transform_digest(self, identity: str, digest: Digest) -> None: ...

    def record_other_platform(self, key: str, reason: str) -> None: ...


class OneLayerTransform:
    """A transform with one part, which looks at the progress while it is being created."""

    identity = "any"

    def __init__(self, progress: Progress, source: MemoryStore, root: Manifest) -> None:
        self._progress, self._source, self._root = progress, source, root
        self.seen: list[Snapshot] = []

    def parts(self, work: Work) -> Sequence[TransformPart]:
        return [TransformPart("layer", 10)]

    def create_part(self, part: TransformPart, work: Work) -> None:
        work.progress(4)
        self.seen.append(self._progress.snapshot())

    def build_image(self, work: Work) -> TransformResult:
        self.seen.append(self._progress.snapshot())
        return TransformResult(self._root, self._source, "app")


def test_the_progress_lists_layers_that_are_being_converted_without_counting_their_bytes() -> None:
    source, target, progress = MemoryStore("source"), MemoryStore("target"), Progress()
    config = source.add("app", b"{}")
    described = {"mediaType": "application/x", "digest": config.digest, "size": config.size}
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described, "layers": []}
    transform = OneLayerTransform(progress, source, parse_manifest(json.dumps(document).encode()))
    entry = MirrorEntry(source, "app", TagRules(), (TargetEntry(target, Repository("target", "app")),))
    loop = new_loop()
    calls = Calls(loop, Limits(), Stop())
    try:
        manifests = ManifestCache(calls)
        protection = TagProtection(calls, manifests, AttachmentTags(), lambda source: True)
        signatures = SignatureChecker(calls, manifests)
        reader = ImageReader(calls, Notes(), manifests, signatures, protection, progress=progress)
        reference = SourceReference(entry, "v1", "v1", Version(None, transform=transform), users=1)
        loop.run_until_complete(reader.read_graph(reference))
    finally:
        calls.close()
    during, after = transform.seen
    assert [("source/app:v1", 10, 4, "transform")] == [
        (blob.place, blob.size, blob.position, blob.action) for blob in during.blobs
    ]
    assert ((), 0) == (after.blobs, after.moved)
