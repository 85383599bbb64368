"""An independent check of what a registry holds. It shares no code with the product and trusts no report.

Its invariants: I1, no tag leads to a missing, truncated or wrong object. I2, each tag has its old digest or one that
the source had. I3, nothing that existed before is lost. I4, all bytes are the source's.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.registries.client import Client, Registry, sha256

_FOREIGN = ("nondistributable", "foreign.diff")

Tag = tuple[str, str]  # repository, tag


@dataclass(slots=True)
class Walk:
    """Everything below one manifest. objects: digests of the manifests and blobs that exist and are intact."""

    digest: str | None = None
    objects: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Snapshot:
    """Everything that a registry has below its tags. objects: (repository, digest) of intact objects."""

    tags: dict[Tag, str] = field(default_factory=dict)
    objects: set[tuple[str, str]] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def walk_tag(registry: Registry, repository: str, tag: str) -> Walk:
    """Read and hash everything below a tag. A missing tag has the digest None and one problem."""
    with registry.client() as client:
        return _Walker(client, repository).walk(tag)


def snapshot(registry: Registry, repositories: Iterable[str] | None = None) -> Snapshot:
    """Walk every tag of every repository (of the catalog, or of those named)."""
    taken = Snapshot()
    with registry.client() as client:
        for repository in client.repositories() if repositories is None else repositories:
            walker = _Walker(client, repository)
            for tag in client.tags(repository):
                walk = walker.walk(tag)
                if walk.digest:
                    taken.tags[repository, tag] = walk.digest
                taken.objects |= {(repository, digest) for digest in walk.objects}
                taken.problems += walk.problems
    return taken


def assert_whole(registry: Registry, repositories: Iterable[str] | None = None) -> Snapshot:
    """Check I1. Return the snapshot."""
    taken = snapshot(registry, repositories)
    assert not taken.problems, f"{registry.name}: {taken.problems[:10]}"
    return taken


def assert_equal(
    source: Registry,
    repository: str,
    target: Registry,
    target_repository: str | None = None,
    *,
    tags: Iterable[str] | None = None,
) -> None:
    """Check that each tag of the source (or of those named) is on the target with the same bytes (I4) and complete
    (I1)."""
    there = target_repository or repository
    with source.client() as ours, target.client() as theirs:
        wanted = list(ours.tags(repository) if tags is None else tags)
        assert wanted, f"{source.name}/{repository} has no tags to compare"
        walker = _Walker(theirs, there)
        for tag in wanted:
            want, got = ours.manifest(repository, tag), theirs.manifest(there, tag)
            name = f"{target.name}/{there}:{tag}"
            assert want.status == 200, f"{source.name}/{repository}:{tag} is {want.status}"
            assert got.status == 200, f"{name} is {got.status}"
            ours_is, theirs_is = _identity(want.body), _identity(got.body)
            assert ours_is == theirs_is, f"{name} is {sha256(theirs_is)}, the source has {sha256(ours_is)}"
            assert want.headers["content-type"] == got.headers["content-type"], f"{name} has another type"
            walk = walker.walk(tag)
            assert not walk.problems, f"{name}: {walk.problems[:10]}"


def assert_invariants(
    before: Snapshot,
    after: Snapshot,
    sources: Mapping[Tag, Iterable[str]] | None = None,
    source: Snapshot | None = None,
) -> None:
    """Check I1 to I4 between two snapshots of a target.

    sources: for each tag of the target, the digests that the source had during the run; or `source`: its snapshot, if
    the repositories have equal names. Objects that the run added must be among the source's (if `source` is given)."""
    allowed: dict[Tag, set[str]] = {tag: set(digests) for tag, digests in (sources or {}).items()}
    if source:
        for tag, digest in source.tags.items():
            allowed.setdefault(tag, set()).add(digest)
    assert not after.problems, f"I1: {after.problems[:10]}"
    for tag, digest in after.tags.items():
        old = before.tags.get(tag)
        may = {old, *allowed.get(tag, ())}
        assert digest in may, f"I2: {tag} is {digest}, neither the old one nor one of the source"
    gone = sorted(set(before.tags) - set(after.tags))
    assert not gone, f"I3: tags are gone: {gone[:10]}"
    if source:
        known = {digest for _, digest in source.objects | before.objects}
        strange = sorted(digest for _, digest in after.objects if digest not in known)
        assert not strange, f"I4: not the source's: {strange[:10]}"


