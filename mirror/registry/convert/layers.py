"""A layer in whatever form it is stored, made into the form that registries take, in one pass.

What is gzip stays as it is, byte for byte; everything else is packed anew, the same way each time. The digest of the
unpacked bytes, which an image's config names, is computed on the way. Memory does not grow with the layer.
Sources: OCI image-spec v1.1, "Layer DiffID"; docker detects compression by the first bytes, whatever it is told.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NoReturn, Protocol

from mirror.errors import Refused
from mirror.oci.digest import Digest
from mirror.registry.convert.tar_check import TarWalk
from mirror.util.structs import Struct

XZ_MEMORY = 128 << 20  # bytes; xz's own highest level needs 65 MiB
PIECE = 256 << 10  # bytes unpacked at a time
LEVEL = 6  # of gzip: a change makes other digests of the same layers

# The empty layer as docker has always written it: its digest is known to every registry. Two zero blocks, packed.
EMPTY_GZIP = bytes.fromhex("1f8b080000096e8800ff621805a360148c5800080000ffff2eafb5ef00040000")
EMPTY_TAR = bytes(1024)

_MAGIC = 6  # bytes that tell every form


class Caps(Struct, frozen=True):
    """What a layer may unpack to. Bytes; ratio: unpacked to stored, from `suspicious` unpacked bytes on.

    stored: what it may be before: padding and empty streams, of which there may be any number, unpack to nothing."""

    unpacked: int = 32 << 30
    suspicious: int = 1 << 30
    ratio: int = 200
    stored: int = 33 << 30


USUAL = Caps()


class Layer(Struct, frozen=True):
    """diff_id: of the unpacked tar. digest, size: of the blob. stored: the digest of what was read."""

    diff_id: Digest
    digest: Digest
    size: int
    stored: Digest


EMPTY = Layer(Digest.of(EMPTY_TAR), Digest.of(EMPTY_GZIP), len(EMPTY_GZIP), Digest.of(b""))


class _Unpacker(Protocol):
    """Bytes in, unpacked pieces out; `end` raises ValueError if what came is not whole.

    padding: bytes that came after the end and mean nothing."""

    padding: int

    def feed(self, data: bytes) -> Iterator[bytes]: ...
    def end(self) -> None: ...


class LayerWriter:
    """Feed it the stored bytes, then `finish`: the blob has been written to `out`. Used by one thread.

    what, code: for errors. Raises Refused: `code` (not a whole layer of a known form), bomb."""

    def __init__(self, out: BinaryIO, *, what: str, code: str, caps: Caps = USUAL) -> None:
        self._out = out
        self._caps = caps
        self._what = what
        self._code = code
        self._begin = b""
        self._unpacker: _Unpacker | None = None
        self._packer: zlib._Compress | None = None
        self._tar = TarWalk()
        self._unpacked = 0
        self._read = 0
        self._size = 0
        self._diff_id = hashlib.sha256()
        self._blob = hashlib.sha256()
        self._stored = hashlib.sha256()

    def feed(self, data: bytes) -> None:
        """More of the stored bytes."""
        self._read += len(data)
        if self._read > self._caps.stored:
            self._bomb(f"it is longer than {self._caps.stored} bytes")
        self._stored.update(data)
        if self._unpacker is None:
            self._begin += data
            if len(self._begin) < _MAGIC:
                return
            data = self._begin
            self._choose()
        self._go_on(data)

    def finish(self, *, sure: bool = True) -> Layer:
        """All came. sure: else it may have been cut, and has to say itself that it is whole."""
        if not sure and not self._read:
            self._refuse("nothing came, and nothing says that this is all of it")
        if not self._read:
            self._write(EMPTY_GZIP)
            return EMPTY
        if self._unpacker is None:
            self._choose()
            self._go_on(self._begin)
        try:
            if self._unpacker is not None:
                self._unpacker.end()
            plain = isinstance(self._unpacker, _Plain)
            self._tar.end(strict=plain)
            if plain and not sure and not self._tar.ended:
                self._refuse("nothing says that this is all of it")
        except ValueError as error:
            self._refuse(str(error))
        if self._packer is not None:
            self._write(self._packer.flush())
        return Layer(_digest(self._diff_id), _digest(self._blob), self._size, _digest(self._stored))

    def _choose(self) -> None:
        begin = self._begin
        if begin.startswith(b"\x1f\x8b\x08"):
            self._unpacker = _Several(_new_gzip, b"\x1f\x8b\x08", "gzip")
            return
        if begin.startswith(b"BZh"):
            self._unpacker = _Several(bz2.BZ2Decompressor, b"BZh", "bzip2")
        elif begin.startswith(b"\xfd7zXZ\x00"):
            self._unpacker = _Several(_new_xz, b"\xfd7zXZ\x00", "xz", padding=4)
        elif begin.startswith(b"\x28\xb5\x2f\xfd"):
            self._refuse("it is packed with zstd, which no client of that time could read")
        else:
            self._unpacker = _Plain()
        self._packer = zlib.compressobj(LEVEL, zlib.DEFLATED, 31)  # 31: gzip, without name and time

    def _go_on(self, data: bytes) -> None:
        if self._unpacker is None:
            return
        padding = self._unpacker.padding
        try:
            for piece in self._unpacker.feed(data):
                self._take(piece)
        except (ValueError, OSError, zlib.error, lzma.LZMAError, EOFError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of our own disk; bz2 raises OSErrors without a number
            self._refuse(str(error))
        if self._packer is None:
            # Padding is no part of what is packed, and readers in Go refuse it ("gzip: invalid header").
            self._write(data[: len(data) - (self._unpacker.padding - padding)])

    def _take(self, piece: bytes) -> None:
        self._unpacked += len(piece)
        caps = self._caps
        if self._unpacked > caps.unpacked:
            self._bomb(f"it unpacks to more than {caps.unpacked} bytes")
        if self._unpacked > caps.suspicious and self._unpacked > caps.ratio * self._read:
            self._bomb(f"it unpacks to more than {caps.ratio} times its size")
        self._diff_id.update(piece)
        self._tar.feed(piece)
        if self._packer is not None:
            self._write(self._packer.compress(piece))

    def _write(self, data: bytes) -> None:
        if data:
            self._blob.update(data)
            self._size += len(data)
            self._out.write(data)

    def _refuse(self, why: str) -> NoReturn:
        raise Refused(f"{self._what}: not a layer that can be used: {why}", code=self._code)

    def _bomb(self, why: str) -> NoReturn:
        raise Refused(f"{self._what}: {why}", code="bomb")


class _Plain:
    """Not packed."""

    padding = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data

    def end(self) -> None:
        """What is missing of a plain tar shows in the tar."""


class _Stream(Protocol):
    """What the decompressors of bz2 and lzma have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Several:
    """One packed stream after the other, as each of these forms allows; zeros after the last are padding.

    padding: zeros between two streams come in so many bytes at once; 0: there are none (xz format 1.1, §2.2)."""

    def __init__(self, new: Callable[[], _Stream], magic: bytes, name: str, *, padding: int = 0) -> None:
        self._new = new
        self._magic = magic
        self._name = name
        self._unit = padding
        self._stream: _Stream | None = new()
        self._between = b""  # too short to tell what comes after a stream
        self.padding = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._stream is None:
                data = self._next(data)
            if self._stream is None:
                return
            while not self._stream.eof:
                piece = self._stream.decompress(data, PIECE)
                data = b""
                if piece:
                    yield piece
                elif self._stream.needs_input:
                    return
            data = self._stream.unused_data
            self._stream = None

    def _next(self, data: bytes) -> bytes:
        """What came since the last stream, from the beginning of another on, if one has begun."""
        between, self._between = self._between + data, b""
        begin = between.lstrip(b"\0")
        self.padding += len(between) - len(begin)
        if not begin:
            return b""
        may_follow = not self.padding or (self._unit > 0 and not self.padding % self._unit)
        if not may_follow or begin[: len(self._magic)] != self._magic[: len(begin)]:
            raise ValueError(f"there is something after the end of the {self._name} data")
        if len(begin) < len(self._magic):
            self._between = begin
        else:
            self._stream = self._new()
        return begin

    def end(self) -> None:
        if self._stream is not None or self._between:
            raise ValueError(f"its {self._name} data is cut short")


class _Gzip:
    """zlib's decompressor with the manners of the others."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(31)
        self._full = False  # the last piece was: there may be more of it inside

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not (self._zlib.unconsumed_tail or self._full or self._zlib.eof)

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        piece = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self._full = len(piece) == max_length
        return piece


def _new_gzip() -> _Stream:
    return _Gzip()


def _new_xz() -> _Stream:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)


def _digest(hasher: hashlib._Hash) -> Digest:
    return Digest(f"sha256:{hasher.hexdigest()}")
