"""The attempts of an upload, and what they keep."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mirror.errors import MirrorError, NetworkError
from mirror.store import BlobReader
from mirror.transfer.blob_request import BlobSource
from mirror.transfer.downloads import BlobDownload
from mirror.transfer.uploads import BlobUpload
from mirror.util.cancellation import Stop, Work
from tests.support.stores import MemorySession, MemoryStore, blob_of

DATA = b"some bytes" * 1000


def sending(
    source: MemoryStore, target: MemoryStore, told: list[str], session: MemorySession | None = None
) -> BlobUpload:
    blob = source.add("app", DATA)
    body = BlobDownload(blob, [BlobSource(source, "app")])
    return BlobUpload(target, "copy", blob, body, lambda count: None, lambda: told.append("writing"), session)


def test_the_source_speaks_before_an_upload_is_opened() -> None:
    request: list[str] = []
    source, target = MemoryStore("source"), MemoryStore("target")
    source.fault = lambda verb, repository, reference: request.append(f"source {verb}")
    target.fault = lambda verb, repository, reference: request.append(f"target {verb}")
    sending(source, target, request).attempt(Work(Stop()))
    assert ["source open", "writing", "target begin", "target send"] == request
    assert DATA in target.blobs["copy"].values()


def test_a_source_that_does_not_speak_opens_no_upload() -> None:
    source, target = MemoryStore("source"), MemoryStore("target")
    one = sending(source, target, [])
    source.blobs.clear()
    with pytest.raises(MirrorError):
        one.attempt(Work(Stop()))
    assert [] == target.asked


def test_a_failed_attempt_deletes_its_session_and_the_next_asks_first_whether_it_is_there() -> None:
    source, target = MemoryStore("source", cut_after=100), MemoryStore("target")
    one = sending(source, target, [])
    with pytest.raises(NetworkError):
        one.attempt(Work(Stop()))
    assert 1 == len(target.deleted)
    source.cut_after = None
    one.attempt(Work(Stop()))
    assert ["begin", "head", "begin", "send"] == [verb for verb, _, _ in target.asked]
    assert 100 + len(DATA) == one.bytes_sent


def test_an_upload_whose_response_was_lost_is_not_sent_again() -> None:
    source, target = MemoryStore("source"), MemoryStore("target")
    one = sending(source, target, [])

    def lose(verb: str, repository: str, reference: str) -> MirrorError | None:
        if verb != "send":
            return None
        target.blobs["copy"][reference] = DATA
        return NetworkError("the response was lost")

    target.fault = lose
    with pytest.raises(NetworkError):
        one.attempt(Work(Stop()))
    one.attempt(Work(Stop()))
    assert 1 == len(target.verbs("send"))
    assert len(DATA) == one.bytes_sent


class Halting(MemorySession):
    """A session that can be gone on with: breaks after half of the blob, once."""

    answered = 0

    @property
    def resumable(self) -> bool:  # type: ignore[override]
        return 0 < self.answered and not self.committed

    def send(self, body: Callable[[int], BlobReader], work: Work) -> None:
        buffer = memoryview(bytearray(len(DATA) // 2))
        with body(self.answered) as reader:
            while count := reader.readinto(buffer):
                self.answered += count
                if self.answered < len(DATA):
                    raise NetworkError("broke")
        self.committed = True


def test_a_session_that_can_be_gone_on_with_is_kept_for_the_next_attempt() -> None:
    source, target = MemoryStore("source"), MemoryStore("target")
    kept = Halting(target, "copy", blob_of(DATA))
    one = sending(source, target, [], kept)
    with pytest.raises(NetworkError):
        one.attempt(Work(Stop()))
    one.attempt(Work(Stop()))
    assert kept.committed
    assert one.end_attempts() is None
    assert [] == target.deleted
    assert [] == target.asked, "no HEAD, no new session"


def test_what_is_given_up_between_attempts_is_handed_over_to_be_closed() -> None:
    source, target = MemoryStore("source"), MemoryStore("target")
    kept = Halting(target, "copy", blob_of(DATA))
    one = sending(source, target, [], kept)
    with pytest.raises(NetworkError):
        one.attempt(Work(Stop()))
    assert kept is one.end_attempts()
    assert one.end_attempts() is None


def test_what_is_given_up_during_an_attempt_is_closed_by_it() -> None:
    source, target = MemoryStore("source"), MemoryStore("target")
    kept = Halting(target, "copy", blob_of(DATA))
    one = sending(source, target, [], kept)
    source.fault = lambda verb, repository, reference: one.end_attempts()  # type: ignore[assignment, return-value]
    with pytest.raises(NetworkError):
        one.attempt(Work(Stop()))
    assert [blob_of(DATA).digest] == target.deleted
