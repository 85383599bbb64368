"""Reading so that what is read is proven."""

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


def read_all(body: BlobDownload, offset: int = 0) -> bytes:
    out = bytearray()
    buffer = memoryview(bytearray(1 << 20))
    with body.open(offset, Work(Stop())) as reader:
        while count := reader.readinto(buffer):
            out += buffer[:count]
    return bytes(out)


def test_a_blob_is_read_in_one_request_and_proven() -> None:
    store = MemoryStore("source")
    body = BlobDownload(store.add("app", DATA), [BlobSource(store, "app")])
    assert DATA == read_all(body)
    assert [("app", Digest.of(DATA))] == store.verbs("open")
    assert len(DATA) == body.bytes_read


def test_an_empty_blob_is_proven_too() -> None:
    store = MemoryStore("source")
    assert b"" == read_all(BlobDownload(store.add("app", b""), [BlobSource(store, "app")]))


@pytest.mark.parametrize(
    ("claimed", "actual", "code"),
    [
        (b"right", b"wrong", "digest_mismatch"),
        (b"right", b"righ", "size_mismatch"),
        (b"right", b"right and more", "size_mismatch"),
        (b"", b"x", "size_mismatch"),
    ],
)
def test_bytes_that_are_not_the_blobs_are_refused_at_the_end(claimed: bytes, actual: bytes, code: str) -> None:
    store = MemoryStore("source")
    blob = blob_of(claimed)
    store.blobs["app"][blob.digest] = actual
    with pytest.raises(Refused) as caught:
        read_all(BlobDownload(blob, [BlobSource(store, "app")]))
    assert code == caught.value.code
    assert not caught.value.retryable


def test_the_store_that_gave_wrong_bytes_is_named_although_another_was_asked_first() -> None:
    first, second = MemoryStore("first"), MemoryStore("second")
    blob = blob_of(b"right")
    second.blobs["other"][blob.digest] = b"wrong"
    with pytest.raises(Refused) as caught:
        read_all(BlobDownload(blob, [BlobSource(first, "app"), BlobSource(second, "other")]))
    assert caught.value.what.startswith(f"second/other@{blob.digest}: received 5 bytes, but their digest is ")
    assert "the storage of second" in caught.value.hint


def test_a_blob_of_unknown_size_is_proven_by_its_digest() -> None:
    store = MemoryStore("source")
    store.add("app", DATA)
    assert DATA == read_all(BlobDownload(Descriptor(Digest.of(DATA), None), [BlobSource(store, "app")]))


def test_a_body_that_breaks_after_getting_somewhere_is_gone_on_with_in_place() -> None:
    store = MemoryStore("source", cut_after=CHECKPOINT_INTERVAL)
    body = BlobDownload(store.add("app", DATA), [BlobSource(store, "app")])
    assert DATA == read_all(body)
    assert 4 == len(store.verbs("open"))
    assert len(DATA) == body.bytes_read, "no byte was read twice"


def test_a_body_that_gets_nowhere_is_given_up_at_once() -> None:
    store = MemoryStore("source", cut_after=MIN_PROGRESS - 1)
    with pytest.raises(NetworkError):
        read_all(BlobDownload(store.add("app", DATA), [BlobSource(store, "app")]))
    assert 1 == len(store.verbs("open"))


def test_going_on_in_place_has_an_end() -> None:
    store = MemoryStore("source", cut_after=MIN_PROGRESS)
    with pytest.raises(NetworkError):
        read_all(BlobDownload(store.add("app", DATA), [BlobSource(store, "app")]))
    assert 1 + MAX_RESUMES == len(store.verbs("open"))


@pytest.mark.parametrize("offset", [CHECKPOINT_INTERVAL, CHECKPOINT_INTERVAL + 1, 2 * CHECKPOINT_INTERVAL, len(DATA)])
def test_a_body_can_be_opened_again_in_the_middle_and_is_still_proven(offset: int) -> None:
    store = MemoryStore("source")
    body = BlobDownload(store.add("app", DATA), [BlobSource(store, "app")])
    read_all(body)
    assert DATA[offset:] == read_all(body, offset)
    store.blobs["app"][Digest.of(DATA)] = DATA[:-1] + bytes([DATA[-1] ^ 1])
    with pytest.raises(Refused):
        read_all(body, min(offset, 2 * CHECKPOINT_INTERVAL))


def test_an_origin_that_does_not_have_it_is_left_out() -> None:
    first, second = MemoryStore("first"), MemoryStore("second")
    blob = second.add("other", DATA)
    assert DATA == read_all(BlobDownload(blob, [BlobSource(first, "app"), BlobSource(second, "other")]))


def test_when_no_origin_has_it_the_error_names_blob_and_repository() -> None:
    store = MemoryStore("source")
    with pytest.raises(NotFound, match=r"source/app does not have blob sha256:"):
        read_all(BlobDownload(blob_of(b"lost"), [BlobSource(store, "app")]))
