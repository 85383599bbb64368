"""Blobs are verified while they are read, and broken connections are resumed."""

from __future__ import annotations

import random

import pytest

from mirror.errors import NetworkError, NotFound, Refused
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.transfer.blob_request import BlobSource
from mirror.transfer.downloads import CHECKPOINT_INTERVAL, MAX_RESUMES, MIN_PROGRESS, BlobDownload
from mirror.util.cancellation import Stop, Work
from tests.support.stores import MemoryStore, blob_of

DATA = random.Random(7).randbytes(3 * CHECKPOINT_INTERVAL + 12345)


def read_all(download: BlobDownload, offset: int = 0) -> bytes:
    out = bytearray()
    buffer = memoryview(bytearray(1 << 20))
    with download.open(offset, Work(Stop())) as reader:
        while count := reader.readinto(buffer):
            out += buffer[:count]
    return bytes(out)


def test_a_blob_is_read_and_verified_with_one_request() -> None:
    store = MemoryStore("source")
    download = BlobDownload(store.add("app", DATA), [BlobSource(store, "app")])
    assert DATA == read_all(download)
    assert [("app", Digest.of(DATA))] == store.verbs("open")
    assert len(DATA) == download.bytes_read


def test_an_empty_blob_is_verified() -> None:
    store = MemoryStore("source")
    assert b"" == read_all(BlobDownload(store.add("app", b""), [BlobSource(store, "app")]))


@pytest.mark.parametrize(
    ("expected", "actual", "code"),
    [
        (b"right", b"wrong", "digest_mismatch"),
        (b"right", b"righ", "size_mismatch"),
        (b"right", b"right and more", "size_mismatch"),
        (b"", b"x", "size_mismatch"),
    ],
)
def test_wrong_bytes_raise_an_error_that_is_not_retryable(expected: bytes, actual: bytes, code: str) -> None:
    store = MemoryStore("source")
    blob = blob_of(expected)
    store.blobs["app"][blob.digest] = actual
    with pytest.raises(Refused) as caught:
        read_all(BlobDownload(blob, [BlobSource(store, "app")]))
    assert code == caught.value.code
    assert not caught.value.retryable


def test_the_error_names_the_store_that_sent_wrong_bytes() -> None:
    first, second = MemoryStore("first"), MemoryStore("second")
    blob = blob_of(b"right")
    second.blobs["other"][blob.digest] = b"wrong"
    with pytest.raises(Refused) as caught:
        read_all(BlobDownload(blob, [BlobSource(first, "app"), BlobSource(second, "other")]))
    assert f"second/other@{blob.digest}" in caught.value.what
    assert "second" in caught.value.hint


def test_a_blob_of_unknown_size_is_verified_by_its_digest() -> None:
    store = MemoryStore("source")
    store.add("app", DATA)
    assert DATA == read_all(BlobDownload(Descriptor(Digest.of(DATA), None), [BlobSource(store, "app")]))


def test_a_broken_connection_that_made_progress_is_resumed() -> None:
    store = MemoryStore("source", cut_after=CHECKPOINT_INTERVAL)
    download = BlobDownload(store.add("app", DATA), [BlobSource(store, "app")])
    assert DATA == read_all(download)
    assert 4 == len(store.verbs("open"))
    assert len(DATA) == download.bytes_read, "no byte was read twice"


def test_a_broken_connection_that_made_no_progress_is_an_error() -> None:
    store = MemoryStore("source", cut_after=MIN_PROGRESS - 1)
    with pytest.raises(NetworkError):
        read_all(BlobDownload(store.add("app", DATA), [BlobSource(store, "app")]))
    assert 1 == len(store.verbs("open"))


def test_the_number_of_resumed_connections_is_limited() -> None:
    store = MemoryStore("source", cut_after=MIN_PROGRESS)
    with pytest.raises(NetworkError):
        read_all(BlobDownload(store.add("app", DATA), [BlobSource(store, "app")]))
    assert 1 + MAX_RESUMES == len(store.verbs("open"))


@pytest.mark.parametrize("offset", [CHECKPOINT_INTERVAL, CHECKPOINT_INTERVAL + 1, 2 * CHECKPOINT_INTERVAL, len(DATA)])
def test_a_blob_that_is_opened_again_at_an_offset_is_verified_as_a_whole(offset: int) -> None:
    store = MemoryStore("source")
    download = BlobDownload(store.add("app", DATA), [BlobSource(store, "app")])
    read_all(download)
    assert DATA[offset:] == read_all(download, offset)
    store.blobs["app"][Digest.of(DATA)] = DATA[:-1] + bytes([DATA[-1] ^ 1])
    with pytest.raises(Refused):
        read_all(download, min(offset, 2 * CHECKPOINT_INTERVAL))


def test_a_source_that_lacks_the_blob_is_skipped() -> None:
    first, second = MemoryStore("first"), MemoryStore("second")
    blob = second.add("other", DATA)
    assert DATA == read_all(BlobDownload(blob, [BlobSource(first, "app"), BlobSource(second, "other")]))


def test_if_no_source_has_the_blob_the_error_names_blob_and_repository() -> None:
    store = MemoryStore("source")
    with pytest.raises(NotFound, match=r"source/app .* sha256:"):
        read_all(BlobDownload(blob_of(b"lost"), [BlobSource(store, "app")]))
