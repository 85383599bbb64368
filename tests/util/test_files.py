"""Files that appear complete or not at all, private directories, and the lock of a run."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirror.errors import BUSY, LOCAL, LocalError, LockBusy
from mirror.util.cancellation import Stop
from mirror.util.files import Lock, atomic_write, delete_leftovers, local_error, private_directory

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_file_has_its_new_content_after_the_block_and_no_temporary_file_is_left(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(b"old")
    with atomic_write(path) as out:
        out.write(b"new")
        out.flush()
        assert b"old" == path.read_bytes()
    assert b"new" == path.read_bytes()
    assert ["report.json"] == names(tmp_path)


def test_a_block_that_raises_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), atomic_write(path) as out:
        out.write(b"half")
        raise KeyError
    assert b"old" == path.read_bytes()
    assert ["report.json"] == names(tmp_path)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_only_the_owner_can_access_a_file_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    path = tmp_path / "file"
    with umask(mask), atomic_write(path):
        (temporary,) = tmp_path.iterdir()
        assert 0o600 == mode(temporary)
    assert 0o600 == mode(path)


def test_a_file_has_the_requested_mode(tmp_path: Path) -> None:
    path = tmp_path / "bundle.tar"
    with umask(0), atomic_write(path, mode=0o640):
        pass
    assert 0o640 == mode(path)


def test_a_link_at_the_path_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "authorized_keys"
    victim.write_bytes(b"keys")
    path = tmp_path / "report.json"
    path.symlink_to(victim)
    with atomic_write(path) as out:
        out.write(b"new")
    assert (b"keys", b"new") == (victim.read_bytes(), path.read_bytes())
    assert not path.is_symlink()


def test_writing_to_a_pipe_or_directory_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for name in ("pipe", "directory"):
        with pytest.raises(LocalError, match=name), atomic_write(tmp_path / name):
            pass
    assert ["directory", "pipe"] == names(tmp_path)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("nowhere/report.json", "create the directory first"),
        ("afile/report.json", "afile is not a directory"),
        ("x" * 300, "choose a shorter path"),
    ],
)
def test_the_error_for_a_file_that_cannot_be_created_names_its_path(tmp_path: Path, where: str, says: str) -> None:
    (tmp_path / "afile").touch()
    with pytest.raises(LocalError) as caught, atomic_write(tmp_path / where):
        pass
    assert (LOCAL, "local_io") == (caught.value.exit_code, caught.value.code)
    assert says in str(caught.value)
    assert where[:200] in str(caught.value)


FULL = """
import resource, sys
from pathlib import Path
from mirror.util.files import atomic_write
from mirror.errors import LocalError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
path = Path(sys.argv[1])
try:
    with atomic_write(path) as out:
        for _ in range(100):
            out.write(bytes(int(sys.argv[2])))
except LocalError as error:
    print(error.code, error)
"""


@pytest.mark.parametrize("size", [7_000, 300_000])  # below and above the size of the write buffer
def test_a_full_disk_leaves_the_old_content_and_is_reported(tmp_path: Path, size: int) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(b"old")
    out, err = python(FULL, path, size).communicate(timeout=20)
    assert out.startswith(f"local_full cannot write {path}"), out + err
    assert b"old" == path.read_bytes()
    assert ["report.json"] == names(tmp_path)


def test_an_error_of_the_block_is_raised_unchanged(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError), atomic_write(tmp_path / "file"):
        raise ConnectionResetError
    assert [] == names(tmp_path)


WRITE_FOREVER = """
import sys
from itertools import cycle
from pathlib import Path
from mirror.util.files import atomic_write
path = Path(sys.argv[1])
for letter in cycle("ab"):
    with atomic_write(path) as out:
        for _ in range(16):
            out.write(letter.encode() * 65536)
    print(letter, flush=True)
