"""Whether a stream of bytes is a whole tar archive: its headers are walked, its contents passed over.

Decompression does not notice that a plain tar was cut short; its headers do. Sources: POSIX.1-2017, pax, "ustar
Interchange Format" and "pax Extended Header"; GNU tar's format for sizes in base 256 and for sparse files.
"""

from __future__ import annotations

import re

BLOCK = 512  # bytes
_SIZE = slice(124, 136)
_CHECKSUM = slice(148, 156)
_TYPE = 156
_GNU_EXTENDED = 482  # a sparse file's header goes on in the next block
_EXTENSION_EXTENDED = 504
_NO_CONTENT = frozenset(b"123456")  # links, devices, directories, pipes: whatever their size says
_MAX_PAX = 1 << 20  # bytes of an extended header that are looked at
_PAX_SIZE = re.compile(rb"(?:^|\n)\d+ size=(\d{1,19})\n")


class NotTar(ValueError):
    """Why it is not a whole tar archive."""


class TarWalk:
    """Feed it everything, then `end`. Raises NotTar. Used by one thread."""

    def __init__(self) -> None:
        self._rest = b""  # the beginning of a block
        self._skip = 0  # bytes to the next header
        self._pax: bytearray | None = None  # an extended header that is being read
        self._pax_left = 0
        self._pax_size: int | None = None  # what it said of the next file
        self._sparse = 0  # content that comes after a sparse file's further headers, bytes
        self._in_sparse = False
        self._zeros = 0  # blocks in a row
        self._ended = False
        self._headers = 0

    @property
    def ended(self) -> bool:
        """Whether the archive's own end came."""
        return self._ended

    def feed(self, data: bytes) -> None:
        position, end = 0, len(data)
        while position < end and not self._ended:
            if self._skip:
                step = min(self._skip, end - position)
                if self._pax is not None:
                    self._keep(data[position : position + step])
                self._skip -= step
                position += step
                if not self._skip and self._pax is not None:
                    self._read_pax()
                continue
            missing = BLOCK - len(self._rest)
            self._rest += data[position : position + missing]
            position += missing
            if len(self._rest) == BLOCK:
                block, self._rest = self._rest, b""
                self._header(block)

    def end(self, *, strict: bool) -> None:
        """All came. strict: it must not have ended in the middle of a file or of a header."""
        if self._ended:
            return
        if not self._headers and not self._zeros and self._rest:
            raise NotTar("it is not a tar archive")
        if not strict:
            return
        if self._skip or self._rest or self._in_sparse or self._pax is not None:
            raise NotTar("it is a tar archive that is cut short")

    def _header(self, block: bytes) -> None:
        if self._in_sparse:
            self._sparse_extension(block)
            return
        if not any(block):
            self._zeros += 1
            self._ended = self._zeros == 2  # what comes after it, is not read by anybody
            return
        self._zeros = 0
        if not _checks(block):
            if not self._headers:
                raise NotTar("it is not a tar archive")
            # Some archives end without the zeros, in whatever the writer's buffer held.
            self._ended = True
            return
        self._headers += 1
        size = _number(block[_SIZE])
        kind = block[_TYPE]
        if kind in b"xgLK":
            if kind == ord("x") and 0 < size <= _MAX_PAX:
                self._pax, self._pax_left = bytearray(), size
            self._skip = _padded(size)
            return
        if self._pax_size is not None:
            size, self._pax_size = self._pax_size, None
        if kind in _NO_CONTENT:
            size = 0
        if kind == ord("S") and block[_GNU_EXTENDED]:
            self._in_sparse, self._sparse = True, _padded(size)
            return
        self._skip = _padded(size)

    def _sparse_extension(self, block: bytes) -> None:
        if not block[_EXTENSION_EXTENDED]:
            self._in_sparse, self._skip = False, self._sparse

    def _keep(self, data: bytes) -> None:
        if self._pax is not None and self._pax_left:
            kept = data[: self._pax_left]
            self._pax += kept
            self._pax_left -= len(kept)

    def _read_pax(self) -> None:
        found = _PAX_SIZE.search(bytes(self._pax or b""))
        self._pax = None
        if found:
            self._pax_size = int(found[1])


def _checks(block: bytes) -> bool:
    """Whether a header's checksum is right, as bytes or as the signed ones of old writers."""
    try:
        said = _number(block[_CHECKSUM])
    except NotTar:
        return False
    head = block[:148] + b" " * 8 + block[156:]
    total = sum(head)
    return said in (total, total - 256 * sum(byte > 127 for byte in head))


def _number(field: bytes) -> int:
    if field[0] & 0x80:
        if field[0] == 0xFF:
            raise NotTar("a file of negative size")
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:])
    digits = field.split(b"\0")[0].strip()
    if digits and not re.fullmatch(rb"[0-7]+", digits):
        raise NotTar("it has a header with an odd number")
    return int(digits, 8) if digits else 0


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
