"""The bytes of a bundle's tar: where each member is, and its header. Equal members give equal bytes.

Format: POSIX.1-2001 pax. A header is a ustar block; a size of 8 GiB or more and a name that does not fit (blobs by
sha512) stand in a pax record before it. Owner, mode and time are the same for all members.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator, Mapping

from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.util.structs import Struct

BLOCK = 512  # bytes
END = bytes(2 * BLOCK)


def blob_path(digest: Digest) -> str:
    """Where a layout has a manifest or blob: OCI image-spec v1.1, image-layout.md."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def padding(size: int) -> int:
    """Bytes of zeros that follow a member of `size` bytes."""
    return -size % BLOCK


def header(name: str, size: int) -> bytes:
    """All blocks before the data of a regular file."""
    member = tarfile.TarInfo(name)  # owner 0, mode 0644, time 0
    member.size = size
    return member.tobuf(tarfile.PAX_FORMAT)


class Slot(Struct, frozen=True):
    """Where a member is. start: of its header; offset: of its data; in bytes from the beginning of the tar."""

    name: str
    start: int
    offset: int
    size: int


class Arrangement:
    """Members one after the other. end: where the two zero blocks begin; total: bytes of the whole tar."""

    def __init__(self, members: Iterable[tuple[str, int]]) -> None:
        """members: names and sizes, in the order of the tar, each name once."""
        self.slots: dict[str, Slot] = {}
        place = 0
        for name, size in members:
            offset = place + len(header(name, size))
            self.slots[name] = Slot(name, place, offset, size)
            place = offset + size + padding(size)
        self.end = place
        self.total = place + len(END)

    def pieces(self, contents: Mapping[str, bytes]) -> Iterator[tuple[int, bytes]]:
        """(place, bytes) of all but the blobs: headers, `contents` by name, padding, the end. In ascending order."""
        for slot in self.slots.values():
            data = contents.get(slot.name)
            yield slot.start, header(slot.name, slot.size) + (data or b"")
            if slot.size % BLOCK:
                yield slot.offset + slot.size, bytes(padding(slot.size))
        yield self.end, END


class Contents(Mapping[str, bytes]):
    """The bytes of members by name; those of manifests are read when they are asked for."""

    def __init__(self, members: Mapping[str, bytes | Manifest]) -> None:
        self._members = members

    def __getitem__(self, name: str) -> bytes:
        found = self._members[name]
        return found if isinstance(found, bytes) else found.body

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def sizes(self) -> dict[str, int]:
        return {name: len(one) if isinstance(one, bytes) else one.size for name, one in self._members.items()}
