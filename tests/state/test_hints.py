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
from mirror.state.database import Trouble
from mirror.state.file import refusal
from mirror.state.hints import FILE_NAME, State

ROOT = Path(__file__).resolve().parents[2]
APP = "localhost:5000/team/app"


def digest(name: str, algorithm: str = "sha256") -> Digest:
    return Digest.of(name.encode(), algorithm)


def opened(directory: Path) -> State:
    """A state that must be opened without a warning."""
    return State.open(directory, pytest.fail)


def sql(directory: Path, *statements: str) -> list[list[tuple[object, ...]]]:
    with closing(sqlite3.connect(directory / FILE_NAME)) as database, database:
        return [database.execute(statement).fetchall() for statement in statements]


def fill(directory: Path) -> None:
    with opened(directory) as state:
        state.note_tag("target", APP, "v1", digest("root"))
        state.note_tag("source", "quay.io/app", "v1", digest("source root"))
        state.note_graph(APP, digest("root"), [digest("layer"), digest("config")])
        state.mark_unfinished("localhost:5000/team/other")


def has_all(state: State) -> bool:
    return (
        state.target_tag(APP, "v1") == digest("root")
        and state.source_tag("quay.io/app", "v1") == digest("source root")
        and state.held(APP, digest("layer"))
        and state.unfinished("localhost:5000/team/other")
    )


def has_none(state: State) -> bool:
    return (
        state.target_tag(APP, "v1") is None
        and not state.held(APP, digest("layer"))
        and state.holders("localhost:5000", digest("layer")) == []
        and not state.unfinished("localhost:5000/team/other")
    )


# -- what it remembers ------------------------------------------------------------------------------------------------


def test_the_next_run_knows_what_this_one_learned(tmp_path: Path) -> None:
    fill(tmp_path)
    with opened(tmp_path) as state:
        assert has_all(state)
        assert all(state.held(APP, digest(name)) for name in ("root", "layer", "config"))


def test_it_is_one_file_that_only_we_can_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with opened(tmp_path) as state:
            state.mark_unfinished(APP)
            assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert [FILE_NAME] == [path.name for path in tmp_path.iterdir()]
    assert 0o600 == stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode)


