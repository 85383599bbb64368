from __future__ import annotations

import fcntl
import io
import os
import time

from mirror.output.console import Console


def test_a_console_that_nobody_reads_holds_the_run_up_for_a_second_at_most() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, True)
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "w") as stream:
        console = Console(stream)
        begin = time.monotonic()
        for n in range(200):
            console.line(f"line {n} " + "x" * 100)
        took = time.monotonic() - begin
        seen = os.read(reader.fileno(), 1_000_000).splitlines()
        console.line("room again")
        last = os.read(reader.fileno(), 1_000_000)
    assert 0.9 < took < 50  # rather than one second for each line
    assert 200 == len(seen) + console.dropped
    assert [f"line {n} ".encode() for n in range(len(seen))] == [line[: line.index(b"x")] for line in seen]
    assert b"room again\n" == last


def test_a_console_whose_reader_has_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        console = Console(stream)
        console.line("nobody is there")
        console.line("still nobody")
    console.line("closed")
    assert 0 == console.dropped


def test_a_console_that_cannot_show_a_letter_escapes_it() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "w", encoding="ascii") as stream:
        Console(stream).line("ünï…")
        assert b"\\xfcn\\xef\\u2026\n" == os.read(reader.fileno(), 100)


def test_lines_go_through_a_live_display_while_there_is_one() -> None:
    said, shown = io.StringIO(), list[str]()
    console = Console(said)
    with console.through(shown.append):
        console.line("during\x1b")
    console.line("after")
    assert (["during\\x1b"], "after\n") == (shown, said.getvalue())


def test_a_console_without_a_stream_is_silent() -> None:
    stream = io.StringIO()
    console = Console(stream)
    stream.close()
    console.line("closed before it was used")
    assert not console.is_terminal
    assert 0 == console.dropped
