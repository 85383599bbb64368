"""Spool files: readers behind the writer, failed downloads, and the limit of the spool."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mirror.errors import Cancelled, LocalError, NetworkError, Refused
from mirror.oci.descriptor import Descriptor
from mirror.transfer.blob_request import BlobSource
from mirror.transfer.downloads import BlobDownload
from mirror.transfer.spool import DownloadBroken, Spool, SpoolFile, remove_files
from mirror.util.cancellation import Stop, Work
from tests.support.stores import MemoryStore, blob_of

DATA = bytes(range(256)) * 8000


def new_work() -> Work:
    return Work(Stop())


def fill(file: SpoolFile, store: MemoryStore) -> None:
    with BlobDownload(file.blob, [BlobSource(store, "app")]).open(0, new_work()) as body:
        file.fill(body, new_work())


def read_all(file: SpoolFile, offset: int = 0) -> bytes:
    out, buffer = bytearray(), memoryview(bytearray(100_000))
    with file.open(offset, new_work()) as reader:
        while count := reader.readinto(buffer):
            out += buffer[:count]
    return bytes(out)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "spool", 1 << 30)
    spool.prepare()
    return spool


def acquire(spool: Spool, blob: Descriptor) -> SpoolFile:
    """Return the file for a blob that fits."""
    file = spool.acquire(blob)
    assert file is not None
    return file


def test_a_file_can_be_read_from_any_offset(spool: Spool) -> None:
    store = MemoryStore("source")
    file = acquire(spool, store.add("app", DATA))
    fill(file, store)
    assert file.complete
    assert [DATA, DATA[5000:], b""] == [read_all(file), read_all(file, 5000), read_all(file, len(DATA))]


def test_a_reader_behind_the_writer_sees_the_end_only_after_the_verification(spool: Spool) -> None:
    store = MemoryStore("source", gate=threading.Event())
    file = acquire(spool, store.add("app", DATA))
    writer = threading.Thread(target=fill, args=(file, store))
    writer.start()
    got: list[bytes] = []
    wait_until_writing(file)
    reader = threading.Thread(target=lambda: got.append(read_all(file)))
    reader.start()
    assert store.gate is not None
    store.gate.set()
    reader.join(30)
    writer.join(30)
    assert [DATA] == got


def wait_until_writing(file: SpoolFile) -> None:
    with file._changed:
        assert file._changed.wait_for(lambda: file._writing, 30)


def test_a_reader_behind_a_failed_download_gets_an_error_that_is_not_retryable(spool: Spool) -> None:
    store = MemoryStore("source", cut_after=100_000)
    file = acquire(spool, store.add("app", DATA))
    with pytest.raises(NetworkError):
        fill(file, store)
    assert not file.complete
    with pytest.raises(DownloadBroken) as caught:
        read_all(file)
    assert not caught.value.retryable


def test_a_reader_behind_a_failed_download_never_sees_bytes_of_the_next_attempt(spool: Spool) -> None:
    store = MemoryStore("source", cut_after=100_000)
    file = acquire(spool, store.add("app", DATA))
    with pytest.raises(NetworkError):
        fill(file, store)
    with file.open(0, new_work()) as reader:
        assert 10 == reader.readinto(memoryview(bytearray(10)))
        store.cut_after = None
        fill(file, store)
        with pytest.raises(DownloadBroken):
            reader.readinto(memoryview(bytearray(10)))
    assert DATA == read_all(file)


def test_a_file_with_wrong_bytes_is_never_complete(spool: Spool) -> None:
    store = MemoryStore("source")
    blob = blob_of(DATA)
    store.blobs["app"][blob.digest] = DATA[:-1] + b"!"
    file = acquire(spool, blob)
    with pytest.raises(Refused):
        fill(file, store)
    with pytest.raises(DownloadBroken):
        read_all(file)


def test_a_stop_ends_the_wait_of_a_reader(spool: Spool) -> None:
    store = MemoryStore("source", gate=threading.Event())
    file = acquire(spool, store.add("app", DATA))
    writer = threading.Thread(target=fill, args=(file, store))
    writer.start()
    wait_until_writing(file)
    stop = Stop()
    stop.request("enough")
    with pytest.raises(Cancelled), file.open(0, Work(stop)) as reader:
        reader.readinto(memoryview(bytearray(10)))
    assert store.gate is not None
    store.gate.set()
    writer.join(30)


def test_copies_of_one_blob_share_one_file(spool: Spool) -> None:
    blob = blob_of(DATA)
    assert acquire(spool, blob) is acquire(spool, blob)


def test_unused_files_are_dropped_for_new_ones_the_oldest_first(tmp_path: Path) -> None:
    store = MemoryStore("source")
    spool = Spool(tmp_path, 300)
    spool.prepare()
    blobs = [store.add("app", bytes([number]) * 100) for number in range(4)]
    files = [acquire(spool, blob) for blob in blobs[:3]]
    for file in files:
        fill(file, store)
    spool.release(files[1])
    spool.release(files[0])
    assert spool.acquire(store.add("app", b"x" * 250)) is None, "two of three files are dropped, one is in use"
    remove_files(spool.take_dropped())
    assert not files[0].path.exists()
    assert not files[1].path.exists()
    assert files[2].path.exists()
    assert acquire(spool, blobs[3]) is not None


def test_a_blob_larger_than_the_spool_gets_a_file_if_no_other_is_in_use(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 100)
    spool.prepare()
    large, small = blob_of(b"l" * 500), blob_of(b"s")
    file = acquire(spool, large)
    assert spool.acquire(small) is None
    spool.release(file)
    assert spool.acquire(small) is not None


def test_an_incomplete_file_is_dropped_after_its_last_use(spool: Spool) -> None:
    store = MemoryStore("source", cut_after=10)
    file = acquire(spool, store.add("app", DATA))
    with pytest.raises(NetworkError):
        fill(file, store)
    spool.release(file)
    remove_files(spool.take_dropped())
    assert not file.path.exists()
    assert acquire(spool, file.blob) is not file


def test_deleting_a_dropped_file_late_does_not_delete_the_new_file_of_the_same_blob(tmp_path: Path) -> None:
    store = MemoryStore("source")
    spool = Spool(tmp_path, 1000)
    spool.prepare()
    blob = store.add("app", b"y" * 1000)
    earlier = acquire(spool, blob)
    fill(earlier, store)
    spool.release(earlier)
    spool.release(acquire(spool, store.add("app", b"x" * 1000)))
    again = acquire(spool, blob)
    fill(again, store)
    remove_files(spool.take_dropped())
    assert b"y" * 1000 == read_all(again)


def test_a_late_download_into_a_dropped_file_leaves_no_file_and_does_not_change_the_new_one(spool: Spool) -> None:
    store = MemoryStore("source")
    late = acquire(spool, store.add("app", DATA))
    spool.release(late)
    remove_files(spool.take_dropped())
    again = acquire(spool, late.blob)
    fill(again, store)
    store.cut_after = 10
    with pytest.raises(NetworkError):
        fill(late, store)
    assert DATA == read_all(again)
    assert [again.path] == list(again.path.parent.iterdir())


def test_files_of_a_killed_run_are_deleted_at_the_start_and_all_files_at_the_end(tmp_path: Path) -> None:
    old = tmp_path / "spool" / "blobs" / "sha256" / ("0" * 64)
    old.parent.mkdir(parents=True)
    old.write_bytes(b"left")
    spool = Spool(tmp_path / "spool", None)
    spool.prepare()
    assert not old.exists()
    assert acquire(spool, blob_of(DATA)) is not None
    spool.close()
    assert [] == list((tmp_path / "spool").iterdir())


def test_a_spool_that_cannot_be_created_is_a_local_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LocalError) as caught:
        Spool(tmp_path / "file" / "spool", None).prepare()
    assert 4 == caught.value.exit_code


def test_the_error_for_a_full_disk_has_a_hint(spool: Spool) -> None:
    store = MemoryStore("source")
    file = acquire(spool, store.add("app", DATA))
    file.path.symlink_to("/dev/full")
    with pytest.raises(LocalError, match="`spool`") as caught:
        fill(file, store)
    assert "local_full" == caught.value.code
    file.path.unlink()
