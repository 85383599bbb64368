"""A store in memory with configurable faults, which records its calls."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from mirror.errors import MirrorError, NetworkError, NotFound, RemoteError
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.store import BlobReader, ExpectedImage, LeftOut, Mount, Version
from mirror.util.cancellation import Work


class AttachmentTags:
    """Implements AttachmentTagStore in memory."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], tuple[Digest, str]] = {}

    def find(self, repository: str, tag: str) -> tuple[Digest, str] | None:
        return self.rows.get((repository, tag))

    def record(self, repository: str, tag: str, digest: Digest, source: str) -> None:
        old = self.rows.get((repository, tag))
        if old is None or old[0] != digest:
            self.rows[repository, tag] = (digest, source)


def blob_of(data: bytes) -> Descriptor:
    return Descriptor(Digest.of(data), len(data), "application/octet-stream")


@dataclass(eq=False)
class MemoryStore:
    """blobs: repository -> digest -> bytes. asked: (verb, repository, reference) in order. fault: called with each
    call."""

    host: str
    blobs: defaultdict[str, dict[str, bytes]] = field(default_factory=lambda: defaultdict(dict))
    manifests: defaultdict[str, dict[str, Manifest]] = field(default_factory=lambda: defaultdict(dict))
    partial = False
    needs_all_images = False
    incomplete = False
    on_disk = False
    mounts: Mount | None = Mount.MOUNTED  # None: open an upload session instead
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    fault: Callable[[str, str, str], MirrorError | None] = field(default=lambda verb, repository, reference: None)
    cut_after: int | None = None  # bytes after which each body fails
    lists_referrers: bool = True  # False: the store has no lists of referrers
    false_lists: dict[str, list[Descriptor]] = field(default_factory=dict)  # of referrers, by subject
    deleted: list[str] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)  # tags that are listed, but cannot be resolved
    most_at_once: int = 0
    gate: threading.Event | None = None  # event that bodies wait for before their first byte
    closing: threading.Event | None = None  # event that a cancelled session waits for

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0

    def add(self, repository: str, data: bytes) -> Descriptor:
        blob = blob_of(data)
        self.blobs[repository][blob.digest] = data
        return blob

    def verbs(self, verb: str) -> list[tuple[str, str]]:
        return [(repository, reference) for seen, repository, reference in self.asked if seen == verb]

    def note(self, verb: str, repository: str, reference: str) -> None:
        with self._lock:
            self.asked.append((verb, repository, reference))
        error = self.fault(verb, repository, reference)
        if error is not None:
            raise error

    def repositories(self, prefix: str, work: Work) -> Iterable[str | MirrorError]:
        return [name for name in self.blobs if name.startswith(prefix)]

    def tags(self, repository: str, work: Work) -> Iterable[str | MirrorError]:
        self.note("tags", repository, "")
        return [name for name in self.manifests[repository] if ":" not in name]

    def resolve(self, repository: str, references: Sequence[str], work: Work) -> Iterable[Version | MirrorError]:
        for reference in references:
            self.note("resolve", repository, reference)
            found = self.manifests[repository].get(reference) if reference not in self.gone else None
            yield Version(found.digest, media_type=found.media_type) if found else NotFound(f"{repository}:{reference}")

    def read(self, repository: str, reference: str, work: Work) -> Version:
        manifest = self.manifest(repository, reference, work)
        return Version(manifest.digest, manifest)

    def manifest(self, repository: str, reference: str, work: Work) -> Manifest:
        self.note("manifest", repository, reference)
        try:
            return self.manifests[repository][reference]
        except KeyError:
            raise NotFound(f"{repository}:{reference}") from None

    def open_blob(self, repository: str, blob: Descriptor, work: Work, *, offset: int = 0) -> BlobReader:
        self.note("open", repository, blob.digest)
        try:
            data = self.blobs[repository][blob.digest]
        except KeyError:
            raise NotFound(f"{repository}@{blob.digest}") from None
        return MemoryReader(self, data, offset, work)

    def omits_blob(self, blob: Descriptor) -> bool:
        return False

    def begin(self, images: Sequence[ExpectedImage], work: Work, *, missing: Collection[str] = ()) -> None:
        self.note("prepare", "", "")

    def finish(self, *, whole: bool, work: Work) -> None:
        self.note("finish", "", "")

    def referrers(self, repository: str, digest: Digest, work: Work) -> Iterable[Descriptor] | None:
        self.note("referrers", repository, digest)
        if not self.lists_referrers:
            return None
        found = {one.digest: one for one in self.manifests[repository].values() if one.subject is not None}
        listed = [
            Descriptor(one.digest, one.size, one.media_type, artifact_type=one.artifact_type)
            for one in found.values()
            if one.subject is not None and one.subject.digest == digest
        ]
        return self.false_lists.get(digest, listed)

    def has_blob(self, repository: str, blob: Descriptor, work: Work) -> bool:
        self.note("head", repository, blob.digest)
        return blob.digest in self.blobs[repository]

    def mount_blob(self, repository: str, blob: Descriptor, from_repository: str, work: Work) -> Mount | MemorySession:
        self.note("mount", repository, blob.digest)
        if self.mounts is Mount.MOUNTED and blob.digest in self.blobs[from_repository]:
            self.blobs[repository][blob.digest] = self.blobs[from_repository][blob.digest]
            return Mount.MOUNTED
        return self.mounts if self.mounts in (Mount.REFUSED, Mount.ABSENT) else MemorySession(self, repository, blob)

    def begin_upload(self, repository: str, blob: Descriptor, work: Work) -> MemorySession:
        self.note("begin", repository, blob.digest)
        return MemorySession(self, repository, blob)

    def put_manifest(
        self, repository: str, reference: str, manifest: Manifest, work: Work, *, left_out: LeftOut | None = None
    ) -> bool:
        self.note("put", repository, reference)
        missing = [one.digest for one in manifest.blobs if one.digest not in self.blobs[repository]]
        if missing:
            raise RemoteError(f"{repository} lacks {missing[0]}", code="blob_missing", status=400)
        self.manifests[repository][reference] = self.manifests[repository][manifest.digest] = manifest
        return True

    def delete(self, repository: str, reference: str, work: Work) -> None:
        self.note("delete", repository, reference)

    def began(self) -> None:
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)

    def ended(self) -> None:
        with self._lock:
            self._now -= 1


