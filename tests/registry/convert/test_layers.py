"""Layers in every stored format: their conversion, the layers that are rejected, and the memory used."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import random
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable

import pytest

from mirror.errors import MirrorError
from mirror.registry.convert.layers import DEFAULT_LIMITS, EMPTY_LAYER, Layer, LayerWriter, UnpackLimits
from tests.registries.v1 import gz, tar

TAR = tar(
    etc__os=b"old", bin__sh=b"#!" * 4000, link="sh", dir__WHgone=b"", big=random.Random("layer").randbytes(200_000)
)


def convert_layer(
    stored: bytes, step: int = 1000, limits: UnpackLimits = DEFAULT_LIMITS, *, end_known: bool = True
) -> tuple[Layer, bytes]:
    out = io.BytesIO()
    writer = LayerWriter(out, what="the layer", code="v1_invalid", limits=limits)
    for at in range(0, len(stored), step):
        writer.feed(stored[at : at + step])
    return writer.finish(end_known=end_known), out.getvalue()


def bytes_after_gzip_members(blob: bytes) -> bytes:
    """Return the bytes after the last gzip member, as seen by readers that read member by member."""
    while blob.startswith(b"\x1f\x8b"):
        member = zlib.decompressobj(31)
        member.decompress(blob)
        assert member.eof
        blob = member.unused_data
    return blob


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.mark.parametrize("step", [1, 7, 1000, 1 << 20])
@pytest.mark.parametrize(
    "pack", [gz, bz2.compress, lzma.compress, bytes], ids=["gzip", "bzip2", "xz", "plain"]
)  # fmt: skip
def test_the_format_of_a_layer_is_recognized_by_its_first_bytes(pack: Callable[[bytes], bytes], step: int) -> None:
    data = TAR if step > 1 else tar(small=b"x")
    stored = pack(data)
    layer, blob = convert_layer(stored, step)
    assert (sha256(data), sha256(blob), len(blob), sha256(stored)) == (
        layer.diff_id, layer.digest, layer.size, layer.stored
    )  # fmt: skip
    assert data == gzip.decompress(blob)
    assert (blob == stored) == (pack is gz)


def test_compressing_a_layer_twice_gives_the_same_bytes() -> None:
    once, again = convert_layer(TAR, 1000)[1], convert_layer(TAR, 777)[1]
    assert once == again
    assert b"\x1f\x8b\x08\x00\x00\x00\x00\x00" == once[:8]  # no name, no time


def test_a_layer_of_zero_bytes_becomes_the_well_known_empty_layer() -> None:
    layer, blob = convert_layer(b"")
    assert EMPTY_LAYER == layer
    assert "sha256:a3ed95caeb02ffe68cdd9fd84406680ae93d633cb16422d00e8a7c22955b46d4" == layer.digest
    assert "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef" == layer.diff_id
    assert bytes(1024) == gzip.decompress(blob)


@pytest.mark.parametrize("size", [1024, 10240])
def test_an_empty_tar_of_another_length_keeps_its_own_digest(size: int) -> None:
    assert sha256(bytes(size)) == convert_layer(bytes(size))[0].diff_id


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize("pack", [gz, bz2.compress, lzma.compress], ids=["gzip", "bzip2", "xz"])
def test_concatenated_streams_with_trailing_zeros_are_one_layer(pack: Callable[[bytes], bytes], step: int) -> None:
    data = tar(a=b"a" * 3000)
    stored = pack(data[:1000]) + pack(data[1000:]) + bytes(512)
    layer, blob = convert_layer(stored, step)
    assert sha256(data) == layer.diff_id
    assert (pack is not gz) or stored[:-512] == blob
    assert b"" == bytes_after_gzip_members(blob)


def test_bytes_after_the_end_of_a_tar_belong_to_the_layer() -> None:
    data = TAR + b"trailing"
    assert sha256(data) == convert_layer(data)[0].diff_id


def wide() -> bytes:
    """Return an archive with everything that is hard to parse: links with sizes, extended headers, base-256 sizes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo("é" * 120)
        entry.size, entry.pax_headers = 700, {"SCHILY.xattr.user.x": "v" * 600}
        archive.addfile(entry, io.BytesIO(b"x" * 700))
        link = tarfile.TarInfo("hard")
        link.type, link.linkname = tarfile.LNKTYPE, "é"
        archive.addfile(link)
    return packed.getvalue()


