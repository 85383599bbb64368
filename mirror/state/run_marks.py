"""Which runs write to the targets: a state is right about their tags only while no run with another state writes there.

A run without --shard and the shards of one run each have a state of their own in one state directory. A file there
names the partition of the last runs that wrote, and a mark of its own for each time that the partition changed. Each
state keeps the mark under which it noted tags of targets; under another mark it knows none.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mirror.util.files import Lock, Sleeper, atomic_write, local_error

WHOLE = "whole"  # the partition of runs without --shard
_SEVERAL = "several"  # runs of several partitions at a time: no run has this partition
_WAIT = 10.0  # seconds for others that begin at this moment


def shards(count: int, config_hash: str) -> str:
    """The partition of shards. Another configuration may lead from another source, so another shard, to a target."""
    return f"{count} {config_hash}"


def current_mark(directory: Path) -> str:
    """For commands that only read. "": there is none."""
    return _read(directory / "writers")[0]


@contextmanager
def joined(directory: Path, partition: str, stop: Sleeper) -> Iterator[str]:
    """From before the first write to a target until after the last. -> the mark for the state of this run.

    While runs of several partitions write at a time, each gets a mark that no other run gets.
    Raises LockBusy, LocalError, and what `stop.sleep` raises."""
    path = directory / "writers.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise local_error("lock", path, error) from error
    try:
        # Only who holds this lock locks the other file, which all that write hold as shared.
        with Lock(directory / "writers.gate").acquire(_WAIT, stop):
            try:
                mark = _joined(directory / "writers", partition, descriptor)
            except OSError as error:
                raise local_error("lock", path, error) from error
        yield mark
    finally:
        os.close(descriptor)


def _joined(path: Path, partition: str, descriptor: int) -> str:
    alone = True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        alone = False
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    mark, last = _read(path)
    if last == partition:
        return mark
    mark = os.urandom(16).hex()
    if alone:
        _write(path, mark, partition)
    elif last != _SEVERAL:
        _write(path, os.urandom(16).hex(), _SEVERAL)
    return mark


def _read(path: Path) -> tuple[str, str]:
    """The mark and the partition. Empty texts where there is no such file, or none of ours."""
    try:
        with path.open("rb") as file:
            text = file.read(1000).decode("ascii", "replace")
    except FileNotFoundError:
        return "", ""
    except OSError as error:
        raise local_error("read", path, error) from error
    mark, _, partition = text.partition(" ")
    return (mark, partition[:-1]) if partition.endswith("\n") else ("", "")


def _write(path: Path, mark: str, partition: str) -> None:
    with atomic_write(path) as file:
        file.write(f"{mark} {partition}\n".encode())
