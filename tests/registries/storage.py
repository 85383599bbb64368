"""The content of the scripted registry: dictionaries that tests may read and change."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.support.images import Body, Graph


@dataclass(slots=True)
class Upload:
    """An upload session. state: changes with each response; only the newest Location is valid."""

    id: str
    repository: str
    data: bytearray = field(default_factory=bytearray)
    state: int = 0


@dataclass(slots=True)
class Repository:
    """blobs: digests that are linked in the repository. manifests: by digest. tags: name -> digest."""

    blobs: set[str] = field(default_factory=set)
    manifests: dict[str, Body] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class Storage:
    """Repositories, the bytes of blobs, and upload sessions. Hold `lock` while changing more than one thing."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.repositories: dict[str, Repository] = {}
        self.bytes: dict[str, bytes] = {}
        self.uploads: dict[str, Upload] = {}
        self._ids = itertools.count(1)

    def load(self, repository: str, graph: Graph) -> Repository:
        """Add the content of a graph, without a request."""
        with self.lock:
            home = self.repositories.setdefault(repository, Repository())
            self.bytes.update(graph.blobs)
            home.blobs.update(graph.blobs)
            home.manifests.update(graph.manifests)
            home.tags.update(graph.tags)
        return home

    def find(self, repository: str) -> Repository | None:
        return self.repositories.get(repository)

    def make(self, repository: str) -> Repository:
        return self.repositories.setdefault(repository, Repository())

    def blob(self, repository: str, digest: str) -> bytes | None:
        home = self.find(repository)
        return self.bytes.get(digest) if home and digest in home.blobs else None

    def add_blob(self, repository: str, digest: str, data: bytes) -> None:
        self.bytes[digest] = data
        self.make(repository).blobs.add(digest)

    def manifest(self, repository: str, reference: str) -> tuple[str, Body] | None:
        """Return digest and manifest."""
        home = self.find(repository)
        if not home:
            return None
        digest = reference if ":" in reference else home.tags.get(reference, "")
        body = home.manifests.get(digest)
        return (digest, body) if body else None

    def begin(self, repository: str) -> Upload:
        upload = Upload(f"session-{next(self._ids)}", repository)
        self.uploads[upload.id] = upload
        return upload

    def referrers(self, repository: str, digest: str) -> list[dict[str, Any]]:
        """Return the descriptors of the manifests whose subject is `digest`."""
        found = []
        home = self.find(repository)
        for own, body in (home.manifests if home else {}).items():
            document = json.loads(body.data)
            if (document.get("subject") or {}).get("digest") == digest:
                entry = {"mediaType": body.media_type, "digest": own, "size": len(body.data)}
                kind = document.get("artifactType") or (document.get("config") or {}).get("mediaType")
                entry |= {"artifactType": kind} if kind else {}
                entry |= {"annotations": document["annotations"]} if document.get("annotations") else {}
                found.append(entry)
        return found

    def is_referred_to(self, repository: str, blob: str) -> bool:
        """Whether a manifest of the repository refers to the blob."""
        home = self.find(repository)
        manifests = home.manifests.values() if home else ()
        return any(blob in named(json.loads(body.data))[1] for body in manifests)

    def lacking(self, repository: str, document: dict[str, Any]) -> list[str]:
        """Return the digests that a manifest refers to and the repository does not have; layers with urls may be
        missing."""
        home = self.make(repository)
        children, blobs = named(document)
        return [*(set(children) - set(home.manifests)), *(set(blobs) - home.blobs)]


def named(document: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the digests of the manifests and of the blobs that a manifest refers to."""
    children = [child["digest"] for child in document.get("manifests") or []]
    blobs: Iterable[dict[str, Any]] = [
        *([document["config"]] if "config" in document else []),
        *(document.get("layers") or []),
    ]
    old = [layer["blobSum"] for layer in document.get("fsLayers") or []]
    return children, [blob["digest"] for blob in blobs if not blob.get("urls")] + old


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """Return the digest of `data`. Raises ValueError for an algorithm that hashlib does not know."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
