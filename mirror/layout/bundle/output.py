"""Functions that write to the file of a bundle or to a pipe, and that read a range of an open file."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator

from mirror.errors import LocalError
from mirror.util.cancellation import Stop
from mirror.util.files import local_error

CHUNK = 1 << 20  # bytes read or written at a time
_LOOK_EVERY = 0.5  # seconds between two checks for a stop while a pipe is full


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` to an open file at byte `offset`. Raises OSError."""
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


def write_to_pipe(descriptor: int, data: memoryview, stop: Stop) -> None:
    """Write all of `data` to a pipe. While the pipe is full, wait for its reader. Raises LocalError, Cancelled."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    while data:
        while not poll.poll(_LOOK_EVERY * 1000):
            stop.raise_if_requested()
        stop.raise_if_requested()
        try:
            # A larger write could block while the pipe is full, and a stop could not interrupt it.
            data = data[os.write(descriptor, data[: select.PIPE_BUF]) :]
        except BrokenPipeError as error:
            raise LocalError(
                "the reader of standard output closed the pipe",
                hint="check the output of the program that reads the pipe",
            ) from error
        except OSError as error:
            raise local_error("write to", "standard output", error) from error


def read_chunks(descriptor: int, offset: int, size: int, stop: Stop) -> Iterator[memoryview]:
    """Iterate over the bytes of a range of an open file, in chunks. The range is given in bytes.

    Raises OSError if a read fails or the file ends inside the range, and Cancelled."""
    buffer = memoryview(bytearray(min(CHUNK, size)))
    done = 0
    while done < size:
        stop.raise_if_requested()
        count = os.preadv(descriptor, [buffer[: min(size - done, len(buffer))]], offset + done)
        if not count:
            raise OSError(errno.EIO, f"only {done} of {size} bytes could be read")
        yield buffer[:count]
        done += count
