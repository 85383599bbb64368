from __future__ import annotations

import hashlib
import os
import random
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from mirror.errors import LOCAL, LocalError
from mirror.oci.digest import Digest
from mirror.state.database import DatabaseError
from mirror.state.file import state_error
from mirror.state.hints import FILE_NAME, State
from mirror.state.schema import ADDED, VERSION

ROOT = Path(__file__).resolve().parents[2]
APP = "localhost:5000/team/app"


def digest(name: str, algorithm: str = "sha256") -> Digest:
    return Digest.of(name.encode(), algorithm)


def open_state(directory: Path) -> State:
    """Open a state that must not produce a warning."""
    return State.open(directory, pytest.fail)


def sql(directory: Path, *statements: str) -> list[list[tuple[object, ...]]]:
    with closing(sqlite3.connect(directory / FILE_NAME)) as database, database:
        return [database.execute(statement).fetchall() for statement in statements]


def fill(directory: Path) -> None:
    with open_state(directory) as state:
        state.record_tag("target", APP, "v1", digest("root"))
        state.record_tag("source", "quay.io/app", "v1", digest("source root"))
        state.record_image_blobs(APP, digest("root"), [digest("layer"), digest("config")])
        state.mark_unfinished("localhost:5000/team/other")


def knows_all(state: State) -> bool:
    return (
        state.target_tag(APP, "v1") == digest("root")
        and state.source_tag("quay.io/app", "v1") == digest("source root")
        and state.had_blob(APP, digest("layer"))
        and state.is_unfinished("localhost:5000/team/other")
    )


def knows_nothing(state: State) -> bool:
    return (
        state.target_tag(APP, "v1") is None
        and not state.had_blob(APP, digest("layer"))
        and state.repositories_with_blob("localhost:5000", digest("layer")) == []
        and not state.is_unfinished("localhost:5000/team/other")
    )


# -- what it stores --------------------------------------------------------------------------------------------------


def test_hints_are_available_to_the_next_run(tmp_path: Path) -> None:
    fill(tmp_path)
    with open_state(tmp_path) as state:
        assert knows_all(state)
        assert all(state.had_blob(APP, digest(name)) for name in ("root", "layer", "config"))


def test_the_state_is_one_file_that_only_the_owner_can_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with open_state(tmp_path) as state:
            state.mark_unfinished(APP)
            assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert [FILE_NAME] == [path.name for path in tmp_path.iterdir()]
    assert 0o600 == stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode)


