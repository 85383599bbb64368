"""Is a layout in a directory whole? Reads and hashes everything that its index leads to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mirror.errors import MirrorError, NotFound, Refused
from mirror.layout.examination import Examined, Problem, damaged
from mirror.layout.files import INDEX_FILE, VERSION_FILE, Folder
from mirror.layout.index import MAX_BYTES, Index, check_version
from mirror.oci import manifest as manifests
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import is_manifest_type, parse_manifest
from mirror.util.cancellation import Stop

_SMALL = 64 << 10  # bytes of an oci-layout file
_CHUNK = 1 << 20  # bytes read at a time


def examine_folder(path: Path, stop: Stop) -> Examined:
    """Read and hash all that is named in it. Raises LocalError, Cancelled."""
    folder = Folder(path)
    try:
        return _Examination(folder, stop).run()
    finally:
        folder.close()


class _Examination:
    def __init__(self, folder: Folder, stop: Stop) -> None:
        self._folder = folder
        self._stop = stop
        self._found = Examined(str(folder.path))
        self._below: dict[Digest, list[Digest]] = {}  # what each manifest refers to
        self._buffer = memoryview(bytearray(_CHUNK))

    def run(self) -> Examined:
        try:
            index = self._index()
        except Refused as error:
            self._found.problems.append(Problem.of(error))
            return self._found
        self._walk([root.descriptor for root in index.roots()])
        self._found.concern(index.references(), lambda digest: self._below.get(digest, ()))
        return self._found

    def _index(self) -> Index:
        """Raises Refused."""
        what = str(self._folder.path)
        version = self._folder.read(VERSION_FILE, _SMALL) if self._folder.names() is not None else None
        if version is None:
            raise Refused(f"{what} is not a layout: no oci-layout here", code="bundle_invalid")
        check_version(version, f"{what}: {VERSION_FILE}")
        data = self._folder.read(INDEX_FILE, MAX_BYTES)
        if data is None:
            raise Refused(f"{what}: {INDEX_FILE} is missing", code="bundle_invalid")
        index = Index.parse(data, f"{what}: {INDEX_FILE}")
        self._found.problems += [Problem(text, damage=True) for text in dict.fromkeys(_unusable(index))]
        return index

    def _walk(self, todo: list[Descriptor]) -> None:
        seen: set[Digest] = set()
        while todo:
            self._stop.check()
            one = todo.pop()
            if one.digest not in seen and not one.foreign:
                seen.add(one.digest)
                try:
                    if is_manifest_type(one.media_type):
                        more = self._manifest(one)
                        self._below[one.digest] = [child.digest for child in more]
                        todo += more
                    else:
                        self._blob(one)
                except MirrorError as error:
                    self._found.problems.append(Problem.of(error, one.digest))

    def _manifest(self, one: Descriptor) -> list[Descriptor]:
        body = self._folder.read_blob(one.digest, manifests.MAX_BYTES)
        if body is None:
            raise Refused(f"{one.digest} is missing", code="bundle_incomplete")
        parsed = parse_manifest(body, one.media_type, expected=one.digest, what=f"{one.digest}")
        self._same_size(one, len(body))
        self._found.manifests += 1
        self._found.bytes += len(body)
        return [*parsed.children, *parsed.blobs]

    def _blob(self, one: Descriptor) -> None:
        reader = self._folder.open_blob(one.digest, 0)
        if reader is None:
            raise Refused(f"{one.digest} is missing", code="bundle_incomplete")
        hasher = one.digest.hasher()
        with reader:
            while count := reader.readinto(self._buffer):
                self._stop.check()
                hasher.update(self._buffer[:count])
        if hasher.hexdigest() != one.digest.hex:
            raise Refused(damaged(one.digest, hasher.hexdigest()).text)
        self._same_size(one, reader.size or 0)
        self._found.blobs += 1
        self._found.bytes += reader.size or 0

    def _same_size(self, one: Descriptor, actual: int) -> None:
        if one.size not in (None, actual):
            raise Refused(f"{one.digest} has {actual} bytes, {one.size} are said", code="size_mismatch")


def _unusable(index: Index) -> Iterator[str]:
    for name in ("", *index.repositories()):
        try:
            yield from (str(tag) for tag in index.tags(name) if isinstance(tag, MirrorError))
        except NotFound:  # it has roots without a name only
            continue
