"""What broken disks and broken garbage collections do to a registry: straight in the storage of docker-registry."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path


class Damage:
    """The storage directory of a docker-registry, to look into and to damage. Works while it runs: it caches nothing.

    Blobs and manifests have one file for the whole host; a repository only has links to them."""

    storage: Path

    def repository_folder(self, repository: str) -> Path:
        return self.storage / "docker/registry/v2/repositories" / repository

    def blob_file(self, digest: str) -> Path:
        """Where the bytes of a blob or manifest are."""
        algorithm, _, name = digest.partition(":")
        return self.storage / "docker/registry/v2/blobs" / algorithm / name[:2] / name / "data"

    def uploads(self, repository: str) -> list[str]:
        """Ids of upload sessions that were neither committed nor cancelled."""
        folder = self.repository_folder(repository) / "_uploads"
        return sorted(path.parent.name for path in folder.glob("*/startedat"))  # its folder outlives a session

    def drop_blob(self, repository: str, digest: str) -> Callable[[], None]:
        """Take a blob out of one repository. -> puts it back"""
        return self._take(self.repository_folder(repository) / "_layers" / _folder(digest))

    def drop_manifest(self, repository: str, digest: str) -> Callable[[], None]:
        """Take a manifest out of one repository; tags that name it stay. -> puts it back"""
        return self._take(self.repository_folder(repository) / "_manifests/revisions" / _folder(digest))

    def drop_tag(self, repository: str, tag: str) -> Callable[[], None]:
        """-> puts it back"""
        return self._take(self.repository_folder(repository) / "_manifests/tags" / tag)

    def drop_bytes(self, digest: str) -> Callable[[], None]:
        """Lose the bytes for every repository; the links stay. -> puts them back"""
        return self._take(self.blob_file(digest).parent)

    def truncate_blob(self, digest: str, size: int = 0) -> None:
        """Leave the first `size` bytes, for every repository that has it."""
        with self.blob_file(digest).open("r+b") as data:
            data.truncate(size)

    def flip_byte(self, digest: str, offset: int = 0) -> None:
        """Change one byte, for every repository that has it; negative offsets count from the end."""
        path = self.blob_file(digest)
        data = bytearray(path.read_bytes())
        data[offset] ^= 0xFF
        path.write_bytes(data)

    def wipe(self) -> None:
        """Forget everything."""
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
