"""The files of a layout, accessed relative to open directories.

Nothing in the directory is trusted. Below the top, symbolic links are not followed. Anything but a regular file with
one name (a link, FIFO, device, socket, directory, or hard link) is refused, and opening it never blocks. Paths are
built from digests, never from the content of a file. Source: OCI image-spec v1.1, image-layout.md.
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
from mirror.util.files import NewFile, delete_leftovers, local_error, new_file, sync_directory

VERSION_FILE = "oci-layout"
INDEX_FILE = "index.json"

_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Errors of open() for a link, a socket, a device without a driver, or a path that is not a directory.
_NOT_PLAIN_ERRNOS = (errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.ENOTDIR)
_FILE_MODE = 0o644  # readable by all users: the user who imports a layout may not be the one who exported it


class LayoutFiles:
    """Reads and writes the files of one layout directory. Thread-safe.

    Directories that were opened stay open until `close` is called."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._directories: dict[str, int] = {}
        self._unsynced: set[str] = set()  # directories with entries that were added or removed since the last sync

    def close(self) -> None:
        """Close all open directories."""
        with self._lock:
            descriptors, self._directories = list(self._directories.values()), {}
        for descriptor in descriptors:
            os.close(descriptor)

    # ---- reading

    def list_names(self) -> list[str] | None:
        """Return the names of all entries at the top of the layout, or None if the directory does not exist.

        Raises NotADirectoryError, LocalError."""
        try:
            # Open the directory again: threads that list the same descriptor share its read position.
            descriptor = os.open(".", _DIRECTORY_FLAGS, dir_fd=self._top())
            try:
                return os.listdir(descriptor)  # noqa: PTH208 (of an open directory)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise
        except OSError as error:
            raise local_error("read", self.path, error) from error

    def read(self, name: str, limit: int) -> bytes | None:
        """Read a small file at the top of the layout; return None if it does not exist.

        limit: bytes. Raises Refused (unsafe_path if it is not a regular file; bundle_invalid if it is larger than
        `limit`), LocalError."""
        found = self._open_plain(name, self._top, self.path / name)
        return None if found is None else _read_all(found, limit, self.path / name)

    def signature(self, name: str) -> tuple[int, ...] | None:
        """Return a value that changes when the file `name` at the top of the layout is replaced.

        Return None if the file does not exist. Raises Refused (unsafe_path), LocalError."""
        try:
            found = os.stat(name, dir_fd=self._top(), follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _translate_error("read", self.path / name, error) from error
        return found.st_ino, found.st_size, found.st_mtime_ns

    def blob_path(self, digest: Digest) -> Path:
        """Return the path of a manifest or blob. Use it only in messages."""
        return self.path / "blobs" / digest.algorithm / digest.hex

    def blob_size(self, digest: Digest) -> int | None:
        """Return the size of a blob in bytes, or None if it does not exist.

        Raises Refused (unsafe_path), LocalError."""
        path = self.blob_path(digest)
        try:
            directory = self._directory(f"blobs/{digest.algorithm}")
            found = os.stat(digest.hex, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _translate_error("read", path, error) from error
        _check_plain(found, path)
        return found.st_size

    def read_blob(self, digest: Digest, limit: int) -> bytes | None:
        """Read a blob without verifying its digest; return None if the blob does not exist.

        limit: bytes. Raises Refused (unsafe_path if it is not a regular file; bundle_invalid if it is larger than
        `limit`), LocalError."""
        found = self._open_blob_file(digest)
        return None if found is None else _read_all(found, limit, self.blob_path(digest))

    def open_blob(self, digest: Digest, offset: int) -> FileReader | None:
        """Open a blob for reading from byte `offset`; return None if it does not exist.

        Raises Refused (unsafe_path), LocalError."""
        found = self._open_blob_file(digest)
        return None if found is None else FileReader(found, self.blob_path(digest), offset)

    def _open_blob_file(self, digest: Digest) -> int | None:
        """Open the file of a blob and return its descriptor, or None if it does not exist."""
        return self._open_plain(
            digest.hex, lambda: self._directory(f"blobs/{digest.algorithm}"), self.blob_path(digest)
        )

    def _open_plain(self, name: str, directory: Callable[[], int], path: Path) -> int | None:
        """Open a regular file and return its descriptor, or None if it does not exist.

        directory: returns the descriptor of the directory that contains the file."""
        try:
            descriptor = os.open(name, _READ_FLAGS, dir_fd=directory())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _translate_error("read", path, error) from error
        try:
            _check_plain(os.fstat(descriptor), path)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _top(self) -> int:
        """Return the descriptor of the layout's directory.

        If the path is a symbolic link, the link is followed, because the operator chose this path."""
        with self._lock:
            cached = self._directories.get("")
        return cached if cached is not None else self._remember("", os.open(self.path, _DIRECTORY_FLAGS))

    def _directory(self, name: str) -> int:
        """Return the descriptor of `blobs` or of a directory below it. Open the directory if it is not open yet."""
        with self._lock:
            cached = self._directories.get(name)
        if cached is not None:
            return cached
        parent_name, _, base_name = name.rpartition("/")
        parent = self._directory(parent_name) if parent_name else self._top()
        return self._remember(name, os.open(base_name, _DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=parent))

    def _remember(self, name: str, descriptor: int) -> int:
        """Store the descriptor of the open directory `name` for later calls, and return the stored descriptor.

        If another thread has already stored a descriptor for `name`, close `descriptor`."""
        with self._lock:
            stored = self._directories.setdefault(name, descriptor)
        if stored != descriptor:
            os.close(descriptor)
        return stored

    # ---- writing (the caller holds the lock on the layout)

    def create(self) -> None:
        """Create the directory of the layout and its missing parents, and sync them to disk. Raises LocalError."""
        try:
            missing = [part for part in (self.path, *self.path.parents) if not part.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            for part in missing:
                parent = os.open(part.parent, _DIRECTORY_FLAGS)
                try:
                    os.fsync(parent)
                finally:
                    os.close(parent)
        except OSError as error:
            raise local_error("create the directory", self.path, error) from error

    def create_blob_directory(self, algorithm: str) -> None:
        """Create the directory for blobs whose digests use `algorithm`. Raises Refused (unsafe_path), LocalError."""
        for name in ("blobs", f"blobs/{algorithm}"):
            parent_name, _, base_name = name.rpartition("/")
            try:
                parent = self._directory(parent_name) if parent_name else self._top()
                with suppress(FileExistsError):
                    os.mkdir(base_name, dir_fd=parent)
                    with self._lock:
                        self._unsynced.add(parent_name)
                self._directory(name)
            except OSError as error:
                raise _translate_error("create the directory", self.path / name, error) from error

    @contextmanager
    def write_blob(self, digest: Digest) -> Iterator[NewFile]:
        """Return a context manager that yields a file for the content of a new blob.

        When the `with` block exits, the bytes of the blob are on disk. The name of the file survives a power cut only
        after `sync` has been called. If the block raises an exception, no blob is created. Raises LocalError."""
        name = f"blobs/{digest.algorithm}"
        with self._lock:
            cached = name in self._directories
        if not cached:
            self.create_blob_directory(digest.algorithm)
        # The temporary file is at the top of the layout: the next run finds it there without listing all blobs.
        with new_file(self._top(), self.blob_path(digest), into=self._directory(name), mode=_FILE_MODE) as file:
            yield file
        with self._lock:
            self._unsynced.add(name)

    def remove_blob(self, digest: Digest) -> None:
        """Remove a blob to which nothing refers. Does nothing if the blob does not exist. Raises LocalError."""
        name = f"blobs/{digest.algorithm}"
        try:
            os.unlink(digest.hex, dir_fd=self._directory(name))
        except FileNotFoundError:
            return
        except OSError as error:
            raise _translate_error("remove", self.blob_path(digest), error) from error
        with self._lock:
            self._unsynced.add(name)

    def sync(self) -> None:
        """Sync the directories that have new or removed entries, so that these changes survive a power cut.

        Raises LocalError."""
        with self._lock:
            names, self._unsynced = sorted(self._unsynced, reverse=True), set()
        try:
            for name in names:
                sync_directory(self._directory(name) if name else self._top(), self.path / name)
        except BaseException:
            with self._lock:
                self._unsynced.update(names)
            raise

    def replace(self, name: str, data: bytes) -> None:
        """Replace a file at the top of the layout atomically, and sync it to disk.

        Raises LocalError; the file then has either its old or its new content."""
        top = self._top()
        with new_file(top, self.path / name, mode=_FILE_MODE) as file:
            file.write(data)
        sync_directory(top, self.path)

    def recover(self) -> None:
        """Remove the temporary files of killed runs. The next `sync` also syncs the blobs that those runs finished.

        Raises LocalError."""
        delete_leftovers(self.path)
        for algorithm in ("sha256", "sha512"):
            with suppress(FileNotFoundError, NotADirectoryError):
                self._directory(f"blobs/{algorithm}")
        with self._lock:
            self._unsynced |= self._directories.keys()


def _read_all(descriptor: int, limit: int, path: Path) -> bytes:
    """Read an open file to its end and close it. Raises Refused (bundle_invalid) if it is larger than `limit` bytes."""
    with FileReader(descriptor, path) as reader:
        if (reader.size or 0) > limit:
            raise Refused(f"{path} has {reader.size} bytes, but at most {limit} are allowed", code="bundle_invalid")
        data = bytearray(reader.size or 0)
        view = memoryview(data)
        while reader.readinto(view[reader.position :]):
            pass
        view.release()
        return bytes(data)


def _check_plain(found: os.stat_result, path: Path) -> None:
    """Raise Refused (unsafe_path) unless the file is a regular file without other hard links."""
    if not stat.S_ISREG(found.st_mode):
        raise _unsafe_path_error(path, "it is not a regular file")
    if found.st_nlink > 1:  # 0 means that another process has replaced or removed the file
        raise _unsafe_path_error(path, "it has several hard links, so it can be changed through another name")


def _translate_error(doing: str, path: Path, error: OSError) -> Exception:
    """Convert an OSError to Refused (unsafe_path) if the path contains a link or special file, otherwise to LocalError.

    doing: the operation that failed, such as `read`, for the message."""
    if error.errno in _NOT_PLAIN_ERRNOS:
        return _unsafe_path_error(
            path, "its path contains a symbolic link, a special file, or a regular file where a directory is expected"
        )
    return local_error(doing, path, error)


def _unsafe_path_error(path: Path, why: str) -> Refused:
    """Return the error for a path that must not be opened. why: the reason, as a clause."""
    return Refused(
        f"refused to open {path}: {why}",
        hint="a layout may contain only regular files and directories; if you trust this one, copy it with `cp -rL`",
        code="unsafe_path",
    )