def test_a_tag_has_one_digest_on_each_side_and_the_last_one_counts(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        state.note_tag("target", APP, "v1", digest("one"))
        state.note_tag("source", APP, "v1", digest("two", "sha512"))
        state.note_tag("target", APP, "v1", digest("three"))
        state.note_tag("target", APP, "gone", digest("four"))
        state.note_tag("target", APP, "gone", None)
        state.flush()
        assert (digest("three"), digest("two", "sha512")) == (state.target_tag(APP, "v1"), state.source_tag(APP, "v1"))
        assert [None, None] == [state.target_tag(APP, "gone"), state.target_tag(APP, "never")]


def test_a_repository_held_the_blobs_under_its_roots_and_those_roots(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        state.note_graph(APP, digest("root"), [digest("layer")])
        state.note_graph("localhost:5000/team/else", digest("other"), [digest("base")])
        state.flush()
        assert state.held(APP, digest("layer"))
        assert state.held(APP, digest("root"))
        assert not state.held(APP, digest("base"))
        assert not state.held("localhost:5000/team", digest("layer"))


def test_a_root_noted_again_has_its_new_members(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        state.note_graph(APP, digest("root"), [digest("one"), digest("two")])
        state.note_graph(APP, digest("root"), [digest("two"), digest("two")])
        state.flush()
        assert [False, True, True] == [state.held(APP, digest(name)) for name in ("one", "two", "root")]


def test_roots_of_a_source_are_dropped_as_those_of_a_target_are(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        for name in ("old", "new"):
            state.note_graph(APP, digest(name), [digest("base"), digest(f"{name} layer")])
            state.note_tag("source", APP, "v1", digest(name))
    with opened(tmp_path) as state:
        assert [False, True, True] == [state.held(APP, digest(name)) for name in ("old layer", "new layer", "base")]


def test_holders_are_repositories_of_that_host_the_last_written_first(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        for path in ("a", "b", "c", "d", "e"):
            state.note_graph(f"reg:5000/{path}", digest(path), [digest("base")])
        state.note_graph("reg:50001/x", digest("x"), [digest("base")])
        state.note_graph("reg:5000/b", digest("again"), [digest("base")])
        state.flush()
        assert ["b", "e", "d", "c"] == state.holders("reg:5000", digest("base"))
        assert ["b", "e"] == state.holders("reg:5000", digest("base"), limit=2)
        assert [] == state.holders("reg:5000", digest("unknown"))
        assert ["x"] == state.holders("reg:50001", digest("base"))


def test_forgetting_a_repository_counts_at_once_and_for_good(tmp_path: Path) -> None:
    fill(tmp_path)
    with opened(tmp_path) as state:
        state.note_graph("localhost:5000/team/two", digest("two"), [digest("layer")])
        state.flush()
        state.forget(APP)
        assert [None, False] == [state.target_tag(APP, "v1"), state.held(APP, digest("layer"))]
        assert not state.held(APP, digest("root"))
        assert ["team/two"] == state.holders("localhost:5000", digest("layer"))
    with opened(tmp_path) as state:
        assert state.target_tag(APP, "v1") is None
        assert ["team/two"] == state.holders("localhost:5000", digest("layer"))
        assert state.unfinished("localhost:5000/team/other")


def test_roots_that_no_tag_names_any_more_are_dropped_with_what_only_they_led_to(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        for n in range(50):
            state.note_graph(APP, digest(f"root{n}"), [digest("base"), digest(f"layer{n}")])
            state.note_tag("target", APP, "latest", digest(f"root{n}"))
            state.note_tag("target", APP, f"v{n % 3}", digest(f"root{n}"))
    with opened(tmp_path) as state:
        known = [n for n in range(50) if state.held(APP, digest(f"root{n}"))]
        assert [47, 48, 49] == known
        assert state.held(APP, digest("base"))
    ((rows,),), ((digests,),) = sql(tmp_path, "SELECT count(*) FROM member", "SELECT count(*) FROM digest")
    assert (9, 7) == (rows, digests)


# -- the mark ---------------------------------------------------------------------------------------------------------


def test_a_mark_stays_until_the_repository_is_finished(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        assert not state.unfinished(APP)
        state.mark_unfinished(APP)
        state.mark_unfinished(APP)
        assert state.unfinished(APP)
    with opened(tmp_path) as state:
        assert state.unfinished(APP)
        state.finished(APP)
        assert not state.unfinished(APP)
        state.finished("localhost:5000/never/marked")
    with opened(tmp_path) as state:
        assert not state.unfinished(APP)


MARK_AND_HANG = """
import sys
from pathlib import Path
from mirror.state.hints import State
state = State.open(Path(sys.argv[1]), print)
state.note_tag("target", "localhost:5000/team/app", "v1", None)
state.mark_unfinished("localhost:5000/team/app")
print("marked", flush=True)
sys.stdin.readline()
"""


def test_a_mark_survives_a_kill_right_after_it(tmp_path: Path) -> None:
    for _ in range(3):
        command = [sys.executable, "-c", MARK_AND_HANG, str(tmp_path)]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout
            assert "marked\n" == child.stdout.readline()
            child.kill()
        with opened(tmp_path) as state:
            assert state.unfinished(APP)
            state.finished(APP)


def test_that_v2_answered_for_a_source_is_remembered_though_all_else_of_that_name_is_forgotten(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        assert not state.answered_by_v2(APP)
        state.note_answered_by_v2(APP)
        state.note_answered_by_v2(APP)
        state.forget(APP)
        state.flush()
        assert state.answered_by_v2(APP)
    with opened(tmp_path) as state:
        assert [True, False] == [state.answered_by_v2(APP), state.answered_by_v2("localhost:5000/team/other")]


def test_a_file_of_the_first_version_is_brought_up_to_this_one_and_keeps_what_it_has(tmp_path: Path) -> None:
    fill(tmp_path)
    sql(tmp_path, "DROP TABLE answered_by_v2", "DROP TABLE writers", "PRAGMA user_version = 1")
    with State.open(tmp_path, pytest.fail, read_only=True) as state:
        assert state.target_tag(APP, "v1") == digest("root")
        assert not state.answered_by_v2(APP)
    with opened(tmp_path) as state:
        assert has_all(state)
        assert not state.answered_by_v2(APP)
        state.note_answered_by_v2(APP)
    assert [[(2,)]] == sql(tmp_path, "PRAGMA user_version")
    with opened(tmp_path) as state:
        assert state.answered_by_v2(APP)


WITHDRAW_AND_HANG = """
import sys
from pathlib import Path
from mirror.oci.digest import Digest
from mirror.state.hints import State
state = State.open(Path(sys.argv[1]), print)
if sys.argv[2] == "noted":
    state.note_tag("target", "localhost:5000/team/app", "v1", Digest.of(b"seen in this run"))
state.withdraw_tag("localhost:5000/team/app", "v1", noted=sys.argv[2] == "noted")
print("withdrawn", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("when", ["noted", "before"])
def test_a_tag_that_is_withdrawn_is_off_the_disk_before_anything_else_happens(tmp_path: Path, when: str) -> None:
    fill(tmp_path)
    command = [sys.executable, "-c", WITHDRAW_AND_HANG, str(tmp_path), when]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert "withdrawn\n" == child.stdout.readline()
        child.kill()
    with opened(tmp_path) as state:
        assert state.target_tag(APP, "v1") is None
        assert state.held(APP, digest("layer"))


def test_withdrawing_a_tag_that_nothing_is_known_of_writes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        before = sql(tmp_path, "PRAGMA data_version")
        state.withdraw_tag(APP, "v1", noted=False)
        assert before == sql(tmp_path, "PRAGMA data_version")
        state.forget(APP)
        state.note_tag("target", APP, "v1", digest("root"))
        state.withdraw_tag(APP, "v1", noted=False)
    with opened(tmp_path) as state:
        assert state.target_tag(APP, "v1") is None


# -- files that cannot be ours ----------------------------------------------------------------------------------------


def foreign(directory: Path) -> None:
    with closing(sqlite3.connect(directory / FILE_NAME)) as database, database:
        database.execute("CREATE TABLE bookmarks(url TEXT)")


def shortened(count: int) -> Callable[[Path], None]:
    def shorten(directory: Path) -> None:
        fill(directory)
        path = directory / FILE_NAME
        path.write_bytes(path.read_bytes()[:count])

    return shorten


def changed(statement: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        fill(directory)
        sql(directory, statement)

    return change


def junk(content: bytes) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        directory.joinpath(FILE_NAME).write_bytes(content)

    return write


BAD_FILES = {
    "junk": (junk(b"this is not a database " * 500), "is not a database"),
    "one byte": (junk(b"S"), "is not a database"),
    "json": (junk(b"{}"), "is not a database"),
    "only the magic": (shortened(16), "is not a database"),
    "only the header": (shortened(100), "cannot be read"),
    "one page": (shortened(4096), "cannot be read"),
    "cut in the middle": (shortened(9000), "cannot be read"),
    "another program's": (foreign, "is another program's database"),
    "a later version": (changed("PRAGMA user_version = 3"), "is of version 3"),
    "no version": (changed("PRAGMA user_version = 0"), "is of version 0"),
    "a table too few": (changed("DROP TABLE tag"), "has other tables than ours"),
    "a table too many": (changed("CREATE TABLE more(x)"), "has other tables than ours"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_cannot_be_ours_is_set_aside_byte_for_byte(tmp_path: Path, case: str) -> None:
    make, why = BAD_FILES[case]
    make(tmp_path)
    before = (tmp_path / FILE_NAME).read_bytes()
    warnings: list[str] = []
    with State.open(tmp_path, warnings.append) as state:
        assert has_none(state)
    (aside,) = tmp_path.glob(f"{FILE_NAME}.bad-*")
    assert before == aside.read_bytes()
    (warning,) = warnings
    assert why in warning
    assert aside.name in warning
    fill(tmp_path)
    with opened(tmp_path) as state:
        assert has_all(state)


def test_two_bad_files_in_one_second_are_both_kept(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        (tmp_path / FILE_NAME).write_bytes(content)
        State.open(tmp_path, lambda _: None).close()
    assert {b"one", b"two"} == {path.read_bytes() for path in tmp_path.glob(f"{FILE_NAME}.bad-*")}


def test_an_empty_file_is_a_new_state(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).touch()
    fill(tmp_path)
    with opened(tmp_path) as state:
        assert has_all(state)


def test_a_log_left_beside_a_deleted_file_is_not_taken_for_its_own(tmp_path: Path) -> None:
    state = opened(tmp_path)
    state.mark_unfinished(APP)
    wal = tmp_path / f"{FILE_NAME}-wal"
    content = wal.read_bytes()
    state.close()
    (tmp_path / FILE_NAME).unlink()
    wal.write_bytes(content)
    with opened(tmp_path) as state:
        assert not state.unfinished(APP)


def test_a_link_in_the_files_place_is_refused_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / FILE_NAME).symlink_to(victim)
    with pytest.raises(LocalError) as caught:
        opened(tmp_path)
    assert LOCAL == caught.value.exit_code
    assert "precious" == victim.read_text()


def test_a_directory_that_is_not_there_is_local_trouble(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="nowhere"):
        opened(tmp_path / "nowhere")


@pytest.mark.parametrize("seed", range(8))
def test_flipped_bits_change_at_most_what_is_remembered(tmp_path: Path, seed: int) -> None:
    with opened(tmp_path) as state:
        for n in range(300):
            state.note_graph(APP, digest(f"root{n}"), [digest("base"), digest(f"layer{n}")])
            state.note_tag("target", APP, f"v{n}", digest(f"root{n}"))
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
            state.held(APP, digest(f"layer{n}"))
            state.holders("localhost:5000", digest(f"layer{n}"))
            state.note_graph(APP, digest(f"root{n}"), [digest(f"new{n}")])
        state.mark_unfinished("localhost:5000/team/third")
        assert state.unfinished("localhost:5000/team/third")
    with State.open(tmp_path, warnings.append) as state:
        assert state.unfinished("localhost:5000/team/third")


def test_damage_that_shows_in_mid_run_costs_the_hints_and_keeps_the_marks(tmp_path: Path) -> None:
    fill(tmp_path)
    path = tmp_path / FILE_NAME
    ((_, page),) = sql(tmp_path, "SELECT rootpage, rootpage FROM sqlite_master WHERE name = 'member'")[0]
    content = bytearray(path.read_bytes())
    assert isinstance(page, int)
    content[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096
    path.write_bytes(content)
    warnings: list[str] = []
    with State.open(tmp_path, warnings.append) as state:
        assert not state.held(APP, digest("layer"))
        state.flush()
        state.note_graph(APP, digest("root"), [digest("layer")])
        state.flush()
        assert state.held(APP, digest("layer"))
        assert state.unfinished("localhost:5000/team/other")
    assert 1 == len(warnings)
    assert "is damaged" in warnings[0]
    assert content == next(tmp_path.glob(f"{FILE_NAME}.bad-*[0-9]Z")).read_bytes()
    with opened(tmp_path) as state:
        assert state.unfinished("localhost:5000/team/other")


def test_values_that_are_neither_digests_nor_paths_are_passed_over(tmp_path: Path) -> None:
    fill(tmp_path)
    with opened(tmp_path) as state:
        state.note_graph("localhost:5000/ok", digest("ok"), [digest("layer")])
        state.note_graph("localhost:5000/bad", digest("bad"), [digest("layer")])
    sql(
        tmp_path,
        "UPDATE tag SET digest = 'sha256:abc'",
        "UPDATE repository SET name = 'localhost:5000/../../etc' WHERE name = 'localhost:5000/bad'",
        f"UPDATE digest SET value = x'00' WHERE value = x'{digest('config').hex}'",  # noqa: S608
    )
    with opened(tmp_path) as state:
        assert [None, None] == [state.target_tag(APP, "v1"), state.source_tag("quay.io/app", "v1")]
        assert ["ok", "team/app"] == state.holders("localhost:5000", digest("layer"))
        assert [False, True] == [state.held(APP, digest(name)) for name in ("config", "layer")]


# -- a disk that is full ----------------------------------------------------------------------------------------------

FULL = """
import resource, sys
from pathlib import Path
from mirror.errors import LocalError
from mirror.oci.digest import Digest
from mirror.state.hints import State
directory, warnings = Path(sys.argv[1]), []
with State.open(directory, warnings.append) as state:
    state.note_tag("target", "h/a", "v1", Digest.of(b"one"))
    state.flush()
    size = max(path.stat().st_size for path in directory.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    for n in range(5000):
        state.note_tag("target", "h/a", f"v{n}", Digest.of(b"two"))
    try:
        state.mark_unfinished("h/a")
    except LocalError as error:
        print("refused", error.exit_code, state.unfinished("h/a"))
    print(state.target_tag("h/a", "v1") == Digest.of(b"one"), state.trouble is not None)
print(len(warnings))
"""


def test_a_full_disk_costs_hints_and_a_warning_but_a_mark_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ["refused 4 False", "True True", "1"] == done.stdout.splitlines(), done.stderr
    with opened(tmp_path) as state:
        assert digest("one") == state.target_tag("h/a", "v1")


def test_a_file_that_another_program_holds_says_so(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite3"
    with closing(sqlite3.connect(path)) as other, closing(sqlite3.connect(path, timeout=0)) as ours:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError) as caught:
            ours.execute("CREATE TABLE x (y)")
    assert "another program holds it" in refusal(path, Trouble(caught.value)).hint


# -- many threads, and commands without a lock ------------------------------------------------------------------------


def test_twenty_threads_share_one_state(tmp_path: Path) -> None:
    together = threading.Barrier(20)

    def work(number: int) -> int:
        together.wait(60)
        repository = f"localhost:5000/team/r{number}"
        state.mark_unfinished(repository)
        for n in range(50):
            root = digest(f"{number}/{n}")
            state.note_graph(repository, root, [digest("base"), digest(f"{number}/{n}/layer")])
            state.note_tag("target", repository, f"v{n}", root)
            state.target_tag(repository, f"v{n}")
            state.held(repository, digest("base"))
            assert set(state.holders("localhost:5000", digest("base"))) <= {f"team/r{n}" for n in range(20)}
        state.flush()
        state.finished(repository)
        return sum(state.target_tag(repository, f"v{n}") == digest(f"{number}/{n}") for n in range(50))

    with opened(tmp_path) as state, ThreadPoolExecutor(20) as pool:
        assert [50] * 20 == list(pool.map(work, range(20)))
    with opened(tmp_path) as state:
        assert not any(state.unfinished(f"localhost:5000/team/r{number}") for number in range(20))
        assert all(state.held(f"localhost:5000/team/r{number}", digest(f"{number}/7/layer")) for number in range(20))


def test_a_command_without_the_lock_reads_beside_a_run_and_writes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as running:
        running.note_tag("target", APP, "v1", digest("root"))
        running.flush()
        with State.open(tmp_path, pytest.fail, read_only=True) as state:
            assert digest("root") == state.target_tag(APP, "v1")
            state.note_tag("target", APP, "v1", digest("other"))
            state.forget(APP)
            state.flush()
            with pytest.raises(LocalError):
                state.mark_unfinished(APP)
        assert digest("root") == running.target_tag(APP, "v1")


@pytest.mark.parametrize("content", [None, b"", b"junk"])
def test_reading_where_there_is_nothing_to_read_leaves_everything_as_it_is(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / FILE_NAME).write_bytes(content)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    warnings: list[str] = []
    with State.open(tmp_path, warnings.append, read_only=True) as state:
        assert has_none(state)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert (1 if content else 0) == len(warnings)


def test_a_closed_state_answers_that_it_knows_nothing(tmp_path: Path) -> None:
    fill(tmp_path)
    state = opened(tmp_path)
    state.close()
    assert [None, False] == [state.target_tag(APP, "v1"), state.held(APP, digest("layer"))]
    with pytest.raises(LocalError, match="closed"):
        state.mark_unfinished("localhost:5000/team/new")


def test_a_state_of_a_hundred_thousand_rows_opens_at_once(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        for n in range(2_000):
            root = Digest("sha256:" + hashlib.sha256(b"%d" % n).hexdigest())
            state.note_graph(APP, root, [digest("base"), digest(f"a{n}"), digest(f"b{n}")])
            state.note_tag("target", APP, f"v{n}", root)
        state.flush()
        assert state.held(APP, digest("base"))
    assert (tmp_path / FILE_NAME).stat().st_size < 2_000 * 500  # bytes a tag, on disk


def test_what_a_transform_made_is_remembered_by_the_identity_of_its_version(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        assert state.transformed("v1 old.example.com 1234") is None
        state.note_transformed("v1 old.example.com 1234", digest("first"))
        state.note_transformed("v1 old.example.com 1234", digest("made"))
    with opened(tmp_path) as state:
        assert digest("made") == state.transformed("v1 old.example.com 1234")
        assert state.transformed("v1 other.example.com 1234") is None
