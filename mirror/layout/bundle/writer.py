"""A bundle that is being made: a file of its final size beside its target, filled in any order, named when it is whole.

Beside FILE.tar stand .FILE.tar.partial, .FILE.tar.journal and .FILE.tar.lock until then. What a killed run left is
gone on with if the bundle is still to be the same; else what it holds is taken over.
"""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from mirror.errors import LocalError, Refused
from mirror.layout.bundle.journal import Entry, Journal, Recorded, recorded
from mirror.layout.bundle.reader import INDEX_NAME, INVENTORY_NAME, VERSION, VERSION_NAME, Archive, index_json
from mirror.layout.bundle.tar_reader import incomplete
from mirror.layout.bundle.tar_writer import Arrangement, Contents, Slot, blob_path
from mirror.layout.inventory import Inventory
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.store import BlobReader
from mirror.util.cancellation import Stop, Work
from mirror.util.files import Lock, local_error, publish

CHUNK = 1 << 20  # bytes written at a time
_LOOK_EVERY = 0.5  # seconds between two looks at a stop while another thread writes the same blob


class Assembly:
    """Thread-safe, but for `prepare`, `finish` and `close`, of which each is called once, in this order."""

    def __init__(self, path: Path, inventory: Inventory, manifests: Iterable[Manifest]) -> None:
        self._path = path
        self._inventory = inventory
        self._rendered = inventory.render()
        self.identity = Digest.of(self._rendered)
        bodies = {one.digest: one for one in manifests}
        contents = Contents(
            {
                INVENTORY_NAME: self._rendered,
                VERSION_NAME: VERSION,
                INDEX_NAME: index_json(inventory, self._rendered),
                **{blob_path(digest): bodies[digest] for digest in sorted(bodies)},
            }
        )
        sizes = contents.sizes()
        # A blob may be a manifest, too: an index that lists one as something else.
        sizes |= {blob_path(digest): size for digest, size in sorted(inventory.blobs.items()) if digest not in bodies}
        self._contents: Mapping[str, bytes] = contents
        self.plan = Arrangement(sizes.items())
        self._blobs = {digest: blob_path(digest) for digest in inventory.blobs}
        self._changed = threading.Condition()
        self._done: set[Digest] = {digest for digest in inventory.blobs if digest in bodies}
        self._writing: set[Digest] = set()
        self._descriptor = -1
        self._journal: Journal | None = None
        self._lock = Lock(self._beside("lock"))
        self._locked = False

    def _beside(self, what: str) -> Path:
        return self._path.with_name(f".{self._path.name}.{what}")

    @property
    def partial(self) -> Path:
        """Where the file is while it is being made."""
        return self._beside("partial")

    # ---- the beginning

    def prepare(self, old: Archive | None, work: Work, *, keep: bool = False) -> None:
        """Make the file, and take over what is there already. old: the bundle that this one is to replace. keep: leave
        what an earlier file has as it is, unless there is room for both.

        Raises LockBusy, LocalError, Cancelled."""
        self._lock.acquire(0, work.stop)
        self._locked = True
        journal = self._beside("journal")
        with ExitStack() as stack:
            left = recorded(journal)
            found = self._left_over()
            if keep:
                self._require_room(self.plan.total)
            resumed = left is not None and left.inventory == self.identity and found == self.plan.total
            previous = -1
            try:
                if not resumed:
                    # The journal goes first: it must never speak of another file.
                    journal.unlink(missing_ok=True)
                if found is not None and not resumed:
                    previous = os.open(self.partial, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                    stack.callback(os.close, previous)
                    self.partial.unlink()
                self._create()
            except OSError as error:
                raise local_error(f"make room for {self.plan.total} bytes in", self.partial, error) from error
            entries = self._kept(left, work.stop) if left is not None and resumed else []
            self._journal = Journal(journal, self._descriptor, self.identity, tuple(entries))
            if left is not None and previous >= 0:
                self._take_over(previous, ((one.digest, one.offset, one.size) for one in left.entries), work.stop)
            if old is not None:
                self._take_over_from(old, work.stop)

    def _left_over(self) -> int | None:
        """Bytes of the file that a killed run left; None: there is none. Raises LocalError: it is no file of ours."""
        try:
            found = self.partial.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise local_error("look at", self.partial, error) from error
        if not self.partial.is_file() or self.partial.is_symlink():
            raise LocalError(f"{self.partial} is not a regular file", hint="move it away")
        return found.st_size

    def _create(self) -> None:
        self._descriptor = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        self._require_room(self.plan.total - os.fstat(self._descriptor).st_blocks * 512)
        try:
            os.posix_fallocate(self._descriptor, 0, self.plan.total)
        except OSError as error:
            if error.errno not in _CANNOT_ALLOCATE:
                raise
            os.ftruncate(self._descriptor, self.plan.total)
        place, gathered = 0, b""
        for start, data in self.plan.pieces(self._contents):
            if start != place + len(gathered) or len(gathered) > CHUNK:
                _write(self._descriptor, memoryview(gathered), place)
                place, gathered = start, b""
            gathered += data
        _write(self._descriptor, memoryview(gathered), place)

    def _require_room(self, count: int) -> None:
        disk = os.statvfs(self._path.parent)
        if count > disk.f_bavail * disk.f_frsize:
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise local_error(f"make room for {self.plan.total} bytes in", self.partial, error) from error

    def _slot(self, digest: Digest) -> Slot | None:
        path = self._blobs.get(digest)
        return self.plan.slots[path] if path is not None else None

    # ---- what is there already

    def _kept(self, left: Recorded, stop: Stop) -> list[Entry]:
        """What a killed run brought to the disk; what may not have got there is read and hashed."""
        kept = []
        for number, entry in enumerate(left.entries):
            slot = self._slot(entry.digest)
            if slot is None or (slot.offset, slot.size) != (entry.offset, entry.size) or entry.digest in self._done:
                continue
            if number < left.synced or self._holds(entry, stop):
                kept.append(entry)
                self._done.add(entry.digest)
        return kept

    def _holds(self, entry: Entry, stop: Stop) -> bool:
        hasher = entry.digest.hasher()
        for chunk in _chunks(self._descriptor, entry.offset, entry.size, stop):
            hasher.update(chunk)
        return hasher.hexdigest() == entry.digest.hex

    def _take_over_from(self, old: Archive, stop: Stop) -> None:
        there = ((digest, old.member(digest)) for digest in self._blobs)
        self._take_over(
            old.descriptor, ((digest, one.offset, one.size) for digest, one in there if one is not None), stop
        )

    def _take_over(self, descriptor: int, blobs: Iterable[tuple[Digest, int, int]], stop: Stop) -> None:
        """Copy those of `blobs` (digest, offset, size) that are wanted here, and are what they are said to be."""
        for digest, offset, size in blobs:
            slot = self._slot(digest)
            if slot is None or slot.size != size or digest in self._done:
                continue
            hasher, place = digest.hasher(), slot.offset
            for chunk in _chunks(descriptor, offset, size, stop):
                hasher.update(chunk)
                self._put(chunk, place)
                place += len(chunk)
            if place == slot.offset + size and hasher.hexdigest() == digest.hex:
                self._note(digest, slot)

    # ---- blobs

    def has(self, digest: Digest) -> bool:
        """Whether nobody has to bring it: it is here, or left out for the base."""
        with self._changed:
            return digest in self._done or digest in self._inventory.base

    def write(self, blob: Descriptor, body: Callable[[int], BlobReader], work: Work) -> None:
        """Write a blob to its place. Two who bring the same one do so one after the other, the second for nothing.

        Raises Refused, LocalError, and what `body` raises."""
        slot = self._slot(blob.digest)
        if slot is None or not self._claim(blob.digest, work.stop):
            if slot is None and not self.has(blob.digest):
                raise Refused(f"{self._path}: blob {blob.digest} was not told of beforehand", code="bundle_invalid")
            return
        try:
            with body(0) as reader:
                self._fill(slot, blob, reader, work)
            self._note(blob.digest, slot)
        finally:
            with self._changed:
                self._writing.discard(blob.digest)
                self._changed.notify_all()

    def _claim(self, digest: Digest, stop: Stop) -> bool:
        """Be the one who writes it; False: it is there. Waits for another who does."""
        while True:
            stop.check()
            with self._changed:
                if digest in self._done:
                    return False
                if digest not in self._writing:
                    self._writing.add(digest)
                    return True
                self._changed.wait(_LOOK_EVERY)

    def _fill(self, slot: Slot, blob: Descriptor, reader: BlobReader, work: Work) -> None:
        buffer = memoryview(bytearray(min(CHUNK, slot.size + 1)))
        written = 0
        while count := reader.readinto(buffer):
            work.stop.check()
            if written + count > slot.size:
                raise Refused(f"blob {blob.digest} is longer than its {slot.size} bytes", code="size_mismatch")
            self._put(buffer[:count], slot.offset + written)
            written += count
            work.progress(count)
        if written != slot.size:
            raise Refused(f"blob {blob.digest} ended after {written} of {slot.size} bytes", code="size_mismatch")

    def _put(self, data: memoryview, place: int) -> None:
        try:
            _write(self._descriptor, data, place)
        except OSError as error:
            raise local_error("write", self.partial, error) from error

    def _note(self, digest: Digest, slot: Slot) -> None:
        if self._journal is not None:
            self._journal.add(Entry(digest, slot.offset, slot.size))
        with self._changed:
            self._done.add(digest)

    def lacking(self) -> list[Digest]:
        """Blobs that have not come yet."""
        with self._changed:
            return sorted(self._blobs.keys() - self._done)

    # ---- the end

    def finish(self) -> None:
        """Give the whole file its name. Raises Refused (bundle_incomplete), LocalError; then the old one keeps it."""
        self._settle()
        publish(self.partial, self._path)
        self._beside("journal").unlink(missing_ok=True)

    def pour(self, descriptor: int, work: Work) -> None:
        """Write the whole file to a pipe instead, and remove it. Raises as `finish`; then it is kept."""
        self._settle()
        for chunk in _chunks(self._descriptor, 0, self.plan.total, work.stop):
            _pour(descriptor, chunk, work.stop)
        self.partial.unlink()
        self._beside("journal").unlink(missing_ok=True)

    def _settle(self) -> None:
        lacking = self.lacking()
        if lacking:
            raise incomplete(str(self._path), f"{len(lacking)} blobs have not come, among them {lacking[0]}")
        if self._journal is not None:
            self._journal.settle()

    def close(self) -> None:
        """Keep what has come for the next run, if it was not finished. May be called again. Raises LocalError."""
        with ExitStack() as stack:
            if self._locked:
                self._locked = False
                stack.callback(self._lock.release)
                # Whoever holds the lock may remove its file: another run looks whether the file is still there.
                stack.callback(self._beside("lock").unlink, missing_ok=True)
            descriptor, self._descriptor = self._descriptor, -1
            journal, self._journal = self._journal, None
            if descriptor >= 0:
                stack.callback(os.close, descriptor)
            if journal is not None:
                stack.callback(journal.close)
                if self.partial.exists():
                    stack.callback(journal.settle)


_CANNOT_ALLOCATE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


def _write(descriptor: int, data: memoryview, place: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, place)
        data, place = data[count:], place + count


def _pour(descriptor: int, data: memoryview, stop: Stop) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    while data:
        while not poll.poll(_LOOK_EVERY * 1000):
            stop.check()
        stop.check()
        try:
            # More than a pipe has room for would keep us here, where no stop reaches.
            data = data[os.write(descriptor, data[: select.PIPE_BUF]) :]
        except BrokenPipeError as error:
            raise LocalError(
                "the reader of standard output closed the pipe", hint="see what the other end says"
            ) from error
        except OSError as error:
            raise local_error("write to", "standard output", error) from error


def _chunks(descriptor: int, offset: int, size: int, stop: Stop) -> Iterator[memoryview]:
    """The bytes there; fewer where they cannot be read: then it is not what it was."""
    buffer = memoryview(bytearray(min(CHUNK, size)))
    while size:
        stop.check()
        try:
            count = os.preadv(descriptor, [buffer[: min(size, len(buffer))]], offset)
        except OSError:
            return
        if not count:
            return
        yield buffer[:count]
        offset, size = offset + count, size - count
