"""Creates the tar headers of a bundle, and calculates the position of each member. Equal members give equal bytes.

Format: POSIX.1-2001 pax. Each header is a ustar block. If the size is 8 GiB or more, or the name does not fit (sha512
blobs), a pax header before this block contains the size or name. Owner, mode and time are the same for all members.
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
    """Return the path of a manifest or blob in a layout. Source: OCI image-spec v1.1, image-layout.md."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def padding(size: int) -> int:
    """Return the number of zero bytes that follow the data of a member of `size` bytes."""
    return -size % BLOCK


def header(name: str, size: int) -> bytes:
    """Return the header blocks of a regular file: a ustar header, preceded by a pax header if needed. size: bytes."""
    member = tarfile.TarInfo(name)  # owner 0, mode 0644, time 0
    member.size = size
    return member.tobuf(tarfile.PAX_FORMAT)


class MemberPosition(Struct, frozen=True):
    """The position of a member in a tar.

    start: where its header starts. offset: where its data starts. Both are in bytes from the start of the tar. size:
    bytes of data."""

    name: str
    start: int
    offset: int
    size: int


class TarMap:
    """The positions of all members of a tar. end: offset of the final zero blocks. total: size of the tar in bytes."""

    def __init__(self, members: Iterable[tuple[str, int]]) -> None:
        """Calculate all positions. members: names and sizes in bytes, in tar order. Each name must occur only once."""
        self.positions: dict[str, MemberPosition] = {}
        end = 0
        for name, size in members:
            offset = end + len(header(name, size))
            self.positions[name] = MemberPosition(name, end, offset, size)
            end = offset + size + padding(size)
        self.end = end
        self.total = end + len(END)

    def fixed_parts(self, contents: Mapping[str, bytes]) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) for all parts of the tar except the data of blobs, in ascending order of offsets.

        These parts are the headers, the data of the members in `contents`, the padding, and the end of the tar."""
        for position in self.positions.values():
            data = contents.get(position.name)
            yield position.start, header(position.name, position.size) + (data or b"")
            if position.size % BLOCK:
                yield position.offset + position.size, bytes(padding(position.size))
        yield self.end, END


class MemberContents(Mapping[str, bytes]):
    """A mapping from the names of members to their bytes. The body of a manifest is read only when it is accessed."""

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
        """Return the sizes of all members in bytes."""
        return {name: len(one) if isinstance(one, bytes) else one.size for name, one in self._members.items()}
