"""`DeadlineEstimate`: an image that cannot be uploaded before the deadline is not started."""

from __future__ import annotations

import pytest

from mirror.errors import DEADLINE, Cancelled
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.selection.tag_rules import TagRules
from mirror.sync.deadline_estimate import MIN_BYTES, DeadlineEstimate
from mirror.sync.plan_model import Action, MirrorEntry, PlanEntry, SourceReference, TargetEntry
from mirror.transfer.blob_locations import BlobLocations
from mirror.transfer.blob_request import BlobOutcome, BlobRequest, BlobResult, BlobSource
from tests.support.stores import MemoryStore

HOST = "target.example"
MIB = 1 << 20


class NoHints:
    """A state that has no records about blobs."""

    def had_blob(self, repository: str, digest: Digest) -> bool:
        return False

    def repositories_with_blob(self, host: str, digest: Digest) -> list[str]:
        return []

    def forget(self, repository: str) -> None:
        pass


class Case:
    """An estimate for a run with a deadline in `left` seconds."""

    def __init__(self, left: float | None = 10.0, host: str = HOST) -> None:
        self.left = left
        self.source, self.target = MemoryStore("source.example"), MemoryStore(host)
        self.repository = Repository(host, "copy")
        self.locations = BlobLocations(NoHints(), {host: ["copy", "sibling"]})
        self.estimate = DeadlineEstimate(self.locations, lambda: self.left)
        entry = MirrorEntry(self.source, "app", TagRules(), (TargetEntry(self.target, self.repository),))
        self.plan_entry = PlanEntry(SourceReference(entry, "v1", "v1"), entry.targets[0], Action.COPY)

    def upload(self, start: float, end: float, size: int, outcome: BlobOutcome = BlobOutcome.COPIED) -> None:
        """Record an upload between two times in seconds."""
        blob = descriptor("earlier", size)
        request = BlobRequest(blob, self.target, self.repository, BlobSource(self.source, "app"), "app:v0", False)
        sent = size if outcome is BlobOutcome.COPIED else 0
        self.estimate.record(request, BlobResult(outcome, bytes_sent=sent, seconds=end - start, started=start))

    def fits(self, *blobs: Descriptor) -> bool:
        """Return whether an image with these blobs is started."""
        try:
            self.estimate.check(self.plan_entry, blobs)
        except Cancelled as error:
            assert error.code == DEADLINE
            return False
        return True


def descriptor(name: str, size: int) -> Descriptor:
    return Descriptor(Digest.of(name.encode()), size, "application/octet-stream")


def test_an_image_is_not_started_if_its_blobs_take_longer_than_the_time_left() -> None:
    case = Case()
    case.upload(0.0, 2.0, 20 * MIB)
    assert case.fits(descriptor("a", 99 * MIB))
    assert not case.estimate.left_out
    assert not case.fits(descriptor("a", 60 * MIB), descriptor("b", 41 * MIB))
    assert case.estimate.left_out


def test_the_message_contains_the_size_the_rate_and_the_time_left() -> None:
    case = Case(left=60.0)
    case.upload(0.0, 2.0, 20 * MIB)
    with pytest.raises(Cancelled, match=r"copy:v1: 2\.0 GiB at 10\.0 MiB/s would take .* until the deadline"):
        case.estimate.check(case.plan_entry, [descriptor("a", 2048 * MIB)])


def test_parallel_uploads_count_once_for_the_time_in_which_they_overlap() -> None:
    case = Case()
    case.upload(0.0, 1.0, 10 * MIB)
    case.upload(0.5, 2.0, 10 * MIB)
    case.upload(0.0, 2.0, 20 * MIB)  # 40 MiB in 2 s
    case.upload(100.0, 102.0, 40 * MIB)  # the pause before it does not count
    assert case.fits(descriptor("a", 199 * MIB))
    assert not case.fits(descriptor("a", 201 * MIB))


def test_a_blob_counts_once_and_not_if_it_exists_or_can_be_mounted() -> None:
    case = Case()
    case.upload(0.0, 2.0, 20 * MIB)
    large, mounted = descriptor("large", 80 * MIB), descriptor("mounted", 80 * MIB)
    assert case.fits(large, large)
    assert not case.fits(large, mounted)
    case.locations.add_blob(Repository(HOST, "sibling"), mounted.digest)
    assert case.fits(large, mounted)
    case.locations.add_blob(case.repository, large.digest)
    assert case.fits(large, mounted, descriptor("third", 80 * MIB))


@pytest.mark.parametrize(
    ("start", "end", "size", "outcome"),
    [
        (0.0, 2.0, MIN_BYTES - 1, BlobOutcome.COPIED),
        (0.0, 0.5, MIN_BYTES, BlobOutcome.COPIED),
        (0.0, 2.0, MIN_BYTES, BlobOutcome.EXISTS),
        (0.0, 2.0, MIN_BYTES, BlobOutcome.MOUNTED),
    ],
    ids=["few bytes", "short time", "existing blob", "mounted blob"],
)
def test_without_enough_uploads_every_image_is_started(
    start: float, end: float, size: int, outcome: BlobOutcome
) -> None:
    case = Case()
    case.upload(start, end, size, outcome)
    assert case.fits(descriptor("a", 1 << 40))


def test_small_blobs_say_nothing_about_the_rate() -> None:
    case = Case()
    for number in range(100):
        case.upload(number, number + 1.0, MIB - 1)
    assert case.fits(descriptor("a", 1 << 40))


def test_without_a_deadline_and_for_a_target_on_disk_every_image_is_started() -> None:
    for case in (Case(left=None), Case(host="oci:/layout")):
        case.upload(0.0, 2.0, 20 * MIB)
        assert case.fits(descriptor("a", 1 << 40))
