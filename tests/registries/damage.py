"""Damage by broken disks and broken garbage collections, made directly in the storage of docker-registry."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path


class Damage:
    """The storage directory of a docker-registry. Works while the registry runs, because it caches nothing.

    A blob or manifest has one file for the whole host; a repository only has links to it."""

    storage: Path

    def repository_folder(self, repository: str) -> Path:
        return self.storage / "docker/registry/v2/repositories" / repository

    def blob_file(self, digest: str) -> Path:
        """Return the file of a blob or manifest."""
        algorithm, _, name = digest.partition(":")
        return self.storage / "docker/registry/v2/blobs" / algorithm / name[:2] / name / "data"

    def uploads(self, repository: str) -> list[str]:
        """Return the ids of upload sessions that were neither committed nor cancelled."""
        folder = self.repository_folder(repository) / "_uploads"
        return sorted(
            path.parent.name for path in folder.glob("*/startedat")
        )  # the directory remains after the session

    def drop_blob(self, repository: str, digest: str) -> Callable[[], None]:
        """Remove a blob from one repository. Return a function that restores it."""
        return self._take(self.repository_folder(repository) / "_layers" / _folder(digest))

    def drop_manifest(self, repository: str, digest: str) -> Callable[[], None]:
        """Remove a manifest from one repository; its tags stay. Return a function that restores it."""
        return self._take(self.repository_folder(repository) / "_manifests/revisions" / _folder(digest))

    def drop_tag(self, repository: str, tag: str) -> Callable[[], None]:
        """Remove a tag. Return a function that restores it."""
        return self._take(self.repository_folder(repository) / "_manifests/tags" / tag)

    def drop_bytes(self, digest: str) -> Callable[[], None]:
        """Remove the bytes for every repository; the links stay. Return a function that restores them."""
        return self._take(self.blob_file(digest).parent)

    def truncate_blob(self, digest: str, size: int = 0) -> None:
        """Keep only the first `size` bytes, for every repository."""
        with self.blob_file(digest).open("r+b") as data:
            data.truncate(size)

    def flip_byte(self, digest: str, offset: int = 0) -> None:
        """Change one byte, for every repository; negative offsets count from the end."""
        path = self.blob_file(digest)
        data = bytearray(path.read_bytes())
        data[offset] ^= 0xFF
        path.write_bytes(data)

    def wipe(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.storage / "docker", ignore_errors=True)

    def _take(self, path: Path) -> Callable[[], None]:
        kept = self.storage / "taken" / path.relative_to(self.storage)
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        path.rename(kept)

        def put_back() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept.rename(path)

        return put_back


def _folder(digest: str) -> str:
    return digest.replace(":", "/", 1)