class MemoryReader:
    """The bytes of a blob; fails after `cut_after` bytes."""

    def __init__(self, store: MemoryStore, data: bytes, offset: int, work: Work) -> None:
        self._store = store
        self._data = data
        self._at = offset
        self._left = store.cut_after
        self._work = work
        self.size: int | None = len(data)
        store.began()

    def readinto(self, buffer: memoryview) -> int:
        gate = self._store.gate
        if gate is not None:
            with self._work.stop.callback_on_stop(gate.set):
                gate.wait(30)
        self._work.stop.raise_if_requested()
        count = min(len(buffer), len(self._data) - self._at)
        if self._left is not None:
            count = min(count, self._left)
            self._left -= count
            if not count and self._at < len(self._data):
                raise NetworkError("cut", code="truncated")
        buffer[:count] = self._data[self._at : self._at + count]
        self._at += count
        return count

    def __enter__(self) -> MemoryReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.ended()


class MemorySession:
    """An upload. Its bytes count only if its body ended without an error."""

    resumable = False

    def __init__(self, store: MemoryStore, repository: str, blob: Descriptor) -> None:
        self._store = store
        self._repository = repository
        self._blob = blob
        self.committed = False

    def send(self, body: Callable[[int], BlobReader], work: Work) -> None:
        received = bytearray()
        buffer = memoryview(bytearray(1 << 16))
        with body(0) as reader:
            while count := reader.readinto(buffer):
                received += buffer[:count]
                work.progress(count)
        self._store.note("send", self._repository, self._blob.digest)
        self._store.blobs[self._repository][self._blob.digest] = bytes(received)
        self.committed = True

    def __enter__(self) -> MemorySession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.committed:
            if self._store.closing is not None:
                self._store.closing.wait(30)
            self._store.deleted.append(self._blob.digest)
