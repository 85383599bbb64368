"""Downloads blobs into spool files. All uploads of a blob share its download."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from mirror.output.progress import Progress
from mirror.transfer.blob_request import BlobResult, BlobSource
from mirror.transfer.calls import Calls
from mirror.transfer.downloads import BlobDownload
from mirror.transfer.permits import DOWNLOADS
from mirror.transfer.range_threads import RangeThreads
from mirror.transfer.read_failures import ReadFailures
from mirror.transfer.retry_budgets import RetryBudgets
from mirror.transfer.shared_tasks import SharedTasks
from mirror.transfer.spool import SpoolFile
from mirror.transfer.tasks import Coro
from mirror.util.cancellation import Work


class SpoolDownloads:
    """Runs at most one download for each spool file at a time. Must be used on the event loop."""

    def __init__(
        self,
        calls: Calls,
        budgets: RetryBudgets,
        failures: ReadFailures,
        ranges: RangeThreads,
        progress: Progress,
    ) -> None:
        self._calls = calls
        self._progress = progress
        self._budgets = budgets
        self._failures = failures
        self._ranges = ranges
        self._tasks: SharedTasks[SpoolFile, None] = SharedTasks(calls.tasks)
        self._first_bytes: dict[SpoolFile, asyncio.Event] = {}  # set when a download has written bytes or has ended

    @asynccontextmanager
    async def join(
        self, file: SpoolFile, sources: Sequence[BlobSource], result: BlobResult, on_start: Callable[[], None]
    ) -> AsyncIterator[asyncio.Task[None]]:
        """Return a context manager that yields the task that downloads into `file`. If none is in progress, start one.

        Await the task with `result_of`. The task is cancelled when the last caller leaves the `with` block.
        sources: the sources from which a new download reads the blob, all on one host.
        result: the result to which the bytes of a new download are added.
        on_start: called on a worker thread when a new download starts."""
        async with self._tasks.join(file, lambda: self._download(file, sources, result, on_start)) as download:
            yield download

    async def wait_for_progress(self, file: SpoolFile) -> None:
        """Wait until the download into `file` has written bytes or has ended. Return at once if none is in progress."""
        if file in self._first_bytes:
            await self._first_bytes[file].wait()

    def _download(
        self, file: SpoolFile, sources: Sequence[BlobSource], result: BlobResult, on_start: Callable[[], None]
    ) -> Coro[None]:
        """Return a coroutine that downloads the blob into `file`."""
        has_progress = self._first_bytes[file] = asyncio.Event()

        def run(work: Work) -> None:
            """Attempt to download the blob once, unless the file is complete. Runs on a worker thread."""
            on_start()
            if file.complete:
                return
            download = BlobDownload(file.blob, sources, self._failures, self._ranges)

            def note_progress(count: int) -> None:
                """Show the progress, and wake `wait_for_progress` after the first bytes."""
                shown.add(count)
                if not has_progress.is_set():
                    self._calls.post(has_progress.set)

            try:
                with (
                    self._progress.running_blob(str(sources[0]), file.blob.digest, file.blob.size, "read") as shown,
                    download.open(0, work) as reader,
                ):
                    file.fill(reader, work.with_progress(note_progress))
            finally:
                result.bytes_read += download.bytes_read

        async def download_with_retries() -> None:
            """Download the blob with retries, then wake `wait_for_progress`."""
            try:
                await self._budgets.call(sources[0].store.host, file.blob, run, [DOWNLOADS])
            finally:
                has_progress.set()
                if self._first_bytes.get(file) is has_progress:
                    del self._first_bytes[file]

        return download_with_retries()
