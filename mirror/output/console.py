"""Writes human-readable lines to a stream: a terminal, a pipe that may be full or broken, or a closed stream."""

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
from mirror.util.wrapping import line_width, wrap_line

LONGEST = 4000  # bytes per line; less than PIPE_BUF, so that lines from several writers are never interleaved
_PIPE_TIMEOUT = 1.0  # seconds that a line waits for a full pipe; while it stays full, further lines do not wait


class Console:
    """A writer of complete lines to `stream`, which is standard error by default. Thread-safe.

    Errors on the stream are not raised. A line that cannot be written within a second is dropped, and so are the
    following lines while the pipe stays full."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr  # None if it was closed before the process started
        self._descriptor = _file_descriptor(self._stream)
        self._printer: Callable[[str], None] | None = None
        self._closed = self._stream is None
        self._pipe_full = False
        self._partial_line = False  # only a part of the last line was written
        self.dropped = 0  # number of lines

    @property
    def is_terminal(self) -> bool:
        """Whether the stream is a terminal."""
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # closed
            return False

    @property
    def can_move_cursor(self) -> bool:
        """Whether the stream is a terminal that supports the control sequences of a live display."""
        return self.is_terminal and os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown")

    @property
    def encoding(self) -> str:
        """The character encoding of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def is_unicode(self) -> bool:
        """Whether the encoding of the stream can represent all Unicode characters."""
        return self.encoding.lower().replace("-", "").startswith("utf")

    def size(self) -> tuple[int, int]:
        """Return the numbers of columns and lines of the terminal, or 80 and 24 if they are not known."""
        columns = lines = 0
        if self._descriptor is not None:
            with suppress(OSError):
                columns, lines = os.get_terminal_size(self._descriptor)
        return columns or 80, lines or 24

    def write_line(self, text: str) -> None:
        """Write one line. Characters that control a terminal are escaped. On a terminal, a long line is wrapped."""
        shown = printable(text, LONGEST)
        for line in wrap_line(shown, line_width()) if self.is_terminal else (shown,):
            printer = self._printer
            if printer is not None:
                printer(line)
            elif not self._closed:
                self._write(line)

    @contextmanager
    def redirect_lines(self, printer: Callable[[str], None]) -> Iterator[None]:
        """Return a context manager that passes lines to `printer` instead of the stream until the `with` block exits.

        Lines that are written directly to the stream would damage a live display."""
        self._printer = printer
        try:
            yield
        finally:
            self._printer = None

    def write_raw(self, text: str) -> None:
        """Write `text`, such as the control sequences of a live display, without escaping it."""
        data = text.encode(self.encoding, "backslashreplace")
        for start in range(0, len(data), LONGEST):
            if not self._closed:
                self._send(data[start : start + LONGEST])

    def _write(self, text: str) -> None:
        """Encode a line and write it to the stream."""
        self._send(text.encode(self.encoding, "backslashreplace")[:LONGEST] + b"\n")

    def _send(self, data: bytes) -> None:
        """Write `data` to the stream. If this fails, drop the data and all later output."""
        try:
            if self._descriptor is not None:
                with open_nonblocking(self._descriptor) as descriptor:
                    self._write_all(descriptor, data)
            elif self._stream is not None:
                self._stream.write(data.decode("utf-8", "replace"))
                self._stream.flush()
        except (OSError, ValueError):  # closed, or the reader of the pipe has exited
            self._closed = True

    def _write_all(self, descriptor: int, data: bytes) -> None:
        """Write all of `data` to a file descriptor. If the pipe stays full, count the data as dropped."""
        deadline = time.monotonic() + (0.0 if self._pipe_full else _PIPE_TIMEOUT)
        rest = b"\n" + data if self._partial_line else data
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        while rest:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                break
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:  # the pipe has less room than the write needs
                break
        self._pipe_full = bool(rest)
        self._partial_line = 0 < len(rest) < len(data) or (self._partial_line and bool(rest))
        self.dropped += bool(rest)


@contextmanager
def open_nonblocking(descriptor: int) -> Iterator[int]:
    """Return a context manager that reopens the terminal or pipe behind `descriptor` in non-blocking mode.

    It yields the new descriptor, and closes it when the `with` block exits. For other kinds of files, and for files
    that cannot be reopened, it yields `descriptor` itself. The original descriptor is not made non-blocking, because it
    is shared with the shell and other programs."""
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


def print_lines(lines: Iterable[str]) -> int:
    """Print `lines` to standard output and flush it.

    Return OK, even if the reader of the pipe has exited. If writing fails, print the error to standard error and return
    LOCAL."""
    text = "".join(f"{line}\n" for line in lines)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), end="", flush=True)
    except OSError as error:
        # Otherwise the interpreter would fail again at exit, when it flushes the rest of the buffer.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return OK
        Console().write_line(f"mirror: cannot write to standard output: {error.strerror}")
        return LOCAL
    return OK


def _file_descriptor(stream: TextIO | None) -> int | None:
    """Return the file descriptor of `stream`, or None if it has none."""
    try:
        return stream.fileno() if stream is not None else None
    except (OSError, ValueError, io.UnsupportedOperation):
        return None
