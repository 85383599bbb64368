"""Reads images before they are copied, so that the workers of the copy queue do not wait for manifests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from mirror.sync.image_reader import Image, ImageReader
from mirror.sync.plan_model import PlanEntry
from mirror.transfer.calls import Calls


class ReadAhead:
    """Reads images before the workers of the copy queue need them."""

    def __init__(self, calls: Calls, reader: ImageReader) -> None:
        self._calls = calls
        self._reader = reader
        self._tasks: dict[PlanEntry, asyncio.Task[Image]] = {}

    def start(self, plan_entries: Iterable[PlanEntry]) -> None:
        """Start reading images that are not being read yet, except for images of which only attachments are checked."""
        for plan_entry in plan_entries:
            if plan_entry not in self._tasks and not plan_entry.recheck:
                task = self._calls.tasks.start(self._reader.read_image(plan_entry.reference))
                self._tasks[plan_entry] = task

    async def read(self, plan_entry: PlanEntry) -> Image:
        """Return an image. If it is being read, wait for the result. Raises the same errors as `read_image`."""
        task = self._tasks.pop(plan_entry, None)
        return await (self._reader.read_image(plan_entry.reference) if task is None else task)

    def cancel(self, plan_entry: PlanEntry) -> None:
        """Cancel the task that is reading an image, if there is one."""
        task = self._tasks.pop(plan_entry, None)
        if task is not None:
            task.cancel()
            task.add_done_callback(self._calls.tasks.collect)

    def close(self) -> None:
        """Cancel all tasks that are still reading images."""
        for plan_entry in list(self._tasks):
            self.cancel(plan_entry)
