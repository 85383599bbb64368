"""Converts a stored layer to a gzip layer, in one pass.

A layer that is already compressed with gzip is copied without changes, except that padding is removed. Other layers are
compressed with gzip; equal layers always produce identical bytes. The digest of the unpacked bytes, which is part of
the image's config, is computed in the same pass. Memory use does not depend on the size of the layer.

Sources: OCI image-spec v1.1, "Layer DiffID"; the behaviour of Docker, which detects the compression by the first bytes
and ignores the media type.
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
from mirror.registry.convert.tar_check import TarChecker
from mirror.util.structs import Struct

XZ_MEMORY = 128 << 20  # bytes; xz's own highest level needs 65 MiB
PIECE = 256 << 10  # the maximum number of bytes that one step unpacks
LEVEL = 6  # the gzip level; with a different level, digests would change

# The empty layer as Docker has always written it: a compressed tar of two zero blocks. Its digest is well known.
EMPTY_GZIP = bytes.fromhex("1f8b080000096e8800ff621805a360148c5800080000ffff2eafb5ef00040000")
EMPTY_TAR = bytes(1024)

_MAGIC = 6  # bytes that are enough to recognize every format


class UnpackLimits(Struct, frozen=True):
    """Size limits for a layer, in bytes, which protect against decompression bombs.

    A layer that exceeds a limit is rejected (bomb). unpacked: the maximum number of unpacked bytes. ratio: the maximum
    ratio of unpacked to stored bytes, checked when more than `suspicious` bytes are unpacked. stored: the maximum
    number of stored bytes, which limits padding and empty streams that unpack to nothing."""

    unpacked: int = 32 << 30
    suspicious: int = 1 << 30
    ratio: int = 200
    stored: int = 33 << 30


DEFAULT_LIMITS = UnpackLimits()


class Layer(Struct, frozen=True):
    """The digests and the size of a converted layer.

    diff_id: the digest of the unpacked tar. digest, size: the digest of the gzip blob, and its size in bytes. stored:
    the digest of the bytes before the conversion."""

    diff_id: Digest
    digest: Digest
    size: int
    stored: Digest


EMPTY_LAYER = Layer(Digest.of(EMPTY_TAR), Digest.of(EMPTY_GZIP), len(EMPTY_GZIP), Digest.of(b""))


class _Unpacker(Protocol):
    """The interface of an unpacker for the stored bytes of one layer.

    padding: the number of padding bytes that have been read so far."""

    padding: int

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Unpack the next stored bytes, and yield the result in pieces."""
        ...

    def end(self) -> None:
        """Check that the input is complete. Raises ValueError if it is not."""
        ...