def test_the_last_digest_of_a_tag_counts_separately_for_source_and_target(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        state.record_tag("target", APP, "v1", digest("one"))
        state.record_tag("source", APP, "v1", digest("two", "sha512"))
        state.record_tag("target", APP, "v1", digest("three"))
        state.record_tag("target", APP, "gone", digest("four"))
        state.record_tag("target", APP, "gone", None)
        state.flush()
        assert (digest("three"), digest("two", "sha512")) == (state.target_tag(APP, "v1"), state.source_tag(APP, "v1"))
        assert [None, None] == [state.target_tag(APP, "gone"), state.target_tag(APP, "never")]


def test_a_repository_held_its_roots_and_their_blobs(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        state.record_image_blobs(APP, digest("root"), [digest("layer")])
        state.record_image_blobs("localhost:5000/team/else", digest("other"), [digest("base")])
        state.flush()
        assert state.had_blob(APP, digest("layer"))
        assert state.had_blob(APP, digest("root"))
        assert not state.had_blob(APP, digest("base"))
        assert not state.had_blob("localhost:5000/team", digest("layer"))


def test_noting_a_root_again_replaces_its_blobs(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        state.record_image_blobs(APP, digest("root"), [digest("one"), digest("two")])
        state.record_image_blobs(APP, digest("root"), [digest("two"), digest("two")])
        state.flush()
        assert [False, True, True] == [state.had_blob(APP, digest(name)) for name in ("one", "two", "root")]


def test_roots_of_a_source_without_a_tag_are_pruned(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        for name in ("old", "new"):
            state.record_image_blobs(APP, digest(name), [digest("base"), digest(f"{name} layer")])
            state.record_tag("source", APP, "v1", digest(name))
    with open_state(tmp_path) as state:
        assert [False, True, True] == [state.had_blob(APP, digest(name)) for name in ("old layer", "new layer", "base")]


def test_holders_are_repositories_of_the_host_with_the_last_written_first(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        for path in ("a", "b", "c", "d", "e"):
            state.record_image_blobs(f"reg:5000/{path}", digest(path), [digest("base")])
        state.record_image_blobs("reg:50001/x", digest("x"), [digest("base")])
        state.record_image_blobs("reg:5000/b", digest("again"), [digest("base")])
        state.flush()
        assert ["b", "e", "d", "c"] == state.repositories_with_blob("reg:5000", digest("base"))
        assert ["b", "e"] == state.repositories_with_blob("reg:5000", digest("base"), limit=2)
        assert [] == state.repositories_with_blob("reg:5000", digest("unknown"))
        assert ["x"] == state.repositories_with_blob("reg:50001", digest("base"))


def test_forgetting_a_repository_takes_effect_at_once_and_in_later_runs(tmp_path: Path) -> None:
    fill(tmp_path)
    with open_state(tmp_path) as state:
        state.record_image_blobs("localhost:5000/team/two", digest("two"), [digest("layer")])
        state.flush()
        state.forget(APP)
        assert [None, False] == [state.target_tag(APP, "v1"), state.had_blob(APP, digest("layer"))]
        assert not state.had_blob(APP, digest("root"))
        assert ["team/two"] == state.repositories_with_blob("localhost:5000", digest("layer"))
    with open_state(tmp_path) as state:
        assert state.target_tag(APP, "v1") is None
        assert ["team/two"] == state.repositories_with_blob("localhost:5000", digest("layer"))
        assert state.is_unfinished("localhost:5000/team/other")


def test_roots_without_a_tag_are_pruned_with_blobs_that_only_they_refer_to(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        for n in range(50):
            state.record_image_blobs(APP, digest(f"root{n}"), [digest("base"), digest(f"layer{n}")])
            state.record_tag("target", APP, "latest", digest(f"root{n}"))
            state.record_tag("target", APP, f"v{n % 3}", digest(f"root{n}"))
    with open_state(tmp_path) as state:
        known = [n for n in range(50) if state.had_blob(APP, digest(f"root{n}"))]
        assert [47, 48, 49] == known
        assert state.had_blob(APP, digest("base"))
    ((rows,),), ((digests,),) = sql(tmp_path, "SELECT count(*) FROM member", "SELECT count(*) FROM digest")
    assert (9, 7) == (rows, digests)


# -- the mark ---------------------------------------------------------------------------------------------------------


def test_a_repository_stays_marked_until_it_is_finished(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        assert not state.is_unfinished(APP)
        state.mark_unfinished(APP)
        state.mark_unfinished(APP)
        assert state.is_unfinished(APP)
    with open_state(tmp_path) as state:
        assert state.is_unfinished(APP)
        state.mark_finished(APP)
        assert not state.is_unfinished(APP)
        state.mark_finished("localhost:5000/never/marked")
    with open_state(tmp_path) as state:
        assert not state.is_unfinished(APP)


MARK_AND_HANG = """
import sys
from pathlib import Path
from mirror.state.hints import State
state = State.open(Path(sys.argv[1]), print)
state.record_tag("target", "localhost:5000/team/app", "v1", None)
state.mark_unfinished("localhost:5000/team/app")
print("marked", flush=True)
sys.stdin.readline()
"""


def test_a_mark_survives_a_kill_immediately_after_it(tmp_path: Path) -> None:
    for _ in range(3):
        command = [sys.executable, "-c", MARK_AND_HANG, str(tmp_path)]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout
            assert "marked\n" == child.stdout.readline()
            child.kill()
        with open_state(tmp_path) as state:
            assert state.is_unfinished(APP)
            state.mark_finished(APP)


def test_forgetting_a_repository_keeps_the_note_that_v2_answered(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        assert not state.has_responded_over_v2(APP)
        state.record_v2_response(APP)
        state.record_v2_response(APP)
        state.forget(APP)
        state.flush()
        assert state.has_responded_over_v2(APP)
    with open_state(tmp_path) as state:
        assert [True, False] == [
            state.has_responded_over_v2(APP),
            state.has_responded_over_v2("localhost:5000/team/other"),
        ]


@pytest.mark.parametrize("version", ADDED)
def test_a_file_of_an_earlier_version_is_upgraded_and_keeps_its_content(tmp_path: Path, version: int) -> None:
    fill(tmp_path)
    sql(tmp_path, *(f"DROP TABLE {table}" for table in ADDED[version]), f"PRAGMA user_version = {version}")
    with State.open(tmp_path, pytest.fail, read_only=True) as state:
        assert state.target_tag(APP, "v1") == digest("root")
        assert not state.has_responded_over_v2(APP)
        assert set() == state.checked_attachments("source", APP, [digest("root")], 0, 10)
        assert state.first_seen(APP, "v1") is None
        assert state.image_date(APP, digest("root")) is None
        assert None is state.other_platform("image")
        assert None is state.attachment_tags.find(APP, "sha256-digest.sig")
    with open_state(tmp_path) as state:
        assert knows_all(state)
        assert not state.has_responded_over_v2(APP)
        state.record_v2_response(APP)
        state.record_attachments("source", APP, digest("root"), 5)
    assert [[(VERSION,)]] == sql(tmp_path, "PRAGMA user_version")
    with open_state(tmp_path) as state:
        assert state.has_responded_over_v2(APP)
        assert {digest("root")} == state.checked_attachments("source", APP, [digest("root")], 0, 10)


def test_the_time_of_a_check_counts_for_one_source_one_target_and_one_digest(tmp_path: Path) -> None:
    both = [digest("root"), digest("other")]
    with open_state(tmp_path) as state:
        for tag, root in zip(("v1", "v2"), both, strict=True):
            state.record_tag("target", APP, tag, root)
        state.record_attachments("source", APP, both[0], 100)
        state.record_attachments("source", APP, both[1], 200)
    with open_state(tmp_path) as state:
        assert set(both) == state.checked_attachments("source", APP, both, 99, 200)
        assert {both[1]} == state.checked_attachments("source", APP, both, 100, 200)
        assert {both[0]} == state.checked_attachments("source", APP, both, 0, 150)  # the clock was set back
        assert {both[0]} == state.checked_attachments("source", APP, both[:1], 0, 1000)
        assert set() == state.checked_attachments("another source", APP, both, 0, 1000)
        assert set() == state.checked_attachments("source", f"{APP}2", both, 0, 1000)
        state.record_tag("target", APP, "v1", both[1])  # no tag refers to the first image any more
    with open_state(tmp_path) as state:
        assert {both[1]} == state.checked_attachments("source", APP, both, 0, 1000)


WITHDRAW_AND_HANG = """
import sys
from pathlib import Path
from mirror.oci.digest import Digest
from mirror.state.hints import State
state = State.open(Path(sys.argv[1]), print)
if sys.argv[2] == "noted":
    state.record_tag("target", "localhost:5000/team/app", "v1", Digest.of(b"seen in this run"))
state.delete_tag_record("localhost:5000/team/app", "v1", was_recorded=sys.argv[2] == "noted")
print("withdrawn", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("when", ["noted", "before"])
def test_a_withdrawn_tag_is_removed_from_disk_before_the_call_returns(tmp_path: Path, when: str) -> None:
    fill(tmp_path)
    command = [sys.executable, "-c", WITHDRAW_AND_HANG, str(tmp_path), when]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert "withdrawn\n" == child.stdout.readline()
        child.kill()
    with open_state(tmp_path) as state:
        assert state.target_tag(APP, "v1") is None
        assert state.had_blob(APP, digest("layer"))


def test_withdrawing_an_unknown_tag_writes_nothing(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        before = sql(tmp_path, "PRAGMA data_version")
        state.delete_tag_record(APP, "v1", was_recorded=False)
        assert before == sql(tmp_path, "PRAGMA data_version")
        state.forget(APP)
        state.record_tag("target", APP, "v1", digest("root"))
        state.delete_tag_record(APP, "v1", was_recorded=False)
    with open_state(tmp_path) as state:
        assert state.target_tag(APP, "v1") is None


# -- invalid files ----------------------------------------------------------------------------------------------------


def write_foreign_database(directory: Path) -> None:
    with closing(sqlite3.connect(directory / FILE_NAME)) as database, database:
        database.execute("CREATE TABLE bookmarks(url TEXT)")


def write_cut_file(count: int) -> Callable[[Path], None]:
    def shorten(directory: Path) -> None:
        fill(directory)
        path = directory / FILE_NAME
        path.write_bytes(path.read_bytes()[:count])

    return shorten


def write_changed_file(statement: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        fill(directory)
        sql(directory, statement)

    return change


def write_junk(content: bytes) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        directory.joinpath(FILE_NAME).write_bytes(content)

    return write


BAD_FILES = {
    "junk": (write_junk(b"this is not a database " * 500), "is not a database"),
    "one byte": (write_junk(b"S"), "is not a database"),
    "json": (write_junk(b"{}"), "is not a database"),
    "only the magic": (write_cut_file(16), "is not a database"),
    "only the header": (write_cut_file(100), "cannot be read"),
    "one page": (write_cut_file(4096), "cannot be read"),
    "cut in the middle": (write_cut_file(9000), "cannot be read"),
    "another program's": (write_foreign_database, "is another program's database"),
    "a later version": (write_changed_file(f"PRAGMA user_version = {VERSION + 1}"), f"has version {VERSION + 1}"),
    "no version": (write_changed_file("PRAGMA user_version = 0"), "has version 0"),
    "a table too few": (write_changed_file("DROP TABLE tag"), "tables"),
    "a table too many": (write_changed_file("CREATE TABLE more(x)"), "tables"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_an_invalid_file_is_set_aside_unchanged(tmp_path: Path, case: str) -> None:
    make, why = BAD_FILES[case]
    make(tmp_path)
    before = (tmp_path / FILE_NAME).read_bytes()
    warnings: list[str] = []
    with State.open(tmp_path, warnings.append) as state:
        assert knows_nothing(state)
    (aside,) = tmp_path.glob(f"{FILE_NAME}.bad-*")
    assert before == aside.read_bytes()
    (warning,) = warnings
    assert why in warning
    assert aside.name in warning
    fill(tmp_path)
    with open_state(tmp_path) as state:
        assert knows_all(state)


def test_two_invalid_files_in_one_second_are_both_kept(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        (tmp_path / FILE_NAME).write_bytes(content)
        State.open(tmp_path, lambda _: None).close()
    assert {b"one", b"two"} == {path.read_bytes() for path in tmp_path.glob(f"{FILE_NAME}.bad-*")}


def test_an_empty_file_is_a_new_state(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).touch()
    fill(tmp_path)
    with open_state(tmp_path) as state:
        assert knows_all(state)


def test_the_write_ahead_log_of_a_deleted_file_is_ignored(tmp_path: Path) -> None:
    state = open_state(tmp_path)
    state.mark_unfinished(APP)
    wal = tmp_path / f"{FILE_NAME}-wal"
    content = wal.read_bytes()
    state.close()
    (tmp_path / FILE_NAME).unlink()
    wal.write_bytes(content)
    with open_state(tmp_path) as state:
        assert not state.is_unfinished(APP)


def test_a_link_instead_of_the_file_is_an_error_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / FILE_NAME).symlink_to(victim)
    with pytest.raises(LocalError) as caught:
        open_state(tmp_path)
    assert LOCAL == caught.value.exit_code
    assert "precious" == victim.read_text()


def test_a_missing_directory_is_a_local_error(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="nowhere"):
        open_state(tmp_path / "nowhere")


@pytest.mark.parametrize("seed", range(8))
def test_flipped_bits_change_hints_only(tmp_path: Path, seed: int) -> None:
    with open_state(tmp_path) as state:
        for n in range(300):
            state.record_image_blobs(APP, digest(f"root{n}"), [digest("base"), digest(f"layer{n}")])
            state.record_tag("target", APP, f"v{n}", digest(f"root{n}"))
        state.mark_unfinished("localhost:5000/team/other")
    path = tmp_path / FILE_NAME
    content, draw = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(200):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    warnings: list[str] = []
    with State.open(tmp_path, warnings.append) as state:
        for n in range(300):
            state.target_tag(APP, f"v{n}")
            state.had_blob(APP, digest(f"layer{n}"))
            state.repositories_with_blob("localhost:5000", digest(f"layer{n}"))
            state.record_image_blobs(APP, digest(f"root{n}"), [digest(f"new{n}")])
        state.mark_unfinished("localhost:5000/team/third")
        assert state.is_unfinished("localhost:5000/team/third")
    with State.open(tmp_path, warnings.append) as state:
        assert state.is_unfinished("localhost:5000/team/third")


def test_damage_found_during_a_run_loses_hints_but_keeps_marks(tmp_path: Path) -> None:
    fill(tmp_path)
    path = tmp_path / FILE_NAME
    ((_, page),) = sql(tmp_path, "SELECT rootpage, rootpage FROM sqlite_master WHERE name = 'member'")[0]
    content = bytearray(path.read_bytes())
    assert isinstance(page, int)
    content[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096
    path.write_bytes(content)
    warnings: list[str] = []
    with State.open(tmp_path, warnings.append) as state:
        assert not state.had_blob(APP, digest("layer"))
        state.flush()
        state.record_image_blobs(APP, digest("root"), [digest("layer")])
        state.flush()
        assert state.had_blob(APP, digest("layer"))
        assert state.is_unfinished("localhost:5000/team/other")
    assert 1 == len(warnings)
    assert "is damaged" in warnings[0]
    assert content == next(tmp_path.glob(f"{FILE_NAME}.bad-*[0-9]Z")).read_bytes()
    with open_state(tmp_path) as state:
        assert state.is_unfinished("localhost:5000/team/other")


def test_values_that_are_not_digests_or_paths_are_ignored(tmp_path: Path) -> None:
    fill(tmp_path)
    with open_state(tmp_path) as state:
        state.record_image_blobs("localhost:5000/ok", digest("ok"), [digest("layer")])
        state.record_image_blobs("localhost:5000/bad", digest("bad"), [digest("layer")])
    sql(
        tmp_path,
        "UPDATE tag SET digest = 'sha256:abc'",
        "UPDATE repository SET name = 'localhost:5000/../../etc' WHERE name = 'localhost:5000/bad'",
        f"UPDATE digest SET value = x'00' WHERE value = x'{digest('config').hex}'",  # noqa: S608
    )
    with open_state(tmp_path) as state:
        assert [None, None] == [state.target_tag(APP, "v1"), state.source_tag("quay.io/app", "v1")]
        assert ["ok", "team/app"] == state.repositories_with_blob("localhost:5000", digest("layer"))
        assert [False, True] == [state.had_blob(APP, digest(name)) for name in ("config", "layer")]


# -- a disk that is full ----------------------------------------------------------------------------------------------

FULL = """
import resource, sys
from pathlib import Path
from mirror.errors import LocalError
from mirror.oci.digest import Digest
from mirror.state.hints import State
directory, warnings = Path(sys.argv[1]), []
with State.open(directory, warnings.append) as state:
    state.record_tag("target", "h/a", "v1", Digest.of(b"one"))
    state.flush()
    size = max(path.stat().st_size for path in directory.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    for n in range(5000):
        state.record_tag("target", "h/a", f"v{n}", Digest.of(b"two"))
    try:
        state.mark_unfinished("h/a")
    except LocalError as error:
        print("refused", error.exit_code, state.is_unfinished("h/a"))
    print(state.target_tag("h/a", "v1") == Digest.of(b"one"), state.failure is not None)
print(len(warnings))
"""


def test_a_full_disk_loses_hints_with_a_warning_but_a_mark_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ["refused 4 False", "True True", "1"] == done.stdout.splitlines(), done.stderr
    with open_state(tmp_path) as state:
        assert digest("one") == state.target_tag("h/a", "v1")


def test_the_error_for_a_file_held_by_another_program_says_so(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite3"
    with closing(sqlite3.connect(path)) as other, closing(sqlite3.connect(path, timeout=0)) as ours:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError) as caught:
            ours.execute("CREATE TABLE x (y)")
    assert "another program" in state_error(path, DatabaseError(caught.value)).hint


# -- many threads, and commands without a lock ------------------------------------------------------------------------


def test_twenty_threads_share_one_state(tmp_path: Path) -> None:
    together = threading.Barrier(20)

    def work(number: int) -> int:
        together.wait(60)
        repository = f"localhost:5000/team/r{number}"
        state.mark_unfinished(repository)
        for n in range(50):
            root = digest(f"{number}/{n}")
            state.record_image_blobs(repository, root, [digest("base"), digest(f"{number}/{n}/layer")])
            state.record_tag("target", repository, f"v{n}", root)
            state.target_tag(repository, f"v{n}")
            state.had_blob(repository, digest("base"))
            assert set(state.repositories_with_blob("localhost:5000", digest("base"))) <= {
                f"team/r{n}" for n in range(20)
            }
        state.flush()
        state.mark_finished(repository)
        return sum(state.target_tag(repository, f"v{n}") == digest(f"{number}/{n}") for n in range(50))

    with open_state(tmp_path) as state, ThreadPoolExecutor(20) as pool:
        assert [50] * 20 == list(pool.map(work, range(20)))
    with open_state(tmp_path) as state:
        assert not any(state.is_unfinished(f"localhost:5000/team/r{number}") for number in range(20))
        assert all(
            state.had_blob(f"localhost:5000/team/r{number}", digest(f"{number}/7/layer")) for number in range(20)
        )


def test_a_command_without_the_lock_reads_during_a_run_and_writes_nothing(tmp_path: Path) -> None:
    with open_state(tmp_path) as running:
        running.record_tag("target", APP, "v1", digest("root"))
        running.flush()
        with State.open(tmp_path, pytest.fail, read_only=True) as state:
            assert digest("root") == state.target_tag(APP, "v1")
            state.record_tag("target", APP, "v1", digest("other"))
            state.forget(APP)
            state.flush()
            with pytest.raises(LocalError):
                state.mark_unfinished(APP)
        assert digest("root") == running.target_tag(APP, "v1")


@pytest.mark.parametrize("content", [None, b"", b"junk"])
def test_opening_a_missing_or_invalid_file_for_reading_changes_nothing(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / FILE_NAME).write_bytes(content)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    warnings: list[str] = []
    with State.open(tmp_path, warnings.append, read_only=True) as state:
        assert knows_nothing(state)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert (1 if content else 0) == len(warnings)


def test_a_closed_state_knows_nothing(tmp_path: Path) -> None:
    fill(tmp_path)
    state = open_state(tmp_path)
    state.close()
    assert [None, False] == [state.target_tag(APP, "v1"), state.had_blob(APP, digest("layer"))]
    with pytest.raises(LocalError, match="closed"):
        state.mark_unfinished("localhost:5000/team/new")


def test_a_state_of_a_hundred_thousand_rows_opens_at_once(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        for n in range(2_000):
            root = Digest("sha256:" + hashlib.sha256(b"%d" % n).hexdigest())
            state.record_image_blobs(APP, root, [digest("base"), digest(f"a{n}"), digest(f"b{n}")])
            state.record_tag("target", APP, f"v{n}", root)
        state.flush()
        assert state.had_blob(APP, digest("base"))
    assert (tmp_path / FILE_NAME).stat().st_size < 2_000 * 500  # bytes a tag, on disk


def test_results_of_transforms_are_stored_by_the_identity_of_the_version(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        assert state.transform_digest("v1 old.example.com 1234") is None
        state.record_transform_digest("v1 old.example.com 1234", digest("first"))
        state.record_transform_digest("v1 old.example.com 1234", digest("made"))
    with open_state(tmp_path) as state:
        assert digest("made") == state.transform_digest("v1 old.example.com 1234")
        assert state.transform_digest("v1 other.example.com 1234") is None


def test_results_of_selecting_platforms_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirror.state.platform_records._FEW_RESULTS", 2)
    with open_state(tmp_path) as state:
        state.record_transform_digest("v1 a", digest("converted"))
        for number in range(7):
            state.record_transform_digest(f"platforms 1 {number}", digest(f"result {number}"))
            state.record_other_platform(f"platforms 1 other {number}", "the image is for linux/s390x")
            state.flush()
            state.record_tag("target", APP, "v1", digest(f"result {number}"))
    with open_state(tmp_path) as state:
        kept = [number for number in range(7) if state.transform_digest(f"platforms 1 {number}")]
        assert [6] == kept
        assert digest("converted") == state.transform_digest("v1 a")
        assert state.other_platform("platforms 1 other 6") is None


def test_the_platforms_of_a_sparse_image_are_on_disk_before_the_call_returns(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        assert not state.has_sparse_images(APP)
        state.record_sparse_image(APP, "v1", digest("old"), ["linux/amd64"])
        rows = sql(tmp_path, "SELECT repository, tag, platforms FROM sparse")
        assert [[(APP, "v1", "linux/amd64")]] == rows
        state.record_sparse_image(APP, "v1", digest("new"), ["linux/amd64", "linux/arm64"])
        old_and_new = {digest("old"): "linux/amd64", digest("new"): "linux/amd64,linux/arm64"}
        assert {"v1": old_and_new} == state.sparse_images(APP), "the tag may still have the old digest"
        state.update_sparse_image(APP, "v1", digest("new"), ["linux/amd64", "linux/arm64"])
        state.forget(APP)
    with open_state(tmp_path) as state:
        assert state.has_sparse_images(APP)
        assert {"v1": {digest("new"): "linux/amd64,linux/arm64"}} == state.sparse_images(APP)
        state.update_sparse_image(APP, "v1", digest("new"), [])
    with State.open(tmp_path, pytest.fail, read_only=True) as state:
        assert not state.has_sparse_images(APP)


def test_why_an_image_is_skipped_is_stored_by_its_digest_and_the_platforms(tmp_path: Path) -> None:
    with open_state(tmp_path) as state:
        assert state.other_platform("platforms 1 a") is None
        state.record_other_platform("platforms 1 a", "the image is for linux/s390x")
    with open_state(tmp_path) as state:
        assert "the image is for linux/s390x" == state.other_platform("platforms 1 a")
        assert state.other_platform("platforms 1 b") is None
