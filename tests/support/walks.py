"""Independent walks of a target: registries by HTTP, layouts by their files, bundles by `tarfile`.

They share no code with the product. A walk starts at one tag of one repository and stays in it. Manifests are always
read and hashed; blobs are compared by size, or hashed.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from tests.registries.client import Client, sha256

REF_NAME = "org.opencontainers.image.ref.name"


class View(Protocol):
    """Access to the content of a store. None: it does not exist or cannot be read."""

    def tagged(self, repository: str, tag: str) -> bytes | None: ...
    def manifest(self, repository: str, digest: str) -> bytes | None: ...
    def size(self, repository: str, digest: str) -> int | None: ...
    def blob(self, repository: str, digest: str) -> bytes | None: ...


class RegistryView:
    def __init__(self, client: Client) -> None:
        self._client = client

    def tagged(self, repository: str, tag: str) -> bytes | None:
        return self.manifest(repository, tag)

    def manifest(self, repository: str, digest: str) -> bytes | None:
        response = self._client.manifest(repository, digest)
        return response.body if response.status == 200 else None

    def size(self, repository: str, digest: str) -> int | None:
        response = self._client.ask("HEAD", f"/v2/{repository}/blobs/{digest}", repository=repository)
        return int(response.headers["content-length"]) if response.status == 200 else None

    def blob(self, repository: str, digest: str) -> bytes | None:
        response = self._client.blob(repository, digest)
        return response.body if response.status == 200 else None


class FilesView:
    """An OCI image layout. files: name -> bytes; None if the file does not exist."""

    def __init__(self, files: Callable[[str], bytes | None]) -> None:
        self._files = files
        index = files("index.json")
        self._entries: list[dict[str, Any]] = json.loads(index)["manifests"] if index is not None else []

    def tags(self) -> dict[tuple[str, str], str]:
        """Return (repository, tag) -> digest."""
        names = [(entry.get("annotations", {}).get(REF_NAME, ""), entry["digest"]) for entry in self._entries]
        return {(name.rpartition(":")[0], name.rpartition(":")[2]): digest for name, digest in names if ":" in name}

    def tagged(self, repository: str, tag: str) -> bytes | None:
        for entry in self._entries:
            if entry.get("annotations", {}).get(REF_NAME) == f"{repository}:{tag}":
                body = self.manifest(repository, entry["digest"])
                return body if body is not None and len(body) == entry["size"] else None
        return None

    def manifest(self, repository: str, digest: str) -> bytes | None:
        return self.blob(repository, digest)

    def size(self, repository: str, digest: str) -> int | None:
        data = self.blob(repository, digest)
        return None if data is None else len(data)

    def blob(self, repository: str, digest: str) -> bytes | None:
        return self._files(f"blobs/{digest.replace(':', '/')}")


def layout_view(folder: Path) -> FilesView:
    def read(name: str) -> bytes | None:
        path = folder / name
        return path.read_bytes() if path.is_file() else None

    return FilesView(read)


def bundle_view(path: Path) -> FilesView:
    """Return the view of a bundle. A tar that cannot be read to its end has no content."""
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                members[member.name] = file.read() if file is not None else b""
    except (OSError, tarfile.TarError):
        members.clear()
    # tarfile accepts a truncation between two members as the end; the real end has two zero blocks.
    if not path.is_file() or path.read_bytes()[-1024:] != bytes(1024):
        members.clear()
    return FilesView(members.get)


def disk_view(path: Path) -> FilesView:
    """Return the view of a layout or a bundle."""
    return layout_view(path) if path.is_dir() else bundle_view(path)


class Walker:
    """Checks tags of one store. hashing: read and hash the blobs; otherwise compare their sizes."""

    def __init__(self, view: View, *, hashing: bool) -> None:
        self._view = view
        self._hashing = hashing
        self._blobs: dict[tuple[str, str, int], str] = {}

    def problems(self, repository: str, tag: str, want: str) -> list[str]:
        """Return the problems of an image; empty if it is complete. want: the digest that the tag should have."""
        root = self._view.tagged(repository, tag)
        if root is None:
            return [f"{repository}:{tag} is not there"]
        if sha256(root) != want:
            return [f"{repository}:{tag} is {sha256(root)}, not {want}"]
        return self._under(repository, root)

    def _under(self, repository: str, body: bytes) -> list[str]:
        document = json.loads(body)
        found: list[str] = []
        for child in document.get("manifests", []):
            below = self._view.manifest(repository, child["digest"])
            if below is None or len(below) != child["size"] or sha256(below) != child["digest"]:
                found.append(f"manifest {child['digest']} is {'missing' if below is None else 'wrong'}")
            else:
                found += self._under(repository, below)
        for blob in [document["config"], *document["layers"]] if "config" in document else []:
            key = (repository, blob["digest"], blob["size"])
            if key not in self._blobs:
                self._blobs[key] = self._blob(*key)
            found += [self._blobs[key]] if self._blobs[key] else []
        return found

    def _blob(self, repository: str, digest: str, size: int) -> str:
        """Return the problem of a blob; empty if there is none."""
        there = self._view.size(repository, digest)
        if there is None:
            return f"blob {digest} is missing"
        if there != size:
            return f"blob {digest} has {there} bytes, not {size}"
        data = self._view.blob(repository, digest) if self._hashing else None
        if self._hashing and (data is None or sha256(data) != digest):
            return f"blob {digest} has other bytes"
        return ""
