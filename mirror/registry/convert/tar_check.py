"""Checks that a stream of bytes is a complete tar archive. Parses the headers and skips the file contents.

The decompressor detects a truncated compressed layer. Only the headers of an uncompressed tar show whether it is
truncated.

Sources: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar's format for base-256 sizes
and for sparse files.
"""

from __future__ import annotations

import re

BLOCK = 512  # bytes
_SIZE = slice(124, 136)
_CHECKSUM = slice(148, 156)
_TYPE = 156
_GNU_EXTENDED = 482  # offset of a flag: the header of a sparse file continues in the next block
_EXTENSION_EXTENDED = 504
_NO_CONTENT = frozenset(b"123456")  # links, devices, directories and pipes; their size field is ignored
_MAX_PAX = 1 << 20  # bytes; larger extended headers are skipped
_PAX_SIZE = re.compile(rb"(?:^|\n)\d+ size=(\d{1,19})\n")


class InvalidTar(ValueError):
    """Raised if a stream of bytes is not a complete tar archive. The error text states the reason."""


class TarChecker:
    """A checker for one tar archive. Call `feed` with all bytes of the archive, then `end`. Not thread-safe.

    Both methods raise InvalidTar if the archive is invalid."""

    def __init__(self) -> None:
        self._rest = b""  # the first bytes of an incomplete block
        self._skip = 0  # bytes until the next header
        self._pax: bytearray | None = None  # the extended header that is being read
        self._pax_left = 0  # bytes of this header that have not been received yet
        self._pax_size: int | None = None  # size of the next file, from an extended header
        self._sparse = 0  # bytes of content after the extension headers of a sparse file
        self._in_sparse = False
        self._zeros = 0  # number of consecutive zero blocks
        self._has_ended = False
        self._headers = 0

    @property
    def has_ended(self) -> bool:
        """Whether the end-of-archive marker was read."""
        return self._has_ended

    def feed(self, data: bytes) -> None:
        """Check the next bytes of the archive."""
        position, end = 0, len(data)
        while position < end and not self._has_ended:
            if self._skip:
                step = min(self._skip, end - position)
                if self._pax is not None:
                    self._collect_pax(data[position : position + step])
                self._skip -= step
                position += step
                if not self._skip and self._pax is not None:
                    self._read_pax()
                continue
            needed = BLOCK - len(self._rest)
            self._rest += data[position : position + needed]
            position += needed
            if len(self._rest) == BLOCK:
                block, self._rest = self._rest, b""
                self._read_header(block)

    def end(self, *, strict: bool) -> None:
        """Check that the archive is complete, after `feed` has received its last byte.

        strict: whether a stream that ends within a file or a header is an error. A stream that is too short for one
        header is always an error, unless it is empty."""
        if self._has_ended:
            return
        if not self._headers and not self._zeros and self._rest:
            raise InvalidTar("it is not a tar archive")
        if not strict:
            return
        if self._skip or self._rest or self._in_sparse or self._pax is not None:
            raise InvalidTar("it is a truncated tar archive")

    def _read_header(self, block: bytes) -> None:
        """Process a block at a position where a tar header is expected."""
        if self._in_sparse:
            self._read_sparse_extension(block)
            return
        if not any(block):
            self._zeros += 1
            self._has_ended = self._zeros == 2  # programs that read tars ignore all bytes after the second zero block
            return
        self._zeros = 0
        if not _has_valid_checksum(block):
            if not self._headers:
                raise InvalidTar("it is not a tar archive")
            # Some archives end without zero blocks, with leftover bytes of the writer's buffer.
            self._has_ended = True
            return
        self._headers += 1
        size = _parse_number(block[_SIZE])
        kind = block[_TYPE]
        if kind in b"xgLK":
            if kind == ord("x") and 0 < size <= _MAX_PAX:
                self._pax, self._pax_left = bytearray(), size
            self._skip = _padded_size(size)
            return
        if self._pax_size is not None:
            size, self._pax_size = self._pax_size, None
        if kind in _NO_CONTENT:
            size = 0
        if kind == ord("S") and block[_GNU_EXTENDED]:
            self._in_sparse, self._sparse = True, _padded_size(size)
            return
        self._skip = _padded_size(size)

    def _read_sparse_extension(self, block: bytes) -> None:
        """Process an extension header of a sparse file. After the last header, skip the content of the file."""
        if not block[_EXTENSION_EXTENDED]:
            self._in_sparse, self._skip = False, self._sparse

    def _collect_pax(self, data: bytes) -> None:
        """Append `data` to the extended header that is being read."""
        if self._pax is not None and self._pax_left:
            piece = data[: self._pax_left]
            self._pax += piece
            self._pax_left -= len(piece)

    def _read_pax(self) -> None:
        """Read the size of the next file from a complete extended header, if it states one."""
        found = _PAX_SIZE.search(bytes(self._pax or b""))
        self._pax = None
        if found:
            self._pax_size = int(found[1])


def _has_valid_checksum(block: bytes) -> bool:
    """Return whether the checksum of a tar header is correct.

    The checksum is the sum of the bytes, which old programs treated as signed, and other programs as unsigned."""
    try:
        recorded = _parse_number(block[_CHECKSUM])
    except InvalidTar:
        return False
    head = block[:148] + b" " * 8 + block[156:]
    total = sum(head)
    return recorded in (total, total - 256 * sum(byte > 127 for byte in head))


def _parse_number(field: bytes) -> int:
    """Parse a number in a tar header, in octal or base 256. Raises InvalidTar if it is invalid or negative."""
    if field[0] & 0x80:
        if field[0] == 0xFF:
            raise InvalidTar("a tar header contains a negative size")
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:])
    digits = field.split(b"\0")[0].strip()
    if digits and not re.fullmatch(rb"[0-7]+", digits):
        raise InvalidTar("a tar header contains a number that is not octal")
    return int(digits, 8) if digits else 0


def _padded_size(size: int) -> int:
    """Return `size`, in bytes, rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK
