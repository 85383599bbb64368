"""Verifies a layout in a directory: reads and hashes everything that its index refers to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mirror.errors import MirrorError, NotFound, Refused
from mirror.layout.examination import LayoutProblem, VerificationResult, digest_problem
from mirror.layout.files import INDEX_FILE, VERSION_FILE, LayoutFiles
from mirror.layout.index import MAX_BYTES, Index, check_version
from mirror.layout.sparse import SparseParts
from mirror.oci import manifest as manifests
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest, is_manifest_type, parse_manifest
from mirror.util.cancellation import Work

_MAX_VERSION_BYTES = 64 << 10  # bytes of an oci-layout file
_BUFFER_BYTES = 1 << 20  # bytes read at a time


def verify_layout(path: Path, work: Work) -> VerificationResult:
    """Verify the layout at `path`. Problems with its content are recorded in the result, not raised.

    Raises LocalError, Cancelled."""
    files = LayoutFiles(path)
    try:
        return _LayoutVerifier(files, work).run()
    finally:
        files.close()


class _LayoutVerifier:
    """Verifies one layout: hashes everything reachable from its index, and records the problems."""

    def __init__(self, files: LayoutFiles, work: Work) -> None:
        self._files = files
        self._work = work
        self._result = VerificationResult(str(files.path))
        self._references: dict[Digest, list[Digest]] = {}  # digests that each manifest refers to
        self._sparse = SparseParts(self._read_manifest)
        self._seen: set[Digest] = set()
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))

    def run(self) -> VerificationResult:
        """Verify the layout and return the result."""
        try:
            index = self._read_index()
        except Refused as error:
            self._result.problems.append(LayoutProblem.from_error(error))
            return self._result
        self._walk([root.descriptor for root in index.roots() if not root.platforms])
        for root in index.roots():
            if root.platforms:
                self._result.sparse += 1
                self._sparse.add(root.descriptor.digest, root.platforms)
        self._walk([root.descriptor for root in index.roots() if root.platforms])
        self._result.find_affected(index.references(), lambda digest: self._references.get(digest, ()))
        return self._result

    def _read_index(self) -> Index:
        """Read index.json, and record its unusable entries as problems. Raises Refused if the file is unusable."""
        what = str(self._files.path)
        version = self._files.read(VERSION_FILE, _MAX_VERSION_BYTES) if self._files.list_names() is not None else None
        if version is None:
            raise Refused(f"{what} is not a layout: no oci-layout file found", code="bundle_invalid")
        check_version(version, f"{what}: {VERSION_FILE}")
        data = self._files.read(INDEX_FILE, MAX_BYTES)
        if data is None:
            raise Refused(f"{what}: {INDEX_FILE} is missing", code="bundle_invalid")
        index = Index.parse(data, f"{what}: {INDEX_FILE}")
        self._result.problems += [LayoutProblem(text, damage=True) for text in dict.fromkeys(_unusable_entries(index))]
        return index

    def _walk(self, todo: list[Descriptor]) -> None:
        """Verify all manifests and blobs reachable from the descriptors in `todo`, each digest once."""
        seen = self._seen
        while todo:
            self._work.stop.raise_if_requested()
            descriptor = todo.pop()
            if descriptor.digest not in seen and not self._may_lack(descriptor):
                seen.add(descriptor.digest)
                try:
                    if is_manifest_type(descriptor.media_type):
                        more = self._verify_manifest(descriptor)
                        self._references[descriptor.digest] = [child.digest for child in more]
                        todo += more
                    else:
                        self._verify_blob(descriptor)
                except MirrorError as error:
                    self._result.problems.append(LayoutProblem.from_error(error, descriptor.digest))

    def _may_lack(self, descriptor: Descriptor) -> bool:
        """Return whether the descriptor refers to a foreign layer that the layout does not contain."""
        return descriptor.foreign and self._files.blob_size(descriptor.digest) is None

    def _verify_manifest(self, descriptor: Descriptor) -> list[Descriptor]:
        """Verify a manifest, and return all descriptors in it. Raises MirrorError if it is missing or damaged."""
        body = self._files.read_blob(descriptor.digest, manifests.MAX_BYTES)
        if body is None:
            raise Refused(f"{descriptor.digest} is missing", code="bundle_incomplete")
        parsed = parse_manifest(body, descriptor.media_type, expected=descriptor.digest, what=f"{descriptor.digest}")
        self._check_size(descriptor, len(body))
        self._result.manifests += 1
        self._result.bytes += len(body)
        parts = (*parsed.children, *parsed.blobs)
        return [part for part in parts if not self._sparse.is_left_out(descriptor.digest, part.digest)]

    def _read_manifest(self, digest: Digest) -> Manifest:
        """Read a manifest. Raises MirrorError if it is missing or damaged."""
        body = self._files.read_blob(digest, manifests.MAX_BYTES)
        if body is None:
            raise NotFound(f"{digest} is missing")
        return parse_manifest(body, expected=digest, what=f"{digest}")

    def _verify_blob(self, descriptor: Descriptor) -> None:
        """Read a blob and verify its digest and size. Raises MirrorError if it is missing or damaged."""
        reader = self._files.open_blob(descriptor.digest, 0)
        if reader is None:
            raise Refused(f"{descriptor.digest} is missing", code="bundle_incomplete")
        hasher = descriptor.digest.hasher()
        with reader:
            while count := reader.readinto(self._buffer):
                self._work.stop.raise_if_requested()
                hasher.update(self._buffer[:count])
                self._work.progress(count)
        if hasher.hexdigest() != descriptor.digest.hex:
            raise Refused(digest_problem(descriptor.digest, hasher.hexdigest()).text)
        self._check_size(descriptor, reader.size or 0)
        self._result.blobs += 1
        self._result.bytes += reader.size or 0

    def _check_size(self, descriptor: Descriptor, actual: int) -> None:
        """Raise Refused (size_mismatch) if `actual`, a size in bytes, differs from the size in the descriptor."""
        if descriptor.size not in (None, actual):
            raise Refused(
                f"{descriptor.digest} has {actual} bytes, expected {descriptor.size}",
                code="size_mismatch",
            )


def _unusable_entries(index: Index) -> Iterator[str]:
    """Yield an error message for each index entry that cannot be used."""
    for name in ("", *index.repositories()):
        try:
            yield from (str(tag) for tag in index.tags(name) if isinstance(tag, MirrorError))
        except NotFound:  # the repository has no tags, only roots without a name
            continue
