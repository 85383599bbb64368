"""A state uses its notes about target tags only if no run with another state has written there."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from mirror.state.run_marks import WHOLE, current_mark, partition_of_shards, use_partition_mark
from mirror.util.cancellation import Stop

TWO, THREE = partition_of_shards(2, "config"), partition_of_shards(3, "config")


def mark_of_run(directory: Path, partition: str) -> str:
    """Return the mark of a run that ends at once."""
    with use_partition_mark(directory, partition, Stop()) as mark:
        return mark


def test_runs_of_one_partition_share_a_mark_until_another_partition_writes(tmp_path: Path) -> None:
    partitions = [WHOLE, WHOLE, TWO, TWO, THREE, TWO, partition_of_shards(2, "another config"), WHOLE]
    marks = [mark_of_run(tmp_path, partition) for partition in partitions]
    assert (marks[0], marks[2]) == (marks[1], marks[3])
    assert len(set(marks)) == len(marks) - 2


def test_concurrent_shards_share_a_mark(tmp_path: Path) -> None:
    with use_partition_mark(tmp_path, TWO, Stop()) as first, use_partition_mark(tmp_path, TWO, Stop()) as second:
        assert first == second == current_mark(tmp_path)
    assert first == mark_of_run(tmp_path, TWO)


def test_a_mark_used_during_concurrent_partitions_is_never_used_again(tmp_path: Path) -> None:
    with ExitStack() as others:
        seen = [others.enter_context(use_partition_mark(tmp_path, WHOLE, Stop()))]
        with use_partition_mark(tmp_path, TWO, Stop()) as mark:
            seen.append(mark)
        seen += [mark_of_run(tmp_path, partition) for partition in (TWO, WHOLE, TWO)]
        assert current_mark(tmp_path) not in seen
    assert len(seen) == len(set(seen))
    assert mark_of_run(tmp_path, TWO) not in seen
    assert mark_of_run(tmp_path, WHOLE) not in seen


def test_an_invalid_file_is_replaced(tmp_path: Path) -> None:
    assert "" == current_mark(tmp_path)
    for content in ("", "half", f"mark {WHOLE}"):
        (tmp_path / "writers").write_text(content)
        assert "" == current_mark(tmp_path)
        assert mark_of_run(tmp_path, WHOLE) == current_mark(tmp_path) != ""