def huge(size: int) -> bytes:
    """Return a file whose header has a base-256 size, with its contents."""
    entry = tarfile.TarInfo("huge")
    entry.size = size
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\x80" + size.to_bytes(11)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(-(-size // 512) * 512)


def sparse() -> bytes:
    """Return an old GNU sparse file with one extension header."""
    entry = tarfile.TarInfo("sparse")
    entry.size, entry.type = 512, b"S"
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(512) + b"x" * 512


GOOD = {"wide": wide(), "huge": huge(5000), "sparse": sparse(), "no end": tar(a=b"x")[:1024], "old": TAR}


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD.keys())
@pytest.mark.parametrize("step", [1, 511, 1 << 20])
def test_unusual_archives_are_accepted(data: bytes, step: int) -> None:
    assert sha256(data) == convert_layer(data, step)[0].diff_id


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_zeros_between_two_xz_streams_are_padding(step: int) -> None:
    data = tar(a=b"a" * 3000)
    streams = [lzma.compress(data[:1000]), lzma.compress(data[1000:2000]), lzma.compress(data[2000:])]
    stored = streams[0] + bytes(8) + streams[1] + bytes(4) + streams[2] + bytes(12)
    assert sha256(data) == convert_layer(stored, step)[0].diff_id


@pytest.mark.parametrize("data", [GOOD["no end"], b""], ids=["no end", "nothing"])
def test_a_layer_without_an_end_mark_is_rejected_if_it_may_be_truncated(data: bytes) -> None:
    assert convert_layer(data)[0].size
    with pytest.raises(MirrorError) as caught:
        convert_layer(data, end_known=False)
    assert ("v1_invalid", 3) == (caught.value.code, caught.value.exit_code)


@pytest.mark.parametrize("pack", [gz, bz2.compress, lzma.compress, bytes], ids=["gzip", "bzip2", "xz", "plain"])
def test_a_layer_with_an_end_mark_is_complete_even_if_its_length_is_unknown(pack: Callable[[bytes], bytes]) -> None:
    assert sha256(TAR) == convert_layer(pack(TAR), end_known=False)[0].diff_id


def xz_that_needs_a_gigabyte() -> bytes:
    """Return a stream whose header asks for a dictionary of 1 GiB. To compress with one needs much memory and time.

    Source: the .xz file format, 3.1 (block header) and 5.3.1 (LZMA2)."""
    packed = bytearray(lzma.compress(b"x"))
    start = 12  # after the stream header
    end = start + packed[start] * 4  # of the block header without its checksum
    packed[packed.index(b"\x21\x01", start) + 2] = 36  # of the filter LZMA2: 2 << (36 // 2 + 11)
    packed[end : end + 4] = zlib.crc32(packed[start:end]).to_bytes(4, "little")
    return bytes(packed)


BAD: dict[str, Callable[[], bytes]] = {
    "text": lambda: b"this is no layer at all",
    "long text": lambda: b"this is no layer at all" * 100,
    "packed text": lambda: gz(b"this is no layer at all"),
    "zstd": lambda: b"\x28\xb5\x2f\xfd" + bytes(100),
    "cut plain": lambda: TAR[:1500],
    "cut plain header": lambda: TAR[:700],
    "cut wide": lambda: wide()[:1100],
    "cut sparse": lambda: sparse()[:600],
    "cut gzip": lambda: gz(TAR)[:-1],
    "cut gzip early": lambda: gz(TAR)[:20],
    "cut gzip member": lambda: gz(TAR) + gz(TAR)[:15],
    "half a magic": lambda: gz(TAR) + b"\x1f",
    "trailing text": lambda: gz(TAR) + b"text",
    "text after zeros": lambda: gz(TAR) + bytes(100) + b"text",
    "cut bzip2": lambda: bz2.compress(TAR)[:-5],
    "zeros between two members of gzip": lambda: gz(TAR[:512]) + bytes(4) + gz(TAR[512:]),
    "zeros between two streams of bzip2": lambda: bz2.compress(TAR[:512]) + bytes(4) + bz2.compress(TAR[512:]),
    "five zeros between two streams of xz": lambda: lzma.compress(TAR[:512]) + bytes(5) + lzma.compress(TAR[512:]),
    "a stream of xz that ends after its first bytes": lambda: lzma.compress(TAR) + bytes(4) + b"\xfd7z",
    "cut xz": lambda: lzma.compress(TAR)[:-5],
    "wrong gzip": lambda: gz(TAR)[:-8] + bytes(8),
    "wrong bzip2": lambda: b"BZh9" + bytes(100),
    "wrong xz": lambda: b"\xfd7zXZ\x00" + bytes(100),
    "wrong deflate": lambda: gz(TAR)[:10] + b"\xff" * 100,
    "xz that needs a gigabyte": xz_that_needs_a_gigabyte,
}  # fmt: skip


