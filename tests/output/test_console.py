from __future__ import annotations

import fcntl
import io
import os
import time

import pytest

from mirror.output.console import Console


def test_a_full_pipe_delays_the_run_by_one_second_at_most() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, True)
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "w") as stream:
        console = Console(stream)
        begin = time.monotonic()
        for n in range(200):
            console.write_line(f"line {n} " + "x" * 100)
        took = time.monotonic() - begin
        seen = os.read(reader.fileno(), 1_000_000).splitlines()
        console.write_line("room again")
        last = os.read(reader.fileno(), 1_000_000)
    assert 0.9 < took < 50  # rather than one second for each line
    assert 200 == len(seen) + console.dropped
    assert [f"line {n} ".encode() for n in range(len(seen))] == [line[: line.index(b"x")] for line in seen]
    assert b"room again\n" == last


def test_a_broken_pipe_is_not_an_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        console = Console(stream)
        console.write_line("nobody is there")
        console.write_line("still nobody")
    console.write_line("closed")
    assert 0 == console.dropped


def test_letters_that_the_encoding_of_the_stream_lacks_are_escaped() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "w", encoding="ascii") as stream:
        Console(stream).write_line("ünï…")
        assert b"\\xfcn\\xef\\u2026\n" == os.read(reader.fileno(), 100)


def test_lines_are_passed_to_a_live_display() -> None:
    said, shown = io.StringIO(), list[str]()
    console = Console(said)
    with console.redirect_lines(shown.append):
        console.write_line("during\x1b")
    console.write_line("after")
    assert (["during\\x1b"], "after\n") == (shown, said.getvalue())


def test_lines_are_wrapped_between_words_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = "mirror: warning: " + "word " * 6 + "sha256:" + "a" * 64
    shown = "mirror: warning: word word word word\n    word word\n    " + text.split()[-1]  # noqa: PLC0207
    said = io.StringIO()
    master, slave = os.openpty()
    with os.fdopen(master, "rb") as reader, os.fdopen(slave, "w") as stream:
        Console(stream).write_line(text)
        assert shown == os.read(reader.fileno(), 1000).decode().replace("\r\n", "\n").rstrip()
    Console(said).write_line(text)
    assert f"{text}\n" == said.getvalue()


def test_a_console_with_a_closed_stream_writes_nothing() -> None:
    stream = io.StringIO()
    console = Console(stream)
    stream.close()
    console.write_line("closed before it was used")
    assert not console.is_terminal
    assert 0 == console.dropped