class _Walker:
    """Walks manifests of one repository. What was found intact is not read again."""

    def __init__(self, client: Client, repository: str) -> None:
        self._client, self._repository = client, repository
        self._right: dict[str, set[str]] = {}  # digest of a manifest -> the digests below it, including itself

    def walk(self, reference: str) -> Walk:
        walk = Walk()
        response = self._client.manifest(self._repository, reference)
        if response.status != 200:
            walk.problems.append(f"{self._repository}:{reference} is {response.status}")
            return walk
        walk.digest = sha256(_identity(response.body))
        said = response.headers.get("docker-content-digest")
        if said not in (None, walk.digest):
            walk.problems.append(f"{self._repository}:{reference} is said to be {said}, its bytes are {walk.digest}")
        self._manifest(walk, walk.digest, response.body)
        return walk

    def _manifest(self, walk: Walk, digest: str, body: bytes) -> None:
        if digest in walk.objects:
            return
        if digest in self._right:
            walk.objects |= self._right[digest]
            return
        problems = len(walk.problems)
        under = Walk(objects={digest})
        document = json.loads(body)
        for child in document.get("manifests") or []:
            self._child(under, child)
        for blob in _blobs(document):
            self._blob(under, blob)
        walk.objects |= under.objects
        walk.problems += under.problems
        if len(walk.problems) == problems:
            self._right[digest] = under.objects

    def _child(self, walk: Walk, child: dict[str, Any]) -> None:
        digest, name = child["digest"], f"{self._repository}@{child['digest']}"
        response = self._client.manifest(self._repository, digest)
        if response.status != 200:
            walk.problems.append(f"manifest {name} is {response.status}")
        elif sha256(response.body) != digest or len(response.body) != child["size"]:
            walk.problems.append(f"manifest {name} has other bytes")
        else:
            self._manifest(walk, digest, response.body)

    def _blob(self, walk: Walk, blob: dict[str, Any]) -> None:
        digest, name = blob["digest"], f"{self._repository}@{blob['digest']}"
        if digest in walk.objects:
            return
        if digest in self._right:
            walk.objects.add(digest)
            return
        response = self._client.blob(self._repository, digest)
        if response.status != 200:
            walk.problems.append(f"blob {name} is {response.status}")
        elif sha256(response.body) != digest or blob.get("size", len(response.body)) != len(response.body):
            walk.problems.append(f"blob {name} has other bytes")
        else:
            walk.objects.add(digest)
            self._right[digest] = {digest}


def _blobs(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the blobs of a manifest, without foreign layers."""
    if document.get("schemaVersion") == 1:
        return [{"digest": layer["blobSum"]} for layer in document["fsLayers"]]
    named = [document["config"]] if "config" in document else []
    named += document.get("layers") or document.get("blobs") or []
    return [blob for blob in named if not any(word in blob.get("mediaType", "") for word in _FOREIGN)]


def _identity(body: bytes) -> bytes:
    """Return the bytes that identify a manifest: docker-registry signs schema 1 anew for every request."""
    signed = _schema1_payload(body)
    return body if signed is None else signed


def _schema1_payload(body: bytes) -> bytes | None:
    """Return the signed bytes of a schema 1 manifest, whose digest is the manifest's; None for other manifests."""
    document = json.loads(body)
    if document.get("schemaVersion") != 1 or not document.get("signatures"):
        return None
    protected = json.loads(_decode(document["signatures"][0]["protected"]))
    return body[: protected["formatLength"]] + _decode(protected["formatTail"])


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


# ---- skopeo, the second opinion


def skopeo(*arguments: str, timeout: float = 120) -> str:
    """Run skopeo in a clean environment; return its output. Raises AssertionError with its messages."""
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin", "HOME": "/nonexistent"}
    command = ["skopeo", "--insecure-policy", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    assert run.returncode == 0, f"{' '.join(command)}: {run.stderr[-1500:]}"
    return run.stdout


def skopeo_copy_to_dir(
    registry: Registry,
    repository: str,
    tag: str,
    folder: Path,
    *,
    credentials: str = "",
    certificates: Path | None = None,
) -> Path:
    """Run `skopeo copy --all` of an image to a directory, which reads and verifies everything. credentials:
    `user:password`.

    certificates: a directory with the CA's `.crt`; without it TLS is not verified."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--src-cert-dir", str(certificates)] if certificates else ["--src-tls-verify=false"]
    options += ["--src-creds", credentials] if credentials else []
    skopeo("copy", "--all", *options, f"docker://{registry.host}/{repository}:{tag}", f"dir:{folder}")
    return folder


def skopeo_digest(registry: Registry, repository: str, tag: str) -> str:
    """Return the digest of the bytes that skopeo gets for a tag."""
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{registry.host}/{repository}:{tag}")
    return sha256(raw.encode())
