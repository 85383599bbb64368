"""Downloads into spool files, each shared by all uploads of its blob."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from mirror.transfer.blob_request import BlobResult, BlobSource
from mirror.transfer.calls import Calls
from mirror.transfer.downloads import BlobDownload
from mirror.transfer.permits import DOWNLOADS
from mirror.transfer.read_failures import ReadFailures
from mirror.transfer.retry_budgets import RetryBudgets
from mirror.transfer.shared_tasks import SharedTasks
from mirror.transfer.spool import SpoolFile
from mirror.transfer.tasks import Coro
from mirror.util.cancellation import Work
from mirror.util.structs import replace


class SpoolDownloads:
    """The downloads in progress, by spool file. Event loop only."""

    def __init__(self, calls: Calls, budgets: RetryBudgets, failures: ReadFailures) -> None:
        self._calls = calls
        self._budgets = budgets
        self._failures = failures
        self._tasks: SharedTasks[SpoolFile, None] = SharedTasks(calls.tasks)
        self._progress: dict[SpoolFile, asyncio.Event] = {}  # set when a download has written bytes or has ended

    @asynccontextmanager
    async def join(
        self, file: SpoolFile, sources: Sequence[BlobSource], result: BlobResult, on_start: Callable[[], None]
    ) -> AsyncIterator[asyncio.Task[None]]:
        """Join the download into `file` inside the block, or start it from `sources`, which are on one host.

        Await the task with `result_of`. The last caller that leaves cancels it.
        result: counts the bytes of a download that this call starts. on_start: called if it starts one, on a thread."""
        async with self._tasks.join(file, lambda: self._download(file, sources, result, on_start)) as download:
            yield download

    async def wait_for_progress(self, file: SpoolFile) -> None:
        """Wait until the download has written bytes or has ended. Return at once if none is in progress."""
        if file in self._progress:
            await self._progress[file].wait()

    def _download(
        self, file: SpoolFile, sources: Sequence[BlobSource], result: BlobResult, on_start: Callable[[], None]
    ) -> Coro[None]:
        """Return a coroutine that downloads the blob into `file`."""
        has_progress = self._progress[file] = asyncio.Event()

        def run(work: Work) -> None:
            on_start()
            if file.complete:
                return
            download = BlobDownload(file.blob, sources, self._failures)

            def note_progress(count: int) -> None:
                work.progress(count)
                if not has_progress.is_set():
                    self._calls.post(has_progress.set)

            try:
                with download.open(0, work) as reader:
                    file.fill(reader, replace(work, progress=note_progress))
            finally:
                result.bytes_read += download.bytes_read

        async def download_with_retries() -> None:
            try:
                await self._budgets.call(sources[0].store.host, file.blob, run, [DOWNLOADS])
            finally:
                has_progress.set()
                if self._progress.get(file) is has_progress:
                    del self._progress[file]

        return download_with_retries()
