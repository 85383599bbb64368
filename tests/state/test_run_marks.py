"""Which runs write to the targets: a state knows tags of targets only while no run with another state writes there."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from mirror.state.run_marks import WHOLE, current_mark, joined, shards
from mirror.util.cancellation import Stop

TWO, THREE = shards(2, "config"), shards(3, "config")


def run(directory: Path, partition: str) -> str:
    """The mark of a run that ends at once."""
    with joined(directory, partition, Stop()) as mark:
        return mark


def test_runs_of_one_partition_have_one_mark_until_another_partition_writes(tmp_path: Path) -> None:
    partitions = [WHOLE, WHOLE, TWO, TWO, THREE, TWO, shards(2, "another config"), WHOLE]
    marks = [run(tmp_path, partition) for partition in partitions]
    assert (marks[0], marks[2]) == (marks[1], marks[3])
    assert len(set(marks)) == len(marks) - 2


def test_shards_that_run_at_a_time_have_one_mark(tmp_path: Path) -> None:
    with joined(tmp_path, TWO, Stop()) as first, joined(tmp_path, TWO, Stop()) as second:
        assert first == second == current_mark(tmp_path)
    assert first == run(tmp_path, TWO)


def test_no_run_has_a_mark_that_was_in_use_while_several_partitions_wrote(tmp_path: Path) -> None:
    with ExitStack() as others:
        seen = [others.enter_context(joined(tmp_path, WHOLE, Stop()))]
        with joined(tmp_path, TWO, Stop()) as mark:
            seen.append(mark)
        seen += [run(tmp_path, partition) for partition in (TWO, WHOLE, TWO)]
        assert current_mark(tmp_path) not in seen
    assert len(seen) == len(set(seen))
    assert run(tmp_path, TWO) not in seen
    assert run(tmp_path, WHOLE) not in seen


def test_a_file_that_says_nothing_of_writers_is_replaced(tmp_path: Path) -> None:
    assert "" == current_mark(tmp_path)
    for content in ("", "half", f"mark {WHOLE}"):
        (tmp_path / "writers").write_text(content)
        assert "" == current_mark(tmp_path)
        assert run(tmp_path, WHOLE) == current_mark(tmp_path) != ""
