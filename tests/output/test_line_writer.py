from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mirror.output.line_writer import MOST_QUEUED, LineWriter


@contextmanager
def writer(descriptor: int, errors: list[OSError] | None = None) -> Iterator[LineWriter]:
    with LineWriter(
        descriptor,
        name="test-lines",
        on_error=(errors if errors is not None else []).append,
        describe_dropped=lambda count: f"dropped {count}\n",
    ) as lines:
        yield lines


def put(lines: LineWriter, *texts: str) -> None:
    for text in texts:
        lines.put(lambda text=text: f"{text}\n")  # type: ignore[misc]


def read_all(descriptor: int) -> str:
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read().decode()


def test_lines_are_written_in_order_and_completely_when_the_writer_is_closed(tmp_path: Path) -> None:
    with (tmp_path / "lines").open("w") as out, writer(out.fileno()) as lines:
        put(lines, *map(str, range(5000)))
    assert [str(number) for number in range(5000)] == (tmp_path / "lines").read_text().splitlines()
    assert [] == [thread.name for thread in threading.enumerate() if thread.name == "test-lines"]


def test_a_slow_reader_gets_every_line_whole_and_does_not_delay_the_caller() -> None:
    reader, given = os.pipe()
    texts = [str(number) + "x" * 1000 for number in range(200)]  # more than the pipe holds
    with writer(given) as lines:
        put(lines, *texts)
        found: list[str] = []
        thread = threading.Thread(target=lambda: found.extend(read_all(reader).splitlines()))
        thread.start()
    os.close(given)
    thread.join()
    assert texts == found


def test_lines_beyond_the_queue_are_dropped_and_counted() -> None:
    reader, given = os.pipe()
    begun, go = threading.Event(), threading.Event()

    def first() -> str:
        begun.set()
        go.wait(10)
        return "first\n"

    found: list[str] = []
    with writer(given) as lines:
        lines.put(first)
        assert begun.wait(10)
        put(lines, *["x"] * (MOST_QUEUED + 7))
        thread = threading.Thread(target=lambda: found.extend(read_all(reader).splitlines()))
        thread.start()
        go.set()
    os.close(given)
    thread.join()
    assert {"first": 1, "x": MOST_QUEUED, "dropped 7": 1} == Counter(found)


def test_a_reader_that_never_reads_does_not_keep_the_writer_from_closing() -> None:
    reader, given = os.pipe()
    errors: list[OSError] = []
    with writer(given, errors) as lines:
        put(lines, *["x" * 1000] * 1000)
    assert [] == errors
    os.close(given)
    assert read_all(reader).startswith("x" * 1000 + "\n")


def test_the_first_error_is_reported_once_and_later_lines_are_dropped() -> None:
    errors: list[OSError] = []
    second = threading.Event()
    descriptor = os.open("/dev/full", os.O_WRONLY)
    with writer(descriptor, errors) as lines:
        for text in ("a", "b" * 5000):
            put(lines, text)
            lines.put(lambda: second.set() or "c\n")  # type: ignore[func-returns-value]
            second.wait(1)
    os.close(descriptor)
    assert ["No space left on device"] == [error.strerror for error in errors]


def test_a_reader_that_has_exited_is_an_error() -> None:
    reader, given = os.pipe()
    os.close(reader)
    errors: list[OSError] = []
    with writer(given, errors) as lines:
        put(lines, "a")
    os.close(given)
    assert [BrokenPipeError] == [type(error) for error in errors]
