"""Detects whether runs that use different state files have written to the same targets.

The target tags in a state file are valid only as long as no run with another state file writes to these targets. Runs
without --shard, and the runs of each shard, use separate state files in one state directory. The *partition* of a run
specifies how the targets are divided among such runs: not at all, or among a number of shards.

The file `writers` in the state directory contains the partition of the last runs that wrote, and a random *mark*, which
is replaced when the partition changes. Each state file stores the mark under which it recorded the tags of targets. A
run ignores these tags if the current mark is different.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mirror.util.files import Lock, Sleeper, atomic_write, local_error

WHOLE = "whole"  # the partition of runs without --shard
_SEVERAL = "several"  # the partition in the file while runs of several partitions write at the same time
_WAIT = 10.0  # seconds to wait for other runs that are starting


def partition_of_shards(count: int, config_hash: str) -> str:
    """Return the name of the partition of a run with `--shard`: the number of shards and the configuration's hash.

    The hash is included because a change of the configuration may move a target to another shard."""
    return f"{count} {config_hash}"


def current_mark(directory: Path) -> str:
    """Return the current run mark of a state directory, for a command that only reads, or "" if there is none."""
    return _read(directory / "writers")[0]


@contextmanager
def use_partition_mark(directory: Path, partition: str, stop: Sleeper) -> Iterator[str]:
    """Return a context manager that registers this run as a writer of a partition, and yields its run mark.

    Enter the `with` block before the first write to a target, and leave it after the last write. While runs of several
    partitions write at the same time, each run gets its own mark.
    Raises LockBusy, LocalError, and any exception that `stop.sleep` raises."""
    path = directory / "writers.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise local_error("lock", path, error) from error
    try:
        # This lock serializes the runs that start. All writing runs hold `writers.lock` as a shared lock.
        with Lock(directory / "writers.gate").acquire(_WAIT, stop):
            try:
                mark = _choose_mark(directory / "writers", partition, descriptor)
            except OSError as error:
                raise local_error("lock", path, error) from error
        yield mark
    finally:
        os.close(descriptor)


def _choose_mark(path: Path, partition: str, descriptor: int) -> str:
    """Return the mark for a run that starts now. If the partition has changed, write a new mark to the file.

    path: the file `writers`. descriptor: the open file `writers.lock`, on which this function takes a shared lock."""
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
    """Return the mark and the partition in the file `writers`, or empty strings if it is missing or invalid."""
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
    """Replace the file `writers` with a new mark and partition. Raises LocalError."""
    with atomic_write(path) as file:
        file.write(f"{mark} {partition}\n".encode())
