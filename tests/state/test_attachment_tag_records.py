"""The rows about tags of attachments on targets."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from mirror.state.hints import FILE_NAME, State

APP, TAG = "localhost:5000/app", f"sha256-{'ab' * 32}.sig"
ONE, TWO = Digest.of(b"one"), Digest.of(b"two")


def open_state(directory: Path, *, read_only: bool = False) -> State:
    return State.open(directory, pytest.fail, read_only=read_only)


def test_the_last_manifest_of_a_tag_is_stored_with_the_first_source_that_had_it(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        assert state.attachment_tags.find(APP, TAG) is None
        for digest, source in ((ONE, "quay.io/a"), (ONE, "quay.io/b")):
            state.attachment_tags.record(APP, TAG, digest, source)
            state.flush()
            assert (ONE, "quay.io/a") == state.attachment_tags.find(APP, TAG)
        state.attachment_tags.record(APP, TAG, TWO, "quay.io/b")
    with open_state(tmp_path, read_only=True) as state:
        assert (TWO, "quay.io/b") == state.attachment_tags.find(APP, TAG)
        assert [None, None] == [state.attachment_tags.find(APP, "v1"), state.attachment_tags.find("other/app", TAG)]


def test_rows_are_kept_if_the_tags_of_a_repository_are_forgotten_or_other_runs_wrote_there(tmp_path: Path) -> None:
    """The row counts only if the tag still has the recorded manifest, which the target is asked about."""
    with open_state(tmp_path) as state:
        state.attachment_tags.record(APP, TAG, ONE, "quay.io/a")
        state.forget(APP)
        state.flush()
        assert (ONE, "quay.io/a") == state.attachment_tags.find(APP, TAG)
    with State.open(tmp_path, pytest.fail, writers="another run") as state:
        assert (ONE, "quay.io/a") == state.attachment_tags.find(APP, TAG)


def test_a_damaged_row_is_ignored(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        state.attachment_tags.record(APP, TAG, ONE, "quay.io/a")
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as database, database:
        database.execute("UPDATE attachment_tag SET digest = x'00'")
    with open_state(tmp_path) as state:
        assert state.attachment_tags.find(APP, TAG) is None
