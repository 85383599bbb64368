"""The states of all shards."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.state.hints import State
from mirror.state.shard_states import SharedV2Memory, shard_folders


def open_state(directory: Path, *, read_only: bool = False) -> State:
    directory.mkdir(exist_ok=True)
    return State.open(directory, pytest.fail, read_only=read_only)


def test_a_record_of_any_state_counts_and_new_ones_are_written_to_the_first(tmp_path: Path) -> None:
    folders = [tmp_path, tmp_path / "shard-0-of-2", tmp_path / "shard-1-of-2"]
    for folder in folders[1:]:
        with open_state(folder) as state:
            state.record_v2_response(f"h/{folder.name}")
    assert folders[1:] == shard_folders(tmp_path)
    with open_state(tmp_path) as first, open_state(folders[1]) as second, open_state(folders[2]) as third:
        memory = SharedV2Memory([first, second, third])
        names = ["h/shard-0-of-2", "h/shard-1-of-2", "h/other"]
        assert [True, True, False] == [memory.has_responded_over_v2(name) for name in names]
        memory.record_v2_response("h/other")
        first.flush()
        assert (True, False) == (first.has_responded_over_v2("h/other"), second.has_responded_over_v2("h/other"))


def test_only_folders_of_shards_with_a_state_are_found(tmp_path: Path) -> None:
    open_state(tmp_path / "other").close()
    (tmp_path / "shard-0-of-1").mkdir()
    assert [] == shard_folders(tmp_path)
    open_state(tmp_path / "shard-0-of-1").close()
    assert [tmp_path / "shard-0-of-1"] == shard_folders(tmp_path)
