"""The attempts of an upload, and the session that they share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from mirror.errors import MirrorError, NetworkError
from mirror.output.progress import BlobProgress
from mirror.store import BlobReader
from mirror.transfer.blob_request import BlobSource
from mirror.transfer.downloads import BlobDownload
from mirror.transfer.uploads import BlobUpload
from mirror.util.cancellation import Stop, Work
from tests.support.stores import MemorySession, MemoryStore, blob_of

DATA = b"some bytes" * 1000


def new_upload(
    source: MemoryStore,
    target: MemoryStore,
    log: list[str],
    session: MemorySession | None = None,
    progress: BlobProgress | None = None,
) -> BlobUpload:
    blob = source.add("app", DATA)
    body = BlobDownload(blob, [BlobSource(source, "app")])
    return BlobUpload(target, "copy", blob, body, progress or BlobProgress(), lambda: log.append("writing"), session)


def test_the_blob_is_opened_at_the_source_before_the_upload_session() -> None:
    log: list[str] = []
    source, target = MemoryStore("source"), MemoryStore("target")
    source.fault = lambda verb, repository, reference: log.append(f"source {verb}")
    target.fault = lambda verb, repository, reference: log.append(f"target {verb}")
    new_upload(source, target, log).attempt(Work(Stop()))
    assert ["source open", "writing", "target begin", "target send"] == log
    assert DATA in target.blobs["copy"].values()


def test_no_upload_session_is_opened_if_the_source_fails() -> None:
    source, target = MemoryStore("source"), MemoryStore("target")
    upload = new_upload(source, target, [])
    source.blobs.clear()
    with pytest.raises(MirrorError):
        upload.attempt(Work(Stop()))
    assert [] == target.asked


def test_a_failed_attempt_deletes_its_session_and_the_next_one_starts_with_a_lookup() -> None:
    source, target = MemoryStore("source", cut_after=100), MemoryStore("target")
    upload = new_upload(source, target, [])
    with pytest.raises(NetworkError):
        upload.attempt(Work(Stop()))
    assert 1 == len(target.deleted)
    source.cut_after = None
    upload.attempt(Work(Stop()))
    assert ["begin", "head", "begin", "send"] == [verb for verb, _, _ in target.asked]
    assert 100 + len(DATA) == upload.bytes_sent


def test_an_upload_whose_response_was_lost_is_not_sent_again() -> None:
    source, target = MemoryStore("source"), MemoryStore("target")
    upload = new_upload(source, target, [])

    def lose_response(verb: str, repository: str, reference: str) -> MirrorError | None:
        if verb != "send":
            return None
        target.blobs["copy"][reference] = DATA
        return NetworkError("the response was lost")

    target.fault = lose_response
    with pytest.raises(NetworkError):
        upload.attempt(Work(Stop()))
    upload.attempt(Work(Stop()))
    assert 1 == len(target.verbs("send"))
    assert len(DATA) == upload.bytes_sent


class ResumableSession(MemorySession):
    """A session that breaks once, after half of the blob, and can be resumed."""

    received = 0

    @property
    def resumable(self) -> bool:  # type: ignore[override]
        return 0 < self.received and not self.committed

    def send(self, body: Callable[[int], BlobReader], work: Work) -> None:
        buffer = memoryview(bytearray(len(DATA) // 2))
        with body(self.received) as reader:
            while count := reader.readinto(buffer):
                self.received += count
                work.progress(count)
                if self.received < len(DATA):
                    raise NetworkError("broke")
        self.committed = True


def test_a_resumable_session_is_kept_for_the_next_attempt() -> None:
    source, target = MemoryStore("source"), MemoryStore("target")
    session = ResumableSession(target, "copy", blob_of(DATA))
    upload = new_upload(source, target, [], session)
    with pytest.raises(NetworkError):
        upload.attempt(Work(Stop()))
    upload.attempt(Work(Stop()))
    assert session.committed
    assert upload.end_attempts() is None
    assert [] == target.deleted
    assert [] == target.asked, "neither a HEAD nor a new session"


def test_the_progress_of_a_resumed_upload_begins_where_the_last_attempt_ended() -> None:
    source, target, progress = MemoryStore("source"), MemoryStore("target"), BlobProgress()
    upload = new_upload(source, target, [], ResumableSession(target, "copy", blob_of(DATA)), progress)
    positions = []
    for _ in range(2):
        with suppress(NetworkError):
            upload.attempt(Work(Stop()))
        positions.append((progress.position, progress.moved))
    assert [(len(DATA) // 2, len(DATA) // 2), (len(DATA), len(DATA))] == positions


def test_the_progress_of_an_upload_that_starts_again_begins_at_zero() -> None:
    source, target, progress = MemoryStore("source"), MemoryStore("target"), BlobProgress()
    upload = new_upload(source, target, [], progress=progress)
    progress.start_at(7)
    upload.attempt(Work(Stop()))
    assert len(DATA) == progress.position


def test_ending_the_attempts_returns_the_session_that_was_kept() -> None:
    source, target = MemoryStore("source"), MemoryStore("target")
    session = ResumableSession(target, "copy", blob_of(DATA))
    upload = new_upload(source, target, [], session)
    with pytest.raises(NetworkError):
        upload.attempt(Work(Stop()))
    assert session is upload.end_attempts()
    assert upload.end_attempts() is None


def test_a_running_attempt_closes_its_session_after_the_end_of_the_attempts() -> None:
    source, target = MemoryStore("source"), MemoryStore("target")
    session = ResumableSession(target, "copy", blob_of(DATA))
    upload = new_upload(source, target, [], session)
    source.fault = lambda verb, repository, reference: upload.end_attempts()  # type: ignore[assignment, return-value]
    with pytest.raises(NetworkError):
        upload.attempt(Work(Stop()))
    assert [blob_of(DATA).digest] == target.deleted
