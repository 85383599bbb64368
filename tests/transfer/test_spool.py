"""Blobs on their way to several targets."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mirror.errors import Cancelled, LocalError, NetworkError
from mirror.oci.descriptor import Descriptor
from mirror.transfer.blob_request import BlobSource
from mirror.transfer.downloads import BlobDownload
from mirror.transfer.spool import DownloadBroken, Spool, SpoolFile, remove_files
from mirror.util.cancellation import Stop, Work
from tests.support.stores import MemoryStore, blob_of

DATA = bytes(range(256)) * 8000


def work() -> Work:
    return Work(Stop())


def filled(file: SpoolFile, store: MemoryStore) -> None:
    with BlobDownload(file.blob, [BlobSource(store, "app")]).open(0, work()) as body:
        file.fill(body, work())


def read(file: SpoolFile, offset: int = 0) -> bytes:
    out, buffer = bytearray(), memoryview(bytearray(100_000))
    with file.open(offset, work()) as reader:
        while count := reader.readinto(buffer):
            out += buffer[:count]
    return bytes(out)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "spool", 1 << 30)
    spool.prepare()
    return spool


def claim(spool: Spool, blob: Descriptor) -> SpoolFile:
    file = spool.acquire(blob)
    assert file is not None
    return file


def test_what_is_written_can_be_read_from_any_offset(spool: Spool) -> None:
    store = MemoryStore("source")
    file = claim(spool, store.add("app", DATA))
    filled(file, store)
    assert file.complete
    assert [DATA, DATA[5000:], b""] == [read(file), read(file, 5000), read(file, len(DATA))]


def test_a_reader_follows_the_writer_and_sees_the_end_only_when_it_is_proven(spool: Spool) -> None:
    store = MemoryStore("source", gate=threading.Event())
    file = claim(spool, store.add("app", DATA))
    writer = threading.Thread(target=filled, args=(file, store))
    writer.start()
    got: list[bytes] = []
    wait_until_writing(file)
    reader = threading.Thread(target=lambda: got.append(read(file)))
    reader.start()
    assert store.gate is not None
    store.gate.set()
    reader.join(30)
    writer.join(30)
    assert [DATA] == got


def wait_until_writing(file: SpoolFile) -> None:
    with file._changed:
        assert file._changed.wait_for(lambda: file._writing, 30)


def test_a_reader_of_a_broken_download_is_told_to_begin_again(spool: Spool) -> None:
    store = MemoryStore("source", cut_after=100_000)
    file = claim(spool, store.add("app", DATA))
    with pytest.raises(NetworkError):
        filled(file, store)
    assert not file.complete
    with pytest.raises(DownloadBroken) as caught:
        read(file)
    assert not caught.value.retryable


def test_a_reader_behind_a_broken_download_never_sees_the_bytes_of_the_next(spool: Spool) -> None:
    store = MemoryStore("source", cut_after=100_000)
    file = claim(spool, store.add("app", DATA))
    with pytest.raises(NetworkError):
        filled(file, store)
    with file.open(0, work()) as reader:
        assert 10 == reader.readinto(memoryview(bytearray(10)))
        store.cut_after = None
        filled(file, store)
        with pytest.raises(DownloadBroken):
            reader.readinto(memoryview(bytearray(10)))
    assert DATA == read(file)


def test_wrong_bytes_are_never_shown_as_complete(spool: Spool) -> None:
    store = MemoryStore("source")
    blob = blob_of(DATA)
    store.blobs["app"][blob.digest] = DATA[:-1] + b"!"
    file = claim(spool, blob)
    with pytest.raises(Exception, match="their digest is"):
        filled(file, store)
    with pytest.raises(DownloadBroken):
        read(file)


def test_a_reader_that_waits_ends_when_the_work_is_stopped(spool: Spool) -> None:
    store = MemoryStore("source", gate=threading.Event())
    file = claim(spool, store.add("app", DATA))
    writer = threading.Thread(target=filled, args=(file, store))
    writer.start()
    wait_until_writing(file)
    stop = Stop()
    stop.request("enough")
    with pytest.raises(Cancelled), file.open(0, Work(stop)) as reader:
        reader.readinto(memoryview(bytearray(10)))
    assert store.gate is not None
    store.gate.set()
    writer.join(30)


def test_users_of_one_blob_share_one_file(spool: Spool) -> None:
    blob = blob_of(DATA)
    assert claim(spool, blob) is claim(spool, blob)


def test_what_nobody_uses_makes_room_oldest_first(tmp_path: Path) -> None:
    store = MemoryStore("source")
    spool = Spool(tmp_path, 300)
    spool.prepare()
    blobs = [store.add("app", bytes([number]) * 100) for number in range(4)]
    files = [claim(spool, blob) for blob in blobs[:3]]
    for file in files:
        filled(file, store)
    spool.release(files[1])
    spool.release(files[0])
    assert spool.acquire(store.add("app", b"x" * 250)) is None, "two of three are gone, one is in use"
    remove_files(spool.take_dropped())
    assert not files[0].path.exists()
    assert not files[1].path.exists()
    assert files[2].path.exists()
    assert claim(spool, blobs[3]) is not None


def test_a_blob_that_is_larger_than_the_spool_goes_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 100)
    spool.prepare()
    large, small = blob_of(b"l" * 500), blob_of(b"s")
    file = claim(spool, large)
    assert spool.acquire(small) is None
    spool.release(file)
    assert spool.acquire(small) is not None


def test_a_file_that_is_not_whole_does_not_stay(spool: Spool) -> None:
    store = MemoryStore("source", cut_after=10)
    file = claim(spool, store.add("app", DATA))
    with pytest.raises(NetworkError):
        filled(file, store)
    spool.release(file)
    remove_files(spool.take_dropped())
    assert not file.path.exists()
    assert claim(spool, file.blob) is not file


def test_a_blob_that_comes_again_keeps_its_file_however_late_the_earlier_one_is_unlinked(tmp_path: Path) -> None:
    store = MemoryStore("source")
    spool = Spool(tmp_path, 1000)
    spool.prepare()
    blob = store.add("app", b"y" * 1000)
    earlier = claim(spool, blob)
    filled(earlier, store)
    spool.release(earlier)
    spool.release(claim(spool, store.add("app", b"x" * 1000)))
    again = claim(spool, blob)
    filled(again, store)
    remove_files(spool.take_dropped())
    assert b"y" * 1000 == read(again)


def test_a_download_that_begins_late_for_a_dropped_file_spoils_no_other_and_leaves_nothing(spool: Spool) -> None:
    store = MemoryStore("source")
    late = claim(spool, store.add("app", DATA))
    spool.release(late)
    remove_files(spool.take_dropped())
    again = claim(spool, late.blob)
    filled(again, store)
    store.cut_after = 10
    with pytest.raises(NetworkError):
        filled(late, store)
    assert DATA == read(again)
    assert [again.path] == list(again.path.parent.iterdir())


def test_what_a_killed_run_left_is_swept_and_the_end_leaves_nothing(tmp_path: Path) -> None:
    old = tmp_path / "spool" / "blobs" / "sha256" / ("0" * 64)
    old.parent.mkdir(parents=True)
    old.write_bytes(b"left")
    spool = Spool(tmp_path / "spool", None)
    spool.prepare()
    assert not old.exists()
    assert claim(spool, blob_of(DATA)) is not None
    spool.close()
    assert [] == list((tmp_path / "spool").iterdir())


def test_a_spool_that_cannot_be_made_is_local_trouble(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LocalError) as caught:
        Spool(tmp_path / "file" / "spool", None).prepare()
    assert 4 == caught.value.exit_code


def test_a_full_disk_is_named_with_what_to_do(spool: Spool) -> None:
    store = MemoryStore("source")
    file = claim(spool, store.add("app", DATA))
    file.path.symlink_to("/dev/full")
    with pytest.raises(LocalError, match="larger disk") as caught:
        filled(file, store)
    assert "local_full" == caught.value.code
    file.path.unlink()
