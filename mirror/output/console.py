"""Lines for people on a stream that may be a terminal, a pipe that nobody reads, or closed."""

from __future__ import annotations

import io
import os
import select
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from mirror.errors import LOCAL, OK, printable

LONGEST = 4000  # bytes of a line: with its newline less than a pipe takes at once (PIPE_BUF), so lines never mix
_PATIENCE = 1.0  # seconds for which a full pipe is waited for, once


class Console:
    """Whole lines on `stream` (default: standard error). Any thread. It never raises for what is wrong with the stream:
    a line that cannot be written within a second is dropped, as are all while the pipe stays full."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr  # None: closed before we began
        self._descriptor = _descriptor(self._stream)
        self._printer: Callable[[str], None] | None = None
        self._gone = self._stream is None
        self._clogged = False
        self._torn = False  # the last line was written in part
        self.dropped = 0  # lines

    @property
    def is_terminal(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # closed
            return False

    def line(self, text: str) -> None:
        """Write one line; what would act on a terminal is escaped."""
        shown = printable(text, LONGEST)
        printer = self._printer
        if printer is not None:
            printer(shown)
        elif not self._gone:
            self._write(shown)

    @contextmanager
    def through(self, printer: Callable[[str], None]) -> Iterator[None]:
        """While inside, lines are given to `printer`: a live display that must not be torn."""
        self._printer = printer
        try:
            yield
        finally:
            self._printer = None

    def raw(self, text: str) -> None:
        """Write `text` as it is: what a live display does to the terminal."""
        data = text.encode("utf-8", "backslashreplace")
        for start in range(0, len(data), LONGEST):
            if not self._gone:
                self._send(data[start : start + LONGEST])

    def _write(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._send(text.encode(encoding, "backslashreplace")[:LONGEST] + b"\n")

    def _send(self, data: bytes) -> None:
        try:
            if self._descriptor is not None:
                with _unblocking(self._descriptor) as descriptor:
                    self._push(descriptor, data)
            elif self._stream is not None:
                self._stream.write(data.decode("utf-8", "replace"))
                self._stream.flush()
        except (OSError, ValueError):  # closed, or its reader has gone: nobody is there to be told
            self._gone = True

    def _push(self, descriptor: int, data: bytes) -> None:
        deadline = time.monotonic() + (0.0 if self._clogged else _PATIENCE)
        rest = b"\n" + data if self._torn else data
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        while rest:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                break
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:  # less room than it wants
                break
        self._clogged = bool(rest)
        self._torn = 0 < len(rest) < len(data) or (self._torn and bool(rest))
        self.dropped += bool(rest)


@contextmanager
def _unblocking(descriptor: int) -> Iterator[int]:
    """The terminal or pipe behind `descriptor`, opened for us alone: making the shared one non-blocking would change it
    for the shell and its other programs. Others, and what cannot be opened again, as they are."""
    own: int | None = None
    with suppress(OSError):
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        if os.isatty(descriptor):
            own = os.open(os.ttyname(descriptor), flags)
        elif stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            own = os.open(f"/proc/self/fd/{descriptor}", flags)
    try:
        yield descriptor if own is None else own
    finally:
        if own is not None:
            os.close(own)


def tell(lines: Iterable[str]) -> int:
    """Write to standard output, if it is there, with what else is in its buffer. -> OK, also where nobody reads it;
    LOCAL if it cannot take that, which is said on standard error."""
    text = "".join(f"{line}\n" for line in lines)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), end="", flush=True)
    except OSError as error:
        # What is still in its buffer would be an error again at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return OK
        Console().line(f"mirror: cannot write to standard output: {error.strerror}")
        return LOCAL
    return OK


def _descriptor(stream: TextIO | None) -> int | None:
    try:
        return stream.fileno() if stream is not None else None
    except (OSError, ValueError, io.UnsupportedOperation):
        return None