@pytest.mark.parametrize("make", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("step", [1, 1 << 20])
def test_an_incomplete_or_unknown_layer_is_rejected(make: Callable[[], bytes], step: int) -> None:
    stored = make()
    with pytest.raises(MirrorError) as caught:
        convert_layer(stored, step)
    assert ("v1_invalid", 3) == (caught.value.code, caught.value.exit_code)
    assert "the layer" in str(caught.value)


# ---- bombs


def bomb(size: int) -> bytes:
    """Return a gzip of zeros, which begin with the end of a tar. Zeros compress 1000:1."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    piece = bytes(1 << 20)
    return b"".join(packer.compress(piece) for _ in range(size >> 20)) + packer.flush()


@pytest.mark.parametrize(("size", "refused"), [(4 << 20, False), (5 << 20, True)])
def test_a_layer_with_an_extreme_compression_ratio_is_rejected(size: int, refused: bool) -> None:
    assert refused == _is_bomb(bomb(size), UnpackLimits(suspicious=4 << 20))


@pytest.mark.parametrize(("size", "refused"), [(4 << 20, False), (5 << 20, True)])
def test_a_layer_that_unpacks_to_too_many_bytes_is_rejected(size: int, refused: bool) -> None:
    assert refused == _is_bomb(gz(bytes(size), 0), UnpackLimits(unpacked=4 << 20))


@pytest.mark.parametrize("more", [bytes(1 << 16), gzip.compress(b"") * 3000], ids=["zeros", "empty members"])
def test_endless_padding_or_empty_members_are_rejected(more: bytes) -> None:
    assert not _is_bomb(gz(TAR) + more, UnpackLimits(stored=1 << 20))
    assert _is_bomb(gz(TAR) + more * 20, UnpackLimits(stored=1 << 20))


def test_the_default_limits_are_the_documented_ones() -> None:
    assert UnpackLimits(unpacked=32 << 30, suspicious=1 << 30, ratio=200, stored=33 << 30) == DEFAULT_LIMITS


def _is_bomb(stored: bytes, limits: UnpackLimits) -> bool:
    try:
        convert_layer(stored, 1 << 16, limits)
    except MirrorError as error:
        return ("bomb", 3) == (error.code, error.exit_code)
    return False


class NullOutput(io.RawIOBase):
    """An output that discards all bytes."""

    def write(self, data: object) -> int:
        return len(data)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["gzip", "plain"])
def test_memory_does_not_grow_with_the_size_of_a_layer(form: str) -> None:
    piece = random.Random("memory").randbytes(1 << 20)
    entry = tarfile.TarInfo("big")
    entry.size = 32 << 20
    content = [entry.tobuf(tarfile.GNU_FORMAT), *[piece] * 32, bytes(1024)]
    stored = content
    if form == "gzip":
        gzipped = zlib.compressobj(0, zlib.DEFLATED, 31)
        stored = [*(gzipped.compress(one) for one in content), gzipped.flush()]
    writer = LayerWriter(NullOutput(), what="the layer", code="v1_invalid")  # type: ignore[arg-type]
    tracemalloc.start()
    try:
        for one in stored:
            for at in range(0, len(one), 1 << 18):
                writer.feed(one[at : at + (1 << 18)])
        writer.finish()
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 8 << 20
