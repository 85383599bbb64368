"""What is reused of an interrupted export: after a kill everything in its journal, after a power cut what is intact."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mirror.errors import LocalError
from mirror.layout.bundle.journal import Journal, JournalEntry, read_journal
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.util.structs import replace
from tests.support.bundles import bring, comings, opened, stock, work

INVENTORY = Digest.of(b"inventory")


def entries(count: int) -> list[JournalEntry]:
    return [JournalEntry(Digest.of(b"%d" % number), number * 512, 10) for number in range(count)]


@pytest.fixture
def data(tmp_path: Path) -> int:
    return os.open(tmp_path / "data", os.O_RDWR | os.O_CREAT)


def test_an_entry_is_written_at_once_and_a_sync_mark_after_the_data_is_on_disk(tmp_path: Path, data: int) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, data, INVENTORY, tuple(entries(2)))
    for entry in entries(5)[2:]:
        journal.add(entry)
    found = read_journal(path)
    assert found is not None
    assert (INVENTORY, tuple(entries(5))) == (found.inventory, found.entries)
    assert 2 == found.synced_entries
    journal.sync()
    assert 5 == getattr(read_journal(path), "synced_entries", None)
    journal.close()
    os.close(data)


def test_data_is_synced_after_a_number_of_bytes(tmp_path: Path, data: int) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, data, INVENTORY, ())
    journal.add(JournalEntry(Digest.of(b"large"), 0, 100 << 20))
    assert 1 == getattr(read_journal(path), "synced_entries", None)
    journal.close()
    os.close(data)


def test_after_a_failed_sync_every_later_sync_fails(tmp_path: Path, data: int) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, data, INVENTORY, ())
    journal.add(entries(1)[0])
    os.close(data)
    for _ in range(2):
        with pytest.raises(LocalError):
            journal.sync()
    assert 0 == getattr(read_journal(path), "synced_entries", None)
    journal.close()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", None),
        ("something else\n", None),
        (f"mirror journal 2 {INVENTORY}\n", None),
        (f"mirror journal 1 {INVENTORY}", None),
        (f"mirror journal 1 {INVENTORY}\n", 0),
        (f"mirror journal 1 {INVENTORY}\n+ {INVENTORY} 0 1\n+ {INVENTORY} 0", 1),
        (f"mirror journal 1 {INVENTORY}\n+ {INVENTORY} 0 1\n\0\0\0\0\n+ {INVENTORY} 0 1\n", 1),
        (f"mirror journal 1 {INVENTORY}\n+ md5:00 0 1\n+ {INVENTORY} 0 1\n", 0),
        (f"mirror journal 1 {INVENTORY}\n= 7\n+ {INVENTORY} 0 1\n", 0),
    ],
)
def test_a_damaged_journal_is_read_up_to_its_first_invalid_line(text: str, count: int | None, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text(text)
    found = read_journal(path)
    assert count == (None if found is None else len(found.entries))


def test_after_a_power_cut_only_intact_blobs_are_reused(tmp_path: Path) -> None:
    """The journal is on disk, but some data after its last sync mark is not."""
    path = tmp_path / "bundle.tar"
    graph = stock()
    images = comings(graph)
    bundle = opened(path)
    bundle.begin(images, work())
    bring(bundle, images, graph.blobs)
    journal, partial = tmp_path / ".bundle.tar.journal", tmp_path / ".bundle.tar.partial"
    text = journal.read_text()
    bundle.close()
    journal.write_text(text)  # without the sync mark that closing writes
    noted = read_journal(journal)
    assert noted is not None
    assert noted.synced_entries < len(noted.entries)
    lost = next(entry for entry in reversed(noted.entries) if entry.size > 3000)
    with partial.open("r+b") as file:
        file.seek(lost.offset)
        file.write(bytes(lost.size))
    again = opened(path)
    again.begin(images, work())
    assert [lost.digest] == bring(again, images, graph.blobs)
    again.finish(whole=True, work=work())
    again.close()


def test_a_journal_never_describes_another_file(tmp_path: Path) -> None:
    """A run is killed between creating the new file and its journal, and the next run wants the old bundle: nothing is
    reused."""
    path = tmp_path / "bundle.tar"
    graph = stock()
    images = comings(graph)
    bundle = opened(path)
    bundle.begin(images, work())
    bring(bundle, images, graph.blobs)
    bundle.close()
    partial, journal = tmp_path / ".bundle.tar.partial", tmp_path / ".bundle.tar.journal"
    size = partial.stat().st_size
    journal.unlink()
    partial.unlink()
    with partial.open("wb") as file:
        file.truncate(size)
    again = opened(path)
    again.begin(images, work())
    assert set(graph.blobs) == set(bring(again, images, graph.blobs))
    again.finish(whole=True, work=work())
    again.close()


def test_a_symbolic_link_in_place_of_the_unfinished_file_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "bundle.tar"
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".bundle.tar.partial").symlink_to(tmp_path / "precious")
    bundle = opened(path)
    with pytest.raises(LocalError):
        bundle.begin(comings(stock()), work())
    bundle.close()
    assert "precious" == (tmp_path / "precious").read_text()


def test_a_disk_without_enough_space_is_detected_at_the_start(tmp_path: Path) -> None:
    coming = comings(stock())[0]
    huge = replace(coming, blobs=(Descriptor(Digest.of(b"huge"), 1 << 55),))
    bundle = opened(tmp_path / "bundle.tar")
    with pytest.raises(LocalError, match="bytes for") as caught:
        bundle.begin([huge], work())
    bundle.close()
    assert "local_full" == caught.value.code
    assert [] == [one.name for one in tmp_path.iterdir() if one.stat().st_size]


def test_a_directory_that_is_not_writable_is_detected_at_the_start() -> None:
    with pytest.raises(LocalError) as caught:
        opened(Path("/proc/bundle.tar")).begin(comings(stock()), work())
    assert "local_io" == caught.value.code