"""


def test_a_killed_writer_leaves_the_old_or_the_new_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for round_ in range(6):
        with python(WRITE_FOREVER, path) as writer:
            assert writer.stdout
            for _ in range(2 + round_):  # then the process is in the middle of the next write
                writer.stdout.readline()
            writer.kill()
        content = path.read_bytes()
        assert content in (b"a" * 1_048_576, b"b" * 1_048_576)
    left = len(names(tmp_path)) - 1
    (tmp_path / ".file.tmp").touch()
    (tmp_path / ".file.0123456789abcdef.tmp").symlink_to("file")
    assert left == delete_leftovers(tmp_path)
    assert [".file.0123456789abcdef.tmp", ".file.tmp", "file"] == names(tmp_path)


# -- directories ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
def test_a_private_directory_and_its_missing_parents_are_created_for_the_owner_only(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        made = private_directory(tmp_path / "a" / "b" / "state")
    assert tmp_path / "a" / "b" / "state" == made
    assert [0o700] * 3 == [mode(made), mode(made.parent), mode(made.parent.parent)]
    assert made == private_directory(made)


@pytest.mark.parametrize("bits", [0o720, 0o702, 0o777])
def test_a_directory_that_others_can_write_to_is_an_error(tmp_path: Path, bits: int) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(bits)
    with pytest.raises(LocalError, match="can be written by others") as caught:
        private_directory(state)
    assert LOCAL == caught.value.exit_code
    assert f"chmod go-w {state}" in caught.value.hint


def test_a_directory_that_others_can_only_read_is_accepted(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o755)
    assert state == private_directory(state)


def test_a_link_to_a_directory_is_an_error_but_a_linked_parent_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "real" / "state").mkdir(parents=True)
    (tmp_path / "up").symlink_to("real")
    (tmp_path / "link").symlink_to("real/state")
    with pytest.raises(LocalError, match="is a symbolic link"):
        private_directory(tmp_path / "link")
    assert tmp_path / "up" / "state" == private_directory(tmp_path / "up" / "state")


def test_a_dangling_link_is_an_error_and_nothing_is_created(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(LocalError, match="is a symbolic link"):
        private_directory(tmp_path / "link")
    assert ["link"] == names(tmp_path)


def test_the_error_for_a_directory_of_another_user_has_a_remedy(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(state, 12345, -1)
    else:
        state = Path("/usr")
    with pytest.raises(LocalError, match="belongs to another user") as caught:
        private_directory(state)
    assert f"chown -R {os.geteuid()} {state}" in caught.value.hint


def test_the_error_names_a_file_that_is_not_a_directory(tmp_path: Path) -> None:
    blocker = tmp_path / "afile"
    blocker.touch()
    for path in (blocker, blocker / "state", blocker / "deep" / "state"):
        with pytest.raises(LocalError) as caught:
            private_directory(path)
        assert f"{blocker} is not a directory" in str(caught.value)
        assert LOCAL == caught.value.exit_code


# -- the lock ---------------------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from mirror.util.files import Lock
from mirror.util.cancellation import Stop
with Lock(Path(sys.argv[1])).acquire(0, Stop()):
    print("held", flush=True)
    sys.stdin.readline()
"""


def start_holder(path: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout
    assert "held\n" == child.stdout.readline()
    return child


def test_the_error_for_a_busy_lock_names_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with start_holder(path) as child:
        with pytest.raises(LockBusy) as caught:
            Lock(path).acquire(0, Stop())
        assert BUSY == caught.value.exit_code
        assert f"pid {child.pid}, since 20" in caught.value.what
        assert "--lock-wait" in caught.value.hint
        child.communicate("go\n")
    with Lock(path).acquire(0, Stop()):
        assert 0o600 == mode(path)


def test_the_wait_for_a_lock_is_limited(tmp_path: Path) -> None:
    with Lock(tmp_path / "lock").acquire(0, Stop()):
        begin = time.monotonic()
        with pytest.raises(LockBusy, match="another run"):
            Lock(tmp_path / "lock").acquire(0.3, Stop())
        assert 0.3 <= time.monotonic() - begin


class ReleaseAfter:
    """Sleeps that take no time; the third one releases the lock. The durations are recorded."""

    def __init__(self, lock: Lock) -> None:
        self.lock = lock
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if len(self.slept) == 3:
            self.lock.release()


def test_a_waiting_run_gets_the_lock_when_it_is_released(tmp_path: Path) -> None:
    first = Lock(tmp_path / "lock").acquire(0, Stop())
    stop = ReleaseAfter(first)
    with Lock(tmp_path / "lock").acquire(60, stop):
        assert [0.2] * 3 == stop.slept


def test_a_stop_ends_the_wait_for_a_lock(tmp_path: Path) -> None:
    stop = Stop()
    stop.request("SIGTERM")
    with Lock(tmp_path / "lock").acquire(0, Stop()), pytest.raises(Exception, match="SIGTERM"):
        Lock(tmp_path / "lock").acquire(60, stop)


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with start_holder(path) as child:
        child.kill()
        child.wait()
        with Lock(path).acquire(0, Stop()):
            assert str(os.getpid()) in path.read_text()


def test_a_deleted_lock_file_is_not_mistaken_for_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with Lock(path).acquire(0, Stop()):
        path.unlink()
        with Lock(path).acquire(0, Stop()), pytest.raises(LockBusy):
            Lock(path).acquire(0, Stop())


def test_a_link_as_lock_file_is_an_error_and_its_target_is_kept(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "lock").symlink_to(victim)
    with pytest.raises(LocalError, match="symbolic link"):
        Lock(tmp_path / "lock").acquire(0, Stop())
    assert "precious" == victim.read_text()


@pytest.mark.parametrize("content", [b"", b"\x00" * 50, b"pid 0 since now\n", b"pid 12\x1b[31m since\n", b"x" * 5000])
def test_the_content_of_a_lock_file_does_not_matter(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lock"
    with Lock(path).acquire(0, Stop()):
        path.write_bytes(content)
        with pytest.raises(LockBusy) as caught:
            Lock(path).acquire(0, Stop())
    assert f"another run holds the lock {path}" == caught.value.what


def test_hints_about_permissions_name_the_operation(tmp_path: Path) -> None:
    refused = PermissionError(errno.EACCES, "Permission denied")
    assert "permission to read" in local_error("read", tmp_path, refused).hint
    assert "permission to write" in local_error("write", tmp_path, refused).hint
