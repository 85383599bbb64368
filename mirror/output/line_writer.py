"""Writes machine-readable lines to a file, pipe or terminal on a separate thread."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue

from mirror.output.console import open_nonblocking

MOST_QUEUED = 10_000  # lines; further lines are dropped, and counted
_BATCH = 500  # lines
_PIECE = 64 << 10  # bytes per write
_POLL = 0.1  # seconds between two checks whether the writer is being closed
_CLOSE_TIMEOUT = 0.5  # seconds that `__exit__` waits for a reader that does not read

Encode = Callable[[], str]  # returns a line with its line break; called on the thread of the writer


class LineWriter(AbstractContextManager["LineWriter"]):
    """Writes lines to a file descriptor. Thread-safe. `put` never blocks.

    If the disk or the reader of a pipe is too slow, lines are dropped. After an error, all later lines are dropped.
    When the `with` block exits, the remaining lines are written, unless the reader does not read them in time."""

    def __init__(
        self,
        descriptor: int,
        *,
        name: str,
        on_error: Callable[[OSError], None],
        describe_dropped: Callable[[int], str],
    ) -> None:
        """Create a writer. name: the name of its thread. on_error: called once, on this thread, with the first error.

        describe_dropped: returns a line that says how many lines were dropped. It is written in their place."""
        self._descriptor = descriptor
        self._on_error = on_error
        self._describe_dropped = describe_dropped
        self._queue: SimpleQueue[Encode | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._dropped = 0
        self._deadline: float | None = None  # set by `__exit__`
        self._has_failed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=False)

    def __enter__(self) -> LineWriter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._deadline = time.monotonic() + _CLOSE_TIMEOUT
        self._queue.put(None)
        self._thread.join()

    def put(self, encode: Encode) -> None:
        """Queue a line, or drop it if the queue is full. encode: returns the line."""
        if self._has_failed:
            return
        if self._queue.qsize() >= MOST_QUEUED:
            with self._lock:
                self._dropped += 1
            return
        self._queue.put(encode)

    def _run(self) -> None:
        """Write queued lines until the writer is closed. Runs on the thread of the writer."""
        with open_nonblocking(self._descriptor) as descriptor:
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            more = True
            while more:
                lines, more = self._take_batch()
                if not self._has_failed:
                    self._write(descriptor, poll, "".join(lines).encode("ascii", "backslashreplace"))

    def _take_batch(self) -> tuple[list[str], bool]:
        """Wait for lines, and return some of them, encoded. The second value is False if they are the last ones."""
        lines: list[str] = []
        encode = self._queue.get()  # `__exit__` ends the wait
        while encode is not None:
            lines.append(encode())
            if len(lines) >= _BATCH:
                return lines, True
            try:
                encode = self._queue.get_nowait()
            except Empty:
                break
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            lines.append(self._describe_dropped(dropped))
        return lines, encode is not None

    def _write(self, descriptor: int, poll: select.poll, data: bytes) -> None:
        """Write all of `data`. If the writer is being closed, stop at its deadline."""
        rest = memoryview(data)
        while rest:
            if not poll.poll(_POLL * 1000):
                if self._deadline is not None and time.monotonic() > self._deadline:
                    self._has_failed = True
                    return
                continue
            try:
                rest = rest[os.write(descriptor, rest[:_PIECE]) :]
            except BlockingIOError:
                continue
            except OSError as error:
                self._has_failed = True
                self._on_error(error)
                return
