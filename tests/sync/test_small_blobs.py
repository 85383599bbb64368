"""A source that keeps small blobs in memory: what is kept, and what is read again."""

from __future__ import annotations

import pytest

from mirror.errors import NotFound, Refused
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.sync.small_blobs import LARGEST_SMALL, MAX_KEPT, SmallBlobSource
from mirror.transfer.blob_request import BlobSource
from mirror.transfer.downloads import BlobDownload
from mirror.util.cancellation import Stop, Work
from tests.support.stores import MemoryStore

WORK = Work(Stop())


def read(source: SmallBlobSource, blob: Descriptor, offset: int = 0) -> bytes:
    """Read a blob as a copy does, with all checks."""
    data = b""
    with BlobDownload(blob, [BlobSource(source, "app")]).open(offset, WORK) as reader:
        buffer = memoryview(bytearray(1000))
        while count := reader.readinto(buffer):
            data += buffer[:count]
    return data


def test_a_small_blob_is_read_once_for_all_repositories() -> None:
    store = MemoryStore("source")
    source, blob = SmallBlobSource(store), store.add("app", b"config" * 500)
    assert [b"config" * 500] * 2 == [read(source, blob), read(source, blob)]
    assert b"fig" + b"config" * 499 == read(source, blob, offset=3)
    assert 1 == len(store.verbs("open"))


def test_large_blobs_and_blobs_of_unknown_size_are_passed_through() -> None:
    store = MemoryStore("source")
    source = SmallBlobSource(store)
    large, unknown = store.add("app", b"x" * (LARGEST_SMALL + 1)), store.add("app", b"unknown")
    for blob in (large, Descriptor(unknown.digest, None)):
        assert 2 == len([read(source, blob), read(source, blob)])
    assert 4 == len(store.verbs("open"))


def test_the_blobs_that_were_used_last_are_kept() -> None:
    store = MemoryStore("source")
    source = SmallBlobSource(store)
    blobs = [store.add("app", bytes([number]) * LARGEST_SMALL) for number in range(MAX_KEPT // LARGEST_SMALL + 1)]
    for blob in blobs:
        read(source, blob)
        read(source, blobs[0])
    store.asked.clear()
    read(source, blobs[0])
    assert [] == store.verbs("open")
    read(source, blobs[1])
    assert [("app", blobs[1].digest)] == store.verbs("open")


@pytest.mark.parametrize("content", [b"wrong", b"righ", b"right and more", b""])
def test_wrong_content_is_refused_and_not_kept(content: bytes) -> None:
    store = MemoryStore("source")
    source, digest = SmallBlobSource(store), Digest.of(b"right")
    store.blobs["app"][digest] = content
    with pytest.raises(Refused):
        read(source, Descriptor(digest, 5))
    store.blobs["app"][digest] = b"right"
    assert b"right" == read(source, Descriptor(digest, 5))


def test_a_missing_blob_is_an_error() -> None:
    with pytest.raises(NotFound):
        read(SmallBlobSource(MemoryStore("source")), Descriptor(Digest.of(b"x"), 1))