class LayerWriter:
    """A writer that converts the stored bytes of one layer to a gzip blob in the file `out`. Not thread-safe.

    Call `feed` with all stored bytes, then `finish`. Both raise Refused, with the code `code` if the bytes are not a
    complete layer of a known format, or with the code `bomb` if the layer is too large. what: the layer's name in
    error messages."""

    def __init__(self, out: BinaryIO, *, what: str, code: str, limits: UnpackLimits = DEFAULT_LIMITS) -> None:
        self._out = out
        self._limits = limits
        self._what = what
        self._code = code
        self._head = b""
        self._unpacker: _Unpacker | None = None
        self._packer: zlib._Compress | None = None
        self._tar = TarChecker()
        self._unpacked = 0
        self._read = 0
        self._size = 0
        self._diff_id = hashlib.sha256()
        self._blob = hashlib.sha256()
        self._stored = hashlib.sha256()

    def feed(self, data: bytes) -> None:
        """Convert the next stored bytes of the layer."""
        self._read += len(data)
        if self._read > self._limits.stored:
            self._refuse_bomb(f"the stored layer is longer than {self._limits.stored} bytes")
        self._stored.update(data)
        if self._unpacker is None:
            self._head += data
            if len(self._head) < _MAGIC:
                return
            data = self._head
            self._choose_unpacker()
        self._unpack(data)

    def finish(self, *, end_known: bool = True) -> Layer:
        """Check that the layer is complete, and return its digests and size.

        end_known: whether all stored bytes are known to have been received. Otherwise the layer itself must mark its
        end."""
        if not end_known and not self._read:
            self._refuse("no bytes were received, and the response does not say that the layer is empty")
        if not self._read:
            self._write(EMPTY_GZIP)
            return EMPTY_LAYER
        if self._unpacker is None:
            self._choose_unpacker()
            self._unpack(self._head)
        try:
            if self._unpacker is not None:
                self._unpacker.end()
            plain = isinstance(self._unpacker, _PlainTar)
            self._tar.end(strict=plain)
            if plain and not end_known and not self._tar.has_ended:
                self._refuse("it may be truncated: neither the response nor the tar archive marks its end")
        except ValueError as error:
            self._refuse(str(error))
        if self._packer is not None:
            self._write(self._packer.flush())
        return Layer(_digest_of(self._diff_id), _digest_of(self._blob), self._size, _digest_of(self._stored))

    def _choose_unpacker(self) -> None:
        """Choose the decompressor by the first bytes of the layer. Create a compressor unless the layer is gzip."""
        head = self._head
        if head.startswith(b"\x1f\x8b\x08"):
            self._unpacker = _StreamSequence(_new_gzip, b"\x1f\x8b\x08", "gzip")
            return
        if head.startswith(b"BZh"):
            self._unpacker = _StreamSequence(bz2.BZ2Decompressor, b"BZh", "bzip2")
        elif head.startswith(b"\xfd7zXZ\x00"):
            self._unpacker = _StreamSequence(_new_xz, b"\xfd7zXZ\x00", "xz", padding=4)
        elif head.startswith(b"\x28\xb5\x2f\xfd"):
            self._refuse("it is compressed with zstd, which v1 and schema 1 images never use")
        else:
            self._unpacker = _PlainTar()
        self._packer = zlib.compressobj(LEVEL, zlib.DEFLATED, 31)  # 31: gzip, without name and time

    def _unpack(self, data: bytes) -> None:
        """Unpack `data`. If the layer is gzip already, also write `data` to the blob, without padding."""
        if self._unpacker is None:
            return
        padding = self._unpacker.padding
        try:
            for piece in self._unpacker.feed(data):
                self._process_unpacked(piece)
        except (ValueError, OSError, zlib.error, lzma.LZMAError, EOFError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # a disk error; the OSErrors of bz2 have no errno
            self._refuse(str(error))
        if self._packer is None:
            # Padding is not copied, because programs written in Go reject it ("gzip: invalid header").
            self._write(data[: len(data) - (self._unpacker.padding - padding)])

    def _process_unpacked(self, piece: bytes) -> None:
        """Hash, check and compress one unpacked piece. Raises Refused (bomb) if a limit is exceeded."""
        self._unpacked += len(piece)
        limits = self._limits
        if self._unpacked > limits.unpacked:
            self._refuse_bomb(f"the layer unpacks to more than {limits.unpacked} bytes")
        if self._unpacked > limits.suspicious and self._unpacked > limits.ratio * self._read:
            self._refuse_bomb(f"the layer unpacks to more than {limits.ratio} times its stored size")
        self._diff_id.update(piece)
        self._tar.feed(piece)
        if self._packer is not None:
            self._write(self._packer.compress(piece))

    def _write(self, data: bytes) -> None:
        """Write `data` to the blob, and update the digest and the size of the blob."""
        if data:
            self._blob.update(data)
            self._size += len(data)
            self._out.write(data)

    def _refuse(self, why: str) -> NoReturn:
        """Raise Refused for a layer that cannot be converted."""
        raise Refused(f"{self._what}: the layer cannot be converted: {why}", code=self._code)

    def _refuse_bomb(self, why: str) -> NoReturn:
        """Raise Refused (bomb) for a layer that exceeds a limit."""
        raise Refused(f"{self._what}: {why}", code="bomb")


class _PlainTar:
    """An unpacker for layers that are not compressed."""

    padding = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the bytes unchanged."""
        yield data

    def end(self) -> None:
        """Do nothing: TarChecker detects a truncated tar."""


class _Decompressor(Protocol):
    """The common interface of the decompressors of bz2 and lzma."""

    @property
    def eof(self) -> bool:
        """Whether the end of the stream was reached."""
        ...

    @property
    def needs_input(self) -> bool:
        """Whether `decompress` needs more input before it can return output."""
        ...

    @property
    def unused_data(self) -> bytes:
        """The bytes after the end of the stream."""
        ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """Decompress `data`, and return at most `max_length` bytes."""
        ...


class _StreamSequence:
    """An unpacker for a layer that consists of one or more compressed streams. Zeros after a stream are padding.

    padding: the unit of padding, in bytes. The number of zeros between two streams must be a multiple of it. If it is
    0, no zeros are allowed between streams. Source: the .xz file format 1.1, section 2.2."""

    def __init__(self, new: Callable[[], _Decompressor], magic: bytes, name: str, *, padding: int = 0) -> None:
        self._new = new
        self._magic = magic
        self._name = name
        self._padding_unit = padding
        self._stream: _Decompressor | None = new()
        self._pending = b""  # bytes after a stream, too few to recognize another stream
        self.padding = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Unpack the next stored bytes, and yield the result in pieces of at most PIECE bytes."""
        while data:
            if self._stream is None:
                data = self._find_next_stream(data)
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

    def _find_next_stream(self, data: bytes) -> bytes:
        """Skip padding, and return the bytes after it. If the next stream begins there, create its decompressor.

        Raises ValueError if anything else follows."""
        pending, self._pending = self._pending + data, b""
        head = pending.lstrip(b"\0")
        self.padding += len(pending) - len(head)
        if not head:
            return b""
        may_follow = not self.padding or (self._padding_unit > 0 and not self.padding % self._padding_unit)
        if not may_follow or head[: len(self._magic)] != self._magic[: len(head)]:
            raise ValueError(f"unexpected bytes follow the {self._name} data")
        if len(head) < len(self._magic):
            self._pending = head
        else:
            self._stream = self._new()
        return head

    def end(self) -> None:
        """Check that the last stream is complete. Raises ValueError if it is not."""
        if self._stream is not None or self._pending:
            raise ValueError(f"its {self._name} data is truncated")


class _GzipDecompressor:
    """A gzip decompressor with the same interface as the decompressors of bz2 and lzma."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(31)
        self._full = False  # the last piece had the maximum length, so zlib may have more output

    @property
    def eof(self) -> bool:
        """Whether the end of the stream was reached."""
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        """Whether `decompress` needs more input before it can return output."""
        return not (self._zlib.unconsumed_tail or self._full or self._zlib.eof)

    @property
    def unused_data(self) -> bytes:
        """The bytes after the end of the stream."""
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """Decompress `data`, and return at most `max_length` bytes."""
        piece = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self._full = len(piece) == max_length
        return piece


def _new_gzip() -> _Decompressor:
    """Return a new gzip decompressor."""
    return _GzipDecompressor()


def _new_xz() -> _Decompressor:
    """Return a new xz decompressor that uses at most XZ_MEMORY bytes."""
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)


def _digest_of(hasher: hashlib._Hash) -> Digest:
    """Return the sha256 digest that `hasher` has computed."""
    return Digest(f"sha256:{hasher.hexdigest()}")
