from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from mirror.limits import HostWait
from mirror.output.progress import MOST_BLOBS, Phase, Progress, seconds_left

MIB = 1024**2


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def copying(progress: Progress) -> Progress:
    progress.add_images(0)
    progress.end_planning()
    return progress


def test_the_phases_of_a_run_follow_from_what_it_does() -> None:
    seen: list[Phase] = []
    progress = Progress()
    progress.on_phase = seen.append
    assert "listing" == progress.phase
    for _ in range(2):
        progress.add_images(3)
    progress.end_planning()
    progress.set_phase("stopping")
    progress.set_phase("finishing")
    assert ["planning", "copying", "stopping"] == seen
    assert "stopping" == progress.snapshot().phase


def test_many_threads_may_count() -> None:
    progress = Progress()

    def feed(number: int) -> None:
        progress.add_images(2)
        progress.start_image(f"image {number}")
        with progress.running_blob("repository", "sha256:0", 3) as blob:
            blob.add(3)
        progress.count_image(f"image {number}", failed=True)
        progress.count_image()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(feed, range(500)))
    progress.end_planning()
    seen = progress.snapshot()
    assert (1000, 1000, 500, 1500, 1500, 1500) == (
        seen.images,
        seen.done,
        seen.failed,
        seen.moved,
        seen.complete,
        seen.expected,
    )


def test_only_blobs_that_were_copied_or_are_in_progress_are_expected() -> None:
    progress = copying(Progress())
    ended = [progress.start_blob("target", f"sha256:{number}", 10 * MIB) for number in range(3)]
    running, waiting = progress.start_blob("target", "sha256:a", 20 * MIB), progress.start_blob("x", "sha256:b", MIB)
    assert (51 * MIB, 0) == (progress.snapshot().expected, progress.snapshot().complete)
    ended[0].start_at(0)
    ended[0].add(10 * MIB)
    progress.end_blob(ended[0], complete=True)  # copied
    progress.end_blob(ended[1], complete=False)  # mounted, or the target had it
    ended[2].start_at(0)
    ended[2].add(4 * MIB)
    progress.end_blob(ended[2], complete=False)  # failed
    running.start_at(2 * MIB)  # the target has 2 MiB from an earlier attempt
    running.add(3 * MIB)
    seen = progress.snapshot()
    assert (31 * MIB, 15 * MIB, 17 * MIB) == (seen.expected, seen.complete, seen.moved)
    assert [("target", "sha256:a", 20 * MIB, 5 * MIB, "copy")] == [
        (blob.place, blob.digest, blob.size, blob.position, blob.action) for blob in seen.blobs
    ]
    running.start_at(0)  # a new attempt
    assert (10 * MIB, 17 * MIB) == (progress.snapshot().complete, progress.snapshot().moved)
    assert not waiting.is_running


def test_downloads_into_the_spool_are_shown_but_not_counted() -> None:
    progress = copying(Progress())
    with progress.running_blob("source", "sha256:a", MIB, "read") as blob:
        blob.add(MIB)
        seen = progress.snapshot()
    assert (["read"], 0, 0) == ([one.action for one in seen.blobs], seen.expected, seen.moved)
    assert ((), 0) == (progress.snapshot().blobs, progress.snapshot().moved)


def test_the_largest_blobs_are_shown_and_the_others_are_counted() -> None:
    progress = Progress()
    for number in range(MOST_BLOBS + 3):
        progress.start_blob("target", f"sha256:{number}", number).start_at(0)
    progress.start_blob("target", "sha256:waiting", 1000)
    progress.start_blob(size=1000).start_at(0)  # without a name
    seen = progress.snapshot()
    assert [7, 6, 5, 4, 3] == [blob.size for blob in seen.blobs]
    assert 3 == seen.more_blobs


def test_the_bytes_of_images_that_have_not_been_read_are_estimated_from_at_least_ten_images() -> None:
    progress = Progress()
    progress.add_images(34)
    for _ in range(4):
        progress.count_image()  # up to date
    for number in range(9):
        progress.start_image(str(number))
        progress.start_blob("target", str(number), 30 * MIB)
    assert 0 == progress.snapshot().expected
    progress.end_planning()
    assert 0 == progress.snapshot().expected
    progress.start_image("9")
    progress.start_blob("target", "9", 30 * MIB)
    seen = progress.snapshot()
    assert (900 * MIB, True) == (seen.expected, seen.is_estimate)  # 10 images of 30 MiB, and 20 that are unread
    for _ in range(20):
        progress.count_image()
    seen = progress.snapshot()
    assert (300 * MIB, False) == (seen.expected, seen.is_estimate)


def test_an_image_in_a_bundle_is_counted_once_when_it_was_written() -> None:
    progress = copying(Progress())
    progress.add_images(2)
    for name in ("a", "b"):
        progress.start_image(name)
        progress.end_image(name)
    assert (2, 0) == (progress.snapshot().done, progress.snapshot().failed)
    progress.count_image("a")
    progress.count_image("b", failed=True)
    assert (2, 1) == (progress.snapshot().done, progress.snapshot().failed)


def test_the_hosts_for_which_requests_wait_are_part_of_the_snapshot() -> None:
    progress = Progress()
    waits = [HostWait("docker.io", "rate limited", 42.0)]
    progress.set_host_source(lambda: waits)
    assert tuple(waits) == progress.snapshot().hosts


@pytest.mark.parametrize(
    ("done", "moved", "left"),
    [(0, 0, None), (0, 10 * MIB, 90.0), (5, 0, None), (5, 50 * MIB, 20.0), (9, 90 * MIB, 20 / 9)],
)
def test_the_time_left_follows_from_the_slower_of_bytes_and_images(done: int, moved: int, left: float | None) -> None:
    """The run has 10 images with 100 MiB in total. The snapshots are 10 s and 20 s after its start."""
    clock = Clock()
    progress = Progress(now=clock)
    progress.add_images(10)
    assert seconds_left(progress.snapshot(), progress.snapshot()) is None  # while it plans
    progress.end_planning()
    for number in range(10):
        progress.start_image(str(number))
    blob = progress.start_blob("target", "sha256:a", 100 * MIB)
    clock.time += 10
    before = progress.snapshot()
    clock.time += 10
    blob.add(moved)
    for number in range(done):
        progress.count_image(str(number))
    assert left == seconds_left(before, progress.snapshot())
