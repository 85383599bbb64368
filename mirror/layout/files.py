"""The files of a layout in a directory, reached by open directories only.

Nothing that lies there is trusted: below the top no link is followed, and what is no plain file (a link, fifo, device,
socket, directory, or a file with a second name) is refused, without waiting for it. Paths are made of digests, never
of what a file says. Source: OCI image-spec v1.1, image-layout.md.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mirror.errors import Refused
from mirror.oci.digest import Digest
from mirror.util.file_reader import FileReader
from mirror.util.files import WholeFile, local_error, sweep, sync_directory, whole_file

VERSION_FILE = "oci-layout"
INDEX_FILE = "index.json"

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# What opening says of a link, a socket or a device without a driver, and of what is no directory.
_ODD = (errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.ENOTDIR)
_MODE = 0o644  # exports are carried to other users


class Folder:
    """A layout's directory. Thread-safe; keeps the directories that it has used open until `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}
        self._renamed: set[str] = set()  # directories that got names since they were last synced

    def close(self) -> None:
        with self._lock:
            descriptors, self._open = list(self._open.values()), {}
        for descriptor in descriptors:
            os.close(descriptor)

    # ---- reading

    def names(self) -> list[str] | None:
        """What is in the directory; None: there is none. Raises NotADirectoryError, LocalError."""
        try:
            # Threads that list one open directory take entries from each other: its position is common to them.
            own = os.open(".", _DIRECTORY, dir_fd=self._top())
            try:
                return os.listdir(own)  # noqa: PTH208 (of an open directory)
            finally:
                os.close(own)
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise
        except OSError as error:
            raise local_error("read", self.path, error) from error

    def read(self, name: str, limit: int) -> bytes | None:
        """A small file at the top; None: it is not there. Raises Refused (unsafe_path, bundle_invalid), LocalError."""
        found = self._opened(name, self._top, self.path / name)
        return None if found is None else _all_of(found, limit, self.path / name)

    def signature(self, name: str) -> tuple[int, ...] | None:
        """Changes when the file at the top is another one; None: it is not there."""
        try:
            found = os.stat(name, dir_fd=self._top(), follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _told("read", self.path / name, error) from error
        return found.st_ino, found.st_size, found.st_mtime_ns

    def blob_path(self, digest: Digest) -> Path:
        """For messages."""
        return self.path / "blobs" / digest.algorithm / digest.hex

    def blob_size(self, digest: Digest) -> int | None:
        """Bytes; None: it is not there. Raises Refused (unsafe_path), LocalError."""
        path = self.blob_path(digest)
        try:
            directory = self._directory(f"blobs/{digest.algorithm}")
            found = os.stat(digest.hex, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _told("read", path, error) from error
        _plain(found, path)
        return found.st_size

    def read_blob(self, digest: Digest, limit: int) -> bytes | None:
        """A manifest's bytes, not verified. Raises Refused (unsafe_path, bundle_invalid for more), LocalError."""
        found = self._opened_blob(digest)
        return None if found is None else _all_of(found, limit, self.blob_path(digest))

    def open_blob(self, digest: Digest, offset: int) -> FileReader | None:
        """The bytes from `offset` on; None: it is not there. Raises Refused (unsafe_path), LocalError."""
        found = self._opened_blob(digest)
        return None if found is None else FileReader(found, self.blob_path(digest), offset)

    def _opened_blob(self, digest: Digest) -> int | None:
        return self._opened(digest.hex, lambda: self._directory(f"blobs/{digest.algorithm}"), self.blob_path(digest))

    def _opened(self, name: str, directory: Callable[[], int], path: Path) -> int | None:
        """A plain file. directory: gives the open one that it is in."""
        try:
            descriptor = os.open(name, _READ, dir_fd=directory())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _told("read", path, error) from error
        try:
            _plain(os.fstat(descriptor), path)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _top(self) -> int:
        """A link to the directory itself is the operator's, and followed."""
        with self._lock:
            known = self._open.get("")
        return known if known is not None else self._keep("", os.open(self.path, _DIRECTORY))

    def _directory(self, name: str) -> int:
        """`blobs`, or one below it."""
        with self._lock:
            known = self._open.get(name)
        if known is not None:
            return known
        above, _, own = name.rpartition("/")
        parent = self._directory(above) if above else self._top()
        return self._keep(name, os.open(own, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent))

    def _keep(self, name: str, descriptor: int) -> int:
        with self._lock:
            kept = self._open.setdefault(name, descriptor)
        if kept != descriptor:
            os.close(descriptor)
        return kept

    # ---- writing: for who holds the lock

    def make(self) -> None:
        """The directory, with those above it. Raises LocalError."""
        try:
            missing = [part for part in (self.path, *self.path.parents) if not part.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            for part in missing:
                above = os.open(part.parent, _DIRECTORY)
                try:
                    os.fsync(above)
                finally:
                    os.close(above)
        except OSError as error:
            raise local_error("create the directory", self.path, error) from error

    def make_for(self, algorithm: str) -> None:
        """The directory of blobs with this digest algorithm. Raises Refused (unsafe_path), LocalError."""
        for name in ("blobs", f"blobs/{algorithm}"):
            above, _, own = name.rpartition("/")
            try:
                parent = self._directory(above) if above else self._top()
                with suppress(FileExistsError):
                    os.mkdir(own, dir_fd=parent)
                    with self._lock:
                        self._renamed.add(above)
                self._directory(name)
            except OSError as error:
                raise _told("create the directory", self.path / name, error) from error

    @contextmanager
    def write_blob(self, digest: Digest) -> Iterator[WholeFile]:
        """A new blob: there after the block, whole and on disk, but its name is sure only after `sync`.

        Raises LocalError; what the block raises, and then nothing is there."""
        name = f"blobs/{digest.algorithm}"
        with self._lock:
            known = name in self._open
        if not known:
            self.make_for(digest.algorithm)
        # The unfinished file is at the top, where the next run finds it without looking through all the blobs.
        with whole_file(self._top(), self.blob_path(digest), into=self._directory(name), mode=_MODE) as file:
            yield file
        with self._lock:
            self._renamed.add(name)

    def remove_blob(self, digest: Digest) -> None:
        """Remove a blob that nothing refers to; that it is not there is no error. Raises LocalError."""
        name = f"blobs/{digest.algorithm}"
        try:
            os.unlink(digest.hex, dir_fd=self._directory(name))
        except FileNotFoundError:
            return
        except OSError as error:
            raise _told("remove", self.blob_path(digest), error) from error
        with self._lock:
            self._renamed.add(name)

    def sync(self) -> None:
        """What was written has its name for good. Raises LocalError."""
        with self._lock:
            names, self._renamed = sorted(self._renamed, reverse=True), set()
        try:
            for name in names:
                sync_directory(self._directory(name) if name else self._top(), self.path / name)
        except BaseException:
            with self._lock:
                self._renamed.update(names)
            raise

    def replace(self, name: str, data: bytes) -> None:
        """A file at the top, whole, and on disk when this returns. Raises LocalError; then it is as it was."""
        top = self._top()
        with whole_file(top, self.path / name, mode=_MODE) as file:
            file.write(data)
        sync_directory(top, self.path)

    def take_over(self) -> None:
        """Remove what a killed run left unfinished; what it finished is counted as not synced. Raises LocalError."""
        sweep(self.path)
        for algorithm in ("sha256", "sha512"):
            with suppress(FileNotFoundError, NotADirectoryError):
                self._directory(f"blobs/{algorithm}")
        with self._lock:
            self._renamed |= self._open.keys()


def _all_of(descriptor: int, limit: int, path: Path) -> bytes:
    with FileReader(descriptor, path) as reader:
        if (reader.size or 0) > limit:
            raise Refused(f"{path} has {reader.size} bytes, more than {limit}", code="bundle_invalid")
        data = bytearray(reader.size or 0)
        view = memoryview(data)
        while reader.readinto(view[reader.position :]):
            pass
        view.release()
        return bytes(data)


def _plain(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _unsafe(path, "it is not a regular file")
    if found.st_nlink > 1:  # 0: another file has its name by now
        raise _unsafe(path, "it has a second name, by which others may change it")


def _told(doing: str, path: Path, error: OSError) -> Exception:
    if error.errno in _ODD:
        return _unsafe(path, "a link or something else that is no file or directory is in the way")
    return local_error(doing, path, error)


def _unsafe(path: Path, why: str) -> Refused:
    return Refused(
        f"{path} is not read: {why}",
        hint="a layout has plain files and directories only; copy it with `cp -rL`, if you trust it",
        code="unsafe_path",
    )
