"""The states of all runs of one configuration: the one in the state directory, and one in the folder of each shard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mirror.state.hints import FILE_NAME, State


def shard_folders(directory: Path) -> list[Path]:
    """Return those folders of shards in the state directory that contain a state."""
    return sorted(path.parent for path in directory.glob(f"shard-*-of-*/{FILE_NAME}"))


class SharedV2Memory:
    """The records of several states about which source repositories were served over v2. Thread-safe.

    A repository may have a record in any of them, because the shard to which it belongs depends on the number of
    shards. New records are written to the first state. Implements V2Memory (registry/v1/fallback_state.py)."""

    def __init__(self, states: Sequence[State]) -> None:
        self._states = states

    def has_responded_over_v2(self, repository: str) -> bool:
        """Return whether the repository was served over v2 in an earlier run. Reads files."""
        return any(state.has_responded_over_v2(repository) for state in self._states)

    def record_v2_response(self, repository: str) -> None:
        """Record that the repository was served over v2."""
        self._states[0].record_v2_response(repository)
